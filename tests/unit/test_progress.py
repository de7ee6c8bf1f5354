"""Progress: the meter's guesses, lines for people with and without a terminal, events, and records of stages."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from data import events, record, shards
from data.config.load import load_config
from data.console import console
from data.errors import UserError
from data.guard import Ended
from data.locks import holder, locked
from data.meter import Meter, duration_text
from data.progress import StageState, going, record_path, stages
from data.record import reason_of, recorded
from data.run import Run
from data.stage import FORMAT
from data.task import Task, task
from tests.conftest import ROOT

FOLDER = Path("runs/r")


# --- the meter -------------------------------------------------------------------------------------------------------


def test_no_time_left_is_told_from_one_item_nor_from_the_start_of_an_engine() -> None:
    meter = Meter(1000)
    meter.add(1, 20, 60.0)  # a minute of loading, then one response: it was "59940 s left"
    assert meter.left(60.0) is None and meter.tokens_per_second(60.0) is None
    for second in range(1, 15):
        meter.add(1, 20, 60.0 + second)
        assert meter.left(60.0 + second) is None  # 1.4 %
    meter.add(1, 20, 75.0)
    assert meter.left(75.0) == pytest.approx(984) and meter.tokens_per_second(75.0) == pytest.approx(20)


def test_a_few_percent_are_enough() -> None:
    meter = Meter(100)
    for tenth in range(4):
        meter.add(1, 5, 10 + tenth / 10)
    assert meter.left(10.3) == pytest.approx(96 * 0.1)


def test_what_was_on_disk_is_done_but_says_nothing_of_the_speed() -> None:
    meter = Meter(1000)
    meter.add(900, 0, 0.0)
    assert (meter.done, meter.left(0.0), meter.worked) == (900, None, False)
    for second in range(40):
        meter.add(1, 10, 5.0 + second)
    assert meter.left(44.0) == pytest.approx(60)
    grading = Meter(10)  # where items have no tokens
    for second in range(4):
        grading.add(1, None, float(second))
    assert grading.left(3.0) == pytest.approx(6)


def test_the_time_left_follows_the_recent_rate() -> None:
    meter = Meter(1000)
    for second in range(100):
        meter.add(1, 10, float(second))
    for second in range(100, 180):
        meter.add(4, 40, float(second))
    assert meter.left(179.0) == pytest.approx((1000 - 420) / 4, rel=0.02)
    assert meter.tokens_per_second(179.0) == pytest.approx(40, rel=0.02)


def test_between_two_words_the_time_runs_down_and_grows_where_one_is_overdue() -> None:
    meter = Meter(100)
    for step in range(6):
        meter.add(10, 100, 10.0 * step)
    assert meter.left(50.0) == pytest.approx(40) and meter.left(55.0) == pytest.approx(35)
    late = [meter.left(50.0 + waited) for waited in (100, 200)]
    assert late == [pytest.approx(40 * 150 / 50), pytest.approx(40 * 250 / 50)]


def test_all_done_or_undone_again() -> None:
    meter = Meter(4)
    for number in range(4):
        meter.add(1, 1, float(number))
    assert meter.left(9.0) == 0
    meter.add(-3, -3, 9.0)  # a dead process had done them
    assert (meter.done, meter.left(9.0)) == (1, None)
    for later in (10.0, 11.0):
        meter.add(1, 1, later)
    assert meter.left(11.0) == pytest.approx(1)  # by what was done since


def test_times_are_told_in_words() -> None:
    assert [duration_text(s) for s in (4.4, 89, 200, 5399, 4800, 7300)] == [
        "4 s", "89 s", "3 min", "1 h 30 min", "80 min", "2 h 2 min",
    ]  # fmt: skip


# --- lines -----------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("data.task.time.monotonic", made)
    return made


def work(line: Task, clock: Clock, seconds: int, ant: int, bee: int) -> None:
    """So many responses of 10 tokens a second of two peers."""
    for _ in range(seconds):
        clock.now += 1
        line.advance(ant, 10 * ant, "ant")
        line.advance(bee, 10 * bee, "bee")


def test_plain_lines_tell_each_peer(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with task("generate round 1", {"ant": 100, "bee": 100}, "responses", {"bee": 40}) as line:
        line.at_work({"ant", "bee"}, {"ant": ["cpu"], "bee": ["cpu"]})
        assert not capsys.readouterr().out
        work(line, clock, 16, 1, 2)
        told = capsys.readouterr().out
        work(line, clock, 1, 84, 28)
    # ant needs 85 s more: the slowest peer's, not that of the sum, 56 s
    assert told == "  generate round 1: 83/200 responses, 30 tokens/s, about 85 s left (ant 15/100; bee 68/100)\n"
    assert capsys.readouterr().out == "  generate round 1: 200/200 responses, 1,600 tokens, 94 tokens/s, 17 s\n"


def test_in_a_terminal_there_is_a_live_line_for_each_peer(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "_file", StringIO())
    line = Task("score round 1", {"ant": 100, "bee": 100, "cat": 0}, "passes")
    assert line.bars is not None
    line.at_work({"ant"}, {"ant": ["cpu"]})
    work(line, clock, 20, 2, 0)
    file = StringIO()
    monkeypatch.setattr(console, "_file", file)
    console.print(line.bars.live.get_renderable())
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", each) for each in file.getvalue().splitlines()]
    line.close()
    rows = [re.sub(r"[━╸╺ ]+", " ", each).strip() for each in lines if "/" in each]
    assert rows == [
        "score round 1 (passes) 40/200 20 tokens/s, 80 s left", "ant 40/100 20 tokens/s, 30 s left", "bee 0/100 waits",
    ]  # fmt: skip


# --- events ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Events since the last call, with events on."""
    monkeypatch.setattr(events.log, "on", True)

    def told() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        check_against_the_docs(found)
        return found

    return told


