"""Write the page of a comparison: runs, or the arms of an ablation, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import shards
from data.shards import Row
from evaluate.compare import MEAN, METRICS, Figure, RunComparison
from evaluate.intervals import Estimate
from evaluate.page import charts
from evaluate.page.lines import estimated, lines_plot
from evaluate.page.parts import (
    Numbers,
    PagePart,
    PageSection,
    Plot,
    Tile,
    interval_text,
    join_words,
    mark,
    marks,
    percent,
    plural,
)
from evaluate.page.write import FOOTER, render

TITLES = {"em": "Exact match", "gap": "GV-Gap"}
CAPTIONS = {
    "em": "Right of 0 is better. A line that crosses 0 is a difference whose sign is not known; a point at 0 without a "
    "line means that no question differs.",
    "gap": "Left of 0 the gap is smaller. A line that crosses 0 is a difference whose sign is not known.",
}
NOT_CORRECTED = "95 % intervals, not corrected for {}."


def write_comparison(comparison: RunComparison, path: Path) -> Path:
    """Write the page of runs side by side; returns its path."""
    return _write(comparison_context(comparison), path)


def write_ablation(name: str, round_: int, rows: Sequence[Row], path: Path) -> Path:
    """Write the page of an ablation, from its rows (of `data.schema.ABLATION`); returns its path."""
    return _write(ablation_context(name, round_, rows), path)


def _write(context: dict[str, Any], path: Path) -> Path:
    html = render(context)
    with shards.writing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _context(title: str, sections: list[PageSection], **more: Any) -> dict[str, Any]:
    """The context of the page's template, without chains and warnings."""
    specs = {plot.id: plot.spec for section in sections for plot in section.plots()}
    return {
        "run": title,
        "sections": sections,
        "specs": specs,
        "chains": None,
        "warnings": [],
        "footer": FOOTER,
        **more,
    }


def comparison_context(comparison: RunComparison) -> dict[str, Any]:
    """The template's context for a comparison of runs."""
    base, names = comparison.against, [side.run for side in comparison.sides]
    differences = [figure for figure in comparison.figures if figure.minus is not None]
    levels = [figure for figure in comparison.figures if figure.minus is None]
    parts = [
        _forest(metric, [f for f in differences if f.metric == metric], base.run, comparison.peers)
        for metric in METRICS
    ]
    sections = [
        PageSection("overview", "Differences", parts=parts),
        PageSection(
            "rounds",
            "By round",
            "Means over the benchmarks and the peers that all runs have.",
            [_by_round(comparison, names)],
        ),
        PageSection("numbers", "All numbers", parts=[_levels(metric, levels) for metric in METRICS]),
    ]
    sentences = [_sentence(comparison, side.run) for side in comparison.sides if side is not base]
    count = plural(len(differences), "comparison")
    return _context(
        join_words(names),
        sections,
        subtitle=f"{plural(len(names), 'run')} side by side · compared with {base.title}",
        verdict=sentences[:1],
        details=" ".join(sentences[1:]),
        notices=[NOT_CORRECTED.format(count)],
        tiles=[_tile(comparison, i) for i in range(len(names))],
        facts=[
            ("Compared", [side.title for side in comparison.sides]),
            ("Peers", comparison.peers),
            *_choices(comparison),
        ],
    )


def ablation_context(name: str, round_: int, rows: Sequence[Row]) -> dict[str, Any]:
    """The template's context for an ablation."""
    figures = [
        Figure(
            row["arm"],
            round_,
            row["peer"],
            row["metric"],
            row["minus"],
            Estimate(row["mean"], row["low"], row["high"]),
        )
        for row in rows
    ]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    others = list(dict.fromkeys(row["minus"] for row in rows if row["minus"] is not None))
    peers = [peer for peer in dict.fromkeys(row["peer"] for row in rows) if peer != MEAN]
    gold = [arm for arm in arms if any(row["reads_gold"] for row in rows if row["arm"] == arm and row["minus"] is None)]
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    parts = [
        _forest(metric, [f for f in figures if (f.metric, f.minus) == (metric, other)], other, peers)
        for other in others
        for metric in METRICS
    ]
    levels = [_levels(metric, [f for f in figures if f.minus is None]) for metric in METRICS]
    sections = [
        PageSection("overview", "Differences", parts=parts),
        PageSection("numbers", "All numbers", parts=levels),
    ]
    notices = [NOT_CORRECTED.format(plural(sum(f.minus is not None for f in figures), "comparison"))]
    notices += [f"Gold answers were used in the training of {join_words(gold)}: a bound, not a method."] if gold else []
    best = [f for f in figures if (f.metric, f.peer, f.minus) == ("em", MEAN, None)]
    first = max(best, key=lambda f: f.value.mean)
    of_seeds = f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"
    lead = f"{first.run} has the highest mean exact match: {interval_text(first.value)} %."
    return _context(
        name,
        sections,
        subtitle=f"ablation · {plural(len(arms), 'arm')} · round {round_} · {of_seeds}",
        verdict=[lead, _resolved(figures, first.run)],
        details="",
        notices=notices,
        tiles=[],
        facts=[("Arms", arms), ("Peers", peers), ("Compared with", others or ["nothing"])],
    )


