"""Send a run's numbers to a tracker, off by default: those of metrics.parquet, and training losses.

A tracker is a function of TRACKERS; it may do and fail as it likes. Nothing here ends a run: a tracker that fails is a
warning, and the next `evaluate` tries again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict

from data import shards
from data.console import console
from data.hashing import digest
from data.run import OUTPUT, RUNS, Run, metrics_path
from data.schema import METRICS

MAX_SECONDS = 120  # the most that a tracker may take
# variables that trackio's process keeps; the others send to a server, a Space or a hook
KEPT_VARIABLES = ("TRACKIO_DIR", "TRACKIO_STORAGE_MODE", "TRACKIO_SQLITE_JOURNAL_MODE")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "GRADIO_ANALYTICS_ENABLED": "0"}


class Logged(TypedDict):
    """A round for a tracker; `made_from` changes if anything about the round does."""

    round: int
    numbers: dict[str, float]
    made_from: str


FAILED: dict[str, Any] = {}  # by run, what this process failed to send: a run of many finished rounds tries it once
Tracker = Callable[[Run, list[Logged]], None]


def track(run: Run) -> None:
    """Send the evaluated rounds to the run's tracker, if any has changed since; the tracker keeps each round once."""
    kind = run.config.tracking.kind
    if kind == "none":
        return
    state: dict[str, Any] = {}
    try:
        rounds = [logged(run, round_) for round_ in _rounds(run)]
        target = {"kind": kind, "project": run.config.tracking.project}
        state = {**target, "rounds": {str(each["round"]): each["made_from"] for each in rounds}}
        path = run.root / "tracked.json"
        if not rounds or FAILED.get(run.name) == state or (path.is_file() and shards.read_json(path) == state):
            return
        TRACKERS[kind](run, rounds)
        shards.write_json(state, path)
    except Exception as error:  # whatever a tracker may raise
        FAILED[run.name] = state
        console.print(
            f"warning: {kind} does not have the last round's numbers ({error}); the run goes on, and the next command "
            "tries again",
            markup=False,
            soft_wrap=True,
        )


def _rounds(run: Run) -> list[int]:
    """Rounds with metrics; without benchmarks, rounds that are trained."""
    pattern = "metrics.parquet" if run.config.benchmarks else f"{OUTPUT['train']}/{shards.SUCCESS}"
    found = (path.relative_to(run.root).parts[0] for path in run.root.glob(f"round=*/{pattern}"))
    return sorted(int(folder.split("=")[1]) for folder in found)


def logged(run: Run, round_: int) -> Logged:
    """The numbers of a round: `<benchmark>/<peer>/<column of metrics>`, and `train/<peer>/…` with losses in nats per
    token (signed weights: the clipped surrogate). Nulls are left out."""
    numbers: dict[str, float] = {}
    path = metrics_path(run.name, round_)
    for row in shards.read_rows(path, METRICS) if path.is_file() else []:
        place = f"{row.pop('benchmark')}/{row.pop('peer')}"
        numbers |= {f"{place}/{name}": value for name, value in row.items() if value is not None}
    manifest = run.stage_dir(round_, OUTPUT["train"]) / shards.SUCCESS
    reports = shards.read_json(manifest)["peers"] if manifest.is_file() else {}
    for peer, report in reports.items():
        losses = report["losses"]
        fifth = max(1, len(losses) // 5)  # as in the report's table of training
        if losses:
            numbers[f"train/{peer}/loss_first"] = fmean(losses[:fifth])
            numbers[f"train/{peer}/loss_last"] = fmean(losses[-fifth:])
        numbers[f"train/{peer}/examples"] = report["examples"]
    config = shards.read_json(run.root / "config.json")
    return {"round": round_, "numbers": numbers, "made_from": digest([config, numbers])}


def trackio(run: Run, rounds: list[Logged]) -> None:
    """Log to trackio's files on this machine, in TRACKIO_DIR or runs/.trackio, from a separate process.

    trackio reads from variables where to send, and asks the hub for the name behind a token: the process has neither.
    Raises OSError, RuntimeError, or subprocess's TimeoutExpired after MAX_SECONDS.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRACKIO_") or k in KEPT_VARIABLES} | OFFLINE
    folder = environment.setdefault("TRACKIO_DIR", str((RUNS / ".trackio").absolute()))
    project, config = run.config.tracking.project, shards.read_json(run.root / "config.json")
    given: dict[str, Any] = {"project": project, "name": run.name, "config": config, "rounds": rounds}
    script = Path(__file__).with_name("trackio_log.py")
    done = subprocess.run(
        [sys.executable, "-P", str(script)],
        input=json.dumps(given),
        env=environment,
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(lines[-1])
    console.print(
        f"tracked: TRACKIO_DIR='{folder}' .venv/bin/trackio show --project {project}", markup=False, soft_wrap=True
    )


TRACKERS: dict[str, Tracker] = {"trackio": trackio}  # by tracking.kind
