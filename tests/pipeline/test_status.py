"""`make status` while a stage runs, after a kill and after a failure; `--log-json`; the report meanwhile."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

import evaluate.report
from data import shards
from data.config.load import parse_config
from data.errors import UserError
from data.locks import Holder
from data.progress import StageState, going, record_path, stages
from data.run import Run
from data.stage import FORMAT, Stage
from evaluate.rebuild import TIMES, Rebuild
from pipeline.status import as_json, outlook, status_lines, status_table
from tests.conftest import ROOT, questions, run_module, run_stage, write_jsonl
from tests.unit.test_progress import check_against_the_docs

CONFIG = parse_config(
    {"prompts": {"source": "q.jsonl"}, "peers": [{"name": "p", "model": "p"}, {"name": "q", "model": "q"}]}, "test"
)

ROW = pa.schema([("x", pa.int64())])
SLOW = ("--set", "runtime.max_num_seqs=1", "--set", "evaluate.samples=8")  # an advance a response


def finished(folder: Path) -> Path:
    """A finished stage of one shard, which is returned."""
    part = folder / "part-00000.parquet"
    shards.write_rows([{"x": 1}], part, ROW)
    shards.write_manifest(folder, {"rows": 1, "seconds": 2.5, "fingerprint": {}, "format": FORMAT}, [part])
    return part


def rows_of(states: list[StageState]) -> list[list[str]]:
    """The words of the table's rows."""
    file = StringIO()
    Console(file=file, width=200).print(status_table(states))
    return [line.replace("│", " ").split() for line in file.getvalue().splitlines()]


def one(stage: str, round_: int, run: str = "t") -> StageState:
    """A stage's state."""
    return next(each for each in stages(run) if (each.stage, each.round) == (stage, round_))


# --- what the files say ----------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    peers = [{"name": name, "model": name} for name in "ab"]
    config = {"prompts": {"source": "q.jsonl"}, "peers": peers, "benchmarks": [{"name": "b", "source": "b.jsonl"}]}
    shards.write_json(config, tmp_path / "runs" / "r" / "config.json")
    return Path("runs") / "r"


def test_a_damaged_stage_does_not_hide_the_others(root: Path) -> None:
    finished(root / "round=0" / "evals")
    finished(root / "round=1" / "chains").unlink()
    finished(root / "round=1" / "scores")
    (root / "round=1" / "adapters").mkdir()
    (root / "round=1" / "adapters" / shards.STARTED).write_text("{}")
    states = stages("r")
    lines = rows_of(states)
    assert ["0", "evaluate", "finished", "1", "2.5"] in lines
    assert ["1", "generate", "damaged"] in lines and ["1", "score", "finished", "1", "2.5"] in lines
    assert ["1", "train", "stopped"] in lines and ["1", "evaluate", "-"] in lines
    told = status_lines("r", states, None)
    assert told[1].startswith("generate round 1 damaged: runs/r/round=1/chains/part-00000.parquet is missing")
    assert told[2] == "train round 1 was stopped in the middle" and len(told) == 3


def test_a_round_in_which_nothing_was_made_is_not_listed(root: Path) -> None:
    finished(root / "round=0" / "evals")
    (root / "round=1").mkdir()
    (root / "round=2" / "logs").mkdir(parents=True)
    (root / "round=2" / "logs" / "generate.log").write_text("refused")
    assert not {"1", "2"} & {line[0] for line in rows_of(stages("r")) if line}


def test_the_rounds_to_come_are_one_row() -> None:
    states = [StageState(n, stage, "missing" if n else "finished") for n in range(9) for stage in ("train", "evaluate")]
    rows = [row for row in rows_of(states) if row[0][0].isdecimal()]
    assert rows[2:] == [["1", "train", "-"], ["1", "evaluate", "-"], ["2", "to", "8", "all", "-"]]


def test_an_unknown_run_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="there is no run 'x'"):
        stages("x")


def test_words_for_a_gate_and_for_a_run_without_gold(root: Path) -> None:
    config = shards.read_json(root / "config.json")
    shards.write_json({**config, "gate": {"questions": 8}, "benchmarks": []}, root / "config.json")
    finished(root / "round=1" / "chains")
    assert [(each.round, each.stage) for each in stages("r")] == [
        (0, "gate"), (1, "generate"), (1, "score"), (1, "train"), (1, "gate"),
    ]  # fmt: skip


