"""Which response becomes the aggregate: one small class per rule.

A rule groups the responses to a question, and picks one of each group. To add a rule: write a class here, name it in
AGGREGATES, and add it to the config's key and its description. Pure except for the grader that decides equivalence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from data.answers.clusters import clusters
from data.answers.grader import Grader
from data.answers.kinds import AnswerKindName
from data.answers.votes import voting_answer
from data.finite import check_finite
from data.schema import ChainRow


class Aggregate(Protocol):
    """A rule. If it `votes`, the answers to all questions of a shard are compared in one go before it picks."""

    votes: bool

    def groups(self, rows: list[ChainRow]) -> list[list[ChainRow]]:
        """The responses to a question in groups, in the order of `rows`; one of each group becomes an aggregate."""
        ...

    def pick(self, group: list[ChainRow], kind: AnswerKindName, grader: Grader) -> ChainRow:
        """The response of a group that becomes an aggregate."""
        ...


class LastResponse:
    """The chain's last response, or the synthesis, as the paper's abstract describes it."""

    votes = False

    def groups(self, rows: list[ChainRow]) -> list[list[ChainRow]]:
        """See `Aggregate.groups`."""
        return [in_chain(rows)]

    def pick(self, group: list[ChainRow], kind: AnswerKindName, grader: Grader) -> ChainRow:
        """See `Aggregate.pick`."""
        return group[-1]


class ChainVote(LastResponse):
    """The most frequent of the chain's answers."""

    votes = True

    def pick(self, group: list[ChainRow], kind: AnswerKindName, grader: Grader) -> ChainRow:
        """See `Aggregate.pick`."""
        means = [None if (sum_ := row["logprob"]) is None else sum_ / max(1, row["n_tokens"]) for row in group]
        return group[vote(voting(group), means, kind, grader)]


class OwnResponse(LastResponse):
    """Each peer's own response (a control without peers)."""

    def groups(self, rows: list[ChainRow]) -> list[list[ChainRow]]:
        """See `Aggregate.groups`."""
        return by_peer(rows)


AGGREGATES: dict[str, Aggregate] = {  # by generate.aggregate
    "last": LastResponse(),
    "synthesis": LastResponse(),
    "vote": ChainVote(),
    "self": OwnResponse(),
}


def in_chain(rows: list[ChainRow]) -> list[ChainRow]:
    """The responses that are part of the chain."""
    return [row for row in rows if row["role"] in ("chain", "synthesis")]


def by_peer(rows: list[ChainRow]) -> list[list[ChainRow]]:
    """The responses, grouped by peer."""
    return [[row for row in rows if row["peer"] == peer] for peer in dict.fromkeys(row["peer"] for row in rows)]


def voting(rows: list[ChainRow]) -> list[str | None]:
    """The answers as votes; None for an unfinished response, which score would drop if it won."""
    return [voting_answer(row["answer"], row["finish_reason"]) for row in rows]


def vote(
    answers: Sequence[str | None], mean_logprobs: Sequence[float | None], kind: AnswerKindName, grader: Grader
) -> int:
    """Index of the response that a majority vote over equivalent answers keeps.

    Responses without an answer do not vote. Among equally large clusters, the one whose best response has the highest
    mean token log-probability wins, and that response is kept; remaining ties go to the earlier position. A response
    whose log-probability is unknown (None) loses every tie to one whose log-probability is known. If nobody states an
    answer, the last response is kept (and score drops it). Raises ValueError for a log-probability that is not finite.
    """
    check_finite("mean log-probability", (mean for mean in mean_logprobs if mean is not None))
    groups = clusters(answers, kind, grader)
    if not groups:
        return len(answers) - 1
    largest = max(len(group) for group in groups)
    candidates = [index for group in groups if len(group) == largest for index in group]

    def rank(index: int) -> tuple[bool, float, int]:
        mean = mean_logprobs[index]
        return mean is not None, mean or 0.0, -index

    return max(candidates, key=rank)
