"""`python -m pipeline.labels`: how good a run's labels were, where the questions have gold answers."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from data import shards
from data.cli import guarded, start
from data.config.load import parse_config
from data.console import console
from data.errors import UserError
from data.fork import fork_notice
from data.keep import keep_path
from data.run import Run, check_run, load_frozen
from evaluate.clustered import Bootstrap
from evaluate.intervals import Estimate
from evaluate.labels import judged, quality, source_has_changed
from evaluate.tables import oracle_notice


def labels_table(run: Run, rounds: list[int]) -> Table:
    """One column per finished round."""
    title = f"run {run.name}: how good its labels were, in %,\nwith 95 % bootstrap intervals over questions"
    title += fork_notice(run.name) + oracle_notice(run.name)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    draws = Bootstrap(run.config.evaluate.bootstrap, run.config.run.seed)
    found = []
    for round_ in rounds:
        table.add_column(f"round {round_}", justify="right", no_wrap=True)
        chains, scores = judged(run, round_)
        oracle = keep_path(run.name, round_).is_file()
        found.append(quality(chains, scores, draws, oracle))
    for name in dict.fromkeys(name for numbers in found for name in numbers):
        table.add_row(name, *(_shown(name, numbers.get(name)) for numbers in found))
    return table


def _shown(name: str, found: Estimate | None) -> str:
    if found is None:
        return "–"
    if "correlation" in name or "mean weight" in name:
        return f"{found.mean:.2f}"
    interval = "" if found.low is None or found.high is None else f" ({100 * found.low:.1f} to {100 * found.high:.1f})"
    return f"{100 * found.mean:.1f}{interval}"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    help="Print how often a run's responses and labels were right, and how much training weight fell on wrong ones. A "
    "tied vote counts as the share of the tied answers that are right."
)
def command(
    run: Annotated[str, typer.Option(help="Name of the run.")],
    column: Annotated[
        str | None, typer.Option(help="Column of prompts.source with gold answers; default: evaluate.gold_column.")
    ] = None,
    answers: Annotated[str | None, typer.Option(help="Kind of these answers; default: evaluate.gold_answers.")] = None,
) -> None:
    """`python -m pipeline.labels --run NAME`."""

    def body() -> None:
        check_run(run)
        config = load_frozen(run)
        given = {"gold_column": column, "gold_answers": answers}
        changed = config.model_dump(mode="json")
        changed["evaluate"] |= {key: value for key, value in given.items() if value is not None}
        opened = Run(run, parse_config(changed, "options"))
        rounds = sorted(int(path.parent.name.split("=")[1]) for path in opened.root.glob("round=*/scores"))
        finished = [r for r in rounds if shards.read_manifest(opened.stage_dir(r, "scores"))]
        if not finished:
            raise UserError(f"run {run!r} has no scored round yet: run `make score RUN={run} ROUND=1` first")
        console.print(labels_table(opened, finished))
        if source_has_changed(opened):
            console.print(
                f"[bold]{escape(opened.config.prompts.source)} has changed[/bold] since the run drew its questions: "
                "this table uses its present gold answers"
            )

    guarded(body)


if __name__ == "__main__":
    start(app, "pipeline.labels")
