"""`python -m data.status --run NAME`: which stages of a run are finished."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from data import shards
from data.console import console
from data.errors import UserError
from data.run import OUTPUT, RUNS
from data.stage import guarded, start


def check_run(run: str) -> None:
    """Raises UserError for a run that never got as far as a config."""
    known = sorted(path.parent.name for path in RUNS.glob("*/config.json"))
    if run not in known:
        runs = ", ".join(known) or "none yet"
        raise UserError(f"there is no run {run!r} (`make round` would begin it); runs: {runs}")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def status_table(run: str) -> Table:
    """One row per stage of every round. Raises UserError for an unknown run or a damaged file."""
    root = RUNS / run
    check_run(run)
    table = Table("round", "stage", "state", "rows", "seconds")
    for round_ in sorted(int(path.name.split("=")[1]) for path in root.glob("round=*")):
        for stage, folder in OUTPUT.items():
            if round_ == 0 and stage != "evaluate":
                continue
            path = root / f"round={round_}" / folder
            manifest = shards.read_manifest(path)
            state = "finished" if manifest else "started" if (path / shards.STARTED).is_file() else "-"
            done = manifest or {"rows": "", "seconds": ""}
            table.add_row(str(round_), stage, state, str(done["rows"]), str(done["seconds"]))
    return table


@app.command(help="Show which stages of a run are finished.")
def command(run: Annotated[str, typer.Option(help="Name of the run.")]) -> None:
    """`python -m data.status --run NAME`."""
    guarded(lambda: console.print(status_table(run)))


if __name__ == "__main__":
    start(app, "data.status")
