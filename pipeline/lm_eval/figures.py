"""The harness's figures beside ours: per task and peer, base, adapter, and their paired difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from data import shards
from data.run import OUTPUT, Run
from evaluate.intervals import estimate
from evaluate.items import ItemValues, item_values
from evaluate.tables import points

Ours = dict[str, ItemValues]  # {"base": round 0, "adapter": the round}; empty unless both are evaluated


@dataclass(frozen=True)
class TaskRow:
    """One metric of one task and peer; shares of 0 to 1."""

    peer: str
    task: str
    metric: str
    n: int
    base: tuple[float, float | None]  # value, standard error, as the harness gives them
    adapter: tuple[float, float | None]
    change: tuple[float, float | None, float | None] | None  # with its 95 % interval, paired by question
    # our exact match on the same questions: `base`, `adapter`, and `agree`, the share of equal verdicts
    ours: dict[str, float] | None


def ours_of(run: Run, round_: int) -> Ours:
    """Our own figures, if both rounds are evaluated."""
    rounds = {"base": 0, "adapter": round_}
    if any(shards.read_manifest(run.stage_dir(n, OUTPUT["evaluate"])) is None for n in rounds.values()):
        return {}
    return {name: item_values(run.root, number) for name, number in rounds.items()}


def task_rows(
    run: Run, peer: str, found: dict[str, Any], questions: dict[str, tuple[str, list[str]]], ours: Ours
) -> list[TaskRow]:
    """The rows of a peer. `found` is the output of harness.py; `questions` maps a task made from a benchmark to its
    name and its items in order."""
    rows = []
    for task, metrics in found["base"].items():
        for key, base in metrics.items():
            adapter = found["adapter"][task][key]
            ids = sorted(base["values"].keys() & adapter["values"].keys(), key=int)
            pairs = {
                name: [each["values"][id_] for id_ in ids] for name, each in (("base", base), ("adapter", adapter))
            }
            beside = None
            if task in questions and ours and ids:
                benchmark, items = questions[task]
                beside = _beside(ours, (benchmark, peer), [items[int(id_)] for id_ in ids], pairs)
            rows.append(
                TaskRow(
                    peer,
                    task,
                    key.removesuffix(",none"),
                    len(ids),
                    (base["value"], base["stderr"]),
                    (adapter["value"], adapter["stderr"]),
                    _change(run, pairs) if ids else None,
                    beside,
                )
            )
    return rows


def _change(run: Run, pairs: dict[str, list[float]]) -> tuple[float, float | None, float | None]:
    import numpy as np

    apart = np.array([pairs["adapter"]]) - np.array([pairs["base"]])
    found = estimate([apart], run.config.evaluate.bootstrap, run.config.run.seed)
    return found.mean, found.low, found.high


def _beside(
    ours: Ours, group: tuple[str, str], items: list[str], theirs: dict[str, list[float]]
) -> dict[str, float] | None:
    """Our exact match on the same questions, and how often their verdicts equal ours."""
    mine = {name: [values.get(group, {}).get(item, {}).get("em") for item in items] for name, values in ours.items()}
    known = {name: [value for value in values if value is not None] for name, values in mine.items()}
    if any(len(values) != len(items) for values in known.values()):
        return None  # the benchmark's questions have changed
    same = [a == b for name in known for a, b in zip(known[name], theirs[name], strict=True)]
    return {name: sum(values) / len(values) for name, values in known.items()} | {"agree": sum(same) / len(same)}


def figures_table(title: str, rows: list[TaskRow]) -> Table:
    """The figures as a table."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("task", "peer", "questions"):
        table.add_column(name)
    for name in ("base", "adapter", "change", "our base", "our adapter", "same verdicts"):
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for row in sorted(rows, key=lambda row: (row.task, row.metric)):
        if last not in (None, row.task):
            table.add_section()
        last = row.task
        beside = [points(row.ours[name]) for name in ("base", "adapter", "agree")] if row.ours else ["–"] * 3
        table.add_row(
            f"{row.task} ({row.metric})",
            row.peer,
            str(row.n),
            _with_error(row.base),
            _with_error(row.adapter),
            _shown(row.change),
            *beside,
        )
    return table


def _with_error(found: tuple[float, float | None]) -> str:
    value, error = found
    return points(value) + ("" if error is None else f" ± {points(error)}")


def _shown(change: tuple[float, float | None, float | None] | None) -> str:
    if change is None:
        return "–"
    mean, low, high = change
    if low is None or high is None or low == high:  # no question differs, or there is only one
        return points(mean, "+")
    return f"{points(mean, '+')} ({points(low, '+')} to {points(high, '+')})"
