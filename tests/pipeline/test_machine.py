"""If the machine lacks space, rights, locks, a reader or letters, one line says what to do, and no data are lost."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import generate.stage
import score.stage
from data import shards
from data.errors import UserError, trouble
from data.locks import locked
from data.run import open_run
from data.task import Advance
from peers.workers import Pool
from tests.conftest import ROOT, run_stage
from tests.fake_engine import Inline
from tests.pipeline.test_streaming import with_fakes
from train.loop import CHECKPOINT, _checkpoint

SCHEMA = pa.schema([pa.field("x", pa.float64())])
ROWS = [{"x": float(i)} for i in range(1000)]


def full(path: Path) -> None:
    """Let the next write of a file meet a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".tmp").symlink_to("/dev/full")


def no_room() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- which errors are told -------------------------------------------------------------------------------------------


def _raised(error: BaseException, cause: BaseException | None = None, context: BaseException | None = None) -> Any:
    error.__cause__, error.__context__ = cause, context
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "x", "runs/t/a"), "runs/t/a: No space left on device: make room"),
        (OSError(errno.EDQUOT, "x"), "Disk quota exceeded: make room"),
        (OSError(errno.EROFS, "x", ".cache/models"), ".cache/models: Read-only file system: .*PST_CACHE"),
        (PermissionError(errno.EACCES, "x", b"runs"), "runs: Permission denied: give this user permission"),
        (OSError(errno.EIO, "x"), "Input/output error: the disk"),
        (NotADirectoryError(errno.ENOTDIR, "x", "runs/t"), "runs/t: Not a directory: something else .* move it away"),
        (OSError(errno.EMFILE, "x"), "Too many open files: .*ulimit"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device: make room"),
        (ValueError("Error writing bytes. Detail: [errno 122] x"), "Disk quota exceeded"),
        (_raised(RuntimeError("torch"), cause=no_room()), "No space left on device"),
        (_raised(RuntimeError("torch"), context=no_room()), "No space left on device"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "temporary files.* TMPDIR"),
    ],
)  # fmt: skip
def test_what_the_machine_lacks_is_told(error: BaseException, told: str) -> None:
    import re

    line = trouble(error)
    assert line is not None and re.search(told, line) and "\n" not in line
    assert line.endswith("run the same command again: finished work is kept")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "x", "y"), OSError("no number"), ValueError("x"), KeyError(28),
        ConnectionRefusedError(errno.ECONNREFUSED, "x"),
        _raised(KeyError("a defect"), context=FileExistsError(errno.EEXIST, "handled")),
        UserError("has said it"),
    ],
)  # fmt: skip
def test_a_defect_keeps_its_traceback(error: BaseException) -> None:
    assert trouble(error) is None


