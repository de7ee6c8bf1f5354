"""The weighted vote and the reliability of its raters (data/answers/votes.py)."""

from __future__ import annotations

import math

import pytest

from data.answers.grader import Grader
from data.answers.votes import consistency, reliability, weighted_vote


def test_a_weighted_vote_goes_by_equivalence_and_ignores_rounding() -> None:
    with Grader() as grader:
        assert weighted_vote(["1", "2", "2.0", None], [1, 1, 1, 9], "numbers", grader) == ([1, 2], 2 / 3)
        assert weighted_vote(["1", "2", "2"], [3, 1, 1], "numbers", grader) == ([0], 3 / 5)
        assert weighted_vote([None, None], [1, 1], "numbers", grader) == ([], 0.0)
        assert weighted_vote([], [], "numbers", grader) == ([], 0.0)
        assert weighted_vote(["1/2", "0.5", "3"], [0.4, 0.4, 0.7], "numbers", grader)[0] == [0, 1], "by equivalence"
        # 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in the last bit: still a tie, which the earlier answer wins
        assert weighted_vote(["5", "7"] * 3, [0.1, 0.3, 0.2, 0.2, 0.3, 0.1], "numbers", grader) == ([0, 2, 4], 0.5)
        for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.inf], [1.0, math.nan]):
            with pytest.raises(ValueError, match="positive weights"):
                weighted_vote(["1", "2"], weights, "numbers", grader)


def test_a_raters_reliability_follows_from_how_often_its_answers_agree() -> None:
    with Grader() as grader:
        steady, wild = [["3", "3", "3", "3"]], [["1", "2", "3", None]]
        assert consistency(wild, "numbers", grader) == pytest.approx(1 / 4), "no answer agrees with none"
        assert consistency([*steady, [None, None]], "numbers", grader) == 0.5
        shares = [consistency(each, "numbers", grader) for each in (steady, wild, [["1", "1", "1", "2"]])]
        assert [reliability(share) for share in shares] == pytest.approx([math.log(19), 0.05, math.log(3)])
        assert reliability(0.0) == 0.05
        with pytest.raises(ValueError, match="no questions"):
            consistency([], "numbers", grader)
