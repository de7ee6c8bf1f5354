"""`python -m evaluate.compare --runs "a b c"`: runs side by side, with paired differences.

Runs are compared on the same benchmark questions, question by question, like an ablation's arms (pipeline/ablation.py
compares arms over seeds). All runs are compared with the first, or with the one that `against` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from data import shards
from data.cli import guarded, start
from data.config.load import settled_keys
from data.config.sections import Config
from data.console import console
from data.errors import UserError
from data.run import RUNS, check_run, load_frozen
from data.schema import ABLATION
from data.shards import Row
from evaluate.intervals import Estimate, estimate
from evaluate.items import ItemValues, item_values, matrices
from evaluate.results import finished_rounds
from evaluate.tables import points

METRICS = {"em": "EM", "gap": "GV-Gap"}
MEAN = "mean"  # over peers
PAGE = "compare.html"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Side:
    """A run, as of the round that is compared."""

    run: str
    round: int
    config: Config
    rounds: dict[int, ItemValues]  # every evaluated round up to it

    @property
    def values(self) -> ItemValues:
        """The values of the round that is compared."""
        return self.rounds[self.round]

    @property
    def title(self) -> str:
        """The run and round, for titles."""
        return f"{self.run}, round {self.round}"


@dataclass(frozen=True)
class Figure:
    """A mean over benchmarks and questions, or a paired difference of two; shares, not percent."""

    run: str
    round: int
    peer: str
    metric: str  # a key of METRICS
    minus: str | None  # the run that is subtracted
    value: Estimate
    equal: bool = False  # no question differs, so the interval would have no width


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side; `peers` are those that all runs have, in the order of `against`."""

    sides: list[Side]
    against: Side
    peers: list[str]
    figures: list[Figure]  # each run's in the round that is compared, and their differences from `against`
    history: list[Figure]  # those of every round
    choices: list[tuple[str, list[str]]]  # config keys that differ, with each run's value

    def figure(self, run: str, peer: str, metric: str, minus: str | None) -> Figure:
        """One of `figures`."""
        return next(f for f in self.figures if (f.run, f.peer, f.metric, f.minus) == (run, peer, metric, minus))


def open_side(run: str, round_: int | None) -> Side:
    """A run up to a round, by default the last evaluated one. Raises UserError if that round is not evaluated."""
    check_run(run)
    config, rounds = load_frozen(run), finished_rounds(run)
    rounds = [n for n in rounds if shards.read_manifest(RUNS / run / f"round={n}" / "evals")]
    if not rounds:
        why = "it has no benchmarks" if not config.benchmarks else "none of its rounds is evaluated"
        raise UserError(f"run {run!r} cannot be compared: {why} (runs are compared by exact match and GV-Gap)")
    if round_ is not None and round_ not in rounds:
        raise UserError(
            f"round {round_} of run {run!r} is not evaluated; evaluated rounds: {', '.join(map(str, rounds))}"
        )
    last = rounds[-1] if round_ is None else round_
    return Side(run, last, config, {n: item_values(RUNS / run, n) for n in rounds if n <= last})


def compare(runs: Sequence[str], round_: int | None = None, against: str | None = None) -> RunComparison:
    """All figures of a comparison. Raises UserError for fewer than two runs, a run that is unknown or not evaluated,
    runs without a common peer, and runs evaluated on different questions."""
    names = list(dict.fromkeys(runs))
    if len(names) < 2:
        ablations = sorted({path.name.partition(".ablation.")[0] for path in RUNS.glob("*.ablation.round=*.parquet")})
        more = f", or the name of an ablation ({', '.join(ablations)})" if ablations else ""
        raise UserError(f"--runs {' '.join(runs)!r}: expected two or more runs, separated by spaces{more}")
    if against is not None and against not in names:
        raise UserError(f"--against {against!r}: expected one of the compared runs: {', '.join(names)}")
    sides = [open_side(name, round_) for name in names]
    base = sides[0] if against is None else sides[names.index(against)]
    peers = [peer for peer in base.config.peer_names if all(peer in side.config.peer_names for side in sides)]
    if not peers:
        named = "; ".join(f"{side.run}: {', '.join(side.config.peer_names)}" for side in sides)
        raise UserError(f"the runs have no peer of the same name ({named})")
    everything = [_of(side.values, peers) for side in sides]
    _check_questions(sides, everything)
    figures = []
    for side, values in zip(sides, everything, strict=True):
        for peer in (*peers, MEAN):
            for metric in METRICS:
                mine = matrices([values], metric, peer, everything)
                figures.append(_figure(side, side.round, peer, metric, None, mine, base))
                if side is not base:
                    theirs = matrices([_of(base.values, peers)], metric, peer, everything)
                    apart = [a - b for a, b in zip(mine, theirs, strict=True)]
                    figures.append(_figure(side, side.round, peer, metric, base.run, apart, base))
    history = [
        _figure(side, n, peer, metric, None, matrices([_of(values, peers)], metric, peer), base)
        for side in sides
        for n, values in side.rounds.items()
        for peer in (*peers, MEAN)
        for metric in METRICS
    ]
    return RunComparison(sides, base, peers, figures, history, _choices(sides))


def _of(values: ItemValues, peers: list[str]) -> ItemValues:
    """The values of these peers only."""
    return {key: items for key, items in values.items() if key[1] in peers}


