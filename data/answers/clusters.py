"""Which answers to a question agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

from data.answers.grader import Grader
from data.answers.kinds import AnswerKindName


def compare_all(groups: Iterable[Sequence[str | None]], kind: AnswerKindName, grader: Grader) -> None:
    """Compare all pairs within each group in one batch, which keeps all of the grader's workers busy. The grader
    remembers the verdicts for later calls of `clusters`."""
    distinct = (dict.fromkeys(answer for answer in answers if answer is not None) for answers in groups)
    grader.equivalent([pair for answers in distinct for pair in combinations(answers, 2)], kind)


def clusters(answers: Sequence[str | None], kind: AnswerKindName, grader: Grader) -> list[list[int]]:
    """Indices of equivalent answers: largest cluster first, ties by earliest index; None is in no cluster.

    Greedy: an answer joins the first cluster whose first member it equals; an undecided pair counts as different.
    """
    left = [index for index, answer in enumerate(answers) if answer is not None]
    found: list[list[int]] = []
    while left:
        first = answers[left[0]]
        same = grader.equivalent([(str(first), str(answers[index])) for index in left[1:]], kind)
        found.append([left[0], *(index for index, equal in zip(left[1:], same, strict=True) if equal)])
        left = [index for index, equal in zip(left[1:], same, strict=True) if not equal]
    return sorted(found, key=lambda cluster: (-len(cluster), cluster[0]))


def entropy(sizes: Sequence[int]) -> float:
    """-Σ p ln p over clusters of answers with shares p = size / Σ sizes, in nats; 0 for one cluster or none."""
    total = sum(sizes)
    return sum(size / total * math.log(total / size) for size in sizes if size)
