"""`python -m pipeline COMMAND`: all commands of the package, under the names of the make targets.

A command is a module with an `app`, which also runs alone (`python -m pipeline.round`). An app has one typer command,
or several under the names listed here. Only the requested module is imported.
"""

from __future__ import annotations

import sys
from importlib import import_module

import typer

from data.cli import start

COMMANDS = {  # name -> module, summary; listed in this order
    "try": ("pipeline.first_look", "Ask each peer some questions: print prompts, responses, speed."),
    "plan": ("pipeline.plan", "Print who runs where, and the memory, hours and disk of a run."),
    "wording": ("pipeline.wording", "Try the config's wordings with each peer and write the choice."),
    "round": ("pipeline.round", "Run every stage up to and including a round."),
    "ablate": ("pipeline.ablation", "Run several arms with several seeds and compare them."),
    "status": ("pipeline.status", "Print what of a run is finished, running, failed or missing."),
    "report": ("evaluate.report", "Print the tables of a run and write its report."),
    "compare": ("evaluate.compare", "Compare runs, or the arms of an ablation, side by side."),
    "table": ("pipeline.table", "Print the results of a run for a paper: Markdown, LaTeX or CSV."),
    "show": ("pipeline.show", "Show what a round did with one question."),
    "labels": ("pipeline.labels", "Print how often responses and labels were right."),
    "fork": ("pipeline.fork", "Begin a run after a round of another run, under another config."),
    "export": ("pipeline.share.__main__", "Write each peer's adapter and a card."),
    "pack": ("pipeline.share.__main__", "Write a run as one archive, without models."),
    "unpack": ("pipeline.share.__main__", "Put an archive's run into runs/."),
    "verify": ("pipeline.share.__main__", "Check the files of a run, or of an archive, against their checksums."),
    "push": ("pipeline.share.__main__", "Print the commands that upload an export to the hub."),
    "lm-eval": ("pipeline.lm_eval.__main__", "Run lm-evaluation-harness on the peers."),
    "gpu-check": ("pipeline.gpu_check.__main__", "Check that this machine computes what the project promises."),
}


def listing() -> typer.Typer:
    """The command line without a command: it lists all commands."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.callback(invoke_without_command=True, help="Run, inspect and compare whole runs; make has the same commands.")
    def without_command(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())

    for name, (_, summary) in COMMANDS.items():
        app.command(name, short_help=summary)(lambda: None)  # never called: `main` handles these
    return app


def main(arguments: list[str]) -> None:
    """Run the command named first; the other arguments are its own."""
    name = arguments[0] if arguments else ""
    if name not in COMMANDS:
        start(listing(), "pipeline")
        return
    app = import_module(COMMANDS[name][0]).app
    several = len(app.registered_commands) > 1
    sys.argv = [sys.argv[0], *(arguments if several else arguments[1:])]
    start(app, "pipeline" if several else f"pipeline {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
