"""`--log-json`: one JSON object per line for each event on standard output, and nothing else there.

docs/running.md has the table of events and their fields. Lines are plain ASCII: a text with line breaks, escapes or
right-to-left marks stays one line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import IO, Any

FLAG = "--log-json"


class _Log:
    """This process's log."""

    on = False
    context: dict[str, Any]  # run, round and stage, where there is one
    out: Callable[[], IO[str]]

    def __init__(self) -> None:
        self.context = {}
        self.out = lambda: sys.stdout  # data/console.py replaces it: it redirects what libraries print


log = _Log()


def emit(event: str, **fields: Any) -> None:
    """Write an event if `--log-json` is on; leave out fields that are None."""
    if not log.on:
        return
    known = {key: value for key, value in {**log.context, **fields}.items() if value is not None}
    file = log.out()
    file.write(json.dumps({"time": now_utc(), "event": event, **known}, allow_nan=False) + "\n")
    file.flush()


@contextmanager
def with_fields(**context: Any) -> Iterator[None]:
    """Add these fields to the events of the block."""
    before = log.context
    log.context = {**before, **context}
    try:
        yield
    finally:
        log.context = before


def end(status: int, reason: str | None = None) -> None:
    """The last event of a command: its exit status and, unless that is 0, why."""
    with suppress(OSError, ValueError):  # nobody may be reading any more
        emit("end", status=status, reason=reason)
    log.on = False


def now_utc() -> str:
    """The time for events and records: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
