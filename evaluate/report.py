"""The tables of all rounds on the terminal, and the page: runs/<run>/report.html."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from data.cli import guarded, start
from data.config.sections import GuardSection
from data.console import console
from data.errors import UserError
from data.run import RUNS, check_run, load_frozen
from evaluate.page.write import write_page
from evaluate.results import finished_rounds, results_of
from evaluate.without_gold import rounds_without_gold

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def has_results(run: str) -> bool:
    """Whether there is anything to report. Raises UserError for an unknown run."""
    check_run(run)
    return bool(finished_rounds(run) or (not load_frozen(run).benchmarks and rounds_without_gold(run)))


def write_report(run: str, guard: GuardSection | None = None, price: float | None = None) -> list[Table | str]:
    """Write runs/<run>/report.html; returns what is also for the terminal: tables, the guard's warnings and the gate's
    notes. A run without benchmarks has only figures that need no gold answers. `price` is that of a device hour. Raises
    UserError if no round is evaluated, or, without benchmarks, has responses."""
    if not has_results(run):
        raise UserError(f"run {run!r} has no evaluated round yet: run `make round` or `make evaluate ROUND=0` first")
    results = results_of(run, guard)
    write_page(run, results, price)
    return results.tables


def show(run: str, guard: GuardSection | None = None, price: float | None = None) -> None:
    """Print the tables of results and the guard's warnings, and write the report; options as in `write_report`."""
    for table in write_report(run, guard, price):
        console.print(table)
    console.print(f"report: {RUNS / run / 'report.html'}")


@app.command(help="Print the table of all rounds and write runs/<run>/report.html.")
def command(
    run: Annotated[str, typer.Option(help="Name of the run.")],
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of a device hour; the page then has the price of a point gained.")
    ] = None,
) -> None:
    """`python -m evaluate.report --run NAME`."""
    guarded(lambda: show(run, price=price))


if __name__ == "__main__":
    start(app, "evaluate.report")
