"""Which processes on other machines may write to a run: those whose permit, a file in the run's folder, exists.

The command makes a permit for each process that it starts elsewhere, and removes it to end the process. The process
holds the file's lock as long as it lives, so whoever removes the permit can wait until the process has ended, on any
machine; the process looks for the file four times a second, and ends if it is missing. A killed command leaves its
permits behind: the next command removes them before it starts any process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path

from data.errors import UserError
from data.hashing import digest
from data.locks import LOCK, take
from data.run import Run

LOOK_SECONDS = 0.25
END_SECONDS = 30.0  # how long to wait for a process that was killed or has lost its permit


def folder(run: Run) -> Path:
    """The folder of a run's permits."""
    return run.root / ".workers"


def give(run: Run, name: str) -> Path:
    """Make a permit for a process that is about to start, and return its path."""
    path = folder(run).resolve() / f"{name}-{digest([os.getpid(), time.time_ns()])[:12]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def take_away(path: Path, kill: Callable[[], object] = lambda: None, seconds: float = END_SECONDS) -> bool:
    """Remove a permit, `kill` its process, and wait for its end; whether it ended within `seconds`."""
    try:
        file = FileIO(path, "r+")
    except FileNotFoundError:
        kill()
        return True
    with file:
        path.unlink(missing_ok=True)
        kill()
        deadline = time.monotonic() + seconds
        while not take(file, path):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
    return True


def take_all_away(run: Run) -> None:
    """End the processes that an earlier command has left; the caller must hold the run's lock. Raises UserError if one
    does not end."""
    if not (run.root / LOCK).exists():  # not a real run: other commands may be using it
        return
    for path in folder(run).glob("*"):
        if not take_away(path):
            raise UserError(
                f"a process of an earlier command still works on run {run.name} and does not end ({path.name}): stop "
                "it on its machine, then run the same command again"
            )


def tidy(run: Run) -> None:
    """Remove empty folders, once all processes of a command have ended."""
    with suppress(OSError):
        folder(run).rmdir()
        run.root.rmdir()  # empty only if it is not a real run


def exit_with_permit(path: Path) -> None:
    """From now on this process ends once its permit or its parent process is gone. Cannot be undone."""
    parent = os.getppid()
    try:
        file = FileIO(path, "r+")
    except FileNotFoundError:
        os._exit(0)
    take(file, path, wait=True)

    def watch() -> None:
        while path.exists() and os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os._exit(0)

    if not path.exists():
        os._exit(0)
    threading.Thread(target=watch, daemon=True).start()
    _held.append(file)


_held: list[FileIO] = []  # kept open, and so locked, as long as the process lives
