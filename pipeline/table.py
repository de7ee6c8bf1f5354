"""`python -m pipeline table RUN`: the results of a run for a paper, as Markdown, LaTeX or CSV.

The numbers come from metrics.parquet, and the paired changes since round 0 are those of the report. CSV has shares of 0
to 1; the other two formats have percent.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Annotated

import typer
from rich.text import Text

from data import shards
from data.cli import guarded, start
from data.errors import UserError
from data.run import check_run, load_frozen, metrics_path
from data.schema import METRICS
from data.shards import Row
from evaluate.changes import Change, round_changes
from evaluate.gate import refused_notice
from evaluate.intervals import Estimate
from evaluate.results import finished_rounds
from evaluate.tables import decided, oracle_notice, points

KEY_COLUMNS = ("benchmark", "peer", "round")
SHOWN_COLUMNS = ("EM", "GV-Gap", "pass@k", "maj@k", "change of EM", "change of GV-Gap")
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "–": "--",
}


@dataclass(frozen=True)
class Line:
    """A benchmark, peer and round: its row of metrics.parquet, and its change since round 0, if known."""

    row: Row
    round: int
    change: Change | None


def table_lines(run: str) -> list[Line]:
    """All lines, benchmark by benchmark and peer by peer. Raises UserError for a run without benchmarks, or without an
    evaluated round."""
    check_run(run)
    if not load_frozen(run).benchmarks:
        raise UserError(
            f"run {run!r} has no benchmarks, so there is no table of results; `make report RUN={run}` shows what needs "
            "no gold answers"
        )
    rounds = finished_rounds(run)
    if not rounds:
        raise UserError(f"run {run!r} has no evaluated round yet: run `make evaluate RUN={run} ROUND=0` first")
    changed = {(*change.group, change.round): change for change in round_changes(run, rounds)}
    found = [
        Line(row, round_, changed.get((row["benchmark"], row["peer"], round_)))
        for round_ in rounds
        for row in shards.read_rows(metrics_path(run, round_), METRICS)
    ]
    benchmarks, peers = (list(dict.fromkeys(line.row[name] for line in found)) for name in ("benchmark", "peer"))
    return sorted(found, key=lambda line: (benchmarks.index(line.row["benchmark"]), peers.index(line.row["peer"])))


def caption(run: str) -> str:
    """A description of the numbers, with the notices that must go with them."""
    sizes = {line.row["benchmark"]: (line.row["n"], line.row["k"]) for line in table_lines(run)}
    questions = "; ".join(f"{name}: {n} questions, k = {k}" for name, (n, k) in sizes.items())
    text = (
        f"Run {run}, in %, with 95 % bootstrap intervals over questions; changes are since round 0, paired by question "
        f"({questions})."
    )
    notices = oracle_notice(run) + refused_notice(run)
    if load_frozen(run).prompts.overlap == "transductive":
        notices += "\ntransductive: training questions may also be benchmark questions"
    lines = [line for line in Text.from_markup(notices).plain.split("\n") if line]
    return " ".join([text, *(f"{line[0].upper()}{line[1:]}." for line in lines)])


def cells(line: Line) -> list[str]:
    """The cells of a line, one for each of SHOWN_COLUMNS."""
    row = decided(line.row)
    gap = _interval(row["gv_gap"], row["gv_gap_lo"], row["gv_gap_hi"])
    em = _interval(row["em"], row["em_lo"], row["em_hi"])
    more = [_interval(row[name], None, None) for name in ("pass_at_k", "maj_at_k")]
    change = line.change
    if change is None:
        return [em, gap, *more, "–", "–"]
    return [em, gap, *more, _change(change.em, change.em_same), _change(change.gap, change.gap_same)]


def _interval(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    if value is None:
        return "–"
    shown = points(value, sign)
    return shown if low is None or high is None else f"{shown} ({points(low, sign)} to {points(high, sign)})"


def _change(found: Estimate | None, same: bool) -> str:
    if found is None:
        return "–"
    return "+0.0 (none differs)" if same else _interval(found.mean, found.low, found.high, "+")


def _groups(lines: Sequence[Line]) -> list[list[list[str]]]:
    """Rows of cells by benchmark and peer, whose names are only in the group's first row."""
    groups: list[list[list[str]]] = []
    last = None
    for line in lines:
        key = (line.row["benchmark"], line.row["peer"])
        if key != last:
            groups.append([])
        groups[-1].append([*(key if key != last else ("", "")), str(line.round), *cells(line)])
        last = key
    return groups


def markdown(run: str) -> str:
    """A Markdown table under its caption."""
    rows = [[*KEY_COLUMNS, *SHOWN_COLUMNS], ["---"] * 3 + ["---:"] * len(SHOWN_COLUMNS)]
    rows += [row for group in _groups(table_lines(run)) for row in group]
    return f"{caption(run)}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def latex(run: str) -> str:
    """A LaTeX table with booktabs rules."""

    def written(row: Sequence[str]) -> str:
        names, numbers = map(escaped, row[: len(KEY_COLUMNS)]), map(escaped, row[len(KEY_COLUMNS) :])
        return "    " + " & ".join([*names, *(re.sub(r"-(?=\d)", "$-$", number) for number in numbers)]) + r" \\"

    body = "\n    \\midrule\n".join("\n".join(map(written, group)) for group in _groups(table_lines(run)))
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escaped(caption(run))}}}",
            rf"  \label{{tab:{run}}}",
            rf"  \begin{{tabular}}{{lll{'r' * len(SHOWN_COLUMNS)}}}",
            r"    \toprule",
            written([*KEY_COLUMNS, *SHOWN_COLUMNS]),
            r"    \midrule",
            body,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """Text escaped for LaTeX."""
    return "".join(LATEX.get(character, character) for character in text)


def as_csv(run: str) -> str:
    """Every column of metrics.parquet, and the changes, as numbers; unknown ones are empty."""
    file = StringIO()
    ends = ("", "_lo", "_hi")
    names = [*METRICS.names[:2], "round", *METRICS.names[2:]]
    names += [f"{metric}_change{end}" for metric in ("em", "gv_gap") for end in ends]
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for line in table_lines(run):
        row, change = {**line.row, "round": line.round}, line.change
        pairs = [] if change is None else [("em", change.em, change.em_same), ("gv_gap", change.gap, change.gap_same)]
        for metric, found, same in pairs:
            if found is not None:  # without any difference an interval would have no width
                numbers = (found.mean, None, None) if same else (found.mean, found.low, found.high)
                row |= {f"{metric}_change{end}": number for end, number in zip(ends, numbers, strict=True)}
        writer.writerow(row)
    return file.getvalue()


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    help="Print the results of a run for a paper: metrics with intervals, and the paired changes since round 0. "
    "Default: Markdown."
)
def command(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_latex: Annotated[
        bool, typer.Option("--latex", help="Print a LaTeX table; it needs the package booktabs.")
    ] = False,
    csv_: Annotated[bool, typer.Option("--csv", help="Print all numbers as in metrics.parquet.")] = False,
) -> None:
    """`python -m pipeline table RUN --markdown | --latex | --csv`."""

    def body() -> None:
        if as_markdown + as_latex + csv_ > 1:
            raise UserError("--markdown, --latex and --csv each choose the format: give only one of them")
        form: Callable[[str], str] = latex if as_latex else as_csv if csv_ else markdown
        sys.stdout.write(form(run))

    guarded(body)


if __name__ == "__main__":
    start(app, "pipeline.table")
