"""Below the verdict: exact match and GV-Gap by round, for each benchmark, and what the gate decided."""

from __future__ import annotations

from rich.text import Text

from data import gate, shards
from evaluate.gate import all_decisions, gate_notes
from evaluate.intervals import Estimate
from evaluate.page.frames import Frames
from evaluate.page.lines import estimated, lines_plot
from evaluate.page.parts import Numbers, PagePart, marks, percent, signed
from evaluate.results import Results
from evaluate.tables import decided

METRICS = (
    (
        "em",
        "exact match, in %",
        "Exact match of the greedy response, with 95 % intervals over questions; higher is better.",
    ),
    (
        "gv_gap",
        "GV-Gap, in points",
        "What a model gains by keeping the samples that it judges better itself; it shrinks as the model learns to "
        "answer what it could already judge.",
    ),
)


def overview(results: Results, frames: Frames) -> list[PagePart]:
    """The parts of the first section."""
    parts = [part for part in (_benchmarks(frames), _gate(results, frames)) if part]
    if parts or frames.metrics.height:
        return parts
    nothing = "Exact match and GV-Gap are not shown: this run has no benchmarks. What can be shown without is below."
    return [PagePart("benchmarks", "By round", missing=[nothing])]


def _benchmarks(frames: Frames) -> PagePart | None:
    rows = [decided(row) for row in frames.metrics.to_dicts()]
    if not rows:
        return None
    plots = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        mine = [row for row in rows if row["benchmark"] == benchmark]
        for name, title, caption in METRICS:
            points = [
                estimated(row["round"], row["peer"], Estimate(row[name], row[f"{name}_lo"], row[f"{name}_hi"]))
                for row in mine
                if row[name] is not None
            ]
            if points:
                plots.append(lines_plot(f"{name}-{benchmark}", f"{benchmark}: {title}", caption, points, frames.peers))
    lost = {row["benchmark"] for row in rows if row["gv_gap"] is None}
    why = "the verifier decided nothing, or scored no sample with a finite number"
    missing = [f"Some GV-Gaps on {name} are missing: {why}." for name in sorted(lost)]
    return PagePart("benchmarks", "By round", missing=missing, legend=marks(frames.peers), plots=plots, pairs=True)


def _gate(results: Results, frames: Frames) -> PagePart | None:
    if not frames.gated:
        return None
    votes = shards.read_json(frames.run.stage_dir(0, gate.FOLDER) / shards.SUCCESS)
    points = [
        estimated(0, peer, Estimate(share, None, None))
        for peer, share in votes["agreement"].items()
        if share is not None
    ]
    rows = []
    for n, found in all_decisions(results.run.name).items():
        for peer, decision in found.items():
            each = decision.comparisons[0]
            points.append(estimated(n, peer, Estimate(each.after, None, None)))
            change = f"{signed(100 * each.difference)} ({signed(100 * each.low)} to {signed(100 * each.high)})"
            outcome = "accepted" if decision.accepted else "refused"
            rows.append([str(n), peer, percent(each.before), percent(each.after), change, outcome])
    plot = lines_plot(
        "gate",
        "Agreement with the untouched peers' votes, in %",
        "Of the adapters that each round trained, used or not; an adapter that clearly falls is refused.",
        points,
        frames.peers,
    )
    columns = ["round", "peer", "before, %", "after, %", "change in points (interval)", "decision"]
    caption = f"On {votes['questions_with_a_vote']:,} questions with a vote, without gold answers."
    tables = [Numbers("Decisions of the gate", columns, rows, (2, 3, 4), caption)] if rows else []
    notes = Text.from_markup(gate_notes(results.run.name)).plain
    lines = [line[:1].upper() + line[1:] + "." for line in notes.splitlines()]
    return PagePart("gate", "The gate", lines, legend=marks(frames.peers), plots=[plot], tables=tables, pairs=True)
