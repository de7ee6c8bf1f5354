"""From graded responses to one row of metrics per (benchmark, peer). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from statistics import fmean
from typing import Literal, TypedDict, cast

from data.answers.clusters import entropy
from data.answers.spelling import normalise_answer
from data.config.sections import EvaluateSection
from data.schema import EvalRow, MetricsRow
from evaluate.gap import (
    accuracy,
    auroc,
    bootstrap_interval,
    global_gaps,
    pass_at_k,
    question_gap,
    relative_gap,
)

Scored = Literal["verifier_score", "verifier_score_frozen"]  # columns of samples; null where it is not finite
Pairs = list[tuple[list[bool], list[float]]]  # (correct, score) of the samples with a score, by question that has any


class VerifierNumbers(TypedDict):
    """The metrics of a verifier on the samples of one peer on one benchmark; None if no sample has a score."""

    gv_gap: float | None
    gv_gap_lo: float | None
    gv_gap_hi: float | None
    verifier_auroc: float | None
    verifier_accuracy: float | None
    verifier_undecided: float | None


def metrics_row(rows: list[EvalRow], section: EvaluateSection, seed: int) -> MetricsRow:
    """Metrics of one peer on one benchmark.

    `rows`: its evals; of each item, sample 0 is the greedy response and 1..k the sampled ones. Samples without a
    verifier score are left out of the verifier's metrics. Raises ValueError for a score that is not finite.
    """
    greedy = sorted((row for row in rows if row["sample"] == 0), key=lambda row: str(row["item_id"]))
    samples = [row for row in rows if row["sample"]]
    items = by_question(samples)
    em = [float(row["correct"]) for row in greedy]
    pairs = _pairs(items, "verifier_score")
    frozen = _pairs(items, "verifier_score_frozen")
    relative = [gap for c, s in pairs if (gap := relative_gap(c, s, section.keep)) is not None]
    overall = global_gaps(pairs, section.keep)
    em_lo, em_hi = bootstrap_interval([em], section.bootstrap, seed)
    verifier = verifier_metrics(items, section, seed)
    generator, accuracy_v = fmean(row["correct"] for row in samples), verifier["verifier_accuracy"]
    right = [[row["correct"] for row in item] for item in items]
    return {
        "benchmark": rows[0]["benchmark"],
        "peer": rows[0]["peer"],
        "n": len(greedy),
        "k": len(items[0]),
        "em": fmean(em),
        "em_lo": em_lo,
        "em_hi": em_hi,
        "sample_accuracy": generator,
        **verifier,
        "gv_gap_frozen": _mean([question_gap(c, s, section.keep) for c, s in frozen]),
        "gv_gap_70": _mean([question_gap(c, s, 0.7) for c, s in pairs]),
        "gv_gap_global": _mean([gap or 0.0 for gap in overall]),
        "n_none_kept": overall.count(None),
        "gv_gap_rel": _mean(relative),
        "n_gap_rel": len(relative),
        "verifier_undecided_frozen": _mean([score == 0 for _, scores in frozen for score in scores]),
        "abs_v_minus_g": None if accuracy_v is None else abs(accuracy_v - generator),
        "pass_at_k": fmean(pass_at_k(len(c), sum(c), len(c)) for c in right),  # k = n: whether any is correct
        "maj_at_k": fmean(majority_correct(item) for item in items),
        "no_answer_rate": fmean(row["verdict"] == "no_answer" for row in greedy),
        "unanswered_rate": fmean(row["verdict"] in ("no_answer", "truncated") for row in greedy),
        "truncated_rate": fmean(row["finish_reason"] == "length" for row in greedy),
        "mean_tokens": fmean(row["n_tokens"] for row in greedy),
        "distinct_answers": len({normalise_answer(r["answer"]) for r in greedy if r["answer"] is not None})
        / len(greedy),
        "answer_entropy": fmean(entropy(list(_clusters(item).values())) for item in items),
        "peer_agreement": fmean(cast(float, row["peer_agreement"]) for row in greedy),
    }


def _clusters(item: list[EvalRow]) -> Counter[int]:
    """Sizes of the clusters of equivalent answers among an item's samples."""
    return Counter(row["cluster"] for row in item if row["cluster"] is not None)


def verifier_metrics(items: list[list[EvalRow]], section: EvaluateSection, seed: int) -> VerifierNumbers:
    """The metrics of a verifier on the samples of one peer on one benchmark. `items`: the samples of each question, in
    the order of the questions' ids (the interval depends on it). Raises ValueError for a score that is not finite."""
    pairs = _pairs(items, "verifier_score")
    gaps = [question_gap(correct, scores, section.keep) for correct, scores in pairs]
    low, high = bootstrap_interval([gaps], section.bootstrap, seed)
    correct = [c for each, _ in pairs for c in each]
    scores = [s for _, each in pairs for s in each]
    return {
        "gv_gap": _mean(gaps),
        "gv_gap_lo": low,
        "gv_gap_hi": high,
        "verifier_auroc": auroc(correct, scores),
        "verifier_accuracy": _mean(  # an undecided one counts half, as ties do in the AUROC
            [(score > 0) == right if score else 0.5 for score, right in zip(scores, correct, strict=True)]
        ),
        "verifier_undecided": _mean([score == 0 for score in scores]),
    }


def by_question(samples: list[EvalRow]) -> list[list[EvalRow]]:
    """The samples of each question, in the order of the questions' ids."""
    ordered = sorted(samples, key=lambda row: str(row["item_id"]))
    return [list(group) for _, group in groupby(ordered, key=lambda row: row["item_id"])]


def _pairs(items: list[list[EvalRow]], column: Scored) -> Pairs:
    scored = [[(row["correct"], score) for row in item if (score := row[column]) is not None] for item in items]
    return [([correct for correct, _ in each], [score for _, score in each]) for each in scored if each]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def majority_correct(item: list[EvalRow]) -> float:
    """maj@k of one item: whether the largest cluster of equivalent answers is correct; of clusters tied for the
    largest, the share that are. Samples without an answer, or cut off before stating one, do not vote; 0 without
    votes."""
    sizes = _clusters(item)
    if not sizes:
        return 0.0
    largest = [cluster for cluster, size in sizes.items() if size == max(sizes.values())]
    correct = {row["cluster"] for row in item if row["correct"]}
    return accuracy([cluster in correct for cluster in largest])
