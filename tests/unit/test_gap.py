"""The generator-verifier gap and the row of metrics, by hand and against naive counts."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import combinations, permutations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from data.config.sections import EvaluateSection
from data.schema import METRICS
from data.shards import write_rows
from evaluate.gap import (
    accuracy,
    auroc,
    bootstrap_interval,
    filtered_accuracy,
    global_gaps,
    kept_shares,
    pass_at_k,
    question_gap,
    relative_gap,
)
from evaluate.metrics import majority_correct, metrics_row


def bools(text: str) -> list[bool]:
    """Correctness of samples: 10 → [True, False]."""
    return [character == "1" for character in text]


@pytest.mark.parametrize(
    ("correct", "scores", "keep", "filtered"),
    [
        ("1010", [3, 2, 1, 0], 0.5, 1 / 2),  # keeps 1 0
        ("1010", [3, 0, 2, 1], 0.5, 1.0),  # keeps 1 1
        ("1010", [0, 3, 1, 2], 0.5, 0.0),  # keeps 0 0
        ("1000", [3, 2, 1, 0], 0.25, 1.0),  # keeps 1 of 4
        # one sample is kept whole, one unit of mass is spread over three tied ones of which one is correct
        ("1001", [5, 1, 1, 1], 0.5, (1 + 1 / 3) / 2),
        ("1000", [0, 1, 1, 1], 0.5, 0.0),
        ("1010", [7, 7, 7, 7], 0.5, 1 / 2),
        # half of three is 1.5 samples
        ("110", [3, 2, 1], 0.5, 1.0),
        ("110", [1, 2, 3], 0.5, (0 + 0.5 * 1) / 1.5),
    ],
)
def test_filtered_accuracy_and_gap_by_hand(correct: str, scores: list[float], keep: float, filtered: float) -> None:
    c = bools(correct)
    assert filtered_accuracy(c, scores, keep) == pytest.approx(filtered)
    assert question_gap(c, scores, keep) == pytest.approx(filtered - sum(c) / len(c))


def test_a_verifier_that_cannot_tell_has_gap_zero() -> None:
    for correct in ("1000", "1110", "0000", "1111"):
        for keep in (0.1, 0.3, 0.5, 0.9):
            assert question_gap(bools(correct), [2.0] * 4, keep) == pytest.approx(0, abs=1e-12)


def test_the_order_of_samples_does_not_matter() -> None:
    samples = [(True, 1.0), (False, 1.0), (False, 2.0), (True, 0.5), (True, 1.0)]
    gaps = {
        round(question_gap([c for c, _ in order], [s for _, s in order], 0.5), 12) for order in permutations(samples)
    }
    # mass 2.5: the 2.0 (wrong) whole, then 1.5 over three tied samples, two of them correct: (0 + 0.5 · 2) / 2.5 = 0.4
    assert gaps == {round(0.4 - 0.6, 12)}


def test_fractional_ties_are_the_mean_over_all_orders() -> None:
    """The definition of a split tie: break it in every order, keep the first ones, take the mean (exact fractions)."""
    draw = random.Random(5)
    for _ in range(40):
        k = draw.randrange(2, 6)
        kept = draw.randrange(1, k)
        correct, scores = [draw.random() < 0.5 for _ in range(k)], [float(draw.randrange(3)) for _ in range(k)]
        orders = [order for order in permutations(range(k)) if sorted(order, key=lambda i: -scores[i]) == list(order)]
        naive = fmean(Fraction(sum(correct[i] for i in order[:kept]), kept) for order in orders)
        assert filtered_accuracy(correct, scores, kept / k) == pytest.approx(float(naive))


def test_global_gaps_by_hand() -> None:
    # 3 of 6 samples are kept: the 9, and two of the three 5s, so 2/3 of each
    questions = [(bools("10"), [9.0, 5.0]), (bools("10"), [5.0, 5.0]), (bools("11"), [1.0, 0.0])]
    first, second, third = global_gaps(questions, 0.5)
    assert first == pytest.approx(1 / (1 + 2 / 3) - 1 / 2)
    assert second == pytest.approx(0)  # tied samples are kept alike
    assert third is None  # nothing of it is kept
    (same,) = global_gaps([(bools("1001"), [5.0, 1.0, 1.0, 1.0])], 0.5)  # of one question it is the gap
    assert same == pytest.approx(question_gap(bools("1001"), [5.0, 1.0, 1.0, 1.0], 0.5))


def test_global_gaps_equal_a_naive_cut() -> None:
    """Tie groups are cut by a running count, mass by mass."""
    draw = random.Random(8)
    for _ in range(50):
        keep, k = draw.choice([0.25, 0.5, 0.7]), draw.randrange(2, 5)
        questions = [
            ([draw.random() < 0.5 for _ in range(k)], [float(draw.randrange(5)) for _ in range(k)])
            for _ in range(draw.randrange(1, 6))
        ]
        everything = [s for _, scores in questions for s in scores]
        mass = keep * len(everything)
        for (correct, scores), gap in zip(questions, global_gaps(questions, keep), strict=True):
            weights = []
            for s in scores:
                above, tied = sum(o > s for o in everything), everything.count(s)
                weights.append(min(max(mass - above, 0), tied) / tied)
            if sum(weights) < 1e-9:
                assert gap is None
            else:
                kept = sum(w * c for w, c in zip(weights, correct, strict=True)) / sum(weights)
                assert gap == pytest.approx(kept - accuracy(correct))


def test_rounding_keeps_no_crumb() -> None:
    assert 0.55 * 100 > 55  # in binary
    shares = kept_shares([float(n) for n in range(100)], 0.55)
    assert shares[44.0] == 0 and sum(shares.values()) == pytest.approx(55)


def test_the_relative_gap_is_of_what_is_left_to_gain() -> None:
    # u = 1/4, filtered 1/2: a third of what is left to gain
    assert relative_gap(bools("1000"), [3, 2, 1, 0], 0.5) == pytest.approx((1 / 2 - 1 / 4) / (3 / 4))
    assert relative_gap(bools("1111"), [3, 2, 1, 0], 0.5) is None
    assert relative_gap(bools("0000"), [3, 2, 1, 0], 0.5) == 0


def test_auroc_equals_the_count_of_pairs() -> None:
    draw = random.Random(3)
    for _ in range(20):
        n = draw.randrange(2, 15)
        correct = [True, False, *(draw.random() < 0.5 for _ in range(n))]
        scores = [float(draw.randrange(4)) for _ in correct]  # few values: many ties
        right = [s for s, c in zip(scores, correct, strict=True) if c]
        wrong = [s for s, c in zip(scores, correct, strict=True) if not c]
        naive = fmean(1.0 if r > w else 0.5 if r == w else 0.0 for r in right for w in wrong)
        assert auroc(correct, scores) == pytest.approx(naive)
    assert auroc(bools("10"), [2, 1]) == 1
    assert auroc(bools("10"), [1, 2]) == 0
    assert auroc(bools("11"), [1, 2]) is None
    assert auroc(bools("00"), [1, 2]) is None


def test_auroc_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = random.Random(4)
    for size, values in ((5, 2), (30, 3), (400, 7), (400, 10**6)):
        correct = [True, False, *(draw.random() < 0.7 for _ in range(size))]
        scores = [float(draw.randrange(values)) for _ in correct]
        assert auroc(correct, scores) == pytest.approx(metrics.roc_auc_score(correct, scores))


def test_pass_at_k_is_the_share_of_subsets() -> None:
    assert pass_at_k(4, 1, 2) == pytest.approx(1 / 2)  # of the 6 pairs 3 have the one correct sample
    assert pass_at_k(5, 2, 3) == pytest.approx(9 / 10)  # 1 of 10 triples has none
    assert [pass_at_k(8, c, 8) for c in (0, 1, 8)] == [0, 1, 1]  # k = n: any correct
    assert pass_at_k(8, 3, 1) == pytest.approx(3 / 8)
    for n in range(1, 7):
        for n_correct in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations([True] * n_correct + [False] * (n - n_correct), k))
                assert pass_at_k(n, n_correct, k) == pytest.approx(fmean(any(subset) for subset in subsets))
    for n, n_correct, k in ((4, 5, 2), (4, -1, 2), (4, 1, 0), (4, 1, 5)):
        with pytest.raises(ValueError, match="is not defined"):
            pass_at_k(n, n_correct, k)


def test_pass_at_k_is_unbiased() -> None:
    """Mean over draws of 5 samples, each correct with probability 0.3, against 1 - 0.7 ** 2; the share of pairs of
    *different* samples is what makes it so: 1 - (1 - c / n) ** 2 would give 0.468."""
    draw = random.Random(6)
    found = fmean(pass_at_k(5, sum(draw.random() < 0.3 for _ in range(5)), 2) for _ in range(20_000))
    assert found == pytest.approx(1 - 0.7**2, abs=0.01)


def test_bootstrap_intervals_cover() -> None:
    """Nominal 95 %: means of coins, and of gaps, which are mostly 0."""
    rng, trials = np.random.default_rng(21), 600
    coins = np.array([0.0, 1.0]), [0.4, 0.6]
    gaps = np.array([-0.5, 0.0, 0.25, 0.5]), [0.1, 0.6, 0.2, 0.1]
    for values, shares in (coins, gaps):
        truth = float(values @ shares)
        hits = 0
        for trial in range(trials):
            low, high = bootstrap_interval([list(rng.choice(values, 150, p=shares))], 400, trial)
            assert low is not None and high is not None
            hits += low <= truth <= high
        print(f"coverage {hits / trials:.3f}")
        assert 0.93 <= hits / trials <= 0.97


def test_the_bootstrap_interval_is_right_for_coins_and_none_for_one_item() -> None:
    assert bootstrap_interval([[]], 100, 0) == (None, None)
    assert bootstrap_interval([[0.5]], 100, 0) == (None, None)
    assert bootstrap_interval([[0.25] * 6], 100, 0) == (0.25, 0.25)
    values = [0.0, 1.0] * 50
    low, high = bootstrap_interval([values], 2000, 0)
    # the mean of 100 fair coins: 0.5 ± 1.96 · 0.05
    assert low == pytest.approx(0.402, abs=0.02)
    assert high == pytest.approx(0.598, abs=0.02)
    spread = [i**0.5 for i in range(30)]
    assert bootstrap_interval([spread], 100, 0) == bootstrap_interval([spread], 100, 0)
    assert bootstrap_interval([spread], 100, 0) != bootstrap_interval([spread], 100, 1)


def eval_row(item: str, sample: int, correct: bool, score: float | None = None, **more: Any) -> Any:
    """What metrics read of one row of evals."""
    return {
        "benchmark": "sums", "peer": "a", "item_id": item, "sample": sample, "correct": correct,
        "verdict": "correct" if correct else "wrong", "finish_reason": "stop", "n_tokens": 10, "cluster": None,
        "answer": str(int(correct)), "peer_agreement": None if sample else 1.0,
        "verifier_score": score, "verifier_score_frozen": score,
        **more,
    }  # fmt: skip


TABLE = [
    eval_row("x", 0, True),
    eval_row("x", 1, True, 1.0, verifier_score_frozen=-1.0, cluster=0),
    eval_row("x", 2, False, -1.0, verifier_score_frozen=1.0, cluster=1),
    eval_row(
        "y",
        0,
        False,
        verdict="no_answer",
        answer=None,
        finish_reason="length",
        n_tokens=20,
        peer_agreement=0.5,
    ),
    eval_row("y", 1, False, 2.0, verifier_score_frozen=0.5, cluster=0, n_tokens=99),
    eval_row("y", 2, False, -3.0, verifier_score_frozen=0.5, finish_reason="length", n_tokens=99),
]


def test_metrics_row_by_hand(tmp_path: Path) -> None:
    row = metrics_row(TABLE, EvaluateSection(samples=2, keep=0.5, bootstrap=200), seed=1)
    expected = {
        "benchmark": "sums", "peer": "a", "n": 2, "k": 2,
        "em": 1 / 2, "em_lo": 0, "em_hi": 1,  # a quarter of the resamples of two items are both the one or the other
        "sample_accuracy": 1 / 4,
        "gv_gap": 1 / 4,  # x keeps its correct sample: 1 - 1/2; y has none: 0
        "gv_gap_lo": 0, "gv_gap_hi": 1 / 2,
        "gv_gap_frozen": -1 / 4,  # x keeps its wrong one: 0 - 1/2
        # top-0.7 of two keeps 1.4: x 1 / 1.4 - 1/2, y nothing correct
        "gv_gap_70": (1 / 1.4 - 1 / 2) / 2,
        # all scores are 2, 1, -1, -3: the first two are kept, one of each question
        "gv_gap_global": 1 / 4, "n_none_kept": 0,
        "gv_gap_rel": 1 / 2, "n_gap_rel": 2,  # (1/2) / (1 - 1/2) and 0
        "verifier_auroc": 2 / 3,  # 1.0 against -1, 2 and -3
        "verifier_accuracy": 3 / 4,  # all signs are right but that of y's 2.0
        "verifier_undecided": 0, "verifier_undecided_frozen": 0,
        "abs_v_minus_g": 1 / 2,
        "pass_at_k": 1 / 2,
        "maj_at_k": 1 / 4,  # x: two clusters of one, one of them correct; y: the only cluster is wrong
        "no_answer_rate": 1 / 2, "truncated_rate": 1 / 2, "mean_tokens": 15,  # of the greedy responses
        "unanswered_rate": 1 / 2, "distinct_answers": 1 / 2, "peer_agreement": 3 / 4,
        "answer_entropy": math.log(2) / 2,  # x: one each of two answers; y: one answer
    }  # fmt: skip
    assert row == pytest.approx(expected)
    write_rows([row], tmp_path / "metrics.parquet", METRICS)


def test_metrics_do_not_depend_on_the_order_of_rows() -> None:
    section = EvaluateSection(samples=2, bootstrap=200)
    expected = metrics_row(TABLE, section, seed=1)
    for seed in range(5):
        rows = random.Random(seed).sample(TABLE, len(TABLE))
        assert metrics_row(rows, section, seed=1) == pytest.approx(expected)


def test_metrics_of_a_perfect_peer_on_one_item() -> None:
    rows = [eval_row("x", n, True, float(n), cluster=0) for n in range(3)]
    row = metrics_row(rows, EvaluateSection(samples=2, bootstrap=100), seed=1)
    assert (row["em"], row["em_lo"], row["em_hi"], row["maj_at_k"]) == (1, None, None, 1)
    assert (row["gv_gap"], row["gv_gap_rel"], row["n_gap_rel"], row["verifier_auroc"]) == (0, None, 0, None)


def test_a_question_of_which_nothing_is_kept_counts_as_it_is() -> None:
    """A global threshold can leave a question out; a verdict of 0 is one that could not be read."""
    rows = [eval_row(item, 0, True) for item in "xyz"]
    rows += [eval_row("x", 1, True, 1.0), eval_row("x", 2, False, 1.0)]
    rows += [eval_row("y", 1, True, 0.0), eval_row("y", 2, False, -1.0)]
    rows += [eval_row("z", 1, True, 2.0), eval_row("z", 2, False, -2.0)]
    row = metrics_row(rows, EvaluateSection(samples=2, keep=0.5, bootstrap=100), seed=1)
    # of x all is kept, of y nothing, of z the right one: 0, 0 and 1/2
    assert (row["gv_gap"], row["gv_gap_global"], row["n_none_kept"]) == pytest.approx((1 / 3, 1 / 6, 1))
    assert row["verifier_undecided"] == pytest.approx(1 / 6)
    assert row["verifier_accuracy"] == pytest.approx((1 + 0 + 1 / 2 + 1 + 1 + 1) / 6)


@pytest.mark.parametrize(
    ("clusters", "correct", "share"),
    [
        ([0, 0, 1], "110", 1.0),
        ([1, 0, 0], "100", 0.0),
        ([0, 1, 0, 1], "1010", 1 / 2),
        ([0, 1, 2], "001", 1 / 3),
        ([None, None, 0], "001", 1.0),  # silence has no vote
        ([None, None, None], "000", 0.0),
    ],
)
def test_majority_correct(clusters: list[int | None], correct: str, share: float) -> None:
    pairs = enumerate(zip(clusters, bools(correct), strict=True), start=1)
    item = [eval_row("x", n, c, cluster=cluster) for n, (cluster, c) in pairs]
    assert majority_correct(item) == pytest.approx(share)