def _resolved(figures: Sequence[Figure], run: str) -> str:
    """Whether an arm's lead over those that it is compared with is more than noise, in words."""
    mine = [f for f in figures if (f.run, f.metric, f.peer) == (run, "em", MEAN) and f.minus is not None]
    known = [f.minus for f in mine if f.minus is not None and not f.value.contains_zero]
    open_ = [f.minus for f in mine if f.minus is not None and f.value.contains_zero]
    words = [f"Its lead over {join_words(known)} is resolved."] if known else []
    words += (
        [f"Its lead over {join_words(open_)} is not resolved: the interval of the difference contains 0."]
        if open_
        else []
    )
    return " ".join(words) or "It is compared with no other arm."


def _sentence(found: RunComparison, run: str) -> str:
    """How a run compares with `against`, in a sentence."""
    figure = found.figure(run, MEAN, "em", found.against.run)
    if figure.equal:
        return f"{run}: exact match is the same as that of {found.against.run} on every question."
    change, value = interval_text(figure.value, sign=True), figure.value
    if value.low is None or value.high is None or value.contains_zero:
        return f"{run}: no difference in exact match is resolved ({change} points)."
    word = "higher" if value.mean > 0 else "lower"
    return f"{run}: exact match is {word} than that of {found.against.run}, by {change} points."


def _tile(found: RunComparison, number: int) -> Tile:
    side = found.sides[number]
    mine = found.figure(side.run, MEAN, "em", None).value
    lines = [f"round {side.round}", f"GV-Gap {interval_text(found.figure(side.run, MEAN, 'gap', None).value)}"]
    return Tile(side.run, mark(number), percent(mine.mean), "%", lines)


def _choices(found: RunComparison) -> list[tuple[str, list[str]]]:
    runs = [side.run for side in found.sides]
    rows = [
        f"{key}: " + ", ".join(f"{run} {value}" for run, value in zip(runs, values, strict=True))
        for key, values in found.choices
    ]
    return [("Switches that differ", rows or ["none"])]


def _forest(metric: str, figures: list[Figure], against: str, peers: Sequence[str]) -> PagePart:
    """Differences from a run or an arm, by peer and for the mean over peers."""
    who = [*peers, MEAN]
    rows: list[dict[str, Any]] = []
    for figure in figures:
        value = figure.value
        mean, low, high = (None if x is None else round(100 * x, 4) for x in (value.mean, value.low, value.high))
        shown = "none differs" if figure.equal else interval_text(value, sign=True)
        rows.append({"run": figure.run, "peer": figure.peer, "value": mean, "low": low, "high": high, "shown": shown})
    order = list(dict.fromkeys(figure.run for figure in figures))
    cells = {(row["run"], row["peer"]): row["shown"] for row in rows}
    table = Numbers(
        f"{TITLES[metric]}: differences from {against}, in points",
        ["", *who],
        [[run, *(cells.get((run, peer), "–") for peer in who)] for run in order],
        range(1, len(who) + 1),
    )
    plot = Plot(
        f"forest-{metric}-{against}",
        "Paired differences, in points",
        CAPTIONS[metric],
        charts.forest(rows, order, who),
        table,
        wide=True,
    )
    return PagePart(
        f"{metric}-{against}", f"{TITLES[metric]}: differences from {against}", legend=marks(who), plots=[plot]
    )


def _by_round(found: RunComparison, runs: Sequence[str]) -> PagePart:
    """A line per run over its rounds."""
    plots = []
    for metric in METRICS:
        rows = [estimated(f.round, f.run, f.value) for f in found.history if (f.metric, f.peer) == (metric, MEAN)]
        caption = "With 95 % intervals over questions; each run by itself, not paired."
        plots.append(lines_plot(f"rounds-{metric}", f"{TITLES[metric]}, in %", caption, rows, runs))
    return PagePart("rounds", "Means by round", legend=marks(runs), plots=plots, pairs=True)


def _levels(metric: str, figures: list[Figure]) -> PagePart:
    """Means of a metric, a row per run or arm."""
    figures = [figure for figure in figures if figure.metric == metric]
    runs, peers = (list(dict.fromkeys(getattr(f, name) for f in figures)) for name in ("run", "peer"))
    cells = {(f.run, f.peer): interval_text(f.value) for f in figures}
    rows = [[run, *(cells.get((run, peer), "–") for peer in peers)] for run in runs]
    title = f"{TITLES[metric]} in %, means over benchmarks"
    table = Numbers(title, ["", *peers], rows, range(1, len(peers) + 1))
    return PagePart(f"levels-{metric}", TITLES[metric], tables=[table])
