"""A run has one writer: the lock says who has it, and whether the holder was killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data.console import console
from data.errors import UserError
from data.locks import Holder, holder, lock_state, locked
from pipeline.status import status_lines
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from data.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
ENDED = "did not end in order: it was killed, or its machine stopped"


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that holds a folder's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def take(folder: Path) -> str:
    """Take a lock and give it up; what is said."""
    with console.capture() as said, locked(folder):
        assert holder(folder) == os.getpid()
    return said.get()


def test_who_holds_a_lock_and_who_was_killed_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert take(folder) == "" and lock_state(folder) == (False, None)
    process = hold(folder)
    who = rf"\(pid {process.pid} on {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC\)"
    try:
        with pytest.raises(UserError, match=rf"{folder} is in use by another process {who}; wait"), locked(folder):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    held, killed = lock_state(folder)
    assert not held and killed is not None and killed.pid == process.pid and holder(folder) is None
    (line,) = status_lines("t", [], None, killed)
    assert re.fullmatch(rf"run t: no command is running; the last one {who} was killed, or its machine stopped", line)
    line = take(folder).strip()
    assert re.fullmatch(rf"{folder}: the last process at it {who} {ENDED}\. This one takes over", line)
    assert take(folder) == "" and lock_state(folder) == (False, None)


def test_a_process_that_ends_in_order_leaves_nothing_to_tell(tmp_path: Path) -> None:
    process = hold(tmp_path)
    process.communicate("")
    assert process.returncode == 0 and take(tmp_path) == ""


def test_a_holder_on_another_machine_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("77 node-9 2026-11-28T01:02:03\n")
    assert lock_state(tmp_path) == (False, Holder(77, "node-9", "2026-11-28T01:02:03"))
    assert take(tmp_path).endswith(
        f"(pid 77 on node-9 since 2026-11-28 01:02:03 UTC) {ENDED}. Not every file system shows one machine the "
        "locks of another: make sure it is gone on node-9. This one takes over\n"
    )


def test_a_lock_that_a_child_of_a_dead_holder_keeps_is_told(tmp_path: Path) -> None:
    process = hold(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    try:
        (tmp_path / ".lock").write_text(f"{ended.pid} {socket.gethostname()} 2026-11-28T01:02:03\n")
        with pytest.raises(UserError, match=r"which is dead: a process that it started still has .*\.lock open"):
            take(tmp_path)
        (tmp_path / ".lock").write_text(f"{ended.pid} node-9 2026-11-28T01:02:03\n")  # which nobody here can tell
        with pytest.raises(UserError, match=rf"\(pid {ended.pid} on node-9 since [^;)]*\); wait"):
            take(tmp_path)
    finally:
        process.communicate("")


@pytest.mark.parametrize("said", ["12345", "no number", "-1 \x1b[31m x", "9" * 300, "\0\0", "4\n", "é" * 900])
def test_whatever_a_lock_says_it_is_taken(said: str, tmp_path: Path) -> None:
    """An earlier version wrote a number alone."""
    (tmp_path / ".lock").write_text(said)
    told = take(tmp_path)
    assert ENDED in told and told.count("\n") == 1 and "\x1b" not in told and len(told) < 1000
    assert take(tmp_path) == ""
