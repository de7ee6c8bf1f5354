"""`python -m pipeline.gpu_check`: all steps, one JSON."""

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

LIMIT, CPU_LIMIT = 240, 720  # seconds, for all
GRACE = 5  # seconds for a step that is out of time to say so, and for a process that is done to end
PROMISE = f"""Check that this machine computes what the project promises. At most {LIMIT // 60} minutes on a GPU and
{CPU_LIMIT // 60} on a CPU, where 136 to 208 seconds were seen on one busy core of an AMD EPYC. The last line is one
JSON; status 1 if a step failed or was not done (what makes no sense on a CPU is skipped)."""
Found = list[dict[str, Any]]


def deadlines(steps: Sequence[CheckStep], limit: float) -> dict[str, float]:
    """By when each step must have ended, in seconds after the beginning of all: the last one at the limit, each with
    its share of it."""
    ends, end, group = {}, 0, ""
    for step in steps:
        end += step.seconds + (START if step.group != group else 0)
        ends[step.name], group = end, step.group
    return {name: each * limit / end for name, each in ends.items()}


def run_group(steps: Sequence[CheckStep], setting: Setting, until: dict[str, float], found: Found) -> None:
    """Do the steps of one process, and add their verdicts. Where it dies, or does not end a step by its deadline (of
    `time.monotonic`), that step has failed and those after it were not done. Leaves no process."""
    told, log = setting.folder / f"{steps[0].group}.jsonl", setting.folder / f"{steps[0].group}.log"
    told.touch()
    given = {"gpu": setting.gpu, "folder": str(setting.folder), "small": setting.small, "told": str(told)}
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
            status = process.poll()  # before the file is read: it is whole then
            for line in told.read_text(encoding="utf-8").split("\n")[done:-1]:
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
    ended = "out of time, its process was ended" if status is None else f"its process died ({status})"
    for step in steps[done : done + 1]:
        add(found, result(step.name, "failed", f"{ended}: {tail}", time.monotonic() - begin))
    for step in steps[done + 1 :]:
        add(found, result(step.name, "not done", f"{steps[done].name}: {ended}"))


def add(found: Found, each: dict[str, Any]) -> None:
    """Keep a verdict, and tell it."""
    found.append(each)
    said = each["reason"] or "  ".join(f"{name} {value}" for name, value in each["figures"].items())
    console.print(f"{each['step']:12} {each['verdict']:8} {each['seconds']:6} s  {said}", markup=False, soft_wrap=True)


def check(steps: Sequence[CheckStep], small: bool, limit: float | None) -> dict[str, Any]:
    """All verdicts, and "ok" where none has failed and all was done that makes sense here. After Ctrl-C those there
    are."""
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
    """The steps with these names, all of them without names. Raises UserError for one that there is not."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [step.name for step in STEPS]
    for name in names:
        if name not in known:
            raise UserError(f"--steps {name!r}: expected some of {', '.join(known)}")
    return [step for step in STEPS if not names or step.name in names]


def report(out: Path | None, steps: str, small: bool, limit: float | None) -> None:
    """The command's body. Ends it with status 0, 1, or 130."""
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}; make it")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores one of them
            signal.signal(number, signal.default_int_handler)  # or what was started would stay
    found = check(chosen_steps(steps), small, limit)
    if out is not None:
        write_json(found, out)
    print(json.dumps(found), flush=True)
    raise SystemExit(130 if found["interrupted"] else 0 if found["ok"] else 1)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=" ".join(PROMISE.split()))
def main(
    out: Annotated[Path | None, typer.Option(help="Write the JSON here, too.")] = None,
    steps: Annotated[str, typer.Option(help="Some of the steps, with commas between.")] = "",
    small: Annotated[bool, typer.Option(help="Small shapes, as the tests take.")] = False,
    limit: Annotated[
        float | None,
        typer.Option(min=1, max=86_400, help=f"Seconds for all of it: {LIMIT} on a GPU, {CPU_LIMIT} on a CPU."),
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
