"""PMI to weights: numbers by hand, the order, the mean, the clip, and what is left out."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any, Literal, cast, get_args

import pytest

from data.answers.grader import Grader
from data.config.sections import ScoreSection
from data.schema import ChainRow
from score.chains import Chain
from score.examples import ExampleChooser
from score.label import Votes
from score.text import agree, drop_reason
from score.weights import sigmoid, weights

Weighting = Literal["sigmoid", "exp", "rank", "agreement", "entropy", "uniform", "shuffled", "signed"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)
DECREASING: tuple[Weighting, ...] = ("sigmoid", "exp", "rank")
LN2 = math.log(2)


def section_of(weighting: Weighting, **more: Any) -> ScoreSection:
    """A section with a weighting; signed ones go with samples alone."""
    signed: Any = {"text": "samples", "label": "own-vote"} if weighting == "signed" else {}
    return ScoreSection(weighting=weighting, **signed, **more)


def of(
    pmi: list[float],
    section: ScoreSection,
    agrees: list[bool] | None = None,
    seed: int = 0,
    entropies: list[float] | None = None,
) -> list[float]:
    """Weights; where it does not matter, every answer agrees and no question has more answers than another."""
    n = len(pmi)
    return weights(
        pmi, [True] * n if agrees is None else agrees, [1.0] * n if entropies is None else entropies, section, seed
    )


def test_every_weighting_of_the_config_is_tested() -> None:
    assert get_args(ScoreSection.model_fields["weighting"].annotation) == WEIGHTINGS


@pytest.mark.parametrize(("center", "shift"), [(0.0, 0.0), ("median", 3.0)])
def test_sigmoid_by_hand(center: Literal["median"] | float, shift: float) -> None:
    # σ(0) = 0.5, σ(-5 · 0.2) = 0.26894142, σ(5 · 0.2) = 0.73105858; their mean is 0.5
    pmi = [shift, shift + 0.2, shift - 0.2]
    expected = [1.0, 0.53788284, 1.46211716]
    assert of(pmi, ScoreSection(weighting="sigmoid", beta=5, center=center)) == pytest.approx(expected, abs=1e-7)


def test_exp_by_hand() -> None:
    # exp(-p) of 0, ln 2, -ln 2 is 1, 1/2, 2; their mean is 7/6
    section = ScoreSection(weighting="exp", beta=1, center=0.0)
    assert of([0.0, LN2, -LN2], section) == pytest.approx([6 / 7, 3 / 7, 12 / 7])
    # β = 2 squares them: 1, 1/4, 4; their mean is 21/12
    section = ScoreSection(weighting="exp", beta=2, center=0.0)
    assert of([0.0, LN2, -LN2], section) == pytest.approx([12 / 21, 3 / 21, 48 / 21])


def test_the_median_of_an_even_number_of_examples() -> None:
    # median of 0, 2 ln 3 is ln 3: σ(ln 3) = 3/4 and σ(-ln 3) = 1/4; their mean is 1/2
    section = ScoreSection(weighting="sigmoid", beta=1)
    assert of([0.0, 2 * math.log(3)], section) == pytest.approx([1.5, 0.5])


def test_one_extreme_example_does_not_move_the_center() -> None:
    # median of 0, 0, ln 3 is 0, their mean is not: σ(0) = 1/2 twice and σ(-ln 3) = 1/4; their mean is 5/12
    section = ScoreSection(weighting="sigmoid", beta=1)
    assert of([0.0, 0.0, math.log(3)], section) == pytest.approx([1.2, 1.2, 0.6])


def test_rank_by_hand_with_ties() -> None:
    # 0.1: 3 larger + ½ itself = 3.5; 0.3 twice: 1 larger + ½ · 2 = 2; 0.5: ½. Over 4, and the mean is 2/4.
    assert of([0.3, 0.1, 0.5, 0.3], ScoreSection(weighting="rank")) == pytest.approx([1, 1.75, 0.25, 1])


def test_clip_comes_before_the_division_by_the_mean() -> None:
    # exp: 22026, 1, 0.00005 are clipped to 2, 1, 0.5; their mean is 7/6
    section = ScoreSection(weighting="exp", beta=1, center=0.0, weight_min=0.5, weight_max=2.0)
    assert of([-10.0, 0.0, 10.0], section) == pytest.approx([12 / 7, 6 / 7, 3 / 7])


@pytest.mark.parametrize("weighting", DECREASING)
def test_weights_decrease_in_pmi(weighting: Weighting) -> None:
    pmi = [-0.5, -0.2, -0.1, 0.0, 0.05, 0.3, 0.4]
    found = of(pmi, ScoreSection(weighting=weighting, weight_min=0.001))
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(pmi)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_mean_is_one_over_what_is_trained_on(weighting: Weighting) -> None:
    pmi = [0.9, -0.4, 0.1, 0.0, 0.35]
    found = of(pmi, section_of(weighting), agrees=[True, False, True, False, True])
    assert fmean(w for w in found if w > 0) == pytest.approx(1)
    assert len(found) == 5
    if weighting == "uniform":
        assert found == [1.0] * 5


def test_agreement_zeros_stay_zeros() -> None:
    section = ScoreSection(weighting="agreement", weight_min=0.05)
    assert of([0.3, 0.1, 0.2], section, [True, False, True]) == [1.0, 0.0, 1.0]
    assert of([0.3, 0.1], section, [False, False]) == [0.0, 0.0]


def test_entropy_by_hand() -> None:
    # 0 is lifted to weight_min; the mean of 0.05, ln 2 and ln 3 is 0.61392
    section = ScoreSection(weighting="entropy", weight_min=0.05)
    found = of([0.3, 0.1, 0.2], section, entropies=[0.0, LN2, math.log(3)])
    mean = (0.05 + LN2 + math.log(3)) / 3
    assert found == pytest.approx([0.05 / mean, LN2 / mean, math.log(3) / mean])


def test_an_example_of_weight_zero_is_as_one_left_out() -> None:
    # σ(-5 · 1000) underflows to 0; with weight_min = 0 it stays there
    section = ScoreSection(weighting="sigmoid", center=0.0, weight_min=0.0)
    found = of([0.1, 1000.0, -0.2], section)
    assert found[1] == 0
    assert [found[0], found[2]] == of([0.1, -0.2], section)


def test_shuffled_is_a_seeded_permutation_of_the_sigmoid_weights() -> None:
    pmi = [i / 40 - 0.5 for i in range(40)]
    by_pmi = of(pmi, ScoreSection(weighting="sigmoid"))
    shuffled = [of(pmi, ScoreSection(weighting="shuffled"), seed=seed) for seed in (1, 1, 2)]
    assert shuffled[0] == shuffled[1]
    assert len({tuple(by_pmi), tuple(shuffled[0]), tuple(shuffled[2])}) == 3
    assert sorted(shuffled[0]) == sorted(shuffled[2]) == sorted(by_pmi)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_extreme_values_do_not_overflow(weighting: Weighting) -> None:
    pmi = [-1e6, 1e6, 0.0, 1e300, -1e300]
    found = of(pmi, section_of(weighting, center=0.0))
    assert all(math.isfinite(w) and w > 0 for w in found)
    assert fmean(found) == pytest.approx(1)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_no_example_and_one_example_have_weights(weighting: Weighting) -> None:
    assert of([], section_of(weighting)) == []
    assert of([0.7], section_of(weighting)) == [1.0]


def test_sigmoid_at_both_ends() -> None:
    assert sigmoid(0) == 0.5
    assert sigmoid(-1e4) == 0.0
    assert sigmoid(1e4) == 1.0
    assert sigmoid(-2) + sigmoid(2) == pytest.approx(1)
    assert sigmoid(-2) == pytest.approx(0.11920292)


def row(peer: str, answer: str | None, **changes: Any) -> ChainRow:
    """A response of a chain, finished and not the aggregate unless told otherwise."""
    found: dict[str, Any] = {"prompt_id": "q", "peer": peer, "role": "chain", "is_aggregate": False, "answer": answer}
    return cast(ChainRow, found | {"response": "It is so.", "finish_reason": "stop", "n_tokens": 3} | changes)


def test_why_a_peer_does_not_train_on_a_question() -> None:
    aggregate, own = ScoreSection(), ScoreSection(text="own")
    cut, silent, empty = row("a", "1", finish_reason="length"), row("a", None), row("a", None, n_tokens=0)
    last = row("b", "2", is_aggregate=True)

    def reasons(section: ScoreSection, last: ChainRow = last) -> list[str | None]:
        return [drop_reason(Chain([each, last]), each, section) for each in (row("a", "1"), cut, silent, empty)]

    # what the aggregate's text is trained with may be cut off; what is trained on may not
    assert reasons(aggregate) == [None, None, None, "response_empty"]
    assert reasons(own) == [None, "response_truncated", "response_no_answer", "response_empty"]
    for section in (aggregate, own):
        assert reasons(section, row("b", "2", is_aggregate=True, finish_reason="length")) == ["aggregate_truncated"] * 4
        assert reasons(section, row("b", None, is_aggregate=True)) == ["aggregate_no_answer"] * 4
        assert drop_reason(Chain([cut, last]), last, section) == "is_aggregate"
    assert drop_reason(Chain([cut, last]), last, ScoreSection(train_final=True)) is None


def test_what_cannot_be_compared_does_not_agree() -> None:
    class Slow(Grader):
        """Has no verdict in time."""

        def equivalent(self, pairs: Any, kind: Any) -> list[bool | None]:
            """See `Grader.equivalent`."""
            return [None for _ in pairs]

    with Grader(workers=1) as grader:
        assert agree("1/2", "0.5", "math", grader) and not agree("1", "2", "math", grader)
        assert not agree(None, "1", "math", grader)
    with Slow(workers=1) as grader:
        assert not agree("1", "1", "math", grader)


def test_an_answer_that_was_cut_off_has_no_part_in_the_entropy() -> None:
    rows = [row("a", "1"), row("b", "2", finish_reason="length"), row("c", "1", is_aggregate=True)]
    choosing = ExampleChooser(ScoreSection(), "abc", Votes(), "17/1")
    with Grader(workers=1) as grader:
        assert [each["answer_entropy"] for each in choosing.examples([Chain(rows)], grader)] == [0.0] * 3
        rows[1]["finish_reason"] = "stop"
        found = [each["answer_entropy"] for each in choosing.examples([Chain(rows)], grader)]  # shares of 2/3 and 1/3
        assert found == pytest.approx([math.log(3) - 2 / 3 * LN2] * 3)
