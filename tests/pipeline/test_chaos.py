"""Runs that are killed, starved and damaged end like undisturbed ones; a planted bug is found."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.cases import STAGES, Case, Point, case_of, damaged, needs_grader, read_points, step_of
from tests.chaos.driver import Chaos, Outcome, heed, kept, series, summary
from tests.chaos.project import Kind
from tests.conftest import ROOT, run_module

POINTS = [
    Point(role, step, f"round={number}/{folder}/{name}", 1)
    for number in (1, 2)
    for folder, name in (("chains", ".work/a.parquet"), ("scores", "part-0.parquet"), ("adapters", "x"), ("evals", "y"))
    for role in ("command", "chatty")
    for step in ("write", "flush", "rename")
] + [Point("command", "grade", "grader", number) for number in (1, 2, 3)]


def chaos(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`python -m tests.chaos` with its files in a folder."""
    return run_module("tests.chaos", "--folder", str(folder), *options, cwd=ROOT, timeout=1800)


def test_a_seed_is_a_case() -> None:
    cases = [case_of(seed, Kind(), POINTS) for seed in range(28_000, 28_090)]
    assert cases == [case_of(seed, Kind(), POINTS) for seed in range(28_000, 28_090)]
    kills = [case for case in cases if case.what == "kill"]
    assert len(kills) == 60 and {case.what for case in cases} == {"kill", "fail", "damage"}
    assert {case.stage for case in kills} == {case.stage for case in cases} == set(STAGES)
    faults: list[Any] = [case.fault for case in kills if case.fault]
    targets = {(fault.target, fault.signal.name) for fault in faults}
    assert targets >= {("command", "SIGKILL"), ("command", "SIGTERM"), ("command", "SIGINT"), ("self", "SIGKILL"),
                       ("grader", "SIGKILL")}  # fmt: skip
    assert step_of("round=2/chains/.work/a.parquet", "generate") == "generate-2"
    assert step_of("round=2/metrics.parquet", "evaluate") is None


def test_damage_is_done_and_told(tmp_path: Path) -> None:
    file = tmp_path / "round=1" / "chains" / "part-00000.parquet"
    file.parent.mkdir(parents=True)
    told = set()
    for seed in range(20):
        file.write_bytes(bytes(100))
        done = damaged(tmp_path, Case(seed, "damage", "generate", Kind(), None, "shard"))
        assert done is not None and file.read_bytes() != bytes(100)
        told.add(re.sub(r"\d+", "N", done))
    assert told == {"round=N/chains/part-N.parquet cut to N of N bytes",
                    "a bit of byte N of round=N/chains/part-N.parquet flipped"}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "deleted"),
    [
        ("error: shard runs/t/a/b is damaged (x); delete runs/t/a and run its stage again", "runs/t/a"),
        ("error: runs/t/a/b cannot be read (x); delete it and run the stage again", "runs/t/a/b"),
        ("error: runs/t/a/b is damaged: delete it and run the same command again", "runs/t/a/b"),
        ("error: delete ../runs/t/../x to start over", None),
        ("error: runs/t is in use", None),
    ],
)
def test_what_a_refusal_says_is_done(line: str, deleted: str | None, tmp_path: Path) -> None:
    (tmp_path / "runs/t/a").mkdir(parents=True)
    (tmp_path / "runs/t/a/b").touch()
    assert heed(line, tmp_path) == deleted
    assert (tmp_path / "runs/t/a/b").exists() == (deleted is None)


def test_the_summary_names_a_failing_case() -> None:
    rows = [{"case": 7, "what": "kill", "stage": "score", "result": "same"},
            {"case": 8, "what": "fail", "stage": "score", "result": "mismatch"},
            {"case": 9, "what": "kill", "stage": "train", "result": "missed"}]  # fmt: skip
    assert summary(rows) == (
        "1 kills (1 in score), 1 other faults (1 failed writes, 0 damaged files of which 0 were noticed), "
        "1 mismatches: again with CASE=8"
    )


FEW = 28_000


def test_a_few_disturbed_runs_end_as_others_do(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    short = ("--cases", "3", "--seed", str(FEW), "--rounds", "1", "--models", str(tiny_models["plain"].parent))
    done = chaos(tmp_path, *short)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 mismatches" in done.stdout.splitlines()[-1]
    (row, *_) = kept(tmp_path / f"transformers-local-{FEW}.jsonl")
    assert row["case"] == FEW and row["details"]


def test_finished_cases_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def do(self: Chaos, case: Case) -> Outcome:
        done.append(case.seed)
        return Outcome("missed" if case.seed == 28_001 else "same")

    monkeypatch.setattr(Chaos, "do", do)
    monkeypatch.setattr(Chaos, "case", lambda self, seed: case_of(seed, Kind(), POINTS))
    some = Chaos(tmp_path, Kind())
    assert [row["case"] for row in series(some, 2, 28_000, tmp_path / "x.jsonl")] == [28_000, 28_001, 28_002]
    assert [row["case"] for row in series(some, 3, 28_000, tmp_path / "x.jsonl")] == [28_003]
    assert done == [28_000, 28_001, 28_002, 28_003]


def finds(bug: str, case: Case) -> bool:
    """Whether a case disturbs the run where a bug shows."""
    fault = case.fault
    if fault is None or case.what != "kill" or fault.delay:
        return False
    if bug == "resumed_unit_redraws":
        return "/chains/.work/" in fault.name and "~chain-1" in fault.name and "round=1" in fault.name
    return fault.target == "command" and fault.time == 2 and fault.name.startswith("round=1/chains/part-")


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["marker_before_shard", "resumed_unit_redraws", "lost_rename"])
def test_a_planted_bug_is_found(bug: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    planted = ("--bug", bug, "--models", str(tiny_models["plain"].parent))
    first = chaos(tmp_path, "--case", str(FEW), *planted)  # makes the undisturbed run, to which the bug does nothing
    assert "mismatch" in first.stdout or first.returncode == 0, first.stdout + first.stderr
    points = read_points(tmp_path / "transformers-local-numbers-2.points")
    seeds = (seed for seed in range(28_000, 60_000) if not needs_grader(seed, Kind()))
    seed = next(seed for seed in seeds if finds(bug, case_of(seed, Kind(), points)))
    done = chaos(tmp_path, "--cases", "1", "--seed", str(seed), *planted)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith(f"1 mismatches: again with CASE={seed}")
    again = chaos(tmp_path, "--case", str(seed), *planted)
    assert again.returncode == 1 and f"case {seed}: mismatch" in again.stdout


@pytest.mark.slow
def test_many_disturbed_runs_end_as_others_do(tmp_path: Path) -> None:
    done = chaos(tmp_path, "--cases", "12", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
