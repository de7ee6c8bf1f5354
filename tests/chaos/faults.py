"""In the processes of a run: count its writes, and at a chosen point fail a write or kill a process.

A point is a step of a write that the run rests on: a file's content is there under its temporary name, it is flushed,
it gets its final name. A process passes the same points in every run, so a fault that is named by a process, a step, a
file and how often it was written before happens again at the same place.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

COMMAND = "command"  # the role of the main process; a peer's process has the peer's name
IGNORED = ("logs/", "report.html", "tracked")  # written at intervals; nothing depends on them


@dataclass(frozen=True)
class Fault:
    """What happens when the process `role` is at a step of a file for the `time`-th time, or `delay` seconds later."""

    role: str
    step: str
    name: str
    time: int
    kind: Literal["kill", "fail"]
    target: Literal["command", "self", "peer", "grader"] = "self"  # of a kill; peer: the one that started last
    signal: int = signal.SIGKILL
    delay: float = 0.0


@dataclass
class Points:
    """The points of this process."""

    role: str
    command: int  # number of the main process
    root: Path  # the run's folder
    fault: Fault | None = None
    record: Path | None = None  # file for all points, in an undisturbed run
    passed: Counter[tuple[str, str]] = field(default_factory=Counter)
    grader: int | None = None  # the newest grader process
    happened: bool = False

    def reach(self, step: str, path: object) -> None:
        """Pass a point. Raises OSError if the fault fails this write."""
        name = self.inside(path)
        if name is None:
            return
        self.passed[step, name] += 1
        here = (self.role, step, name, self.passed[step, name])
        if self.record is not None:
            with self.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(here) + "\n")
        fault = self.fault
        if fault is None or self.happened or (fault.role, fault.step, fault.name, fault.time) != here:
            return
        self.happened = True
        if fault.kind == "fail":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if fault.delay:
            threading.Timer(fault.delay, self.kill, (fault,)).start()
        else:
            self.kill(fault)

    def inside(self, path: object) -> str | None:
        """A path's name within the run, without `.tmp`; None for ignored files."""
        name = os.path.relpath(str(path), self.root).removesuffix(".tmp")
        return None if name.startswith("..") or any(part in name for part in IGNORED) else name

    def kill(self, fault: Fault) -> None:
        """Send the fault's signal."""
        targets = {"command": self.command, "self": os.getpid(), "grader": self.grader, "peer": self.newest_peer()}
        number = targets[fault.target]
        if number is not None:
            with suppress(ProcessLookupError):
                os.kill(number, fault.signal)

    def newest_peer(self) -> int | None:
        """A peer's process, according to the stages' logs."""
        logs = sorted(self.root.glob("round=*/logs/*.log"), key=lambda path: path.stat().st_mtime_ns)
        found = [each for log in logs for each in re.findall(r"peer \w+: process (\d+) ", log.read_text("utf-8"))]
        return int(found[-1]) if found else None


def install(points: Points) -> None:
    """Pass a point at each step of each write from now on."""
    from data import shards

    written = shards.writing

    @contextmanager
    def writing(path: Path) -> Iterator[Path]:
        with written(path) as temporary:
            yield temporary
            points.reach("write", path)

    flush, rename = os.fsync, os.replace

    def fsync(file: int) -> None:
        points.reach("flush", os.readlink(f"/proc/self/fd/{file}"))
        flush(file)

    def replace(source: Any, target: Any, **more: Any) -> None:
        points.reach("rename", os.path.abspath(target))
        rename(source, target, **more)

    system: Any = os
    system.fsync, system.replace = fsync, replace
    everywhere(written, writing)
    import safetensors.torch

    save = safetensors.torch.save_file

    def save_file(tensors: Any, filename: Any, *arguments: Any, **more: Any) -> None:
        save(tensors, filename, *arguments, **more)
        points.reach("save", os.path.abspath(filename))

    everywhere(save, save_file)
    watch_graders(points)


def everywhere(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Replace a function in all modules that have it."""
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()) if module is not None else ():
            if value is old:
                setattr(module, name, new)


def watch_graders(points: Points) -> None:
    """Track the newest grader process, and pass a point before waiting for each of its answers."""
    from data.answers import grader as module

    grader: Any = module
    wait, verify = grader.wait, grader.Grader._start

    def start(self: Any) -> Any:
        worker = verify(self)
        points.grader = worker.process.pid
        return worker

    def waiting(connections: Any, timeout: float | None = None) -> Any:
        points.reach("grade", points.root / "grader")
        return wait(connections, timeout)

    grader.Grader._start = start
    grader.wait = waiting
