"""From graded responses to one row of metrics per (benchmark, peer). Pure."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from statistics import fmean

from data.answers import entropy
from data.config import EvaluateSection
from data.equivalence import normalise
from data.shards import Row
from evaluate.gap import accuracy, auroc, bootstrap_interval, question_gap, relative_gap
from evaluate.strict import STATED


def metrics_row(rows: list[Row], section: EvaluateSection, seed: int) -> Row:
    """Metrics of one peer on one benchmark.

    `rows`: its evals, sample 0 the greedy response and 1..k the sampled ones of each item.
    """
    greedy = sorted((row for row in rows if row["sample"] == 0), key=lambda row: str(row["item_id"]))
    samples = sorted((row for row in rows if row["sample"]), key=lambda row: str(row["item_id"]))
    items = [list(group) for _, group in groupby(samples, key=lambda row: row["item_id"])]
    em = [float(row["correct"]) for row in greedy]
    gaps, relative = _gaps(items, "verifier_score", section.keep)
    frozen, _ = _gaps(items, "verifier_score_frozen", section.keep)
    em_lo, em_hi = bootstrap_interval(em, section.bootstrap, seed)
    gap_lo, gap_hi = bootstrap_interval(gaps, section.bootstrap, seed)
    correct = [row["correct"] for row in samples]
    scores = [row["verifier_score"] for row in samples]
    generator = fmean(correct)
    verifier = fmean((score > 0) == right for score, right in zip(scores, correct, strict=True))
    return {
        "benchmark": rows[0]["benchmark"], "peer": rows[0]["peer"], "n": len(greedy), "k": len(items[0]),
        "em": fmean(em), "em_lo": em_lo, "em_hi": em_hi, "sample_accuracy": generator,
        "gv_gap": fmean(gaps), "gv_gap_lo": gap_lo, "gv_gap_hi": gap_hi, "gv_gap_frozen": fmean(frozen),
        "gv_gap_rel": fmean(relative) if relative else None, "n_gap_rel": len(relative),
        "verifier_auroc": auroc(correct, scores), "verifier_accuracy": verifier,
        "abs_v_minus_g": abs(verifier - generator),
        "pass_at_k": fmean(any(row["correct"] for row in item) for item in items),
        "maj_at_k": fmean(majority_correct(item) for item in items),
        "no_answer_rate": fmean(row["verdict"] == "no_answer" for row in greedy),
        "unanswered_rate": fmean(row["verdict"] in ("no_answer", "truncated") for row in greedy),
        "truncated_rate": fmean(row["finish_reason"] == "length" for row in greedy),
        "mean_tokens": fmean(row["n_tokens"] for row in greedy),
        "distinct_answers": len({normalise(r["answer"]) for r in greedy if r["answer"] is not None}) / len(greedy),
        "answer_entropy": fmean(entropy(list(_clusters(item).values())) for item in items),
        "peer_agreement": fmean(row["peer_agreement"] for row in greedy),
        **_second_opinion(greedy),
    }  # fmt: skip


def _second_opinion(greedy: list[Row]) -> Row:
    """Exact match by the strict rule set, and of explicitly stated answers alone; how often the two rule sets disagree
    on a stated answer that both judge (a timeout is no judgement), None if there is no such answer."""
    stated = [row for row in greedy if row["extract_status"] in STATED]
    judged = [row for row in stated if row["verdict"] != "timeout"]
    return {
        "em_strict": sum(row["correct_strict"] for row in greedy) / len(greedy),
        "em_stated": sum(row["correct"] for row in stated) / len(greedy),
        "grader_disagreement": fmean(row["correct"] != row["correct_strict"] for row in judged) if judged else None,
    }


def _clusters(item: list[Row]) -> Counter[int]:
    """Sizes of the clusters of equivalent answers among an item's samples."""
    return Counter(row["cluster"] for row in item if row["cluster"] is not None)


def _gaps(items: list[list[Row]], column: str, keep: float) -> tuple[list[float], list[float]]:
    pairs = [([row["correct"] for row in item], [row[column] for row in item]) for item in items]
    relative = [relative_gap(correct, scores, keep) for correct, scores in pairs]
    return [question_gap(c, s, keep) for c, s in pairs], [value for value in relative if value is not None]


def majority_correct(item: list[Row]) -> float:
    """maj@k of one item: is the largest cluster of equivalent answers correct? Of clusters tied for the largest, the
    share that is. Samples without an answer, or cut off before they stated one, do not vote; without votes it is 0."""
    sizes = _clusters(item)
    if not sizes:
        return 0.0
    largest = [cluster for cluster, size in sizes.items() if size == max(sizes.values())]
    correct = {row["cluster"] for row in item if row["correct"]}
    return accuracy([cluster in correct for cluster in largest])