def test_a_finished_stage_whose_metrics_were_cut_off_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(root / "round=0" / "evals")
    metrics = root / "round=0" / "metrics.parquet"
    shards.write_rows([{"x": 1}], metrics, ROW)
    stage = Stage("evaluate", 0, root / "round=0" / "evals", {})
    assert not stage.begin(also=metrics) and "finished already" in capsys.readouterr().out
    metrics.write_bytes(metrics.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"metrics\.parquet is damaged .*delete runs/r/round=0/metrics\.parquet"):
        stage.begin(also=metrics)


def test_the_time_to_the_end_of_the_last_round_goes_by_the_stages_before() -> None:
    def of(round_: int, stage: str, state: Any, seconds: float | None = None, left: float | None = None) -> StageState:
        return StageState(round_, stage, state, seconds=seconds, left=left)

    begun = [of(0, "evaluate", "finished", 200), of(1, "generate", "running", 10)]
    assert outlook(begun) is None  # there was no generate yet
    later = [
        of(1, "generate", "finished", 100), of(1, "evaluate", "finished", 400), of(2, "generate", "running", 30, 50),
        of(2, "evaluate", "missing"),
    ]  # fmt: skip
    assert outlook(later) == 70 + 400
    assert outlook([*later[:2], of(2, "generate", "running", 130, 50), later[3]]) == 50 + 400
    assert status_lines("r", later, Holder(7))[0].endswith(
        "; about 8 min left to the end of round 2, if stages take as long as before"
    )


# --- real stages -----------------------------------------------------------------------------------------------------


def test_a_full_disk_and_an_unreadable_model_are_told_with_their_reason(
    project: Path, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_models["chatty"], tmp_path / "model")
    config = Path("tiny.toml")
    config.write_text(config.read_text().replace(str(tiny_models["chatty"]), str(tmp_path / "model")))
    real = shards.write_rows

    def full(rows: Any, path: Path, schema: Any) -> None:
        if path == Path("runs/t/round=0/evals/part-00001.parquet"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(rows, path, schema)

    monkeypatch.setattr(shards, "write_rows", full)
    with pytest.raises(SystemExit):
        run_stage("evaluate", "t", 0, config, [])
    failed = one("evaluate", 0)
    assert failed.state == "failed" and not going("t")
    assert str(failed.reason).startswith("runs/t/round=0/evals/part-00001.parquet: No space left on device: make room")
    assert (failed.task, failed.done, failed.total) == ("evaluate round 0, grading", 1, 2)
    (line,) = [line for line in status_lines("t", stages("t"), None) if "failed" in line]
    assert line.startswith(f"evaluate round 0 failed at {time.localtime().tm_year}-") and "No space left" in line

    monkeypatch.setattr(shards, "write_rows", real)
    run_stage("evaluate", "t", 0, config, [])
    assert one("evaluate", 0).state == "finished" and len(status_lines("t", stages("t"), None)) == 1

    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SystemExit):
        run_stage("generate", "t", 1, config, [])
    failed = one("generate", 1)
    assert failed.state == "failed" and "model.safetensors" in str(failed.reason) and "\n" not in str(failed.reason)
    assert ["1", "score", "-"] in rows_of(stages("t"))


def command(*arguments: str) -> subprocess.Popen[str]:
    """A command in the background, as a user would start it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PST_CACHE": str(ROOT / ".cache")}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def seen(process: subprocess.Popen[str], when: Any) -> list[StageState]:
    """The stages of run t as soon as they are as is asked for."""
    while process.poll() is None:
        with suppress(UserError):  # before it holds the lock there is no run yet
            states = stages("t")
            if when(states):
                return states
        time.sleep(0.02)
    raise AssertionError(process.communicate())


STUB = """
import sys, time
import peers.local
from data.stage import Stage
from data.cli import start
from data.task import task
from peers.command import StageStep, steps_app
peers.local.warm = lambda *_, **__: None
def main(run, round_, workers):
    run.freeze(lambda: None)
    stage = Stage("generate", round_, run.stage_dir(round_, "chains"), {})
    stage.begin()
    with task("generate round 1", {"ant": 4000, "bee": 4000}, "responses") as line:
        line.at_work({"ant"}, {"ant": ["0"], "bee": ["1"]})
        for _ in range(4000):
            line.advance(1, 20, "ant")
            time.sleep(0.01)
if __name__ == "__main__":
    start(steps_app("x", 1, lambda round_: [StageStep("generate", round_, main)]), "stub")
