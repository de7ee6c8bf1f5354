"""Which response is the aggregate. Pure apart from the grader that decides equivalence."""

from __future__ import annotations

from collections.abc import Sequence

from data.answers.clusters import clusters
from data.answers.equivalence import Kind
from data.answers.grader import Grader


def vote(answers: Sequence[str | None], mean_logprobs: Sequence[float], kind: Kind, grader: Grader) -> int:
    """Index of the response kept by a majority vote over mathematically equivalent answers.

    Responses without an answer have no vote. Among equally large clusters the one whose best response has the highest
    mean token log-probability wins; so does, within the winning cluster, that response; remaining ties go to
    the earlier position. With no answer at all, the last response is kept (and score drops it: no answer).
    """
    groups = clusters(answers, kind, grader)
    if not groups:
        return len(answers) - 1
    largest = max(len(group) for group in groups)
    candidates = [index for group in groups if len(group) == largest for index in group]
    return max(candidates, key=lambda index: (mean_logprobs[index], -index))


def synthesiser(peers: Sequence[str], number: int, round_: int) -> str:
    """The peer that writes the synthesis of question `number`: in rotation."""
    return peers[(number + round_) % len(peers)]
