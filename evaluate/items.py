"""The numbers of a round item by item, for comparisons between runs."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from data import shards
from data.config.load import parse_config
from data.errors import UserError
from data.schema import EVALS
from evaluate.gap import question_gap
from evaluate.intervals import Matrix

ItemValues = dict[tuple[str, str], dict[str, dict[str, float]]]  # (benchmark, peer) -> item -> {"em": …, "gap": …}
COLUMNS = ("benchmark", "peer", "item_id", "sample", "correct", "verifier_score")


def item_values(run: Path, round_: int) -> ItemValues:
    """Exact match of the greedy response (0 or 1) and the gap of every item. Raises UserError if not evaluated."""
    folder = run / f"round={round_}" / "evals"
    if shards.read_manifest(folder) is None:
        raise UserError(f"{folder} is not finished")
    keep = parse_config(shards.read_json(run / "config.json"), str(run / "config.json")).evaluate.keep
    found: ItemValues = {}
    for path in shards.shard_paths(folder):
        rows = shards.read_rows(path, EVALS, COLUMNS)
        rows.sort(key=lambda row: (row["benchmark"], row["peer"], row["item_id"], row["sample"]))
        for (benchmark, peer, item), group in groupby(rows, key=lambda r: (r["benchmark"], r["peer"], r["item_id"])):
            greedy, *samples = list(group)
            gap = question_gap([r["correct"] for r in samples], [r["verifier_score"] for r in samples], keep)
            found.setdefault((benchmark, peer), {})[item] = {"em": float(greedy["correct"]), "gap": gap}
    return found


def matrices(seeds: list[ItemValues], metric: str, peer: str) -> list[Matrix]:
    """Per benchmark an array [seeds, items]; of `mean` the mean over peers, item by item.

    Raises UserError if the seeds' items differ.
    """
    import numpy as np

    names = list(dict.fromkeys(benchmark for benchmark, _ in seeds[0]))
    found = []
    for name in names:
        peers = [other for benchmark, other in seeds[0] if benchmark == name] if peer == "mean" else [peer]
        items = set(seeds[0][name, peers[0]])
        if any(set(values[name, each]) != items for values in seeds for each in peers):
            raise UserError(f"benchmark {name}: what is compared was not evaluated on the same questions")
        rows = [
            [np.mean([values[name, each][item][metric] for each in peers]) for item in sorted(items)]
            for values in seeds
        ]
        found.append(np.array(rows))
    return found
