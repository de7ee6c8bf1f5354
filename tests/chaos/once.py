"""`python -m tests.chaos.once FOLDER`: an undisturbed run in a new folder, to compare others with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tests.chaos.__main__ import prepare


def main(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    models: Annotated[Path, typer.Option(help="The tiny peers' models.")],
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    bug: Annotated[str | None, typer.Option(help="A function of tests/chaos/bugs.py to call first.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="As of `python -m pipeline.round`.")] = None,
) -> None:
    """Ends with the run's status."""
    prepare(engine)
    from tests.chaos.child import launch
    from tests.chaos.project import Kind, make_project

    kind = Kind(engine)
    project = make_project(folder.resolve(), models.resolve(), kind)
    options = [word for pair in set_ or [] for word in ("--set", pair)]
    process = launch(project, [*kind.arguments, *options], project / "out.txt", bug=bug)
    process.join()
    print((project / "out.txt").read_text(encoding="utf-8"))
    os._exit(process.exitcode or 0)


if __name__ == "__main__":
    typer.run(main)
