"""[tracking]: what is sent to a tracker, once; it never ends a run, and no data leave the machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from data import shards
from data.config import tracking as section_module
from data.config.load import differences, parse_config
from data.config.tracking import TrackingSection, check_tracker_installed
from data.errors import UserError
from data.run import Run, load_frozen
from data.schema import METRICS
from evaluate import stage, tracking
from evaluate.tracking import Logged, logged, track
from peers.command import StageStep, run_steps
from tests import fixed_run

NO_NETWORK = """
import os, socket
def refuse(self, address):
    open(os.environ["SEEN"], "a").write(f"{address}\\n")
    raise OSError("no network in this test")
socket.socket.connect = refuse
"""
needs_trackio = pytest.mark.skipif(find_spec("trackio") is None, reason="needs make setup EXTRA=trackio")


def opened(kind: str = "trackio", name: str = "demo") -> Run:
    config = load_frozen(name)
    tracking = TrackingSection.model_validate({"kind": kind, "project": "lab"})
    return Run(name, config.model_copy(update={"tracking": tracking}))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    monkeypatch.setattr(tracking, "FAILED", {})
    return fixed_run.make(tmp_path)


@pytest.fixture
def told(run: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[Logged]]:
    """What a stand-in for the tracker is told, call by call."""
    calls: list[list[Logged]] = []
    monkeypatch.setitem(tracking.TRACKERS, "trackio", lambda run, rounds: calls.append(rounds))
    return calls


def test_the_numbers_are_those_of_the_files(told: list[list[Logged]], run: Path) -> None:
    track(opened())
    assert [each["round"] for each in told[0]] == [0, 1, 2]
    for each in told[0]:
        rows = shards.read_rows(run / f"round={each['round']}" / "metrics.parquet", METRICS)
        expected = {f"{row['benchmark']}/{row['peer']}/{name}": value for row in rows for name, value in row.items()
                    if value is not None and name not in ("benchmark", "peer")}  # fmt: skip
        found = {name: value for name, value in each["numbers"].items() if not name.startswith("train/")}
        assert found == expected and len(found) > 60
    training = {name: value for name, value in told[0][1]["numbers"].items() if name.startswith("train/")}
    assert training["train/ada/loss_first"] == 1.0 and training["train/ada/loss_last"] == 0.4
    assert not any(name.startswith("train/") for name in told[0][0]["numbers"])


def test_a_tracker_is_told_again_only_of_what_is_new(told: list[list[Logged]], run: Path) -> None:
    track(opened())
    track(opened())
    assert len(told) == 1
    rows = shards.read_rows(run / "round=2" / "metrics.parquet", METRICS)
    shards.write_rows([{**row, "em": 0.125} for row in rows], run / "round=2" / "metrics.parquet", METRICS)
    track(opened())
    before, after = ([each["made_from"] for each in rounds] for rounds in told)
    assert before[:2] == after[:2] and before[2] != after[2]


def test_tracking_is_off_by_default(told: list[list[Logged]], run: Path) -> None:
    track(Run("demo", load_frozen("demo")))
    assert told == [] and not (run / "tracked.json").exists()


def test_a_failure_is_a_warning_and_is_made_up_for(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run: Run, rounds: list[Logged]) -> None:
        raise subprocess.TimeoutExpired("trackio", 120)

    monkeypatch.setitem(tracking.TRACKERS, "trackio", fail)
    track(opened())
    line = capsys.readouterr().out
    assert line.startswith("warning: trackio does not have the last round's numbers (Command 'trackio' timed out after")
    assert line.count("\n") == 1 and not (run / "tracked.json").exists()
    track(opened())
    assert capsys.readouterr().out == ""  # a call with many finished rounds tries, and warns, once
    tracking.FAILED.clear()  # as in another process
    calls: list[Any] = []
    monkeypatch.setitem(tracking.TRACKERS, "trackio", lambda run, rounds: calls.append(rounds))
    track(opened())
    assert len(calls) == 1 and (run / "tracked.json").exists()


def test_a_damaged_file_of_the_run_is_a_warning_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "round=1" / "metrics.parquet").write_bytes(b"")
    track(opened())
    assert "warning: trackio does not have" in capsys.readouterr().out


def test_a_run_without_benchmarks_has_its_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fixed_run.make(tmp_path, benchmarks=False)
    calls: list[list[Logged]] = []
    monkeypatch.setitem(tracking.TRACKERS, "trackio", lambda run, rounds: calls.append(rounds))
    track(opened())
    assert [each["round"] for each in calls[0]] == [1, 2]
    assert all(name.startswith("train/") for name in calls[0][0]["numbers"])


def test_a_round_is_told_of_once_it_is_evaluated(told: list[list[Logged]], run: Path) -> None:
    (run / "round=2" / "metrics.parquet").unlink()
    track(opened())
    assert [each["round"] for each in told[0]] == [0, 1]


def test_evaluate_ends_with_the_tracker_also_where_it_is_finished(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(stage, "measure", lambda run, round_, workers: order.append("measure"))
    monkeypatch.setattr(stage, "track", lambda run: order.append("track"))
    stage.main(opened(), 1, None)  # type: ignore[arg-type]
    assert order == ["measure", "track"]


def test_a_missing_package_is_one_line_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(section_module, "find_spec", lambda name: None)
    check_tracker_installed(TrackingSection())
    with pytest.raises(UserError, match=r"run `make setup EXTRA=trackio`, or go on with --set tracking\.kind=none"):
        check_tracker_installed(TrackingSection(kind="trackio"))
    (tmp_path / "c.toml").write_text(
        '[prompts]\nsource = "q.jsonl"\n[[peers]]\nname = "a"\nmodel = "a"\n[[peers]]\nname = "b"\nmodel = "b"\n'
    )
    with pytest.raises(SystemExit):
        run_steps([StageStep("evaluate", 0, stage.main)], "r", Path("c.toml"), ["tracking.kind=trackio"])
    assert capsys.readouterr().err.startswith("error: tracking.kind is 'trackio' but the package is not installed")
    assert not (tmp_path / "runs" / "r").exists()


def test_the_section_may_differ_from_call_to_call(run: Path) -> None:
    frozen = load_frozen("demo")
    assert "tracking" not in frozen.model_dump() and differences(frozen, opened().config) == []
    with pytest.raises(UserError, match=r"tracking\.project"):
        parse_config({**frozen.model_dump(mode="json"), "tracking": {"project": "a/b"}}, "it")


def test_trackio_is_given_no_address_and_no_network(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def pretend(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append((command, options))
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nValueError: no\n")

    monkeypatch.setattr(subprocess, "run", pretend)
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL", "TRACKIO_BUCKET_ID"):
        monkeypatch.setenv(name, "https://elsewhere")
    with pytest.raises(RuntimeError, match="ValueError: no"):
        tracking.trackio(opened(), [])
    environment = calls[0][1]["env"]
    assert [name for name in environment if name.startswith("TRACKIO_")] == ["TRACKIO_DIR"]
    assert environment["TRACKIO_DIR"] == str(Path("runs/.trackio").absolute()) and environment["HF_HUB_OFFLINE"] == "1"
    assert calls[0][1]["timeout"] == tracking.MAX_SECONDS
    monkeypatch.setenv("TRACKIO_DIR", "/elsewhere")
    with pytest.raises(RuntimeError):
        tracking.trackio(opened(), [])
    assert calls[1][1]["env"]["TRACKIO_DIR"] == "/elsewhere"


def kept(name: str = "demo") -> list[list[dict[str, Any]]]:
    """The rows of trackio's runs of a name in project lab, in the order in which the runs began."""
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; "
        f"print(json.dumps([S.get_logs('lab', {name!r}, run_id=r['id']) for r in S.get_run_records('lab')]))"
    )
    environment = {"TRACKIO_DIR": "runs/.trackio", "PATH": "", "HOME": "."}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    found: list[list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return found


@needs_trackio
def test_the_real_trackio_has_each_round_once_and_is_told_offline(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(NO_NETWORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"), prepend=":")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")  # trackio asks the hub whose it is
    track(opened())
    assert "tracked: TRACKIO_DIR=" in capsys.readouterr().out and not (tmp_path / "seen").exists()
    (rows,) = kept()
    assert [row["step"] for row in rows] == [0, 1, 2]
    numbers = logged(opened(), 1)["numbers"]
    assert {name: rows[1][name] for name in numbers} == numbers
    (run / "tracked.json").unlink()  # as of a call that was killed before it wrote this
    track(opened())
    assert [[row["step"] for row in rows] for rows in kept()] == [[0, 1, 2]]


@needs_trackio
def test_the_real_trackio_goes_on_with_a_run_and_begins_another_for_other_numbers(run: Path) -> None:
    shutil.move(run / "round=2", run / "later")
    track(opened())
    shutil.move(run / "later", run / "round=2")
    track(opened())
    assert [[row["step"] for row in rows] for rows in kept()] == [[0, 1, 2]]
    config = shards.read_json(run / "config.json")  # the run is deleted and begun under the same name
    shards.write_json(config | {"run": config["run"] | {"seed": 18}}, run / "config.json")
    track(opened())
    assert [[row["step"] for row in rows] for rows in kept()] == [[0, 1, 2], [0, 1, 2]]


@needs_trackio
def test_the_real_trackio_that_cannot_write_is_a_warning(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    monkeypatch.setenv("TRACKIO_DIR", str(Path("file/folder").absolute()))
    track(opened())
    assert "warning: trackio does not have the last round's numbers" in capsys.readouterr().out