def documented() -> dict[str, tuple[set[str], set[str]]]:
    """{event: (fields that it has always, fields that it may have)} by the tables of docs/running.md."""
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    for group in ("those of a stage", "those of progress"):
        (fields,) = re.findall(rf"{group}: (.*?)\.\s", text, re.S | re.I)
        fields = " ".join(fields.split())
        text = text.replace(f"{group} |", f"{fields} |").replace(f"{group}, ", f"{fields}, ")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| .* \|$", text, re.M)
    return {name: (set(re.findall(r"`(\w+)`", must)), set(re.findall(r"`(\w+)`", may))) for name, must, may in rows}


def check_against_the_docs(found: list[dict[str, Any]]) -> None:
    """Each event is documented, has the fields that it must have and no others."""
    table = documented()
    for each in found:
        must, may = table[each["event"]]
        fields = each.keys() - {"time", "event"}
        assert must <= fields <= must | may, each
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each["time"])


def test_progress_events_tell_all_and_each_peer(clock: Clock, log: Any) -> None:
    with events.with_fields(run="r", round=1, stage="generate"), task("t", {"ant": 40, "bee": 40}, "responses") as line:
        line.at_work({"ant"}, {"ant": ["0"], "bee": ["1"]})
        work(line, clock, 6, 2, 0)
        found = log()
        assert [(each.get("peer"), each["done"], each["total"]) for each in found] == [
            (None, 10, 80), ("ant", 10, 40), ("bee", 0, 40),
        ]  # fmt: skip
        assert found[1]["seconds_left"] == 15 and found[1]["working"] and found[1]["devices"] == ["0"]
        assert "seconds_left" not in found[2] and found[2]["working"] is False
        assert {each["run"] for each in found} == {"r"}
    assert [(each.get("peer"), each["done"]) for each in log()] == [(None, 12), ("ant", 12), ("bee", 0)]