"""


def test_a_killed_command_is_at_nothing_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage without a model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stub.py").write_text(STUB)
    write_jsonl(tmp_path / "train.jsonl", questions(0, 8))
    nano = (ROOT / "configs" / "nano.toml").read_text(encoding="utf-8")
    nano = nano.replace('source = "nano"\nsplit = "train"', 'source = "train.jsonl"')
    nano = nano.replace("./peers", f"{ROOT}/peers")
    (tmp_path / "nano.toml").write_text(re.sub(r"\[\[benchmarks\]\]\n(.+\n)+", "", nano), encoding="utf-8")
    process = command("stub", "--config", "nano.toml", "--run", "t", "--round", "1")
    try:
        (state, *_) = seen(process, lambda states: any(each.left for each in states))
    finally:
        process.kill()
        process.communicate()
    assert (state.stage, state.state, state.total) == ("generate", "running", 8000)
    assert [(p.peer, p.working, p.devices, p.done == state.done) for p in state.peers] == [
        ("ant", True, ("0",), True), ("bee", False, ("1",), False),
    ]  # fmt: skip
    killed = one("generate", 1)
    assert (killed.state, killed.left) == ("stopped", None) and not going("t")
    assert killed.done is not None and state.done is not None and killed.done >= state.done > 0
    assert status_lines("t", stages("t"), None)[1].startswith("generate round 1 was stopped in the middle at ")


@pytest.mark.slow
def test_status_while_a_stage_runs_after_a_kill_and_when_it_goes_on(project: Path) -> None:
    write_jsonl(project / "test.jsonl", questions(100, 40))
    arguments = ("pipeline.round", "--config", "tiny.toml", "--run", "t", "--round", "1", *SLOW)
    process = command(*arguments)
    try:
        half = seen(process, lambda states: any((each.done or 0) > 60 and each.left for each in states))
        os.kill(process.pid, signal.SIGSTOP)  # a slow command still counts as running
        told = run_module("pipeline.status", "--run", "t", cwd=project, check=True).stdout
        as_json_ = json.loads(run_module("pipeline.status", "--run", "t", "--json", cwd=project, check=True).stdout)
    finally:
        process.kill()
        process.communicate()
    state = half[0]
    assert (state.state, state.task, state.total) == ("running", "evaluate round 0, responses", 2 * 40 * 9)
    assert {peer.peer: (peer.total, peer.devices) for peer in state.peers} == {
        "chatty": (360, ("cpu",)), "plain": (360, ("cpu",)),
    }  # fmt: skip
    assert sum(peer.done for peer in state.peers) == state.done and state.tokens and state.left
    assert (
        f"(pid {process.pid} on {socket.gethostname()} since " in told
        and "UTC), evaluate round 0" in told
        and "running" in told
        and "responses" in told
    )
    assert as_json_["going"] and as_json_["pid"] == process.pid and as_json_["stages"][0]["state"] == "running"
    assert [each["state"] for each in as_json_["stages"][1:]] == ["missing"] * 4  # round 1 was asked for

    killed = one("evaluate", 0)
    assert killed.state == "stopped" and killed.left is None and not going("t")
    told = run_module("pipeline.status", "--run", "t", cwd=project, check=True).stdout
    assert "no command is running; the last one (pid " in told and "the same command continues with what" in told
    assert "was stopped in the middle at " in told
    assert "running" not in told.replace("no command is running", "")

    again = run_module(*arguments, cwd=project)
    assert again.returncode == 0, again.stderr
    assert {each.state for each in stages("t")} == {"finished"} and not going("t")
    assert (project / "runs" / "t" / "report.html").is_file()  # by the command itself


@pytest.mark.slow
def test_a_round_in_events(project: Path) -> None:
    process = command("pipeline.round", "--config", "tiny.toml", "--run", "t", "--round", "1", "--log-json")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    check_against_the_docs(found)
    assert (found[0]["event"], found[0]["last_round"]) == ("begin", 1)
    assert (found[-1]["event"], found[-1]["status"], found[-1]["run"]) == ("end", 0, "t")
    order = [("evaluate", 0), *((stage, 1) for stage in ("generate", "score", "train", "evaluate"))]
    for event in ("started", "finished"):
        assert [(each["stage"], each["round"]) for each in found if each["event"] == event] == order
    for stage, round_ in order:
        last: dict[tuple[str, str | None], dict[str, Any]] = {}
        for each in found:
            if each["event"] == "progress" and (each["stage"], each["round"]) == (stage, round_):
                last[each["task"], each.get("peer")] = each
        assert last and all(each["done"] == each["total"] for each in last.values())
        wholes = {task: each["total"] for (task, peer), each in last.items() if peer is None}
        for task, whole in wholes.items():
            peers = [each["total"] for (other, peer), each in last.items() if peer and other == task]
            assert not peers or sum(peers) == whole
        assert any(peer == "plain" for _, peer in last)
    reports = [each for each in found if each["event"] == "report"]
    assert reports and all(each["path"] == "runs/t/report.html" for each in reports)
    assert found.index(reports[0]) > found.index(next(each for each in found if each["event"] == "finished"))
    rows = {(each["stage"], each["round"]): each["rows"] for each in found if each["event"] == "finished"}
    assert rows == {(each.stage, each.round): each.rows for each in stages("t")}

    again = run_module("score", "--run", "t", "--round", "1", "--log-json", cwd=project)
    events = [json.loads(line) for line in again.stdout.splitlines()]
    check_against_the_docs(events)
    assert [each["event"] for each in events] == ["begin", "message", "finished", "end"] and events[2]["already"]
    shutil.rmtree("runs/t/round=1/adapters")
    shutil.rmtree("runs/t/round=1/scores")
    bad = run_module("train", "--run", "t", "--round", "1", "--log-json", cwd=project)
    events = [json.loads(line) for line in bad.stdout.splitlines()]
    check_against_the_docs(events)
    assert [each["event"] for each in events] == ["begin", "started", "failed", "end"]
    assert bad.returncode == events[-1]["status"] == 2 and "is not finished" in events[-2]["reason"]
    assert events[-1]["reason"] == bad.stderr.strip().removeprefix("error: ") and bad.stderr.startswith("error: ")


def test_wrong_options_are_told_as_an_event(tmp_path: Path) -> None:
    done = run_module("generate", "--run", "t", "--round", "x", "--log-json", cwd=tmp_path)
    (event,) = [json.loads(line) for line in done.stdout.splitlines()]
    check_against_the_docs([event])
    assert (event["event"], event["status"], done.returncode) == ("end", 2, 2) and "'--round'" in event["reason"]


# --- the report of a run that is going -------------------------------------------------------------------------------


class Writer:
    """In the place of `write_report`: it takes its time, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.now, self.took, self.going = 0, 0.0, 1.0, True
        self.error: Exception | None = None
        monkeypatch.setattr(evaluate.report, "write_report", self)
        monkeypatch.setattr(evaluate.report, "has_results", lambda run: True)
        monkeypatch.setattr("evaluate.rebuild.time.monotonic", lambda: self.now)
        monkeypatch.setattr("data.progress.going", lambda run: self.going)

    def __call__(self, run: str, guard: Any = None) -> None:
        self.calls += 1
        self.now += self.took
        if self.error is not None:
            raise self.error


