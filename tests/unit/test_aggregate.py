"""Which response is the aggregate: votes, ties, the rotation of the synthesiser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import pytest

from data.answers.grader import Grader
from data.schema import ChainRow
from generate.aggregate import ChainVote, vote
from generate.asking import synthesiser


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(timeout_seconds=5.0, workers=1) as shared:
        yield shared


@pytest.mark.parametrize(
    ("answers", "mean_logprobs", "winner"),
    [
        # {1/2, 0.5} are two votes against one, though 3 is the most probable response
        (["1/2", "3", "0.5"], [-1.0, -0.1, -2.0], 0),
        (["1/2", "3", "0.5"], [-2.0, -0.1, -1.0], 2),
        # one vote each: the larger mean log-probability
        (["3", "4"], [-0.5, -0.4], 1),
        (["3", "4"], [-0.4, -0.5], 0),
        # two clusters of two, {0, 3} and {1, 2}: the best single response decides, not the cluster's mean
        (["1", "2", "2", "1"], [-9.0, -0.3, -0.3, -0.2], 3),
        # a third answer, however probable, has fewer votes
        (["1", "2", "2", "1", "7"], [-0.5, -0.3, -0.6, -0.4, -0.01], 1),
        # all equal: the earlier position
        (["5", "6", "7"], [-1.0, -1.0, -1.0], 0),
        (["6", "5", "5.0"], [-1.0, -1.0, -1.0], 1),
        # no answer, no vote: two silent responses do not outvote one
        ([None, "7", None], [-0.1, -9.0, -0.1], 1),
        # nobody answers: the last response
        ([None, None, None], [-0.1, -0.2, -0.3], 2),
        ([None], [-1.0], 0),
    ],
)
def test_the_most_frequent_answer_wins_and_ties_go_by_log_probability(
    answers: list[str | None], mean_logprobs: list[float], winner: int, grader: Grader
) -> None:
    assert vote(answers, mean_logprobs, "math", grader) == winner


def test_vote_compares_as_it_is_told(grader: Grader) -> None:
    # as numbers, 1.00005 and 1 are within 1e-4 and have two votes; as mathematics they differ
    answers, mean_logprobs = ["8", "1.00005", "1"], [-0.1, -3.0, -2.0]
    assert vote(answers, mean_logprobs, "numbers", grader) == 2
    assert vote(answers, mean_logprobs, "math", grader) == 0


def test_an_answer_that_was_cut_off_has_no_vote(grader: Grader) -> None:
    def row(answer: str, finish_reason: str) -> ChainRow:
        found: dict[str, Any] = {"answer": answer, "finish_reason": finish_reason, "logprob": -1.0, "n_tokens": 2}
        return cast(ChainRow, found)

    group = [row("1", "length"), row("1", "length"), row("2", "stop")]
    assert ChainVote().pick(group, "math", grader) is group[2]


def test_synthesiser_rotates_over_questions_and_rounds() -> None:
    peers = ["a", "b", "c"]
    # peers[(number + round) mod 3]
    assert [synthesiser(peers, number, 1) for number in range(4)] == ["b", "c", "a", "b"]
    assert [synthesiser(peers, 5, round_) for round_ in range(3)] == ["c", "a", "b"]
    assert set(Counter(synthesiser(peers, number, 2) for number in range(30)).values()) == {10}
