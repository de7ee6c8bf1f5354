"""A round's numbers, item by item, for comparisons between runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from data import shards
from data.errors import UserError
from data.run import read_frozen
from data.schema import EVALS
from evaluate.gap import question_gap
from evaluate.intervals import Matrix

# (benchmark, peer) -> item -> {"em": …, "gap": …}; no gap if no sample has a verifier score
ItemValues = dict[tuple[str, str], dict[str, dict[str, float]]]
EVAL_COLUMNS = ("benchmark", "peer", "item_id", "sample", "correct", "verifier_score")


def item_values(run: Path, round_: int) -> ItemValues:
    """Exact match of the greedy response (0 or 1), and the gap, of every item. Raises UserError if not evaluated."""
    folder = run / f"round={round_}" / "evals"
    if shards.read_manifest(folder) is None:
        raise UserError(f"{folder} is not finished")
    keep = read_frozen(run / "config.json").evaluate.keep
    found: ItemValues = {}
    for path in shards.shard_paths(folder):
        rows = shards.read_rows(path, EVALS, EVAL_COLUMNS)
        rows.sort(key=lambda row: (row["benchmark"], row["peer"], row["item_id"], row["sample"]))
        for (benchmark, peer, item), group in groupby(rows, key=lambda r: (r["benchmark"], r["peer"], r["item_id"])):
            greedy, *samples = list(group)
            scored = [row for row in samples if row["verifier_score"] is not None]
            numbers = {"em": float(greedy["correct"])}
            if scored:
                right, scores = ([row[name] for row in scored] for name in ("correct", "verifier_score"))
                numbers["gap"] = question_gap(right, scores, keep)
            found.setdefault((benchmark, peer), {})[item] = numbers
    return found


def matrices(seeds: list[ItemValues], metric: str, peer: str, baselines: Sequence[ItemValues] = ()) -> list[Matrix]:
    """Per benchmark an array [seeds, items]; for the peer `mean` the mean over peers, item by item.

    Items that lack the metric in one of the seeds, or in one of the `baselines`, are left out.
    Raises UserError if the seeds' items differ, or if a benchmark has none left.
    """
    import numpy as np

    names = list(dict.fromkeys(benchmark for benchmark, _ in seeds[0]))
    found = []
    for name in names:
        peers = [other for benchmark, other in seeds[0] if benchmark == name] if peer == "mean" else [peer]
        items = set(seeds[0][name, peers[0]])
        if any(set(values[name, each]) != items for values in seeds for each in peers):
            raise UserError(f"benchmark {name}: these rounds or runs were not evaluated on the same questions")
        compared = [values[name, each] for values in (*seeds, *baselines) for each in peers]
        items = {item for item in items if all(metric in values[item] for values in compared)}
        if not items:
            raise UserError(
                f"benchmark {name}: no question has verifier scores in all compared rounds and runs, so their gaps "
                "cannot be compared: scores were not finite (scores_not_finite in evals/_SUCCESS.json says whose)"
            )
        rows = [
            [np.mean([values[name, each][item][metric] for each in peers]) for item in sorted(items)]
            for values in seeds
        ]
        found.append(np.array(rows))
    return found
