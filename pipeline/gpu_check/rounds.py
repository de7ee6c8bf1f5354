"""A nano round, killed once and started again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.shards import read_manifest
from pipeline.gpu_check.step import ROOT, Figures, Setting, Skipped, kill_tree, require

FEW = ["prompts.limit=24", "benchmarks.0.limit=16", "benchmarks.1.limit=16", "evaluate.samples=2"]
RUN = "gpu-check"
MAX_OTHERS_GIB = 0.25  # most GiB that other processes may have taken meanwhile


def gpu_mib_used() -> int:
    """MiB of the GPUs' memory in use by any process."""
    ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return sum(map(int, subprocess.check_output(ask, text=True, timeout=60).split()))


def check_round(setting: Setting, figures: Figures) -> None:
    """After a kill at its first responses, the same command finishes the round, and no GPU memory stays in use."""
    if setting.small:
        raise Skipped("too long for a test")
    folder = setting.folder / "round"
    folder.mkdir()
    (folder / "peers").symlink_to(ROOT / "peers")
    before = gpu_mib_used() if setting.gpu else 0
    chains = folder / "runs" / RUN / "round=1" / "chains"
    begin = time.monotonic()
    with _started(folder) as first:
        while first.poll() is None and not [*chains.glob(".work/*"), *chains.glob("*.parquet")]:
            time.sleep(0.2)
        require(first.poll() is None, f"the round ended by itself, with status {first.returncode}: {_tail(folder)}")
    figures["killed_after_seconds"] = time.monotonic() - begin
    with _started(folder) as second:
        status = second.wait()
    figures["seconds"] = time.monotonic() - begin
    require(status == 0, f"the same command after the kill ended with status {status}: {_tail(folder)}")
    for stage in ("chains", "scores", "adapters", "evals"):
        manifest = read_manifest(chains.parent / stage)
        require(manifest is not None, f"{stage} is not finished")
    figures["rows"] = (read_manifest(chains) or {}).get("rows")
    if setting.gpu:
        figures["held_gib"] = (gpu_mib_used() - before) / 1024
        require(figures["held_gib"] <= MAX_OTHERS_GIB, f"{figures['held_gib']:.2f} GiB of GPU memory are still in use")


@contextmanager
def _started(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command. All its processes are killed at the end of the block, also when the step is out of time."""
    command = [sys.executable, "-m", "pipeline.round", "--config", str(ROOT / "configs/nano.toml"), "--run", RUN]
    command += ["--round", "1", *(part for each in FEW for part in ("--set", each))]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # packages may be there
    environment = {**os.environ, "PYTHONPATH": path, "PST_CACHE": str(folder / ".cache"), "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        kill_tree(process)


def _tail(folder: Path) -> str:
    return " ".join((folder / "log").read_text(encoding="utf-8", errors="replace").split())[-300:]
