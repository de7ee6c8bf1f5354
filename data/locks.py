"""Locks on folders: the system releases them when the process ends, however it ends.

The lock's file says who holds it, and is emptied when it is given up. So what a lock that is free still says is of a
process that was killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from data.console import console
from data.errors import UserError

LOCK = ".lock"
HELD = {errno.EAGAIN, errno.EWOULDBLOCK}
GLANCE = 0.3  # seconds; `holder` may have a lock for a moment
UNKNOWN = 0  # in the place of a holder's number
LONGEST = 400  # bytes that are read of what a lock says


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, or held it: what is not known is UNKNOWN, or empty. `since` is in UTC."""

    pid: int = UNKNOWN
    host: str = ""
    since: str = ""

    @property
    def here(self) -> bool:
        """Whether it is, or was, on this machine, as far as is known."""
        return self.host in ("", _host())

    def __str__(self) -> str:
        pid = f"pid {self.pid or 'unknown'}"
        return f"{pid} on {self.host} since {self.since.replace('T', ' ')} UTC" if self.since else pid


def _host() -> str:
    return "".join(socket.gethostname().split()) or "localhost"


class LocksUnsupported(UserError):
    """The file system has no locks."""


@contextmanager
def locked(folder: Path, advice: str = "wait for it, stop it, or use another --run name") -> Iterator[None]:
    """Make a folder and hold its lock; says so where the one who held it last was killed. Raises UserError if another
    process holds it, or if there are no locks."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        file = _taken(folder, advice)
    except (OSError, LocksUnsupported):
        if made:
            with suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
        raise
    with file:
        try:
            yield
        finally:
            with suppress(OSError):
                file.truncate(0)


def _taken(folder: Path, ways_out: str) -> FileIO:
    """The lock's file, locked, with who this process is in it."""
    path = folder / LOCK
    while True:
        file = FileIO(path, "a+")
        try:
            if not take(file, path) and not _after_a_glance(file, path):
                raise UserError(_in_use(folder, _said(file), ways_out))
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                before = _said(file)
                with suppress(OSError):  # what it says is for people
                    file.truncate(0)
                    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
                    file.write(f"{os.getpid()} {_host()} {now}\n".encode())
                if before is not None:
                    console.print(_told_of_dead(folder, before), markup=False, soft_wrap=True)
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # whoever held it has removed the folder meanwhile
        folder.mkdir(parents=True, exist_ok=True)


def _in_use(folder: Path, holder: Holder | None, ways_out: str) -> str:
    holder = holder or Holder()
    told = f"{folder} is in use by another process ({holder})"
    if holder.pid != UNKNOWN and holder.here and not _lives(holder.pid):
        told += f", which is dead: a process that it started still has {folder / LOCK} open (`fuser` tells which)"
    return f"{told}; {ways_out}"


def _told_of_dead(folder: Path, holder: Holder) -> str:
    told = f"{folder}: the last process at it ({holder}) did not end in order: it was killed, or its machine stopped"
    if not holder.here:
        told += (
            f". Not every file system tells one machine of another's locks: be sure that it is gone on {holder.host}"
        )
    return f"{told}. This one takes over"


def _lives(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _said(file: FileIO) -> Holder | None:
    """What an open lock says of its holder; None for one that was given up."""
    file.seek(0)
    pid, *others = [*file.read(LONGEST).decode(errors="replace").split(), "", "", ""][:3]
    if not pid:
        return None
    number = int(pid) if pid.isdecimal() and len(pid) < 20 else UNKNOWN
    return Holder(number, *(part if part.isprintable() else "" for part in others))


def _after_a_glance(file: FileIO, path: Path) -> bool:
    time.sleep(GLANCE)
    return take(file, path)


def holder(folder: Path) -> int | None:
    """The number of the process that holds a folder's lock, UNKNOWN if it is not told; None if nobody does. Where the
    file system has no locks nobody can."""
    held, who = lock_state(folder)
    return (who.pid if who else UNKNOWN) if held else None


def lock_state(folder: Path) -> tuple[bool, Holder | None]:
    """(whether a folder's lock is held, by whom); of one that is not held, who was killed with it, if anybody was."""
    try:
        file = FileIO(folder / LOCK, "r")
    except FileNotFoundError:
        return False, None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD:
                return False, None
            return True, _said(file)
        return False, _said(file)


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
            raise LocksUnsupported(
                f"{path} cannot be locked ({reason}), and without a lock two commands would spoil each other's files: "
                "work in a folder on a disk whose file system has locks (a link to one will do; PST_CACHE names the "
                "cache's)"
            ) from None
        return True
