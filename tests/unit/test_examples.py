"""Label × text: which answer counts, which texts are trained on, and which response is measured with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from pydantic import ValidationError

from data.answers.grader import Grader
from data.config.sections import ScoreSection
from data.schema import ChainRow
from score.chains import Chain
from score.examples import ExampleChooser, ExampleRow
from score.label import Votes
from score.weights import round_weights

SOLUTION: dict[str, Any] = {"label": "sample-vote", "text": "solution"}


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(timeout_seconds=5.0, workers=1) as shared:
        yield shared


def row(peer: str, answer: str | None, role: str = "sample", **changes: Any) -> ChainRow:
    """A response of its own words to the question alone, finished unless told otherwise."""
    found: dict[str, Any] = {
        "prompt_id": "q", "question": "?", "peer": peer, "role": role, "position": None, "sample": None,
        "is_aggregate": False, "response": f"{peer} says {answer}", "answer": answer, "finish_reason": "stop",
        "n_tokens": 3, "logprob": -1.0,
    }  # fmt: skip
    return cast(ChainRow, found | changes)


def chosen(
    rows: list[ChainRow], grader: Grader, votes: Votes | None = None, **section: Any
) -> dict[str, list[ExampleRow]]:
    """{peer: its examples} of one question to two peers, a and b."""
    choosing = ExampleChooser(ScoreSection(**section), ("a", "b"), votes or Votes(), "17/1")
    found: dict[str, list[ExampleRow]] = {"a": [], "b": []}
    for example in choosing.examples([Chain(rows)], grader):
        found[example["peer"]].append(example)
    return found


# places 0 to 5: a says 1, 1/1 and 2; b says 2, 2.0 and 3
VOTE = [row("a", "1"), row("a", "1/1"), row("a", "2"), row("b", "2"), row("b", "2.0"), row("b", "3")]


def test_all_samples_vote_by_equivalence_and_each_peer_takes_its_own_words_first(grader: Grader) -> None:
    found = chosen(VOTE, grader, **SOLUTION, weighting="uniform")
    mine, theirs = found["a"][0], found["b"][0]
    assert (mine["label"], mine["label_share"], mine["trained"]) == ("2", 0.5, 2)
    assert theirs["label"] == "2" and theirs["trained"] in (3, 4)
    assert mine["measured"] is None and mine["agrees"] and mine["factor"] == 1  # nothing is weighed by a PMI
    seeds = [ExampleChooser(ScoreSection(**SOLUTION), ("a", "b"), Votes(), f"{seed}/1") for seed in range(9)]
    assert {choosing.of(Chain(VOTE), grader)[1]["trained"] for choosing in seeds} == {3, 4}


def test_votes_count_as_much_as_their_author_is_reliable(grader: Grader) -> None:
    heavy = chosen(VOTE, grader, Votes(of_rater={"a": 3.0, "b": 1.0}), **SOLUTION)
    assert (heavy["a"][0]["label"], heavy["a"][0]["label_share"]) == ("1", 0.5)  # 6 of 12; 2 has 3 + 2
    # of b's own samples none says so: it takes another's
    assert heavy["b"][0]["trained"] in (0, 1)
    by_response = chosen(VOTE, grader, Votes(of_response={("q", 5): 9.0}), **SOLUTION)
    assert by_response["a"][0]["label"] == "3" and by_response["a"][0]["trained"] == 5


def test_own_solutions_alone(grader: Grader) -> None:
    found = chosen(VOTE, grader, Votes(of_rater={"a": 3.0}), label="sample-vote", text="own-solution")
    assert found["a"][0]["trained"] in (0, 1) and found["a"][0]["drop_reason"] is None
    assert found["b"][0]["trained"] is None and found["b"][0]["drop_reason"] == "no_solution"


def test_several_solutions_share_the_weight_of_their_question(grader: Grader) -> None:
    rows = [*VOTE[:5], row("b", "2", response="b says 2.0 in other words"), row("b", "2", response="b says 2")]
    found = chosen(rows, grader, **SOLUTION, solutions=3, weighting="uniform")["b"]
    assert [example["number"] for example in found] == [1, 2, 3]
    assert [example["trained"] for example in found] == [3, 4, 5]  # the last one has the words of the first
    assert [example["factor"] for example in found] == [pytest.approx(1 / 3)] * 3
    factors = [example["factor"] for example in found] + [1.0]
    weights = round_weights([float("nan")] * 4, [1] * 4, [0.0] * 4, factors, ScoreSection(**SOLUTION), 0)
    assert weights == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])  # a mean of 1, as the question's, over the examples


def test_why_there_is_no_label(grader: Grader) -> None:
    split = [row("a", "1"), row("a", "2"), row("b", "3"), row("b", "4")]
    small = chosen(split, grader, Votes(least_share=0.5), **SOLUTION)["a"][0]
    assert (small["drop_reason"], small["label"], small["label_share"]) == ("label_share_too_small", None, 0.25)
    silent = [row(peer, None) for peer in "aabb"]
    assert chosen(silent, grader, **SOLUTION)["b"][0]["drop_reason"] == "label_no_votes"
    cut = [row("a", "1", finish_reason="length"), row("a", "1", finish_reason="length"), row("b", "2"), row("b", "3")]
    assert chosen(cut, grader, **SOLUTION)["a"][0]["label"] == "2"  # what was cut off has no vote


def test_an_own_majority_and_a_teacher(grader: Grader) -> None:
    own = chosen(VOTE, grader, label="own-vote", text="solution", weighting="uniform")
    assert [own[peer][0]["label"] for peer in "ab"] == ["1", "2"]
    taught = chosen(VOTE, grader, Votes("b"), label="teacher-vote", text="teacher-solution", weighting="uniform")
    assert taught["a"][0]["label"] == "2" and taught["a"][0]["trained"] in (3, 4)
    assert taught["b"][0]["drop_reason"] == "is_teacher"
    plain = chosen(VOTE, grader, Votes("b"), label="none", text="teacher-solution", weighting="uniform")
    assert plain["a"][0]["label"] is None and plain["a"][0]["trained"] in (3, 4, 5)


def test_signed_weights_are_agreement_less_the_mean_of_the_question(grader: Grader) -> None:
    rows = [*VOTE[:3], row("a", "1", finish_reason="length"), *VOTE[3:]]
    found = chosen(rows, grader, label="own-vote", text="samples", weighting="signed")["a"]
    assert [example["trained"] for example in found] == [0, 1, 2]  # one that was cut off counts in the mean alone
    assert [example["factor"] for example in found] == [0.5, 0.5, -0.5]
    section = ScoreSection(label="own-vote", text="samples", weighting="signed")
    nan = [float("nan")] * 3
    assert round_weights(nan, [1] * 3, [0.0] * 3, [0.5, 0.5, -0.5], section, 0) == pytest.approx([1, 1, -1])
    agreeing = chosen(rows, grader, label="own-vote", text="samples", weighting="uniform")["a"]
    assert [example["factor"] for example in agreeing] == [1, 1, 0]


def test_the_measured_response_is_never_the_text_itself(grader: Grader) -> None:
    same = {"response": "two"}
    solo, other = row("a", "2", "solo", **same), row("a", "9", "solo")
    samples = [row("a", "2", **same), row("a", "2", **same), row("b", "2", response="b")]
    assert chosen([other, *samples], grader, **SOLUTION)["a"][0]["measured"] == 0  # the solo one differs
    assert not chosen([other, *samples], grader, **SOLUTION)["a"][0]["agrees"]
    assert chosen([solo, *samples], grader, **SOLUTION)["a"][0]["measured"] is None  # none of a's differs
    different = [solo, *samples, row("a", "7")]
    assert chosen(different, grader, **SOLUTION)["a"][0]["measured"] == 4  # a sample that does
    # another thought before the same words makes no other text; a thought that never ends is none
    thought = {"response": "<think>\nhm\n</think>\n\ntwo"}
    endless = row("a", None, "solo", response="<think>\nhm")
    for first in (row("a", "2", "solo", **thought), endless):
        assert chosen([first, *samples], grader, **SOLUTION)["a"][0]["measured"] is None


def test_the_chain_answer_as_label_of_a_solution_and_a_vote_as_label_of_an_aggregate(grader: Grader) -> None:
    chain = [row("a", "2", "chain", position=1), row("b", "1", "chain", position=2, is_aggregate=True)]
    by_chain = chosen([*chain, *VOTE], grader, label="aggregate", text="solution")
    assert by_chain["a"][0]["label"] == "1" and by_chain["a"][0]["trained"] in (2, 3)
    assert by_chain["a"][0]["measured"] == 0  # who stands first has seen nothing
    assert by_chain["b"][0]["trained"] in (2, 3)  # its author is trained on a solution, too
    by_vote = chosen([*chain, *VOTE], grader, label="sample-vote", text="aggregate")
    assert by_vote["a"][0]["drop_reason"] == "aggregate_not_the_label"
    agreed = [chain[0], row("b", "2", "chain", position=2, is_aggregate=True), *VOTE]
    assert chosen(agreed, grader, label="sample-vote", text="aggregate")["a"][0]["trained"] == 1


@pytest.mark.parametrize(
    "section",
    [
        {"weighting": "signed"},
        {"label": "none", "text": "samples", "weighting": "signed"},
        {"label": "own-vote", "text": "samples"},
        {"label": "none", "text": "solution"},
        {"label": "sample-vote", "text": "own"},
        {"label": "none", "text": "teacher-solution", "weighting": "agreement"},
    ],
)
def test_choices_that_do_not_go_together_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="found label"):
        ScoreSection(**section)


def test_keys_without_an_effect_are_refused() -> None:
    with pytest.raises(ValidationError, match="needs a vote"):
        ScoreSection(least_share=0.6)
    with pytest.raises(ValidationError, match="needs text 'solution'"):
        ScoreSection(solutions=2)


def test_a_chain_answer_that_was_cut_off_is_no_label_of_a_solution(grader: Grader) -> None:
    chain = [row("a", "2", "chain", position=1), row("b", "1", "chain", position=2, is_aggregate=True)]
    chain[1]["finish_reason"] = "length"
    found = chosen([*chain, *VOTE], grader, label="aggregate", text="solution")["a"][0]
    assert (found["drop_reason"], found["trained"]) == ("aggregate_truncated", None)
