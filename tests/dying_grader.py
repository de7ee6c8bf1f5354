"""A grader process that is killed: a module of its own, since each process imports it anew."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any


def dying(note: Path, connection: Any, seconds: float) -> None:
    """A worker that is killed at its start, the next one with its first pair; the third goes on."""
    deaths = len(note.read_text()) if note.exists() else 0
    if deaths < 2:
        note.write_text("x" * (deaths + 1))
    if deaths == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    connection.send("ready")
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        if deaths == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        connection.send(True)
