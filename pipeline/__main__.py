"""`python -m pipeline COMMAND`: all commands of the package under one roof, by the names of the make targets.

A command is a module with an `app` of one typer command, which also runs alone (`python -m pipeline.round`). Only the
one that is asked for is imported.
"""

from __future__ import annotations

import sys
from importlib import import_module

import typer

from data.cli import start

COMMANDS = {  # name -> module, summary; in the order of the list
    "try": ("pipeline.first_look", "Put some questions to each peer: prompts, responses, speed."),
    "plan": ("pipeline.plan", "Say who runs where, and the memory, hours and disk of a run."),
    "wording": ("pipeline.wording", "Try the config's wordings with each peer and write the choice."),
    "round": ("pipeline.round", "Run every stage up to and including a round."),
    "ablate": ("pipeline.ablation", "Run several arms with several seeds and compare them."),
    "status": ("pipeline.status", "Show which stages of a run are finished."),
    "report": ("evaluate.report", "Print the tables of a run and write its report."),
    "table": ("pipeline.table", "Print the results of a run for a paper: Markdown, LaTeX or CSV."),
    "show": ("pipeline.show", "Show what a round did with one question."),
    "labels": ("pipeline.labels", "Say how often responses and labels were right."),
    "gpu-check": ("pipeline.gpu_check.__main__", "Check that this machine computes what is promised."),
}


def listing() -> typer.Typer:
    """The command line without a command: the list of all."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.callback(invoke_without_command=True, help="Run, look at and compare whole runs; make has the same commands.")
    def without_command(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())

    for name, (_, summary) in COMMANDS.items():
        app.command(name, short_help=summary)(lambda: None)  # never called: `main` takes these
    return app


def main(arguments: list[str]) -> None:
    """Run the command that comes first; what follows is its own."""
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        sys.argv = [sys.argv[0], *arguments[1:]]
        start(import_module(COMMANDS[name][0]).app, f"pipeline {name}")
    else:
        start(listing(), "pipeline")


if __name__ == "__main__":
    main(sys.argv[1:])
