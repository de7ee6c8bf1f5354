"""What the person sees: one live line per long task (data/task.py), a summary per stage, all else in a log file."""

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
from data.streams import NARROW, flush_or_drop
from data.visible import mask_controls, visible


class _Console(Console):
    """A console that leaves what to do without a reader to the command line (data/cli.py)."""

    def on_broken_pipe(self) -> None:
        raise  # what is being handled: it is called from there

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All that is printed passes here: what a text holds of control characters is shown, and reaches no terminal.
        Rich's own orders (of a live line) are segments of another kind."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)

    def print(self, *objects: Any, **how: Any) -> None:
        """With `--log-json`, texts are events; a table is not printed: what is in it is in the run's files."""
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

    The file descriptors themselves are redirected, since vLLM and its compiled parts write below Python's streams.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        terminal = os.fdopen(os.dup(1), "w", buffering=1, encoding=_encoding(), errors=NARROW)
        previous = console._file  # None: whatever sys.stdout is at the time
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
    """Of what the person sees; where standard output is no terminal and no file of text (in tests), UTF-8."""
    return getattr(sys.stdout, "encoding", None) or "utf-8"
