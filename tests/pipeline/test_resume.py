"""A stage killed in the middle continues where it stopped, and makes the same as an uninterrupted one."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data import shards
from data.schema import CHAINS, EVALS, METRICS, SCORES
from data.shards import Row
from tests.conftest import ROOT, questions, read_stage, stage, write_jsonl

ROUND = Path("runs/t/round=1")
OTHER = Path("runs/u/round=1")
FOLDERS = {"generate": "chains", "score": "scores", "train": "adapters", "evaluate": "evals"}
TABLES = {"generate": (CHAINS, 1e-6), "score": (SCORES, 1e-5), "evaluate": (EVALS, 1e-5)}
# What interrupts each stage, and the file that it waits for: a new one, or one written anew.
INTERRUPTIONS = {
    "generate": ((signal.SIGKILL, "part-00001.parquet"), (signal.SIGINT, "part-00004.parquet")),
    "score": ((signal.SIGKILL, ".work/passes*chatty*.parquet"),),
    "train": ((signal.SIGKILL, ".work/chatty/checkpoint.pt"), (signal.SIGINT, ".work/*/checkpoint.pt")),
    "evaluate": ((signal.SIGKILL, ".work/current*.parquet"),),
}
ALL_STAGES = """
from pathlib import Path
from tests.conftest import run_stage
if __name__ == "__main__":
    for name in ("generate", "score", "train", "evaluate"):
        run_stage(name, "u", 1, Path("tiny.toml"), [])
"""


def environment() -> dict[str, str]:
    """Of a command as a user would start it."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """For the commands: a peer at work alone takes all cores, which changes last bits, and AdamW makes 1e-4 of them."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.fixture
