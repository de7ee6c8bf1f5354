"""Permits: a process elsewhere lives as long as its permit and whoever started it, and its end can be waited for."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.locks import take
from data.run import Run
from peers import permits
from tests.conftest import ROOT

PROCESS = """
import sys, time
from pathlib import Path
from peers.permits import exit_with_permit
exit_with_permit(Path(sys.argv[1]))
print("alive", flush=True)
time.sleep(60)
"""
DEAF = """
import fcntl, sys, time
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print("alive", flush=True)
time.sleep(60)
"""
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]); input()"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Of a config that is not looked at."""
    monkeypatch.chdir(tmp_path)
    config: Any = None  # not looked at
    return Run("p", config)


@pytest.fixture
def start() -> Iterator[object]:
    """Start a Python process and wait until it says that it lives."""
    begun: list[subprocess.Popen[str]] = []

    def start_one(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )
        begun.append(process)
        assert process.stdout is not None and process.stdout.readline() == "alive\n"
        return process

    yield start_one
    for process in begun:
        process.kill()
        process.communicate()


def test_a_process_ends_without_its_permit_and_only_then_is_it_taken_away(run: Run, start: object) -> None:
    one, other = permits.give(run, "a-0"), permits.give(run, "a-0")
    assert one != other
    processes = [start(PROCESS, str(path)) for path in (one, other)]  # type: ignore[operator]
    assert permits.take_away(one)  # without a kill: it looks for its permit itself
    assert processes[0].wait(timeout=10) == 0 and processes[1].poll() is None and other.exists()
    assert permits.take_away(other, processes[1].kill)
    assert processes[1].wait(timeout=10) == -9
    assert permits.take_away(one)  # again: there is nothing to wait for


def test_a_process_that_does_not_end_is_told_of(run: Run, start: object, monkeypatch: pytest.MonkeyPatch) -> None:
    path = permits.give(run, "a-0")
    start(DEAF, str(path))  # type: ignore[operator]
    assert not permits.take_away(path, seconds=0.3)
    (run.root / ".lock").touch()
    held = path.with_name("b-0-x")
    held.touch()
    start(DEAF, str(held))  # type: ignore[operator]
    monkeypatch.setattr(permits.take_away, "__defaults__", (lambda: None, 0.3))
    with pytest.raises(UserError, match=r"earlier command still works on run p .*b-0-x"):
        permits.take_all_away(run)


def test_a_process_ends_with_the_one_that_started_it(run: Run, start: object) -> None:
    path = permits.give(run, "a-0")
    parent = start(PARENT, PROCESS, str(path))  # type: ignore[operator]
    with path.open("r+b", buffering=0) as file:
        assert not take(file, path)
        parent.kill()
        deadline = time.monotonic() + 10
        while not take(file, path):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert path.exists()


def test_without_a_permit_none_starts_and_what_is_left_is_removed(run: Run) -> None:
    path = permits.give(run, "a-0")
    gone = path.with_name("gone")
    done = subprocess.run([sys.executable, "-c", PROCESS, str(gone)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    permits.take_all_away(run)  # nobody has locked it, so it is no run
    assert path.exists()
    (run.root / ".lock").touch()
    permits.take_all_away(run)
    assert not path.exists()
    permits.tidy(run)
    assert [path.name for path in run.root.iterdir()] == [".lock"]
    (run.root / ".lock").unlink()
    permits.tidy(run)
    permits.folder(run).mkdir()
    permits.tidy(run)
    assert not run.root.exists()
