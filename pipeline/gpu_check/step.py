"""What a step is, and the process that does some of them: one line of JSON on stdout for each."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LINE = "gpu-check-step: "  # before a verdict, for libraries print, too
CPU_TIMES = 3  # as long may a step take on a CPU
Figures = dict[str, Any]


class Failed(Exception):
    """What was checked does not hold."""


class Skipped(Exception):
    """The step makes no sense here."""


@dataclass(frozen=True)
class Setting:
    """Where a step runs and how much it may do. `folder` is its own."""

    gpu: bool
    folder: Path
    small: bool = False  # as in the tests

    def size(self, gpu: int, cpu: int, small: int) -> int:
        """A number for each of the three."""
        return gpu if self.gpu else small if self.small else cpu


@dataclass(frozen=True)
class Step:
    """`check` raises Failed or Skipped, or returns; it fills the figures as it goes, so that a failure has them."""

    name: str
    group: str  # of steps that share a process
    seconds: int  # its limit on a GPU
    check: Callable[[Setting, Figures], None]

    def limit(self, setting: Setting) -> int:
        """Seconds that it may take."""
        return self.seconds if setting.gpu else CPU_TIMES * self.seconds


def expect(holds: bool, what: str) -> None:
    """Raises Failed unless it holds."""
    if not holds:
        raise Failed(what)


def verdict(step: Step, setting: Setting) -> dict[str, Any]:
    """Do a step: its name, verdict ("ok", "failed", "skipped"), reason, seconds, and figures."""
    figures: Figures = {}
    begin = time.monotonic()
    told, reason = "ok", ""
    previous = signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(step.limit(setting))
    try:
        with redirect_stdout(sys.stderr):
            step.check(setting, figures)
    except Skipped as error:
        told, reason = "skipped", str(error)
    except (Failed, UserError, TimeoutError) as error:
        told, reason = "failed", str(error)
    except Exception as error:
        traceback.print_exc()
        told, reason = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    seconds = round(time.monotonic() - begin, 1)
    return {"step": step.name, "verdict": told, "reason": reason, "seconds": seconds, "figures": rounded(figures)}


def _out_of_time(*_: object) -> None:
    raise TimeoutError("out of time")


def rounded(figures: Figures) -> Figures:
    """Four digits are enough."""
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}


def child(steps: list[Step], setting: Setting) -> None:
    """The body of a process."""
    os.chdir(ROOT)
    for step in steps:
        print(LINE + json.dumps(verdict(step, setting)), flush=True)
