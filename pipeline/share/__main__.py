"""`python -m pipeline.share export|pack|unpack|verify|push`."""

from pathlib import Path
from typing import Annotated

import typer

from data.cli import guarded, quiet_environment, start
from data.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)

RunName = Annotated[str, typer.Option("--run", help="Name of the run.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the export; the default is runs/<run>/export.")]


@app.command(help="Write each peer's adapter in peft's format, with a card.")
def export(
    run: RunName,
    round_: Annotated[int | None, typer.Option("--round", min=1, help="Default: the best one by the gate.")] = None,
    out: Out = None,
    merged: Annotated[bool, typer.Option("--merged", help="Also the merged checkpoint, with tokenizer.")] = False,
    check: Annotated[int, typer.Option(min=0, help="Ask vLLM, transformers and peft so many questions; 0: none.")] = 8,
    tokens: Annotated[int | None, typer.Option(min=1, help="Longest response of the check.")] = None,
    base: Annotated[list[str] | None, typer.Option(help="PEER=OWNER/NAME: its base on the hub; repeatable.")] = None,
) -> None:
    """`python -m pipeline.share export`."""
    quiet_environment()

    def body() -> None:
        from pipeline.share.export import export as main

        main(run, round_, out, merged, check, tokens, base or [])

    guarded(body)


@app.command(help="Write a run as one archive, without models.")
def pack(
    run: RunName,
    out: Annotated[Path | None, typer.Option(help="The archive; the default is runs/<run>.tar.gz.")] = None,
    gold: Annotated[bool, typer.Option(help="With what states gold answers, or follows from them.")] = True,
    logs: Annotated[bool, typer.Option(help="With what the libraries printed.")] = False,
) -> None:
    """`python -m pipeline.share pack`."""

    def body() -> None:
        from pipeline.share.pack import pack as main

        main(run, out, gold, logs)

    guarded(body)


@app.command(help="Put an archive's run into runs/, and say what it needs that is not here.")
def unpack(
    file: Annotated[Path, typer.Option(help="The archive.")],
    run: Annotated[str | None, typer.Option(help="Another name for the run.")] = None,
    place: Annotated[
        list[str] | None,
        typer.Option(help="OLD=NEW: where a path that its config names is here; repeatable."),
    ] = None,
) -> None:
    """`python -m pipeline.share unpack`."""

    def body() -> None:
        from pipeline.share.pack import unpack as main

        main(file, run, place or [])

    guarded(body)


@app.command(help="Read all files of a run, or of an archive, and name those that are not as they were written.")
def verify(
    run: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    file: Annotated[Path | None, typer.Option(help="An archive, instead of a run.")] = None,
) -> None:
    """`python -m pipeline.share verify`."""

    def body() -> None:
        from pipeline.share.verify import verify_archive, verify_run

        if file is not None:
            verify_archive(file)
        elif run is not None:
            verify_run(run)
        else:
            raise UserError("name a run (--run) or an archive (--file)")

    guarded(body)


@app.command(help="Print the commands that would put an export on the hub; none is run.")
def push(
    run: RunName, out: Out = None, owner: Annotated[str, typer.Option(help="Your name on the hub.")] = "OWNER"
) -> None:
    """`python -m pipeline.share push`."""

    def body() -> None:
        from pipeline.share.push import push as main

        main(run, out, owner)

    guarded(body)


if __name__ == "__main__":
    start(app, "pipeline.share")
