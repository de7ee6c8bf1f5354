"""A run's command and its peers, as forks of one server that has imported the heavy packages, so that they start at
once."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from tests.chaos.faults import COMMAND, Fault, Points, install

SERVER: Any = forkserver._forkserver


def launch(
    project: Path, arguments: list[str], out: Path, fault: Fault | None = None, record: Path | None = None,
    bug: str | None = None,
) -> Any:  # fmt: skip
    """Start `python -m pipeline.round arguments`, then `make verify` if it succeeds; the output goes to `out`. `bug` is
    a function of tests.chaos.bugs that is called first, in the peers' processes, too."""
    context = multiprocessing.get_context("forkserver")
    SERVER.ensure_running()
    given = (project, SERVER._forkserver_address, arguments, out, fault, record, bug)
    process = context.Process(target=command, args=given)
    process.start()
    return process


def command(
    project: Path, server: str, arguments: list[str], out: Path, fault: Fault | None, record: Path | None,
    bug: str | None,
) -> None:  # fmt: skip
    """The body of the command's process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    SERVER._forkserver_address, SERVER.ensure_running = server, lambda: None  # peers are forks of the same server
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(project)
    from data.cli import start
    from peers import local as module
    from pipeline.round import app

    local: Any = module

    points = Points(COMMAND, os.getpid(), project / "runs" / "t", fault, record)
    prepare(points, bug)
    without_report()
    if record is not None:
        keep_states(project)
    local.ensure_running = SERVER.ensure_running
    local.serve = partial(serve, points, bug)
    sys.argv = ["pipeline.round", *arguments]
    try:
        start(app, "pipeline.round")
        verify()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def without_report() -> None:
    """Write no page: it takes a second per run, and nothing depends on it."""
    from evaluate.rebuild import Rebuild

    Rebuild.written = lambda self, run: False  # type: ignore[method-assign]


def keep_states(project: Path) -> None:
    """Keep a copy of the run before each step, for cases that begin there."""
    from peers import command as module

    command: Any = module
    do_step = command.do_step

    def step(each: Any, run: Any, *arguments: Any) -> None:
        shutil.copytree(run.root, project / "before" / f"{each.stage}-{each.round}", dirs_exist_ok=True)
        do_step(each, run, *arguments)

    command.do_step = step


def verify() -> None:
    """`make verify`: prints `verified`, or ends with an error line and status 3."""
    from data.errors import UserError
    from pipeline.share.verify import verify_run

    try:
        verify_run("t")
    except UserError as error:
        print(f"not verified: {error}", flush=True)
        raise SystemExit(3) from None


def serve(points: Points, bug: str | None, connection: Any, run: Any, slot: Any, *more: Any) -> None:
    """The body of a peer's process."""
    from peers import serving

    points.role, points.happened = slot.peer, False
    points.passed.clear()
    prepare(points, bug)
    serving.serve(connection, run, slot, *more)


def prepare(points: Points, bug: str | None) -> None:
    """Count points, and plant the bug."""
    if bug is not None:
        getattr(importlib.import_module("tests.chaos.bugs"), bug)()
    install(points)