def test_texts_become_messages_of_one_line_and_tables_are_left_out(log: Any) -> None:
    console.print("[bold]a[/bold] \u202e b\n\x1b[31mc")
    console.print("[x]\n", end="", markup=False)
    console.print(Table("x"))
    console.print()
    assert [each["text"] for each in log()] == ["a \u202e b\n\x1b[31mc", "[x]"]


# --- records ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run of the nano peers that this process holds."""
    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "configs" / "nano.toml", [])
    shards.write_json(config.model_dump(mode="json"), FOLDER / "config.json")
    with locked(FOLDER):
        yield Run("r", config)


def finish(folder: Path) -> None:
    """The manifest of a stage."""
    manifest = {"rows": 3, "seconds": 2.5, "fingerprint": {}, "format": FORMAT}
    shards.write_manifest(folder, manifest, [])


def of(round_: int, stage: str) -> StageState:
    """A stage's state."""
    return next(each for each in stages("r") if (each.round, each.stage) == (round_, stage))


def test_a_stage_from_its_start_to_its_end(run: Run, log: Any) -> None:
    with recorded(run, 1, "generate", 2):
        at = of(1, "generate")
        assert (at.state, at.task, at.peers) == ("running", None, ()) and going("r")
        with task("generate round 1", {"ant": 4, "bee": 4}, "responses") as line:
            line.at_work({"ant"}, {"ant": ["cpu"], "bee": ["cpu"]})
            assert [p.working for p in of(1, "generate").peers] == [True, False]  # at once
            line.last_record = 0.0
            line.advance(3, 30, "ant")
            at = of(1, "generate")
            assert (at.done, at.total, at.tokens, at.unit) == (3, 8, 30, "responses")
            assert [(p.peer, p.done, p.total, p.working, p.devices) for p in at.peers] == [
                ("ant", 3, 4, True, ("cpu",)), ("bee", 0, 4, False, ("cpu",)),
            ]  # fmt: skip
            assert at.seconds is not None and at.seconds < 60 and at.changed is not None
        finish(run.stage_dir(1, "chains"))
    assert (of(1, "generate").state, of(1, "generate").rows, of(1, "generate").seconds) == ("finished", 3, 2.5)
    assert going("r") and of(2, "train").state == "missing"  # round 2 was asked for, too
    assert [each["event"] for each in log()] == ["started", "progress", "progress", "progress", "finished"]