def _check_questions(sides: list[Side], everything: list[ItemValues]) -> None:
    """Raises UserError unless all runs were evaluated on the same questions; it names the first two that differ."""
    first = everything[0]
    for side, values in zip(sides, everything, strict=True):
        if values.keys() != first.keys():
            here, there = ({benchmark for benchmark, _ in each} for each in (first, values))
            raise UserError(
                f"{sides[0].run!r} and {side.run!r} have different benchmarks ({', '.join(sorted(here))}; "
                f"{', '.join(sorted(there))}): only runs with the same questions can be compared"
            )
        for (benchmark, peer), items in values.items():
            expected = first[benchmark, peer]
            if items.keys() != expected.keys():
                common = len(items.keys() & expected.keys())
                raise UserError(
                    f"{sides[0].run!r} and {side.run!r} were evaluated on different questions of {benchmark} "
                    f"({len(expected)} and {len(items)}, {common} in common): only runs with the same questions can "
                    "be compared"
                )


def _figure(
    side: Side, round_: int, peer: str, metric: str, minus: str | None, values: Sequence[object], base: Side
) -> Figure:
    import numpy as np

    got = estimate(values, base.config.evaluate.bootstrap, base.config.run.seed)
    equal = minus is not None and all(np.allclose(np.asarray(each), 0, atol=1e-9) for each in values)
    return Figure(side.run, round_, peer, metric, minus, got, equal)


def _choices(sides: list[Side]) -> list[tuple[str, list[str]]]:
    flat = [settled_keys(side.config) for side in sides]
    keys = sorted(set[str]().union(*flat))
    rows = [(key, [each.get(key, "–") for each in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def text(figure: Figure) -> str:
    """The figure in percent or points, with its interval; ? before a difference whose sign is not known."""
    sign = "" if figure.minus is None else "+"
    if figure.equal:
        return "+0.0 (none differs)"
    value = figure.value
    shown = points(value.mean, sign)
    if value.low is None or value.high is None:
        return shown
    unknown = "? " if sign and value.contains_zero else ""
    return f"{unknown}{shown} ({points(value.low, sign)} to {points(value.high, sign)})"


def tables(found: RunComparison) -> list[Table]:
    """A table per metric, run × peer, and one of the config keys that differ."""
    count = sum(figure.minus is not None for figure in found.figures)
    made: list[Table] = []
    for metric, name in METRICS.items():
        title = f"{name} in %, means over benchmarks, and paired differences from {found.against.title} in points"
        if not made:
            title += (
                f"\nwith 95 % bootstrap intervals over questions, not corrected for {count} comparisons"
                "\n?: the interval of a difference contains 0, so its sign is not known"
            )
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("run", no_wrap=True)
        table.add_column("peer", no_wrap=True)
        for column in (name, f"− {found.against.run}"):
            table.add_column(column, justify="right", no_wrap=True)
        for side in found.sides:
            for number, peer in enumerate((*found.peers, MEAN)):
                minus = [] if side is found.against else [text(found.figure(side.run, peer, metric, found.against.run))]
                mine = text(found.figure(side.run, peer, metric, None))
                table.add_row("" if number else side.title, peer, mine, *minus)
            table.add_section()
        made.append(table)
    differ = Table(title="choices that differ", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("key", *(side.run for side in found.sides)):
        differ.add_column(column)
    for key, values in found.choices:
        differ.add_row(key, *(escape(value) for value in values))
    return [*made, *([differ] if found.choices else [])]


def _ablation(names: list[str], round_: int | None) -> tuple[str, int, list[Row]] | None:
    """(name, round, rows) if one ablation is named, by default its last round; None if runs are named."""
    if len(names) != 1 or (RUNS / names[0] / "config.json").is_file():
        return None
    files = {int(path.stem.rpartition("=")[2]): path for path in RUNS.glob(f"{names[0]}.ablation.round=*.parquet")}
    if not files:
        return None
    number = max(files) if round_ is None else round_
    if number not in files:
        known = ", ".join(map(str, sorted(files)))
        raise UserError(f"ablation {names[0]!r} has no round {number}; rounds: {known}")
    return names[0], number, shards.read_rows(files[number], ABLATION)


@app.command(help="Compare runs: tables with paired differences, and a page. For one ablation: the page alone.")
def command(
    runs: Annotated[str, typer.Option(help="Names of runs, separated by spaces, or the name of an ablation.")],
    round_: Annotated[
        int | None, typer.Option("--round", min=0, help="Round to compare; default: the last of each run.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Run that the others are compared with; default: the first.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help=f"File of the page; default: runs/{PAGE}.")] = None,
) -> None:
    """`python -m evaluate.compare --runs "a b c"`."""
    from evaluate.page.side_by_side import write_ablation, write_comparison

    def body() -> None:
        ablation = _ablation(runs.split(), round_)
        if ablation is None:
            found = compare(runs.split(), round_, against)
            for table in tables(found):
                console.print(table)
            path = write_comparison(found, out or RUNS / PAGE)
        else:
            name, number, rows = ablation
            path = write_ablation(name, number, rows, out or RUNS / f"{name}.ablation.round={number}.html")
        console.print(f"page: {path}")

    guarded(body)


if __name__ == "__main__":
    start(app, "evaluate.compare")
