"""Compares two runs: ids, text, scores to 1e-6, adapters bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

TABLES = (
    "prompts/part-*", "round=*/chains/part-*", "round=*/scores/part-*", "round=*/evals/part-*", "round=*/gate/part-*",
    "round=*/metrics",
)  # fmt: skip
SCORES = 1e-6  # of any number in a table
ADAPTERS = 0.0  # on one core
LEFT_OVER = ("**/*.tmp", "**/.work", "**/_STARTED.json")  # what a finished run must not have


def differences(left: Path, right: Path, adapters: float = ADAPTERS) -> list[str]:
    """A line for each difference between two finished runs; no lines if they are the same."""
    found = []
    for pattern in TABLES:
        names = sorted({str(path.relative_to(run)) for run in (left, right) for path in run.glob(f"{pattern}.parquet")})
        for name in names:
            found += _tables(name, left / name, right / name)
    names = sorted(
        {str(p.relative_to(run)) for run in (left, right) for p in run.glob("round=*/adapters/*/*.safetensors")}
    )
    for name in names:
        found += _adapters(name, left / name, right / name, adapters)
    found += [f"{path.relative_to(right)} is left over" for pattern in LEFT_OVER for path in right.glob(pattern)]
    return found


def _tables(name: str, left: Path, right: Path) -> list[str]:
    if not (left.is_file() and right.is_file()):
        return [f"{name} is in one of them alone"]
    a, b = (pq.ParquetFile(path).read().to_pylist() for path in (left, right))
    if len(a) != len(b):
        return [f"{name}: {len(a)} and {len(b)} rows"]
    for number, (row, other) in enumerate(zip(a, b, strict=True)):
        for key in row.keys() | other.keys():
            if not _same(row.get(key), other.get(key)):
                return [f"{name}: row {number} has {key} {row.get(key)!r} and {other.get(key)!r}"]
    return []


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, abs_tol=SCORES, rel_tol=SCORES)
    return bool(value == other)


def _adapters(name: str, left: Path, right: Path, tolerance: float) -> list[str]:
    from safetensors.numpy import load_file  # torch takes seconds to import

    if not (left.is_file() and right.is_file()):
        return [f"{name} is in one of them alone"]
    a, b = load_file(left), load_file(right)
    if a.keys() != b.keys():
        return [f"{name}: other tensors"]
    most = max(float(abs(a[key] - b[key]).max()) for key in a)
    return [f"{name}: differs by {most:.2g}"] if most > tolerance or math.isnan(most) else []


STAGES = {
    "chains": ("role", "position", "sample"),
    "scores": ("peer", "number"),
    "evals": ("benchmark", "peer", "sample"),
}


def measured(left: Path, right: Path) -> dict[str, str]:
    """How much two runs differ, however they are sharded: by stage and round, the rows that differ in more than
    numbers, and the largest difference of a number, including the adapters' numbers."""
    from safetensors.numpy import load_file

    found = {}
    for folder in sorted(path for path in left.glob("round=*/*") if path.name in STAGES):
        rows, others = (_by_key(run / folder.relative_to(left), STAGES[folder.name]) for run in (left, right))
        apart, most = len(rows.keys() ^ others.keys()), 0.0
        for key in rows.keys() & others.keys():
            kinds = [(rows[key][name], others[key][name]) for name in rows[key]]
            numbers = [(a, b) for a, b in kinds if isinstance(a, float) and isinstance(b, float)]
            most = max([most, *(abs(a - b) for a, b in numbers)])
            apart += any(a != b for a, b in kinds if not (isinstance(a, float) and isinstance(b, float)))
        found[str(folder.relative_to(left))] = f"{apart} of {len(rows)} rows, numbers {most:.1e}"
    for path in sorted(left.glob("round=*/adapters/*/*.safetensors")):
        a, b = load_file(path), load_file(right / path.relative_to(left))
        found[str(path.relative_to(left).parent)] = f"{max(float(abs(a[n] - b[n]).max()) for n in a):.1e}"
    return found


def _by_key(folder: Path, key: tuple[str, ...]) -> dict[tuple[Any, ...], dict[str, Any]]:
    rows = [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]
    return {(row.get("prompt_id") or row.get("item_id"), *(row[name] for name in key)): row for row in rows}
