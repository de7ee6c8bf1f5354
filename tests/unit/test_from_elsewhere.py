"""What a stranger's files tried: code in a run, rows without end, lists without end, manifests of other kinds."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import quarantine, readers, shards
from data.answers import own
from data.errors import UserError
from data.files import list_files
from data.run import _forget
from data.stage import FORMAT
from pipeline.share import archive


def read(path: Path, *columns: str, lists: tuple[str, ...] = ()) -> Any:
    """The rows of one file."""
    file = list_files(str(path), None, "test").files[0]
    return readers.read_file(file, [*columns], "test", lists)[0]


def test_a_run_brings_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "m").mkdir(parents=True)
    (tmp_path / "runs" / "m" / "evil.py").write_text("def g(text, gold): return True")
    with pytest.raises(UserError, match=r"runs/m/evil\.py is in runs, and a run.* must not bring code"):
        own.path_of("runs.m.evil:g")
    (tmp_path / "mine.py").symlink_to("runs/m/evil.py")
    with pytest.raises(UserError, match="must not bring code"):
        own.path_of("mine:g")
    (tmp_path / "good.py").write_text("def g(text, gold): return True")
    assert own.path_of("good:g") == Path("good.py")


def test_a_row_of_csv_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE", 1000)
    path = tmp_path / "a.csv"
    path.write_text("question,answer\n" + '"a\n",' * 500 + "x\n")
    with pytest.raises(UserError, match=r"line \d+: a row is longer than"):
        read(path, "question")
    path.write_text("question,answer\n" + '"a\nb",1\n' * 500)
    assert read(path, "question").height == 500


@pytest.mark.parametrize(("name", "head"), [("a.csv", "question\n"), ("a.jsonl", '{"question": "q"}\n')])
def test_empty_lines_take_their_room(name: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_TEXT_BYTES", 64 * 1000)
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress((head + "\n" * 5000).encode()))
    with pytest.raises(UserError, match="of text"):
        read(path, "question")


def test_parts_of_lists_count_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"answer": pa.array([[True] * 50_000])}), path)
    monkeypatch.setattr(readers, "MAX_TEXT_BYTES", 64 * 10_000)
    with pytest.raises(UserError, match="of text"):
        read(path, "answer", lists=("answer",))
    monkeypatch.setattr(readers, "MAX_TEXT_BYTES", 64 * 200_000)
    assert read(path, "answer", lists=("answer",)).height == 1


@pytest.mark.parametrize(
    "manifest",
    [
        [], None, {"rows": "9"}, {"seconds": "1"}, {"stage": 3}, {"round": "x"}, {"files": []}, {"quarantined": "x"},
        {"quarantined": {"a": "x"}}, {"versions": 1}, {"fingerprint": []},
    ],
)  # fmt: skip
def test_a_manifest_of_other_kinds_is_damaged(manifest: Any, tmp_path: Path) -> None:
    folder = tmp_path / "round=1" / "chains"
    folder.mkdir(parents=True)
    if isinstance(manifest, dict):
        manifest |= {"format": FORMAT}
    (folder / shards.SUCCESS).write_text(json.dumps(manifest))
    with pytest.raises(
        UserError, match=r"chains/_SUCCESS\.json is damaged: .*; delete .*chains and run its stage again"
    ):
        shards.read_json(folder / shards.SUCCESS)
    assert quarantine.lines_of(tmp_path) == []


@pytest.mark.parametrize("name", ["t/" + "a/" * 1500 + "f", "t/" + "n" * 300])
def test_names_without_end_in_an_archive_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserError, match="no plain file below one folder"):
        archive.read_archive(path)


def test_a_first_call_that_fails_deletes_no_file_of_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "u" / "prompts"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "part-00000.parquet").write_text("half")
    _forget(tmp_path / "runs" / "u")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
