"""Locks on folders: the system releases them when the process ends, however it ends.

The lock's file names its holder and is emptied on release. So if a free lock still names a holder, that process was
killed.
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
GLANCE = 0.3  # seconds; `holder` may hold a lock for a moment
UNKNOWN = 0  # stands for a process id
MAX_BYTES = 400  # bytes read from a lock's file


@dataclass(frozen=True)
class Holder:
    """Who holds or held a lock; unknown parts are UNKNOWN or empty. `since` is in UTC."""

    pid: int = UNKNOWN
    host: str = ""
    since: str = ""

    @property
    def here(self) -> bool:
        """Whether it is or was on this machine, as far as known."""
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
    """Make a folder and hold its lock for the block; print a line if the last holder was killed.

    Raises UserError if another process holds it, or if the file system has no locks.
    """
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
    """The lock's file, locked, with this process written into it as its holder."""
    path = folder / LOCK
    while True:
        file = FileIO(path, "a+")
        try:
            if not take(file, path) and not _after_a_glance(file, path):
                raise UserError(_in_use(folder, _read_holder(file), ways_out))
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                before = _read_holder(file)
                with suppress(OSError):  # the holder is written for people only
                    file.truncate(0)
                    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
                    file.write(f"{os.getpid()} {_host()} {now}\n".encode())
                if before is not None:
                    console.print(_takeover_text(folder, before), markup=False, soft_wrap=True)
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # the last holder has removed the folder meanwhile
        folder.mkdir(parents=True, exist_ok=True)


def _in_use(folder: Path, holder: Holder | None, ways_out: str) -> str:
    holder = holder or Holder()
    text = f"{folder} is in use by another process ({holder})"
    if holder.pid != UNKNOWN and holder.here and not _lives(holder.pid):
        text += f", which is dead: a process that it started still has {folder / LOCK} open (`fuser` shows which)"
    return f"{text}; {ways_out}"


def _takeover_text(folder: Path, holder: Holder) -> str:
    text = f"{folder}: the last process at it ({holder}) did not end in order: it was killed, or its machine stopped"
    if not holder.here:
        text += f". Not every file system shows one machine the locks of another: make sure it is gone on {holder.host}"
    return f"{text}. This one takes over"


def _lives(pid: int) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _read_holder(file: FileIO) -> Holder | None:
    """The holder that an open lock's file names; None after a release."""
    file.seek(0)
    pid, *others = [*file.read(MAX_BYTES).decode(errors="replace").split(), "", "", ""][:3]
    if not pid:
        return None
    number = int(pid) if pid.isdecimal() and len(pid) < 20 else UNKNOWN
    return Holder(number, *(part if part.isprintable() else "" for part in others))


def _after_a_glance(file: FileIO, path: Path) -> bool:
    time.sleep(GLANCE)
    return take(file, path)


def holder(folder: Path) -> int | None:
    """The id of the process that holds a folder's lock, UNKNOWN if the lock does not say; None if nobody holds it, or
    if the file system has no locks."""
    held, who = lock_state(folder)
    return (who.pid if who else UNKNOWN) if held else None


def lock_state(folder: Path) -> tuple[bool, Holder | None]:
    """(whether a folder's lock is held, its holder); for a free lock, the holder that was killed, if any."""
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
            return True, _read_holder(file)
        return False, _read_holder(file)


def take(file: FileIO, path: Path, wait: bool = False) -> bool:
    """Lock an open file; False if another process holds it. Raises LocksUnsupported if the file system has none."""
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
                f"{path} cannot be locked ({reason}), and without a lock two commands could damage each other's files: "
                "work in a folder on a disk whose file system has locks (a link to one will do; PST_CACHE sets the "
                "cache's)"
            ) from None
        return True
