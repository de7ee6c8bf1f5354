"""Votes: which answers count, and a vote of several raters, each weighted by its self-consistency.

Pure apart from the grader that decides which answers are equivalent. Nothing here knows a right answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from data.answers.clusters import clusters
from data.answers.grader import Grader
from data.answers.kinds import AnswerKindName

MIN_SHARE, MAX_SHARE = 0.05, 0.95  # shares are clipped to these, since the logit is unbounded
MIN_LOG_ODDS = 0.05  # a rater that agrees with itself in less than half of its samples still breaks a tie

Answers = Sequence[str | None]  # a rater's answers to one question; None where a response has none


def voting_answer(answer: str | None, finish_reason: str) -> str | None:
    """The answer with which a response votes; None for a response that was cut off at the limit."""
    return answer if finish_reason == "stop" else None


def consistency(questions: Sequence[Answers], kind: AnswerKindName, grader: Grader) -> float:
    """Mean share, over questions, of the largest cluster among all of a rater's responses: 0 to 1.

    A response without an answer agrees with nothing. Raises ValueError without questions.
    """
    if not questions:
        raise ValueError("consistency of no questions")
    largest = [weighted_vote(answers, [1.0] * len(answers), kind, grader)[0] for answers in questions]
    return fmean(len(found) / len(answers) for found, answers in zip(largest, questions, strict=True))


def reliability(share: float) -> float:
    """Weight of a rater's vote by its consistency: the logit of the share within [0.05, 0.95], at least 0.05."""
    share = min(MAX_SHARE, max(MIN_SHARE, share))
    return max(MIN_LOG_ODDS, math.log(share / (1 - share)))


def weighted_vote(
    answers: Answers, weights: Sequence[float], kind: AnswerKindName, grader: Grader
) -> tuple[list[int], float]:
    """(indices of the winning cluster in ascending order, its share of the weight of all answers: 0 to 1).

    The cluster with the largest sum of weights wins, ties going to the one whose first answer comes first; None votes
    for nothing. Without any answer: ([], 0.0). Raises ValueError if there are not as many weights as answers, or for a
    weight that is not positive and finite.
    """
    if len(answers) != len(weights) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"{len(answers)} answers need as many positive weights, found {list(weights)}")
    # fsum: equal weights in any order have the same sum, so that ties are exact
    sums = [(math.fsum(weights[i] for i in found), found) for found in clusters(answers, kind, grader)]
    if not sums:
        return [], 0.0
    best, winner = min(sums, key=lambda each: (-each[0], each[1][0]))
    return winner, best / math.fsum(total for total, _ in sums)