def test_the_record_is_written_once_a_second_at_most(run: Run, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(run, 1, "generate", 1), task("t", {"ant": 1000}, "responses") as line:
        writes: list[int] = []
        assert record.current is not None
        monkeypatch.setattr(record.current, "write", lambda: writes.append(line.done))
        for _ in range(50):
            clock.now += 0.1
            line.advance(1, 5, "ant")
    assert writes == [10, 20, 30, 40, 50, 50]  # the last at the end of the task


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (UserError("a model\nis bad"), "failed", "a model is bad"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.parquet"), "failed", "x.parquet: No space left on device"),
        (RuntimeError("in the process of peer ant:\nTraceback\n  f()\nKeyError: 'x'\n"), "failed",
         "RuntimeError: in the process of peer ant: KeyError: 'x'"),
        (Ended("the guard says so"), "ended", "the guard says so"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
    ],
)  # fmt: skip
def test_what_ends_a_stage_is_kept_until_its_next_start(
    run: Run, log: Any, error: BaseException, state: str, reason: str
) -> None:
    with pytest.raises(type(error)), recorded(run, 1, "train", 1):
        raise error
    assert (of(1, "train").state, of(1, "train").changed is not None) == (state, True)
    assert str(of(1, "train").reason).startswith(reason) and not going("r")
    last = log()[-1]
    assert last["event"] == state and last["reason"] == of(1, "train").reason
    with recorded(run, 1, "train", 1):
        assert (of(1, "train").state, of(1, "train").reason) == ("running", None)
        finish(run.stage_dir(1, "adapters"))
    assert of(1, "train").state == "finished"


def test_a_finished_stage_that_a_command_refuses_says_why_until_one_does_not(run: Run) -> None:
    finish(run.stage_dir(1, "scores"))
    with recorded(run, 1, "score", 1):
        pass
    assert not record_path(run.round_dir(1), "score").exists() and of(1, "score").state == "finished"
    with pytest.raises(UserError), recorded(run, 1, "score", 1):
        raise UserError("made under other conditions")
    assert (of(1, "score").state, of(1, "score").reason) == ("failed", "made under other conditions")
    assert of(1, "score").rows == 3
    with pytest.raises(KeyboardInterrupt), recorded(run, 1, "score", 1):
        raise KeyboardInterrupt
    assert of(1, "score").state == "failed"  # as before
    with recorded(run, 1, "score", 1):
        pass
    assert of(1, "score").state == "finished"


def test_on_a_full_disk_the_record_is_written_in_its_place(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError), recorded(run, 1, "generate", 1):
        monkeypatch.setattr(Path, "write_text", full)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert of(1, "generate").state == "failed" and "No space left" in str(of(1, "generate").reason)


def test_a_record_that_cannot_be_written_or_read_is_no_reason_to_fail(run: Run) -> None:
    record_path(run.round_dir(1), "train").mkdir(parents=True)
    with recorded(run, 1, "train", 1):
        finish(run.stage_dir(1, "adapters"))
    assert of(1, "train").state == "finished"
    path = record_path(run.round_dir(1), "score")
    path.write_text("{")
    assert of(1, "score").state == "missing"


def test_output_that_was_deleted_is_missing(run: Run) -> None:
    with recorded(run, 1, "generate", 1):
        finish(run.stage_dir(1, "chains"))
    (run.stage_dir(1, "chains") / shards.SUCCESS).unlink()
    assert of(1, "generate").state == "missing"


def test_a_listed_file_that_is_gone_is_damage_and_no_file_is_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run.stage_dir(1, "chains")
    part = folder / "part-00000.parquet"
    folder.mkdir(parents=True)
    part.write_bytes(b"x")
    manifest = {"rows": 1, "seconds": 1.0, "fingerprint": {}, "format": FORMAT}
    shards.write_manifest(folder, manifest, [part])
    monkeypatch.setattr(shards, "checksum", None)
    assert of(1, "generate").state == "finished"
    part.unlink()
    assert of(1, "generate").state == "damaged" and str(part) in str(of(1, "generate").reason)
    (folder / shards.SUCCESS).write_text("{")
    assert of(1, "generate").state == "damaged" and "cannot be read" in str(of(1, "generate").reason)


def test_a_record_of_another_process_is_of_one_that_was_killed(run: Run) -> None:
    with recorded(run, 1, "generate", 1):
        path = record_path(run.round_dir(1), "generate")
        found = shards.read_json(path)
        shards.write_json({**found, "pid": found["pid"] + 1}, path)
        assert of(1, "generate").state == "stopped"


def test_the_holder_of_a_lock_is_known_by_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    assert holder(folder) is None
    with locked(folder):
        assert holder(folder) == os.getpid()
    assert holder(folder) is None
    (folder / ".lock").unlink()
    assert holder(folder) is None


def test_a_look_at_a_lock_keeps_nobody_from_taking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    with locked(tmp_path):
        pass
    looking = (tmp_path / ".lock").open()
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr("data.locks.time.sleep", lambda _: looking.close())
    with locked(tmp_path):
        assert holder(tmp_path) == os.getpid()


def test_a_reason_is_one_line_of_bearable_length() -> None:
    assert len(reason_of(ValueError("x" * 5000))) == record.MAX_REASON
    assert reason_of(ValueError("")) == "ValueError:"


def test_status_is_told_in_no_time(run: Run) -> None:
    for round_ in range(1, 51):
        for folder in ("chains", "scores", "adapters", "evals"):
            finish(run.stage_dir(round_, folder))
    start = time.perf_counter()
    assert len(stages("r")) == 201
    assert time.perf_counter() - start < 1, sys.version  # 201 small files
