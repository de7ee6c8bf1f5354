"""Reports the progress of a long task in three ways: lines for people (live and per peer in a terminal), events, and
the record that `make status` reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from data import events, record
from data.console import console
from data.meter import Meter, duration_text

PLAIN_SECONDS = 15.0  # between two progress lines when the output is no terminal
EVENT_SECONDS = 5.0  # between two of a task's progress events
RECORD_SECONDS = 1.0  # between two writes of the record
Advance = Callable[[int, int], None]  # reports progress: finished items, and their tokens


class Task:
    """The progress of a task, in all and per peer. `total` is one number, or one for each peer."""

    def __init__(self, label: str, total: int | Mapping[str, int], unit: str) -> None:
        self.label, self.unit = label, unit
        totals = {} if isinstance(total, int) else {name: n for name, n in total.items() if n}
        self.all = Meter(total if isinstance(total, int) else sum(totals.values()))
        self.peers = {name: Meter(n) for name, n in totals.items()}
        self.working: Collection[str] = ()
        self.devices: Mapping[str, Collection[str]] = {}
        self.start = self.last_line = self.last_event = time.monotonic()
        self.last_record = 0.0
        self.bars: Bars | None = None
        if console.is_terminal and not events.log.on:
            self.bars = Bars(self)
        self._record()

    @property
    def done(self) -> int:
        """Finished items of all peers."""
        return self.all.done

    @property
    def tokens(self) -> int:
        """Tokens of the finished items."""
        return self.all.tokens

    @property
    def total(self) -> int:
        """Items to do."""
        return self.all.total

    def advance(self, done: int, tokens: int | None = None, peer: str | None = None) -> None:
        """Count finished items and the tokens they took; 0: they cost nothing now, None: they have no tokens."""
        now = time.monotonic()
        self.all.add(done, tokens, now)
        if peer in self.peers:
            self.peers[peer].add(done, tokens, now)
        self._report(now)

    def at_work(self, working: Collection[str], devices: Mapping[str, Collection[str]]) -> None:
        """Set the peers whose processes work now, and each peer's devices."""
        if working != self.working or devices != self.devices:
            self.working, self.devices = working, devices
            if not self.all.worked:  # the next report may take a while: models are loading
                self._record()
            self._report(time.monotonic())

    def left(self, now: float) -> float | None:
        """Estimated seconds left; where peers work side by side, those of the slowest. None if unknown."""
        whole = self.all.left(now)
        each = [self.peers[name].left(now) for name in self.working if name in self.peers]
        return None if whole is None else max([whole, *(left for left in each if left is not None)])

    def numbers(self, now: float) -> dict[str, Any]:
        """The progress as it stands in the record."""
        peers = {
            name: {
                **_numbers(meter, meter.left(now) if name in self.working or meter.done >= meter.total else None, now),
                "working": name in self.working,
                "devices": list(self.devices.get(name, ())),
            }
            for name, meter in self.peers.items()
        }
        return {"task": self.label, "unit": self.unit, **_numbers(self.all, self.left(now), now), "peers": peers}

    def close(self) -> None:
        """End the line; outside a terminal, print the totals."""
        now = time.monotonic()
        if self.bars is not None:
            self.bars.stop()
        self.working = ()
        self._record()
        if events.log.on:
            self._emit(now)
            return
        seconds = now - self.start
        rate = f", {self.tokens:,} tokens, {self.tokens / max(seconds, 1e-9):,.0f} tokens/s" if self.tokens else ""
        console.print(f"  {self.label}: {self.done}/{self.total} {self.unit}{rate}, {seconds:.0f} s")

    def _report(self, now: float) -> None:
        if now - self.last_record >= RECORD_SECONDS:
            self._record()
        if self.bars is not None:
            self.bars.update(now)
        elif events.log.on:
            if now - self.last_event >= EVENT_SECONDS:
                self._emit(now)
        elif now - self.last_line >= PLAIN_SECONDS and self.done < self.total:
            self.last_line = now
            console.print(f"  {self.line(now)}", soft_wrap=True)

    def line(self, now: float) -> str:
        """The progress line for output that is not a terminal."""
        parts = [f"{self.label}: {self.done}/{self.total} {self.unit}", *_speed(self.all, now)]
        left = self.left(now)
        parts += [] if left is None else [f"about {duration_text(left)} left"]
        peers = "; ".join(f"{name} {meter.done}/{meter.total}" for name, meter in self.peers.items())
        return ", ".join(parts) + (f" ({peers})" if len(self.peers) > 1 else "")

    def _record(self) -> None:
        self.last_record = time.monotonic()
        if record.current is not None:
            record.current.progress(self.numbers(self.last_record))

    def _emit(self, now: float) -> None:
        self.last_event = now
        found = self.numbers(now)
        peers = found.pop("peers")
        events.emit("progress", **found)
        for name, each in peers.items():
            events.emit("progress", task=self.label, unit=self.unit, peer=name, **each)


class Bars:
    """A live line for the whole task and, if there are several peers, one for each."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.live = Progress(
            TextColumn("  {task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[more]}"),
            console=console,
            transient=True,
        )
        self.whole = self.live.add_task(f"{task.label} ({task.unit})", total=task.total, more="")
        names = task.peers if len(task.peers) > 1 else ()
        self.each: dict[str, TaskID] = {
            name: self.live.add_task(f"  {name}", total=task.peers[name].total, more="") for name in names
        }
        self.live.start()

    def update(self, now: float) -> None:
        """Draw the task's current progress."""
        task = self.task
        self.live.update(self.whole, completed=task.done, more=_more(task.all, task.left(now), now))
        for name, id_ in self.each.items():
            meter = task.peers[name]
            working = name in task.working
            more = _more(meter, meter.left(now) if working else None, now) if working else "waits"
            self.live.update(id_, completed=meter.done, more="" if meter.done >= meter.total else more)

    def stop(self) -> None:
        """Remove the lines."""
        self.live.stop()


def _more(meter: Meter, left: float | None, now: float) -> str:
    parts = _speed(meter, now) if meter.worked else ["starting"]
    return ", ".join([*parts, *([] if left is None else [f"{duration_text(left)} left"])])


def _speed(meter: Meter, now: float) -> list[str]:
    rate = meter.tokens_per_second(now)
    return [] if rate is None else [f"{rate:,.0f} tokens/s"]


def _numbers(meter: Meter, left: float | None, now: float) -> dict[str, Any]:
    rate = meter.tokens_per_second(now)
    return {
        "done": meter.done,
        "total": meter.total,
        "tokens": meter.tokens,
        "tokens_per_second": None if rate is None else round(rate, 1),
        "seconds_left": None if left is None else round(left, 1),
    }


@contextmanager
def task(
    label: str, total: int | Mapping[str, int], unit: str, done: Mapping[str, int] | None = None
) -> Iterator[Task]:
    """A live line for the duration of the block; what each peer had `done` before counts as done."""
    line = Task(label, total, unit)
    for peer, items in (done or {}).items():
        line.advance(items, 0, peer)
    try:
        yield line
    finally:
        line.close()
