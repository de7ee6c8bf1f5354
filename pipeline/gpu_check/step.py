"""The steps, and the process that runs a group of them and writes a line of JSON for each to a file."""

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
    """The check failed."""


class Skipped(Exception):
    """The step makes no sense on this machine, which is no error."""


class Missed(Exception):
    """The step makes sense on this machine but cannot be done, which is an error."""


@dataclass(frozen=True)
class Setting:
    """Where steps run, and their size. `folder` is the command's own."""

    gpu: bool  # the machine has one, so torch must see it
    folder: Path
    small: bool = False  # as in the tests

    def size(self, gpu: int, cpu: int, small: int) -> int:
        """The number for this setting."""
        return gpu if self.gpu else small if self.small else cpu


@dataclass(frozen=True)
class CheckStep:
    """A step. Its check is looked up by name, so that the command itself does not import torch. It returns, or raises
    Failed, Skipped or Missed, and fills in the figures as it runs, so that a failure has them."""

    name: str
    group: str  # the module of its check; steps of a module share a process
    seconds: int  # most seconds on a GPU, of 240 in all

    def check(self, setting: Setting, figures: Figures) -> None:
        """Run the check. Imports torch: a failed import is the step's failure."""
        getattr(import_module(f"pipeline.gpu_check.{self.group}"), f"check_{self.name}")(setting, figures)


START = 8  # seconds for a process to start on a GPU's machine
STEPS = (  # in running order; unused seconds of a step go to the next ones
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
    """Raises Failed unless `holds`."""
    if not holds:
        raise Failed(what)


def run_step(name: str, check: Check, setting: Setting, seconds: float) -> dict[str, Any]:
    """Run a step; returns its name, verdict ("ok", "failed", "skipped", "not done"), reason, seconds and figures."""
    figures: Figures = {}
    begin = time.monotonic()
    verdict, reason = "ok", ""
    previous = signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds))  # 0 would disable the timer
    try:
        check(setting, figures)
    except Skipped as error:
        verdict, reason = "skipped", str(error)
    except Missed as error:
        verdict, reason = "not done", str(error)
    except (Failed, UserError, TimeoutError) as error:
        verdict, reason = "failed", str(error)
    except Exception as error:
        traceback.print_exc()
        verdict, reason = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    return result(name, verdict, reason, time.monotonic() - begin, figures)


def result(name: str, verdict: str, reason: str, seconds: float = 0, figures: Figures | None = None) -> dict[str, Any]:
    """A step's part of the JSON."""
    rounded = {key: _rounded(value) for key, value in (figures or {}).items()}
    return {"step": name, "verdict": verdict, "reason": reason, "seconds": round(seconds, 1), "figures": rounded}


def _rounded(value: Any) -> Any:
    """Round to four digits; a non-finite number becomes a string, as JSON has none."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)


def _out_of_time(*_: object) -> None:
    raise TimeoutError("out of time")


def child(setting: Setting, deadlines: dict[str, float], verdicts: Path) -> None:
    """The body of a process: run the steps that have a deadline (of `time.monotonic`, which all processes share)."""
    import torch

    os.chdir(ROOT)
    unseen = setting.gpu and not torch.cuda.is_available()
    for step in STEPS:
        if step.name in deadlines:
            left = deadlines[step.name] - time.monotonic()
            found = run_step(step.name, _unseen if unseen else step.check, setting, left)
            with verdicts.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(found) + "\n")


def _unseen(*_: object) -> None:
    """Fails: without this check, all steps would run on the CPU and pass."""
    import torch

    from peers.devices import WITHOUT
    from peers.gpu import check_gpu

    check_gpu()  # gives a more precise reason, if it finds one
    raise Failed(f"there is a GPU, but torch {torch.__version__} is built for the CPU alone; {WITHOUT}")


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all its descendants, in any session, and wait until they are gone. If the process leads a
    group, also kill the orphans of that group."""
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
    """Whether a process is alive. A zombie, which may stay in a container, holds no resources."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
