"""The generator-verifier gap and the row of metrics, by hand and against naive counts."""

from __future__ import annotations

import math
import random
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from data.config import EvaluateSection
from data.schema import METRICS
from data.shards import write_rows
from evaluate.gap import auroc, bootstrap_interval, filtered_accuracy, question_gap, relative_gap
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
def test_filtered_accuracy(correct: str, scores: list[float], keep: float, filtered: float) -> None:
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


def test_relative_gap() -> None:
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


def test_bootstrap_interval() -> None:
    assert bootstrap_interval([], 100, 0) == (None, None)
    assert bootstrap_interval([0.5], 100, 0) == (None, None)
    assert bootstrap_interval([0.25] * 6, 100, 0) == (0.25, 0.25)
    values = [0.0, 1.0] * 50
    low, high = bootstrap_interval(values, 2000, 0)
    # the mean of 100 fair coins: 0.5 ± 1.96 · 0.05
    assert low == pytest.approx(0.402, abs=0.02)
    assert high == pytest.approx(0.598, abs=0.02)
    spread = [i**0.5 for i in range(30)]
    assert bootstrap_interval(spread, 100, 0) == bootstrap_interval(spread, 100, 0)
    assert bootstrap_interval(spread, 100, 0) != bootstrap_interval(spread, 100, 1)


def eval_row(item: str, sample: int, correct: bool, score: float | None = None, **more: Any) -> dict[str, Any]:
    """What metrics read of one row of evals."""
    return {
        "benchmark": "sums", "peer": "a", "item_id": item, "sample": sample, "correct": correct,
        "verdict": "correct" if correct else "wrong", "finish_reason": "stop", "n_tokens": 10, "cluster": None,
        "answer": str(int(correct)), "peer_agreement": None if sample else 1.0,
        "verifier_score": score, "verifier_score_frozen": score, "extract_status": "boxed", "correct_strict": correct,
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
        extract_status="none",
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
        "gv_gap_rel": 1 / 2, "n_gap_rel": 2,  # (1/2) / (1 - 1/2) and 0
        "verifier_auroc": 2 / 3,  # 1.0 against -1, 2 and -3
        "verifier_accuracy": 3 / 4,  # all signs are right but that of y's 2.0
        "abs_v_minus_g": 1 / 2,
        "pass_at_k": 1 / 2,
        "maj_at_k": 1 / 4,  # x: two clusters of one, one of them correct; y: the only cluster is wrong
        "no_answer_rate": 1 / 2, "truncated_rate": 1 / 2, "mean_tokens": 15,  # of the greedy responses
        "unanswered_rate": 1 / 2, "distinct_answers": 1 / 2, "peer_agreement": 3 / 4,
        "answer_entropy": math.log(2) / 2,  # x: one each of two answers; y: one answer
        "em_strict": 1 / 2, "em_stated": 1 / 2, "grader_disagreement": 0,
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


def test_the_second_opinion_by_hand() -> None:
    greedy = [
        eval_row("a", 0, True),  # both say correct
        eval_row("b", 0, True, extract_status="hashes", correct_strict=False),  # another spelling
        eval_row("c", 0, False, extract_status="phrase", correct_strict=True),
        eval_row("d", 0, False),  # both say wrong
        eval_row("e", 0, True, extract_status="last_number", correct_strict=False),  # not stated
        eval_row("f", 0, False, verdict="timeout", correct_strict=True),  # math-verify did not judge
        eval_row("g", 0, False, verdict="no_answer", extract_status="none"),
        eval_row("h", 0, False, verdict="truncated", extract_status="last_number"),
    ]
    # samples do not count
    drawn = [eval_row(row["item_id"], 1, True, 1.0, cluster=0, correct_strict=False) for row in greedy]
    section = EvaluateSection(samples=2, bootstrap=100)
    row = metrics_row(greedy + drawn, section, seed=1)
    assert (row["em"], row["em_stated"], row["em_strict"]) == (3 / 8, 2 / 8, 3 / 8)
    assert row["grader_disagreement"] == 2 / 4  # b and c of a, b, c, d
    row = metrics_row(greedy[-4:] + drawn[-4:], section, seed=1)
    assert (row["em_stated"], row["grader_disagreement"]) == (0, None)


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
