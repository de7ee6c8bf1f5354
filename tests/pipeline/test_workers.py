"""The peers' processes: order, reuse, one at a time, errors, and death of either side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.console import console
from data.errors import UserError
from data.run import Run, open_run
from data.task import Advance, Task
from peers.workers import Pool
from tests.conftest import ROOT

HELD: list[int] = []  # in a worker


def note(run: Run, number: int, advance: Advance) -> tuple[int, list[int], str]:
    """Remember a number; the process, what it remembers, its folder."""
    HELD.append(number)
    console.print(f"noted {number}")
    advance(number, 10 * number)
    return os.getpid(), list(HELD), os.getcwd()


def refuse(run: Run, advance: Advance) -> None:
    """A job whose input is bad."""
    raise UserError("there is no such thing")


def fail(run: Run, advance: Advance) -> None:
    """A job with a bug."""
    raise ZeroDivisionError("by zero")


def die(run: Run, advance: Advance) -> None:
    """A job that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def run(project: Path) -> Iterator[Run]:
    """A run of two peers, chatty and plain."""
    with open_run("w", Path("tiny.toml"), []) as opened:
        yield opened


def test_each_peer_has_one_process_that_does_its_jobs_in_order(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with Pool(run, together=True) as workers:
        for number in (1, 2, 3):
            workers.submit("chatty", note, number)
        workers.submit("plain", note, 7)
        line = Task("t", 13, "things")
        found = [(job.peer, job.arguments, value) for job, value in workers.results(line)]
        workers.submit("plain", note, 8)  # a later stage finds the same process
        later = next(iter(workers.results()))[1]
    assert (line.done, line.tokens) == (13, 130)
    chatty = [value for peer, _, value in found if peer == "chatty"]
    plain = next(value for peer, _, value in found if peer == "plain")
    assert [held for _, held, _ in chatty] == [[1], [1, 2], [1, 2, 3]]
    assert len({pid for pid, *_ in chatty}) == 1 and plain[0] not in {chatty[0][0], os.getpid()}
    assert later[:2] == (plain[0], [7, 8])
    assert {folder for *_, folder in chatty} == {os.getcwd()}
    assert "noted 3" in capsys.readouterr().out
    assert not any(psutil.pid_exists(pid) for pid in (plain[0], chatty[0][0]))


def test_one_at_a_time_ends_a_process_before_the_next_begins(run: Run) -> None:
    seen: list[tuple[str, int]] = []
    with Pool(run, together=False) as workers:
        for peer in ("chatty", "plain", "chatty"):
            workers.submit(peer, note, 1)
        for job, (pid, *_) in workers.results():
            seen.append((job.peer, pid))
            assert len(workers.processes) == 1
    assert [peer for peer, _ in seen] == ["chatty", "chatty", "plain"]  # each is loaded once
    assert len({pid for _, pid in seen}) == 2


def test_jobs_may_be_submitted_while_others_are_awaited(run: Run) -> None:
    with Pool(run, together=True) as workers:
        workers.submit("chatty", note, 1)
        numbers = []
        for job, _ in workers.results():
            numbers.append(job.arguments[0])
            if job.arguments[0] < 4:
                workers.submit("plain" if job.peer == "chatty" else "chatty", note, job.arguments[0] + 1)
    assert numbers == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("job", "error", "words"),
    [
        (refuse, UserError, "there is no such thing"),
        (fail, RuntimeError, "ZeroDivisionError: by zero"),
        (die, UserError, "process of peer plain was killed 2 times at the same work .exit code -9"),
    ],
)
def test_what_goes_wrong_in_a_process_reaches_the_caller(run: Run, job: Any, error: type, words: str) -> None:
    with Pool(run, together=True) as workers, pytest.raises(error, match=words):
        workers.submit("chatty", note, 1)
        workers.submit("plain", job)
        list(workers.results())


SCRIPT = """
import os, sys, time
from pathlib import Path
from data.run import open_run
from peers.workers import Pool
from tests.pipeline.test_workers import sleep

if __name__ == "__main__":
    with open_run("k", Path("tiny.toml"), []) as run, Pool(run, together=True) as workers:
        workers.submit("chatty", sleep)
        workers.submit("plain", sleep)
        list(workers.results())
"""


def sleep(run: Run, advance: Advance) -> None:
    """Say who it is, then hang."""
    Path(f"{os.getpid()}.pid").touch()
    time.sleep(600)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_command(project: Path, how: signal.Signals) -> None:
    (project / "hang.py").write_text(SCRIPT, encoding="utf-8")
    command = subprocess.Popen(
        [sys.executable, "hang.py"], cwd=project, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(pids := [int(path.stem) for path in project.glob("*.pid")]) < 2:
        assert command.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(command.pid, how)
    command.wait(timeout=30)
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline, "a worker goes on without its command"
        time.sleep(0.1)