def finished(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`project`, enlarged, with an uninterrupted round 1 as run u, made once, and its copy t."""
    write_jsonl(project / "train.jsonl", questions(0, 48))
    config = (project / "tiny.toml").read_text(encoding="utf-8")
    config = config.replace("shard_questions = 8", "shard_questions = 4").replace("lr = 1e-3", "lr = 1e-3\nepochs = 4")
    (project / "tiny.toml").write_text(config, encoding="utf-8")
    kept = tmp_path_factory.getbasetemp() / "resume-uninterrupted"
    if not kept.exists():
        done = subprocess.run(
            [sys.executable, "-c", ALL_STAGES], cwd=project, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        shutil.copytree("runs", kept)
    else:
        shutil.copytree(kept, "runs")
    shutil.copytree("runs/u", "runs/t")
    return project


def forget(name: str) -> None:
    """Remove what a stage, and those after it, made in run t."""
    names = list(FOLDERS)
    for later in names[names.index(name) :]:
        shutil.rmtree(ROUND / FOLDERS[later])
    (ROUND / "metrics.parquet").unlink()
    if name != "evaluate":
        shutil.rmtree("runs/t/.checkpoints")


def times(folder: Path, pattern: str) -> set[tuple[Path, int]]:
    """Files and when they were written."""
    return {(path, path.stat().st_mtime_ns) for path in folder.glob(pattern)}


def interrupted(name: str, sent: signal.Signals, pattern: str) -> tuple[int, str]:
    """Start a stage in a process group of its own and send it a signal in the middle: status and stderr."""
    folder = ROUND / FOLDERS[name]
    before = times(folder, pattern)
    command = [sys.executable, "-m", name, "--config", "tiny.toml", "--run", "t", "--round", "1"]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not times(folder, pattern) - before:
            assert process.poll() is None and time.monotonic() < deadline, "the stage has made nothing to wait for"
            time.sleep(0.001)
        os.killpg(process.pid, sent)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, err


def assert_unfinished_and_readable(folder: Path) -> dict[Path, int]:
    """No manifest; every Parquet file that has its final name is whole. Returns their times."""
    assert not (folder / shards.SUCCESS).exists() and (folder / shards.STARTED).is_file()
    files = [*folder.glob("part-*.parquet"), *folder.glob(".work/*.parquet")]
    for path in files:
        assert pl.read_parquet(path, hive_partitioning=False).width
    return {path: path.stat().st_mtime_ns for path in files}


def assert_same(left: list[Row], right: list[Row], tolerance: float) -> None:
    """Equal rows in the same order, floats up to a tolerance."""
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            if isinstance(value, float) and b[key] is not None:
                assert math.isclose(value, b[key], abs_tol=tolerance, rel_tol=tolerance), (key, value, b[key])
            else:
                assert value == b[key], key


def assert_same_training() -> None:
    """Adapter tensors and losses."""
    from safetensors.torch import load_file

    for peer in ("chatty", "plain"):
        left, right = (load_file(path / "adapters" / peer / "adapter_model.safetensors") for path in (ROUND, OTHER))
        assert left.keys() == right.keys()
        assert max((left[name] - right[name]).abs().max().item() for name in left) <= 1e-6
        reports: list[dict[str, Any]] = [
            json.loads((path / "adapters" / peer / "training.json").read_text(encoding="utf-8"))
            for path in (ROUND, OTHER)
        ]
        assert len(reports[0]["losses"]) == len(reports[1]["losses"]) > 8
        assert reports[0]["losses"] == pytest.approx(reports[1]["losses"], abs=1e-6)
        assert reports[0]["tokens"] == reports[1]["tokens"] and reports[0]["examples"] == reports[1]["examples"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_an_interrupted_stage_goes_on(name: str, finished: Path) -> None:
    forget(name)
    folder = ROUND / FOLDERS[name]
    kept: dict[Path, int] = {}
    for sent, pattern in INTERRUPTIONS[name]:
        status, err = interrupted(name, sent, pattern)
        if sent == signal.SIGINT:
            assert status == 130
            assert err.splitlines() == ["interrupted: run the same command again to go on where it stopped"]
        else:
            assert status == -sent
        made, kept = kept, assert_unfinished_and_readable(folder)
        assert all(kept[path] == made[path] for path in made if path in kept)
        for leftover in (folder / "part-00099.parquet.tmp", folder / ".work" / "x.parquet.tmp", folder / "x.json.tmp"):
            leftover.write_bytes(b"PAR1 half a file")
    for adapter in folder.glob("*/adapter_model.safetensors"):  # of a peer that was done first
        kept[adapter] = adapter.stat().st_mtime_ns

    done = stage(name, 1, finished)
    assert done.returncode == 0, done.stderr
    assert (folder / shards.SUCCESS).is_file() and not (folder / shards.STARTED).exists()
    assert not (folder / ".work").exists()
    parts = {path: time for path, time in kept.items() if path.parent != folder / ".work"}
    assert {path: path.stat().st_mtime_ns for path in parts} == parts  # nothing finished was made again

    if name == "train":
        assert_same_training()
    else:
        schema, tolerance = TABLES[name]
        left, right = (read_stage(path / FOLDERS[name], schema) for path in (ROUND, OTHER))
        assert_same(left, right, tolerance)
    if name == "evaluate":
        left, right = (shards.read_rows(path / "metrics.parquet", METRICS) for path in (ROUND, OTHER))
        assert_same(left, right, 1e-5)


def test_prompts_that_were_cut_off_are_written_again(project: Path) -> None:
    """A kill before the prompts are closed leaves shards of another size; they must not be taken for the run's."""
    from data.run import open_run
    from data.schema import PROMPTS

    with open_run("t", Path("tiny.toml"), ["run.shard_questions=2"]) as run:
        (run.prompts_dir / shards.SUCCESS).unlink()
        (run.root / "config.json").unlink(missing_ok=True)
    with open_run("t", Path("tiny.toml"), []) as run:
        rows = read_stage(run.prompts_dir, PROMPTS)
    assert len(rows) == len({row["id"] for row in rows}) == 24


def test_prompts_of_a_run_that_was_never_frozen_are_checked(project: Path) -> None:
    """A kill between the prompts and config.json: the next config may ask for other prompts."""
    from data.run import open_run
    from data.schema import PROMPTS

    with open_run("t", Path("tiny.toml"), []) as run:
        (run.root / "config.json").unlink(missing_ok=True)
    with open_run("t", Path("tiny.toml"), ["prompts.limit=5"]) as run:
        assert len(read_stage(run.prompts_dir, PROMPTS)) == 5
