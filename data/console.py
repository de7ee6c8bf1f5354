"""What the person sees: a live line per long task (data/task.py) and a summary per stage; the rest is in a log file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from data import events
from data.streams import ERROR_HANDLER, flush_or_drop
from data.visible import mask_controls, visible


class _Console(Console):
    """A console that leaves a broken pipe to the command line (data/cli.py)."""

    def on_broken_pipe(self) -> None:
        raise  # rich calls this while it handles the error

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Replace control characters in everything that is printed, so that none reaches a terminal. Rich's own codes
        (for a live line) are control segments and pass."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)

    def print(self, *objects: Any, **how: Any) -> None:
        """With `--log-json`, emit texts as events and skip tables: the run's files have their contents."""
        if not events.log.on:
            super().print(*objects, **how)
            return
        for text in (each for each in objects if isinstance(each, str)):
            plain = text if how.get("markup") is False else Text.from_markup(text).plain
            if plain.strip():
                events.emit("message", text=plain.strip())


console = _Console(highlight=False, width=None if sys.stdout is not None and sys.stdout.isatty() else 140)
events.log.out = lambda: console.file


@contextmanager
def redirect_output(path: Path) -> Iterator[None]:
    """Send everything that libraries and their child processes print to a file; `console` still reaches the person.

    The file descriptors themselves are redirected, since compiled code (vLLM's, for one) writes to them directly.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        terminal = os.fdopen(os.dup(1), "w", buffering=1, encoding=_encoding(), errors=ERROR_HANDLER)
        previous = console._file  # None: the current sys.stdout
        console.file = terminal
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
                flush_or_drop(stream, number)  # the log's disk may be full
                os.dup2(saved[number - 1], number)
                os.close(saved[number - 1])
            console._file = previous
            with suppress(OSError):
                terminal.close()
            with suppress(OSError):
                mask_controls(path)


def _encoding() -> str:
    """The encoding of standard output; UTF-8 where it has none (in tests)."""
    return getattr(sys.stdout, "encoding", None) or "utf-8"
