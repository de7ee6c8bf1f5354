"""Runs systems in fresh processes, in alternating order, and records the measurements as JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from data.console import console

RESULTS = Path(os.environ.get("PST_CACHE", ".cache")) / "bench" / "results.jsonl"
WORKERS = Path(__file__).with_name("workers.py")
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class WorkerFailed(Exception):
    """A process ended without a result; the message is the end of its output."""


@dataclass
class Contender:
    """A system and its job; the job has `amount` of the whole workload's units (tokens, examples)."""

    label: str
    system: str
    job: dict[str, Any]
    amount: int
    options: str = ""  # shown in the table
    failed: str = ""
    last: dict[str, Any] = field(default_factory=dict)  # result of the last process


def run_worker(system: str, job: dict[str, Any]) -> dict[str, Any]:
    """The result of one fresh process, with `wall_seconds` from its start to its exit. Raises WorkerFailed."""
    ours = not system.startswith(("lm_eval", "trl", "vllm"))
    with tempfile.TemporaryDirectory() as folder:
        job_path, result_path, log_path = (Path(folder, name) for name in ("job.json", "result.json", "log.txt"))
        job_path.write_text(json.dumps(job))
        code = ["-m", "bench.workers"] if ours else ["-P", str(WORKERS.resolve())]
        environment = {**OFFLINE, **os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}  # with nothing compiled yet
        if system in ("ours_score", "ours_train"):
            environment["PST_CACHE"] = folder  # without a compiled kernel of the head
        if not ours:
            environment.pop("PYTHONPATH", None)  # this project's `evaluate` must not be found there
        with log_path.open("w") as log:
            begin = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, *code, system, str(job_path), str(result_path)],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=None if ours else folder,
            )
            peak = peak_of_tree(process) if system.endswith("generate") else None  # ours then has several processes
            status = process.wait()
            wall = time.monotonic() - begin
        if status or not result_path.is_file():
            raise WorkerFailed(f"status {status}: " + " / ".join(log_path.read_text().splitlines()[-12:]))
        result = json.loads(result_path.read_text())
        return {**result, "wall_seconds": wall, "peak_mib": peak or result["peak_mib"]}


def peak_of_tree(process: subprocess.Popen[bytes]) -> float:
    """Peak memory of a process and all its descendants, in MiB; shared pages are counted once."""
    peak = 0
    while process.poll() is None:
        with suppress(psutil.Error):
            root = psutil.Process(process.pid)
            peak = max(peak, sum(each.memory_full_info().pss for each in (root, *root.children(recursive=True))))
        time.sleep(0.5)
    return peak / 2**20


def full_seconds(wall: float, work: float, amount: float, whole: float) -> float:
    """Seconds for the whole workload, from a run on `amount` of it: start-up as measured, work in proportion."""
    return wall - work + work * whole / amount


def alternate(contenders: Sequence[Contender], repeat: int) -> list[Contender]:
    """ABC, CBA, ABC, …: so that drift of the machine affects all alike."""
    return list(contenders) if repeat % 2 == 0 else list(reversed(contenders))


@dataclass
class Session:
    """One call of the bench, whose records share a time stamp."""

    stamp: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))

    def record(self, part: str, model: str, **values: Any) -> None:
        """Append one record."""
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps({"session": self.stamp, "part": part, "model": model, **values}) + "\n")

    def note(self, part: str, model: str, text: str) -> None:
        """Print and record a finding."""
        console.print(f"  {text}", markup=False)
        self.record(part, model, kind="note", text=text)

    def measure(self, part: str, model: str, contender: Contender, repeat: int, whole: int, unit: str) -> None:
        """Run a contender once and record the result; if it fails, record the reason and do not try it again."""
        if contender.failed:
            return
        try:
            contender.last = result = run_worker(contender.system, contender.job)
        except WorkerFailed as error:
            contender.failed = str(error)
            self.record(part, model, kind="failed", system=contender.label, text=contender.failed)
            console.print(f"  {contender.label} failed: {contender.failed}", markup=False)
            return
        wall, work = result["wall_seconds"], result["work_seconds"]
        amount = contender.amount
        seconds = full_seconds(wall, work, amount, whole)
        self.record(
            part,
            model,
            kind="run",
            system=contender.label,
            options=contender.options,
            repeat=repeat,
            unit=unit,
            whole=whole,
            amount=amount,
            seconds=seconds,
            wall_seconds=wall,
            work_seconds=work,
            rate=whole / seconds,
            rate_without_startup=amount / work,
            peak_mib=result["peak_mib"],
            generated_tokens=result.get("generated_tokens"),
        )
        note = "" if amount == whole else f" (extrapolated from {amount:,})"
        console.print(
            f"  {part} {model} #{repeat + 1} {contender.label}: {whole / seconds:,.1f} {unit}/s{note}, start-up "
            f"{wall - work:.1f} s, peak {result['peak_mib'] / 1024:.2f} GiB",
            markup=False,
        )
