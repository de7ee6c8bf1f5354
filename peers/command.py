"""Commands that run stages: parse, open the run, start the peers' processes, and only then import what is heavy."""

import importlib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data.cli import guarded, quiet_environment
from data.errors import UserError

if TYPE_CHECKING:
    from data.run import Run
    from peers.workers import Processes

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


def run_stages(
    plan: Plan,
    run_name: str,
    config: Path | None,
    overrides: list[str],
) -> None:
    """Open the run and do its stages one after the other, the peers' processes living through all of them."""
    quiet_environment()

    def body() -> None:
        from data.config.sections import Config
        from data.run import open_run, stage_is_finished
        from peers.workers import Processes, warm

        todo = {name for name, round_ in plan if not stage_is_finished(run_name, name, round_)}

        def begin(config: Config) -> None:
            from peers.engines.protocol import engine_kind

            if todo:
                warm(engine=bool(todo & {"generate", "evaluate"}) and engine_kind(config.generate) == "vllm")

        with open_run(run_name, config, overrides, begin) as run, Processes(run) as workers:
            for name, round_ in plan:
                do_stage(name, run, round_, workers)

    guarded(body)


def do_stage(name: str, run: Run, round_: int, workers: Processes) -> None:
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
