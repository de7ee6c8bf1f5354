"""`python -m pipeline.gpu_check`: all steps, one JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from data.cli import quiet_environment, start
from data.console import console
from data.errors import UserError
from peers.devices import gpu_is_there
from pipeline.gpu_check.step import LINE, ROOT, Setting, Step, child

LIMIT, CPU_LIMIT = 240, 720  # seconds, for all


def all_steps() -> list[Step]:
    """In the order in which they run. Imports torch."""
    from pipeline.gpu_check import engines, numbers, rounds, shapes

    return [
        Step("environment", "numbers", 30, numbers.environment),
        Step("head", "numbers", 30, numbers.check_head),
        Step("packed", "numbers", 40, numbers.packed),
        Step("engine", "engine", 75, engines.engine),
        Step("renewed", "engine", 40, engines.renewed),
        Step("sleep", "engine", 20, engines.sleep),
        Step("closed", "engine", 20, engines.closed),
        Step("fresh", "engine", 40, engines.fresh),
        Step("generate", "shape", 60, shapes.generate),
        Step("score", "shape", 30, shapes.score),
        Step("train", "shape", 60, shapes.train),
        Step("round", "round", 120, rounds.nano_round),
    ]


def run_group(steps: Sequence[Step], setting: Setting, seconds: float) -> list[dict[str, Any]]:
    """Verdicts of the steps of one process, which is ended after so many seconds; of those that it had no verdict on,
    the first has failed and the others were not done."""
    found: list[dict[str, Any]] = []
    log = setting.folder / f"{steps[0].group}.log"
    command = [sys.executable, "-m", "pipeline.gpu_check", "--steps", ",".join(step.name for step in steps)]
    command += ["--child", str(setting.folder), *(["--small"] if setting.small else [])]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    timer = threading.Timer(seconds, _kill, [process])
    timer.start()
    begin = time.monotonic()
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(LINE):
            found.append(json.loads(line.removeprefix(LINE)))
            _tell(found[-1])
    process.wait()
    timer.cancel()
    took = round(time.monotonic() - begin, 1)
    _kill(process)  # what it has started
    tail = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-300:]
    ended = f"its process was ended after {took} s" if took >= seconds else f"its process died ({process.returncode})"
    for i, step in enumerate(steps[len(found) :]):
        told = ("failed", f"{ended}: {tail}") if i == 0 else ("skipped", f"not done: {ended}")
        found.append({"step": step.name, "verdict": told[0], "reason": told[1], "seconds": took, "figures": {}})
        _tell(found[-1])
    return found


def _kill(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _tell(found: dict[str, Any]) -> None:
    said = "  ".join(f"{name} {value}" for name, value in found["figures"].items())
    console.print(f"{found['step']:12} {found['verdict']:8} {found['seconds']:6} s  {found['reason'] or said}",
                  markup=False, soft_wrap=True)  # fmt: skip


def check(names: Sequence[str], small: bool, limit: float) -> dict[str, Any]:
    """All verdicts, and "ok" where none has failed."""
    begin, gpu, found = time.monotonic(), gpu_is_there(), []
    steps = chosen(names)
    with tempfile.TemporaryDirectory(prefix="pst-gpu-check-") as folder:
        setting = Setting(gpu, Path(folder), small)
        for group in dict.fromkeys(step.group for step in steps):
            together = [step for step in steps if step.group == group]
            left = limit - (time.monotonic() - begin)
            if left < 5:
                late = {"verdict": "skipped", "reason": f"no time left of {limit:.0f} s", "seconds": 0, "figures": {}}
                found += [{"step": step.name, **late} for step in together]
                continue
            # its imports and its exit have no step of their own
            found += run_group(together, setting, min(left, 30 + sum(step.limit(setting) for step in together)))
    return {
        "ok": all(each["verdict"] != "failed" for each in found), "gpu": gpu,
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - begin, 1),
        "steps": found,
    }  # fmt: skip


def chosen(names: Sequence[str]) -> list[Step]:
    """The steps with these names, all of them without names. Raises UserError for one that there is not."""
    steps = all_steps()
    known = [step.name for step in steps]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"--steps {unknown[0]!r}: expected some of {', '.join(known)}")
    return [step for step in steps if not names or step.name in names]


app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Path | None = typer.Option(None, help="Write the JSON here, too."),
    steps: str = typer.Option("", help="Some of the steps, with commas between."),
    small: bool = typer.Option(False, help="Small shapes, as the tests take."),
    limit: float | None = typer.Option(None, min=1, help="Seconds for all of it: 240 on a GPU, 720 on a CPU."),
    work: str = typer.Option("", "--child", hidden=True),
) -> None:
    """Whether this machine computes what the project promises. The last line is one JSON; status 1 if a step failed."""
    quiet_environment()
    names = [name.strip() for name in steps.split(",") if name.strip()]
    if work:
        import torch

        child(chosen(names), Setting(gpu_is_there() and torch.cuda.is_available(), Path(work), small))
        return
    found = check(names, small, limit or (LIMIT if gpu_is_there() else CPU_LIMIT))
    text = json.dumps(found)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)
    raise SystemExit(0 if found["ok"] else 1)


if __name__ == "__main__":
    start(app, "pipeline.gpu_check")
