"""`python -m pipeline.gpu_check`: run all steps and print one JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from data.cli import guarded, quiet_environment, start
from data.console import console
from data.errors import UserError
from data.shards import write_json
from peers.devices import gpu_is_listed
from pipeline.gpu_check.step import ROOT, START, STEPS, CheckStep, Setting, child, kill_tree, result

LIMIT, CPU_LIMIT = 240, 720  # seconds for all steps
GRACE = 5  # seconds for a step to report that it is out of time, and for a finished process to exit
PROMISE = f"""Check that this machine computes what the project promises. At most {LIMIT // 60} minutes on a GPU and
{CPU_LIMIT // 60} on a CPU (measured: 136 to 208 seconds on one busy core of an AMD EPYC). The last line is one JSON.
Exit status 1 if a step failed or was not done; on a CPU, skip the steps that make no sense there."""
Found = list[dict[str, Any]]


def deadlines(steps: Sequence[CheckStep], limit: float) -> dict[str, float]:
    """{step: seconds from the start by which it must end}: the steps share the limit, and the last one ends at it."""
    ends, end, group = {}, 0, ""
    for step in steps:
        end += step.seconds + (START if step.group != group else 0)
        ends[step.name], group = end, step.group
    return {name: each * limit / end for name, each in ends.items()}


def run_group(steps: Sequence[CheckStep], setting: Setting, until: dict[str, float], found: Found) -> None:
    """Run the steps of one process, and add their verdicts. If it dies, or misses a step's deadline (in terms of
    `time.monotonic`), that step has failed and the later ones are not done. Leaves no process."""
    verdicts, log = setting.folder / f"{steps[0].group}.jsonl", setting.folder / f"{steps[0].group}.log"
    verdicts.touch()
    given = {"gpu": setting.gpu, "folder": str(setting.folder), "small": setting.small, "told": str(verdicts)}
    given["deadlines"] = {step.name: until[step.name] for step in steps}
    command = [sys.executable, "-m", "pipeline.gpu_check", "--child", json.dumps(given)]
    begin, done = time.monotonic(), 0
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        while done < len(steps):
            status = process.poll()  # before reading the file, which is complete once the process has ended
            for line in verdicts.read_text(encoding="utf-8").split("\n")[done:-1]:
                add(found, json.loads(line))
                done += 1
            if status is not None or done == len(steps) or time.monotonic() > until[steps[done].name] + GRACE:
                break
            time.sleep(0.1)
        if done == len(steps):
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
    finally:
        kill_tree(process)
    tail = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-300:]
    ended = "out of time, its process was killed" if status is None else f"its process died ({status})"
    for step in steps[done : done + 1]:
        add(found, result(step.name, "failed", f"{ended}: {tail}", time.monotonic() - begin))
    for step in steps[done + 1 :]:
        add(found, result(step.name, "not done", f"{steps[done].name}: {ended}"))


def add(found: Found, each: dict[str, Any]) -> None:
    """Keep a verdict and print it."""
    found.append(each)
    text = each["reason"] or "  ".join(f"{name} {value}" for name, value in each["figures"].items())
    console.print(f"{each['step']:12} {each['verdict']:8} {each['seconds']:6} s  {text}", markup=False, soft_wrap=True)


def check(steps: Sequence[CheckStep], small: bool, limit: float | None) -> dict[str, Any]:
    """All verdicts, and "ok" if every step that makes sense here was done and none failed. After Ctrl-C, the verdicts
    so far."""
    found: Found = []
    begin, gpu, interrupted = time.monotonic(), gpu_is_listed(), False
    ends = deadlines(steps, limit or (LIMIT if gpu else CPU_LIMIT))
    until = {name: begin + end for name, end in ends.items()}
    try:
        with tempfile.TemporaryDirectory(prefix="pst-gpu-check-", ignore_cleanup_errors=True) as folder:
            for _, group in groupby(steps, lambda step: step.group):
                run_group([*group], Setting(gpu, Path(folder), small), until, found)
    except KeyboardInterrupt:
        interrupted = True
        for step in steps[len(found) :]:
            add(found, result(step.name, "not done", "interrupted"))
    return {
        "ok": all(each["verdict"] in ("ok", "skipped") for each in found),
        "gpu": gpu,
        "interrupted": interrupted,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begin, 1),
        "steps": found,
    }


def chosen_steps(text: str) -> list[CheckStep]:
    """The steps with these names; all without names. Raises UserError for an unknown name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [step.name for step in STEPS]
    for name in names:
        if name not in known:
            raise UserError(f"--steps {name!r}: expected some of {', '.join(known)}")
    return [step for step in STEPS if not names or step.name in names]


def report(out: Path | None, steps: str, small: bool, limit: float | None) -> None:
    """The command's body. Ends it with status 0, 1, or 130."""
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.absolute().parent} is missing: make it first")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores one of them
            signal.signal(number, signal.default_int_handler)  # otherwise started processes would stay
    found = check(chosen_steps(steps), small, limit)
    if out is not None:
        write_json(found, out)
    print(json.dumps(found), flush=True)
    raise SystemExit(130 if found["interrupted"] else 0 if found["ok"] else 1)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=" ".join(PROMISE.split()))
def main(
    out: Annotated[Path | None, typer.Option(help="File for the JSON, besides the last line.")] = None,
    steps: Annotated[str, typer.Option(help="Steps to run, with commas between; default: all.")] = "",
    small: Annotated[bool, typer.Option(help="Use small shapes, as the tests do.")] = False,
    limit: Annotated[
        float | None,
        typer.Option(
            min=1, max=86_400, help=f"Seconds for all steps; default: {LIMIT} on a GPU, {CPU_LIMIT} on a CPU."
        ),
    ] = None,
    work: Annotated[str, typer.Option("--child", hidden=True)] = "",
) -> None:
    """`python -m pipeline.gpu_check [--out FILE] [--steps NAMES] [--small] [--limit SECONDS]`."""
    quiet_environment()
    if work:
        given = json.loads(work)
        setting = Setting(given["gpu"], Path(given["folder"]), given["small"])
        guarded(lambda: child(setting, given["deadlines"], Path(given["told"])))
    else:
        guarded(lambda: report(out, steps, small, limit))


if __name__ == "__main__":
    start(app, "pipeline.gpu_check")