def test_the_report_takes_a_twentieth_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    writer, rebuild = Writer(monkeypatch), Rebuild()
    run = Run("r", CONFIG)
    rebuild(run)
    writer.now += TIMES - 1
    rebuild(run)
    assert writer.calls == 1
    writer.now += 1
    rebuild(run)
    assert writer.calls == 2
    writer.going = False  # the last stage of a command always has its report
    rebuild(run)
    assert writer.calls == 3


def test_a_report_that_fails_is_one_line_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Writer(monkeypatch)
    writer.error = ValueError("a\nb")
    Rebuild()(Run("r", CONFIG))
    assert writer.calls == 1
    assert capsys.readouterr().out == "  warning: no report could be written: ValueError: a b\n"


def test_where_there_is_nothing_to_report_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Writer(monkeypatch)
    monkeypatch.setattr(evaluate.report, "has_results", lambda run: False)
    Rebuild()(Run("r", CONFIG))
    assert (writer.calls, capsys.readouterr().out) == (0, "")


def test_as_json_has_what_the_table_has(root: Path) -> None:
    finished(root / "round=0" / "evals")
    record_path(root / "round=1", "generate").parent.mkdir(parents=True)
    shards.write_json(
        {"state": "failed", "reason": "so", "pid": 1, "started": "2026-01-01T00:00:00.000Z",
         "updated": "2026-01-01T00:00:09.500Z", "last_round": 1},
        record_path(root / "round=1", "generate"),
    )  # fmt: skip
    found = json.loads(json.dumps(as_json("r", stages("r"), None)))
    first, second = found["stages"][:2]
    assert (first["state"], first["rows"], found["going"], found["pid"]) == ("finished", 1, False, None)
    assert (second["state"], second["reason"], second["seconds"]) == ("failed", "so", 9.5)
    assert second["changed"] == "2026-01-01T00:00:09.500Z" and "seconds_left" in second
