"""A grader process that is killed: a separate module, since each process imports it again."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any


def dying(note: Path, connection: Any, seconds: float) -> None:
    """A worker that is killed at its start; the next one at its first pair; the third one works."""
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
