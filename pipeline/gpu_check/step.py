"""The steps, and the process that does some of them: one line of JSON for each in a file."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from data.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
Figures = dict[str, Any]
Check = Callable[["Setting", Figures], None]


class Failed(Exception):
    """What was checked does not hold."""


class Skipped(Exception):
    """The step makes no sense here, which is no fault."""


class Missed(Exception):
    """The step makes sense here and cannot be done, which is one."""


@dataclass(frozen=True)
class Setting:
    """Where steps run and how much they may do. `folder` is the command's own."""

    gpu: bool  # there is one: then torch must see it
    folder: Path
    small: bool = False  # as in the tests

    def size(self, gpu: int, cpu: int, small: int) -> int:
        """A number for each of the three."""
        return gpu if self.gpu else small if self.small else cpu


@dataclass(frozen=True)
class CheckStep:
    """Its check is looked up by name, so that the command itself imports no torch. It raises Failed, Skipped or Missed,
    or returns, and fills the figures as it goes, so that a failure has them."""

    name: str
    group: str  # the module of its check; steps of one module share a process
    seconds: int  # that it may take on a GPU, of 240 for all

    def check(self, setting: Setting, figures: Figures) -> None:
        """Imports torch: what a module fails to import is the step's failure."""
        getattr(import_module(f"pipeline.gpu_check.{self.group}"), f"check_{self.name}")(setting, figures)


START = 8  # seconds for a process to start on a GPU's machine
STEPS = (  # in the order in which they run; what one does not use of its seconds, the next ones may
    CheckStep("environment", "numbers", 8),
    CheckStep("head", "numbers", 8),
    CheckStep("packed", "numbers", 10),
    CheckStep("engine", "engines", 40),
    CheckStep("renewed", "engines", 8),
    CheckStep("sleep", "engines", 6),
    CheckStep("closed", "engines", 4),
    CheckStep("fresh", "engines", 18),
    CheckStep("generate", "shapes", 32),
    CheckStep("score", "shapes", 8),
    CheckStep("train", "shapes", 14),
    CheckStep("round", "rounds", 52),
)


def require(holds: bool, what: str) -> None:
    """Raises Failed unless it holds."""
    if not holds:
        raise Failed(what)


def run_step(name: str, check: Check, setting: Setting, seconds: float) -> dict[str, Any]:
    """Do a step: its name, verdict ("ok", "failed", "skipped", "not done"), reason, seconds, and figures."""
    figures: Figures = {}
    begin = time.monotonic()
    told, reason = "ok", ""
    previous = signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds))  # 0 would be none
    try:
        check(setting, figures)
    except Skipped as error:
        told, reason = "skipped", str(error)
    except Missed as error:
        told, reason = "not done", str(error)
    except (Failed, UserError, TimeoutError) as error:
        told, reason = "failed", str(error)
    except Exception as error:
        traceback.print_exc()
        told, reason = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    return result(name, told, reason, time.monotonic() - begin, figures)


def result(name: str, told: str, reason: str, seconds: float = 0, figures: Figures | None = None) -> dict[str, Any]:
    """A step's part of the JSON."""
    rounded = {key: _rounded(value) for key, value in (figures or {}).items()}
    return {"step": name, "verdict": told, "reason": reason, "seconds": round(seconds, 1), "figures": rounded}


def _rounded(value: Any) -> Any:
    """Four digits are enough; JSON has no "nan"."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)


def _out_of_time(*_: object) -> None:
    raise TimeoutError("out of time")


def child(setting: Setting, deadlines: dict[str, float], told: Path) -> None:
    """The body of a process: do the steps that have a deadline (of `time.monotonic`, which all processes share)."""
    import torch

    os.chdir(ROOT)
    unseen = setting.gpu and not torch.cuda.is_available()
    for step in STEPS:
        if step.name in deadlines:
            left = deadlines[step.name] - time.monotonic()
            found = run_step(step.name, _unseen if unseen else step.check, setting, left)
            with told.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(found) + "\n")


def _unseen(*_: object) -> None:
    """Without this all would run on the CPU, and pass."""
    import torch

    from peers.devices import WITHOUT
    from peers.gpu import check_gpu

    check_gpu()  # knows more of the reasons
    raise Failed(f"there is a GPU, but torch {torch.__version__} is built for the CPU alone; {WITHOUT}")


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, in whatever session; returns when they are gone. Where the process
    leads a group, also those of it whose parents are gone."""
    started: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    for each in started:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    end = time.monotonic() + 5
    while any(map(_runs, started)) and time.monotonic() < end:
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    """A zombie, which in a container may stay one, holds nothing."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
