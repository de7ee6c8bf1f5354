"""`python -m pipeline.status --run NAME`: which stages of a run are finished."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from data import shards
from data.cli import guarded, start
from data.console import console
from data.errors import UserError
from data.run import OUTPUT, RUNS, check_run, load_frozen

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def status(run: str) -> tuple[Table, list[str]]:
    """One row per stage of every round in which anything was made, and what is wrong with damaged ones. Raises
    UserError for an unknown run."""
    root = RUNS / run
    check_run(run)
    table = Table("round", "stage", "state", "rows", "seconds")
    errors = []
    gated = load_frozen(run).gate.questions
    for round_ in sorted(int(path.name.split("=")[1]) for path in root.glob("round=*") if _begun(path)):
        for stage, folder in OUTPUT.items():
            if (round_ == 0 and stage not in ("gate", "evaluate")) or (stage == "gate" and not gated):
                continue
            path = root / f"round={round_}" / folder
            try:
                manifest = shards.read_manifest(path)
                state = "finished" if manifest else "started" if (path / shards.STARTED).is_file() else "-"
            except UserError as error:
                manifest, state = None, "damaged"
                errors.append(str(error))
            done = manifest or {"rows": "", "seconds": ""}
            table.add_row(str(round_), stage, state, str(done["rows"]), str(done["seconds"]))
    return table, errors


def _begun(round_dir: Path) -> bool:
    """Whether a round has more than the log of a call that was refused."""
    return any(path.name != "logs" for path in round_dir.iterdir())


@app.command(help="Show which stages of a run are finished.")
def command(run: Annotated[str, typer.Option(help="Name of the run.")]) -> None:
    """`python -m pipeline.status --run NAME`."""

    def body() -> None:
        table, errors = status(run)
        console.print(table)
        for error in errors:
            console.print(error, markup=False)

    guarded(body)


if __name__ == "__main__":
    start(app, "pipeline.status")
