"""`python -m pipeline.share export|pack|unpack|verify|push`."""

from pathlib import Path
from typing import Annotated

import typer

from data.cli import guarded, quiet_environment, start
from data.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)

RunName = Annotated[str, typer.Option("--run", help="Name of the run.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the export; default: runs/<run>/export.")]


@app.command(help="Write each peer's adapter in peft's format, and a card.")
def export(
    run: RunName,
    round_: Annotated[
        int | None, typer.Option("--round", min=1, help="Number of the round; default: the gate's best.")
    ] = None,
    out: Out = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Also write the merged checkpoint and its tokenizer.")
    ] = False,
    check: Annotated[int, typer.Option(min=0, help="How many questions to check with; 0: no check.")] = 8,
    tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of a response of the check.")] = None,
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
    out: Annotated[Path | None, typer.Option(help="File of the archive; default: runs/<run>.tar.gz.")] = None,
    gold: Annotated[bool, typer.Option(help="Include gold answers and what follows from them.")] = True,
    logs: Annotated[bool, typer.Option(help="Include the output of libraries.")] = False,
) -> None:
    """`python -m pipeline.share pack`."""

    def body() -> None:
        from pipeline.share.pack import pack as main

        main(run, out, gold, logs)

    guarded(body)


@app.command(help="Put an archive's run into runs/, and list what it needs that is missing here.")
def unpack(
    file: Annotated[Path, typer.Option(help="File of the archive.")],
    run: Annotated[str | None, typer.Option(help="Name for the run; default: its own.")] = None,
    place: Annotated[
        list[str] | None,
        typer.Option(help="OLD=NEW: a path in its config, and where it is here; repeatable."),
    ] = None,
) -> None:
    """`python -m pipeline.share unpack`."""

    def body() -> None:
        from pipeline.share.pack import unpack as main

        main(file, run, place or [])

    guarded(body)


@app.command(help="Check the files of a run, or of an archive, against their checksums, and print those that differ.")
def verify(
    run: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    file: Annotated[Path | None, typer.Option(help="File of an archive, instead of --run.")] = None,
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


@app.command(help="Print the commands that upload an export to the hub; run none.")
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
