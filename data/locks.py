"""Locks on folders: the system releases them when the process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from data.errors import UserError

LOCK = ".lock"
HELD = {errno.EAGAIN, errno.EWOULDBLOCK}
GLANCE = 0.3  # seconds; `holder` may have a lock for a moment
UNKNOWN = 0  # in the place of a holder's number


class NoLocks(UserError):
    """The file system has no locks."""


@contextmanager
def locked(folder: Path, ways_out: str = "wait for it, stop it, or use another --run name") -> Iterator[None]:
    """Make a folder and hold its lock. Raises UserError if another process holds it, or if there are no locks."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        file = _taken(folder, ways_out)
    except (OSError, NoLocks):
        if made:
            with suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
        raise
    with file:
        yield


def _taken(folder: Path, ways_out: str) -> FileIO:
    """The lock's file, locked, with the number of this process in it."""
    path = folder / LOCK
    while True:
        file = FileIO(path, "a+")
        try:
            if not take(file, path) and not _after_a_glance(file, path):
                file.seek(0)
                holder = file.read(32).decode(errors="replace").strip() or "unknown"
                raise UserError(f"{folder} is in use by another process (pid {holder}); {ways_out}")
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                with suppress(OSError):  # the number is for people
                    file.truncate(0)
                    file.write(str(os.getpid()).encode())
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # whoever held it has removed the folder meanwhile
        folder.mkdir(parents=True, exist_ok=True)


def _after_a_glance(file: FileIO, path: Path) -> bool:
    time.sleep(GLANCE)
    return take(file, path)


def holder(folder: Path) -> int | None:
    """The number of the process that holds a folder's lock, UNKNOWN if it is not told; None if nobody does. Where the
    file system has no locks nobody can."""
    try:
        file = FileIO(folder / LOCK, "r")
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD:
                return None
            found = file.read(32).decode(errors="replace").strip()
            return int(found) if found.isdecimal() else UNKNOWN
    return None


def take(file: FileIO, path: Path, wait: bool = False) -> bool:
    """Lock an open file; False if another process holds it. Raises NoLocks where the file system has none."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno in HELD:
                return False
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise NoLocks(
                f"{path} cannot be locked ({reason}), and without a lock two commands would spoil each other's files: "
                "work in a folder on a disk whose file system has locks (a link to one will do; PST_CACHE names the "
                "cache's)"
            ) from None
        return True
