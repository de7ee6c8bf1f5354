"""A disk that is clearly too small is reported before a stage begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from data import shards
from data.errors import UserError
from data.run import Run, open_run
from peers import disk
from peers.memory import shape_in
from pipeline.plan import _lack_of_disk
from pipeline.projection import Cost
from tests.conftest import run_stage


@pytest.fixture
def run(project: Path) -> Run:
    """A run of 24 questions and two peers."""
    with open_run("t", Path("tiny.toml"), []) as opened:
        shards.write_json({}, opened.root / "config.json")
    return opened


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The disk has this many free bytes."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))


def fill(folder: Path, size: int) -> None:
    """A file of that size."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x").write_bytes(b"x" * size)


def test_what_a_stage_takes_at_least(run: Run, tiny_models: dict[str, Path]) -> None:
    assert disk.bytes_needed(run, "generate", 1) == {"its files": 2 * 24 * disk.ROW, "merged checkpoints": 0}
    fill(run.stage_dir(1, "chains"), 8000)
    assert disk.bytes_needed(run, "generate", 1)["its files"] == 0
    assert disk.bytes_needed(run, "generate", 2)["its files"] == 4000  # half of the round before
    fill(run.stage_dir(2, "chains"), 1000)
    assert disk.bytes_needed(run, "generate", 2)["its files"] == 3000  # what is there counts
    shapes = {name: shape_in(run.config.peer(name), path) for name, path in tiny_models.items()}
    adapters = sum(4 * 16 * shape.linear for shape in shapes.values())
    assert disk.bytes_needed(run, "train", 1) == {"adapters and checkpoints": 4 * adapters}
    weights = sum(shape.stored for shape in shapes.values())
    assert disk.bytes_needed(run, "evaluate", 0)["merged checkpoints"] == 0
    assert disk.bytes_needed(run, "evaluate", 1)["merged checkpoints"] == weights > 10_000
    fill(run.checkpoint_dir(1, "plain"), shapes["plain"].stored)  # in the way of round 2's, so its room is there
    assert disk.bytes_needed(run, "evaluate", 2)["merged checkpoints"] == shapes["chatty"].stored


def test_too_little_room_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 480)
    disk.check_disk(run, "generate", 1)
    free(monkeypatch, 479)
    told = (
        r"^generate round 1 does not begin: the disk of runs/t has 479 bytes free, but the stage needs at least 480 "
        r"bytes \(its "
    )
    with pytest.raises(UserError, match=told + r"files 480 bytes\): make room .* run the same command again$"):
        disk.check_disk(run, "generate", 1)


def test_what_cannot_be_told_refuses_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run.root)
    disk.check_disk(run, "train", 1)
    monkeypatch.setattr(disk, "bytes_needed", lambda *_: (_ for _ in ()).throw(UserError("no model")))
    disk.check_disk(run, "train", 1)


def test_the_command_line_refuses_before_it_begins(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    free(monkeypatch, 100)
    with pytest.raises(SystemExit) as stop:
        run_stage("generate", "t", 1, Path("tiny.toml"), [])
    (line,) = capfd.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith(
        "error: generate round 1 does not begin: the disk of runs/t has 100"
    )
    assert not Path("runs/t/round=1/chains").exists()


def test_a_plan_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 2500)
    assert _lack_of_disk(Cost(1, 2000, 500), 3) == []
    assert _lack_of_disk(Cost(1, 2000, 501), 3) == ["the disk has 2.5 kB free; up to round 3 the run takes 2.5 kB"]
