"""What the person sees: one live line per long task, a summary per stage, everything else in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.streams import NARROW, settle


class _Console(Console):
    """A console that leaves what to do without a reader to the command line (data/cli.py)."""

    def on_broken_pipe(self) -> None:
        raise  # what is being handled: it is called from there


console = _Console(highlight=False, width=None if sys.stdout is not None and sys.stdout.isatty() else 140)
PLAIN_SECONDS = 15.0  # between two progress lines when the output is no terminal


@contextmanager
def chatter_to(path: Path) -> Iterator[None]:
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
                settle(stream, number)  # the log's disk may be full
                os.dup2(saved[number - 1], number)
                os.close(saved[number - 1])
            console._file = previous
            with suppress(OSError):
                terminal.close()


def _encoding() -> str:
    """Of what the person sees; where standard output is no terminal and no file of text (in tests), UTF-8."""
    return getattr(sys.stdout, "encoding", None) or "utf-8"


class Task:
    """Progress of one long task: done/total, tokens per second, time left."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.tokens = 0
        self.start = self.last_line = time.monotonic()
        self.bar: Progress | None = None
        self.bar_task = None
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("  {task.description}"), BarColumn(24), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(), console=console, transient=True,
            )  # fmt: skip
            self.bar_task = self.bar.add_task(f"{label} ({unit})", total=total, rate="")
            self.bar.start()

    def advance(self, done: int, tokens: int = 0) -> None:
        """Count finished items and the tokens they took."""
        self.done += done
        self.tokens += tokens
        now = time.monotonic()
        rate = f"{self.tokens / max(now - self.start, 1e-9):,.0f} tokens/s" if self.tokens else ""
        if self.bar is not None and self.bar_task is not None:
            self.bar.update(self.bar_task, completed=self.done, rate=rate)
        elif now - self.last_line >= PLAIN_SECONDS and self.done < self.total:
            self.last_line = now
            left = (now - self.start) / max(self.done, 1) * (self.total - self.done)
            console.print(f"  {self.label}: {self.done}/{self.total} {self.unit}, {rate}, {left:.0f} s left")

    def close(self) -> None:
        """End the line; outside a terminal, print the totals."""
        if self.bar is not None:
            self.bar.stop()
        seconds = time.monotonic() - self.start
        rate = f", {self.tokens:,} tokens, {self.tokens / max(seconds, 1e-9):,.0f} tokens/s" if self.tokens else ""
        console.print(f"  {self.label}: {self.done}/{self.total} {self.unit}{rate}, {seconds:.0f} s")


@contextmanager
def task(label: str, total: int, unit: str) -> Iterator[Task]:
    """A live line for the duration of the block."""
    line = Task(label, total, unit)
    try:
        yield line
    finally:
        line.close()
