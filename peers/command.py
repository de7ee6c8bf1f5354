"""Commands that run stages: parse, open the run, start the peers' processes, and only then import heavy libraries."""

import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data import events
from data.cli import guarded, quiet_environment
from data.errors import UserError
from data.inside import LAST_ROUND
from data.visible import visible

if TYPE_CHECKING:
    from data.config.sections import Config
    from data.hours import Hours
    from data.run import Run
    from peers.workers import Pool, Workers

    Main = Callable[["Run", int, "Workers"], None]  # what a stage does in one round


@dataclass(frozen=True)
class StageStep:
    """One stage of one round; `main` is the stage's function, which imports heavy libraries when it is called."""

    stage: str
    round: int
    main: "Main"

    def is_part_of(self, config: "Config") -> bool:
        """Whether runs under this config have the stage."""
        return self.stage != "gate" or config.gate.questions > 0


def _nothing(run: "Run") -> None:
    """Do nothing: a default."""


def stage_app(
    name: str, summary: str, first_round: int, main: "Main", after: Callable[["Run"], None] = _nothing
) -> typer.Typer:
    """The command line of one stage; `after`: see `steps_app`."""
    return steps_app(summary, first_round, lambda round_: [StageStep(name, round_, main)], after=after)


def steps_app(
    summary: str,
    first_round: int,
    plan: Callable[[int], list[StageStep]],
    ended: Callable[["Run"], None] = _nothing,
    after: Callable[["Run"], None] = _nothing,
) -> typer.Typer:
    """A command line that runs the steps of `plan(round)`: parse, check, and only then import heavy libraries.

    `ended` is called if the run ends early: by the guard, the gate's patience or its hours; `after` is called after
    each step that had something to do, while output goes to the step's log.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.command(help=summary)
    def command(
        run: Annotated[str, typer.Option(help="Name of the run: its files are in runs/<name>.")],
        round_: Annotated[int, typer.Option("--round", min=first_round, max=LAST_ROUND, help="Number of the round.")],
        config: Annotated[
            Path | None, typer.Option(help="TOML config; needed once, then the run keeps a frozen copy.")
        ] = None,
        set_: Annotated[
            list[str] | None,
            typer.Option("--set", help="Override, e.g. --set generate.temperature=0.8; repeatable."),
        ] = None,
        log_json: Annotated[  # data/cli.py looks for it before the other options are parsed
            bool, typer.Option(events.FLAG, help="Print JSON, one event per line, instead of text (docs/running.md).")
        ] = False,
    ) -> None:
        run_steps(plan(round_), run, config, set_ or [], ended, after)

    return app


def run_steps(
    steps: list[StageStep],
    run_name: str,
    config: Path | None,
    overrides: list[str],
    ended: Callable[["Run"], None] = _nothing,
    after: Callable[["Run"], None] = _nothing,
) -> None:
    """Open the run and do its steps one after the other; the peers' processes live through all of them. `ended` and
    `after`: see `steps_app`."""
    quiet_environment()

    def body() -> None:
        from data.config.tracking import check_tracker_installed
        from data.console import console
        from data.guard import Ended
        from data.hours import hours_of
        from data.run import open_run, stage_is_finished
        from peers.local import warm
        from peers.workers import Pool

        todo = [step for step in steps if not stage_is_finished(run_name, step.stage, step.round)]

        def begin(config: "Config") -> None:
            from peers.engines.protocol import engine_kind

            check_tracker_installed(config.tracking)
            stages = {step.stage for step in todo if step.is_part_of(config)}
            stages -= set() if config.benchmarks else {"evaluate"}
            if stages and config.executor.kind == "ray":
                from peers.ray_cluster import connect

                connect(config.executor, len(config.peers))  # its errors should come before anything is written
            if stages:
                generates = bool(stages & {"generate", "gate", "evaluate"})
                warm(config, engine=generates and engine_kind(config.generate) == "vllm")

        last = max(step.round for step in steps)
        events.emit("begin", last_round=last, pid=os.getpid())
        with open_run(run_name, config, overrides, begin) as run, Pool(run) as workers:
            if not any(step.is_part_of(run.config) for step in steps):
                console.print(f"run {run.name} has no gate: gate.questions is 0")
            hours = hours_of(run)
            try:
                for step in steps:
                    do_step(step, run, workers, hours, last, after)
            except Ended:
                ended(run)
                raise

    with events.with_fields(run=run_name):
        guarded(body)


def do_step(
    step: StageStep,
    run: "Run",
    workers: "Pool",
    hours: "Hours",
    last_round: int,
    after: Callable[["Run"], None] = _nothing,
) -> None:
    """Do one step of those up to a round, if the run has such a stage; the libraries' output goes to the step's log.
    `after`: see `steps_app`. Raises `data.guard.Ended` before a round that the guard or the gate's patience does not
    let begin, and before any stage once the run's hours are used up."""
    from data.console import console, redirect_output
    from data.fork import origin_of
    from data.record import recorded
    from data.run import stage_is_finished

    if not step.is_part_of(run.config):
        return
    origin = origin_of(run.name)
    if origin is not None and origin.made(step.stage, step.round):
        console.print(f"{step.stage} round {step.round}: done in run {origin.run}, from which this run was forked")
        return
    workers.log = log = run.round_dir(step.round) / "logs" / f"{step.stage}.log"
    to_do = not stage_is_finished(run.name, step.stage, step.round)
    with redirect_output(log):
        with recorded(run, step.round, step.stage, last_round):
            _do(step, run, workers, hours, to_do, log)
        if to_do:
            after(run)


def _do(step: StageStep, run: "Run", workers: "Pool", hours: "Hours", to_do: bool, log: Path) -> None:
    """Do a step, or check that it is done; the traceback of a bug also goes to the log."""
    from data import gate, guard
    from peers.disk import check_disk

    try:
        if to_do:
            if step.stage in ("generate", "train"):
                guard.before_round(run, step.round)
                gate.before_round(run, step.round)
            hours.check(run, f"{step.stage} round {step.round}")
            check_disk(run, step.stage, step.round)
        step.main(run, step.round, workers)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException:
        with suppress(OSError), log.open("a", encoding="utf-8") as file:  # its disk may be full
            file.write(visible(traceback.format_exc()))
        raise
    finally:
        workers.release()