# --- a full disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    path, checkpoint = tmp_path / "part-00000.parquet", tmp_path / CHECKPOINT
    layer = torch.nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(layer.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    writes: list[tuple[Path, Callable[[], object]]] = [
        (path, lambda: shards.write_rows(ROWS, path, SCHEMA)),
        (tmp_path / "a.json", lambda: shards.write_json({"a": 1}, tmp_path / "a.json")),
        (checkpoint, lambda: _save(checkpoint, layer, optimizer, schedule)),
    ]
    for target, write in writes:
        full(target)
        with pytest.raises(OSError) as error:
            write()
        assert trouble(error.value) is not None and error.value.errno == errno.ENOSPC
        assert list(tmp_path.iterdir()) == []
    shards.write_rows(ROWS, path, SCHEMA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", _no_room)
        with pytest.raises(OSError) as error:
            shards.write_rows(ROWS[:1], path, SCHEMA)
    assert str(path) in (trouble(error.value) or "")
    assert shards.read_rows(path, SCHEMA) == ROWS  # the old one


def _no_room(*_: object, **__: object) -> None:
    raise no_room()


def _save(checkpoint: Path, layer: Any, optimizer: Any, schedule: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peft.get_peft_model_state_dict", lambda model: model.state_dict())
        _checkpoint(checkpoint.parent, layer, optimizer, schedule, 1, [0.5], 10)


def told(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of an error."""
    out, err = capfd.readouterr()
    assert len(err.splitlines()) == 1 and err.startswith("error: "), err
    assert "Traceback" not in out + err and all(word in err for word in words), err
    return err


# stage: (a file that a peer's process writes, or none where a library does, one that the main process writes)
FILES = {
    ("evaluate", 0): ("evals/.work/responses~sums~plain~00000.parquet", "evals/part-00001.parquet"),
    ("generate", 1): ("chains/.work/shard-00001~chain-1~plain.parquet", "chains/part-00001.parquet"),
    ("score", 1): ("scores/.work/passes-00001.plain.parquet", "scores/.work/unweighted-00001.parquet"),
    ("train", 1): ("adapters/.work/plain/checkpoint.pt", "adapters/_SUCCESS.json"),
    ("evaluate", 1): ("evals/.work/current~sums~plain~00000.parquet", "metrics.parquet"),
}


@pytest.mark.slow
def test_every_stage_goes_on_once_there_is_room(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peers' processes, then the main one, find the disk full; given again, the command goes on."""
    monkeypatch.setattr("data.run.check_inside", lambda root: None)  # `full` makes a link that leads out of the run
    for (name, round_), files in FILES.items():
        for file in files:
            path = Path(f"runs/t/round={round_}") / file
            full(path)
            with pytest.raises(SystemExit) as stop:
                run_stage(name, "t", round_, Path("tiny.toml"), ["run.shard_questions=6"])
            assert stop.value.code == 2
            told(capfd, f"{path}: No space left on device", "run the same command again")
            assert not path.exists() and not (path.parent / shards.SUCCESS).exists()
        run_stage(name, "t", round_, Path("tiny.toml"), ["run.shard_questions=6"])
    assert shards.read_manifest(Path("runs/t/round=1/evals")) is not None


def test_a_stage_goes_on_once_there_is_room(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_fakes(monkeypatch)
    monkeypatch.setattr("data.run.check_inside", lambda root: None)  # `full` makes a link that leads out of the run
    overrides = ["run.shard_questions=12", "generate.max_new_tokens=64"]

    def go(name: str) -> None:
        stages = {"generate": generate.stage.main, "score": score.stage.main}
        with open_run("t", Path("tiny.toml"), overrides) as run:
            stages[name](run, 1, Inline(run))

    for name in ("generate", "score"):
        for file in FILES[name, 1]:
            path = Path("runs/t/round=1") / file
            full(path)
            with pytest.raises(OSError) as error:
                go(name)
            assert f"{path}: No space left on device: make room" in (trouble(error.value) or "")
        folder = Path("runs/t/round=1") / FILES[name, 1][0].split("/")[0]
        kept = {file: file.stat().st_mtime_ns for file in folder.rglob("*-00000*.parquet")}
        assert kept
        go(name)
        assert shards.read_manifest(folder) is not None
        assert {file: file.stat().st_mtime_ns for file in kept if file.is_file()}.items() <= kept.items()


def lack_room(run: Any, advance: Advance) -> None:
    """A job on a full disk, whose libraries print to a full log."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    os.dup2(1, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    print("held back until it is flushed")
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_full_disk_in_a_peers_process_is_one_line(project: Path) -> None:
    with open_run("w", Path("tiny.toml"), []) as run, Pool(run, together=True) as workers:
        workers.submit("plain", lack_room)
        with pytest.raises(UserError, match=r"^No space left on device: make room"):
            list(workers.results())


# --- no rights, no locks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_runs_folder_without_rights(
    number: int, project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(Path, "mkdir", refuse)
        run_stage("generate", "t", 1, Path("tiny.toml"), [])
    assert stop.value.code == 2
    told(capfd, f"runs/t: {os.strerror(number)}: give this user permission")


def test_a_file_in_the_place_of_runs(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("runs").touch()
    with pytest.raises(SystemExit) as stop:
        run_stage("generate", "t", 1, Path("tiny.toml"), [])
    assert stop.value.code == 2
    told(capfd, "runs", "move it away")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO])
def test_a_file_system_without_locks(
    number: int, project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(fcntl, "flock", refuse)
        run_stage("generate", "t", 1, Path("tiny.toml"), [])
    assert stop.value.code == 2
    told(capfd, f"runs/t/.lock cannot be locked ({os.strerror(number)})", "has locks")
    assert not Path("runs/t").exists()


def test_an_interrupted_lock_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def flock(_: object, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            raise InterruptedError(errno.EINTR, "x")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "a"):
        assert len(calls) == 2


def test_a_lock_whose_folder_was_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two commands hold the lock of one folder: one of a file that is gone, one of the file that is there."""
    real, calls = fcntl.flock, 0

    def flock(file: Any, how: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            (tmp_path / "a" / ".lock").unlink()
            (tmp_path / "a").rmdir()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "a"):
        assert calls == 2 and (tmp_path / "a" / ".lock").read_text().split()[0] == str(os.getpid())
        with (
            pytest.raises(UserError, match=rf"in use by another process \(pid {os.getpid()} on "),
            locked(tmp_path / "a"),
        ):
            pass


# --- a first call that fails -----------------------------------------------------------------------------------------


def test_a_first_call_that_fails_leaves_nothing(project: Path) -> None:
    def fail(*made: str) -> None:
        with pytest.raises(UserError, match="no"), open_run("t", Path("tiny.toml"), []) as run:
            run.freeze(lambda: None)
            for name in made:
                shards.write_json({}, run.root / name)
            raise UserError("no")

    fail()
    assert not Path("runs/t").exists()
    fail("round=1/chains/_STARTED.json", "round=1/chains/.work/shard-00000~too-long.json")
    assert not Path("runs/t").exists()
    fail("round=1/logs/generate.log")  # which says more than the one line
    assert [path.name for path in Path("runs/t").rglob("*") if path.is_file()] == ["generate.log"]
    fail("round=1/chains/.work/shard-00000~chain-1~plain.parquet")  # work: the same command goes on
    assert Path("runs/t/config.json").is_file()
    with pytest.raises(UserError, match="no"), open_run("t", Path("tiny.toml"), []):
        raise UserError("no")
    assert Path("runs/t/config.json").is_file()  # it was there before


def test_what_is_not_the_runs_own_stays(project: Path) -> None:
    Path("runs/t").mkdir(parents=True)
    Path("runs/t/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError), open_run("t", Path("tiny.toml"), []):
        raise UserError("no")
    assert [path.name for path in Path("runs/t").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["x" * 101, "a.", ".", "..", "a/b", "", "ä", "a\n", "x" * 5000])
def test_what_cannot_be_the_name_of_a_run(name: str, project: Path) -> None:
    with pytest.raises(UserError, match="at most 100 letters"), open_run(name, Path("tiny.toml"), []):
        pass
    assert not Path("runs").exists()


# --- standard output -------------------------------------------------------------------------------------------------

SCRIPT = """
import typer
from data.cli import guarded, start
from data.console import redirect_output, console
from pathlib import Path
from rich import box
from rich.table import Table
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
@app.command()
def command() -> None:
    def body() -> None:
        table = Table("em – x", "12.0 → 13.5 × 2", box=box.SIMPLE_HEAD, title="\\u2500 ä 漢")
        table.add_row("–", "− 3")
        for _ in range(LINES):
            console.print(table)
        with redirect_output(Path("a.log")):
            print("chatter")
            for _ in range(LINES):
                console.print(table)
    guarded(body)
if __name__ == "__main__":
    start(app, "script")
"""


def script(tmp_path: Path, shell: str, lines: int = 1, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command that prints tables, as a shell starts it: `{}` stands for it."""
    (tmp_path / "script.py").write_text(SCRIPT.replace("LINES", str(lines)), encoding="utf-8")
    command = f"set -o pipefail; {shell.format(f'{sys.executable} script.py')}"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **environment}
    return subprocess.run(["bash", "-c", command], cwd=tmp_path, env=variables, capture_output=True, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_tables_on_a_narrow_terminal(encoding: str, tmp_path: Path) -> None:
    done = script(tmp_path, "{}", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    assert "em - x" in text and "12.0 -> 13.5" in text and "- 3" in text and "?" not in text
    assert text.count("12.0") == 2  # while the libraries' chatter goes to a log, too


def test_a_full_log_does_not_keep_what_follows_from_the_person(tmp_path: Path) -> None:
    (tmp_path / "a.log").symlink_to("/dev/full")
    done = script(tmp_path, "{}")
    assert (done.returncode, done.stderr, done.stdout.decode().count("12.0")) == (0, b"", 2)


@pytest.mark.parametrize(
    ("shell", "status", "words"),
    [
        ("{} > /dev/full", 2, b"error: No space left on device"),
        ("{} --help > /dev/full", 2, b"error: No space left on device"),
        ("{} | head -1", 141, b"stopped: nobody reads the output"),
        ("{} >&-", 0, b""),
        ("{} >&- <&-", 0, b""),
        ("{} > /dev/full 2>&1", 2, b""),
    ],
)
def test_an_output_that_takes_nothing(shell: str, status: int, words: bytes, tmp_path: Path) -> None:
    done = script(tmp_path, shell, lines=300)
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) <= 1 and words in done.stderr
    if status == 0:
        assert (tmp_path / "a.log").read_text() == "chatter\n"
