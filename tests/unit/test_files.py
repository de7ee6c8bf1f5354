"""The files that a source names: all of them, as they are, or one line that says why not."""

from __future__ import annotations

import datetime
import decimal
import gzip
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.config.sections import SourceSection
from data.errors import UserError
from data.questions import Questions, read_source, unique_questions
from data.run import open_run
from data.shards import read_json, read_manifest, write_json
from tests.conftest import write_jsonl


def jsonl(path: Path, *questions: str) -> Path:
    """Questions as JSONL, in folders that are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_jsonl(path, [{"question": question, "answer": "1"} for question in questions])


def table(path: Path, columns: dict[str, list[Any]]) -> Path:
    """Columns as Parquet, in folders that are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(path)
    return path


def content(path: Path, data: bytes | str) -> Path:
    """A file with this content, in folders that are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(source: Path | str, split: str | None = None) -> Questions:
    """The questions of a source."""
    return unique_questions(SourceSection(source=str(source), split=split), "prompts")


def rows(source: Path | str, split: str | None = None) -> list[str]:
    """The texts of its questions."""
    return list(read(source, split).texts.values())


def cells(source: Path | str, column: str = "answer") -> list[str]:
    """A column of a source."""
    return read_source(SourceSection(source=str(source)), [column], "prompts")[column].to_list()


def refused(source: Path | str, *words: str, column: str = "question", **keys: Any) -> None:
    """Check that it is refused in one line with these words."""
    with pytest.raises(UserError) as error:
        read_source(SourceSection(source=str(source), **keys), [column], "prompts")
    told = str(error.value)
    assert told.startswith("prompts: ") and "\n" not in told, told
    assert not [word for word in words if word not in told], told


# --- which files ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files with questions, and what other programs leave beside such."""
    jsonl(tmp_path / "d/a.jsonl", "a?")
    jsonl(tmp_path / "d/deep/b.jsonl", "b?")
    for beside in ("_temporary/0/c", ".ipynb_checkpoints/a-checkpoint", ".hidden", "deep/_part", "deep/.git/x"):
        jsonl(tmp_path / f"d/{beside}.jsonl", f"{beside}?")
    for document in ("README.md", "LICENSE", "deep/notes.md", "_SUCCESS", ".gitattributes"):
        content(tmp_path / "d" / document, "text")
    return tmp_path / "d"


@pytest.mark.parametrize("pattern", ["", "**", "**/*.jsonl", "*"])
def test_hidden_and_work_files_are_not_read(pattern: str, folder: Path) -> None:
    found = read(folder / pattern)
    assert list(found.texts.values()) == ["a?", "b?"]
    left_out = {str(Path(name).relative_to(folder)) for name in found.origin.left_out}
    assert {"_temporary/0/c.jsonl", "deep/_part.jsonl"} <= left_out
    assert not [name for name in left_out if name.startswith(".") or "/." in name]


def test_what_the_source_names_itself_is_read(folder: Path) -> None:
    assert rows(folder / ".hidden.jsonl") == [".hidden?"]
    assert rows(folder / "_temporary/**/*.jsonl") == ["_temporary/0/c?"]
    assert rows(folder / "deep/_*.jsonl") == ["deep/_part?"]
    assert rows(folder / ".ipynb_checkpoints") == [".ipynb_checkpoints/a-checkpoint?"]


def test_a_folder_of_hidden_files_alone_is_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "d/_a.jsonl", "a?")
    refused(tmp_path / "d", "has no files but", "_a.jsonl")
    refused(tmp_path / "d/*.csv", "no file matches")
    (tmp_path / "e").mkdir()
    refused(tmp_path / "e", "has no files")


def test_a_folder_is_read_whole_whatever_its_names_and_endings(tmp_path: Path) -> None:
    jsonl(tmp_path / "d/algebra.jsonl", "a?")
    jsonl(tmp_path / "d/my_test_set.jsonl", "t?")
    content(tmp_path / "d/b.csv", "question\nb?\n")
    content(tmp_path / "d/c.CSV", "question\nc?\n")
    table(tmp_path / "d/e.parquet", {"question": ["e?"]})
    assert rows(tmp_path / "d") == ["a?", "b?", "c?", "e?", "t?"]
    content(tmp_path / "d/more.json", "[]")
    content(tmp_path / "d/more.tsv", "question\nx\n")
    refused(tmp_path / "d", "more.json", "more.tsv", "unknown ending", "pattern")
    assert rows(tmp_path / "d/*.jsonl") == ["a?", "t?"]


def test_a_folder_of_several_splits_has_to_be_told_which(tmp_path: Path) -> None:
    jsonl(tmp_path / "d/train.jsonl", "train?")
    jsonl(tmp_path / "d/test/part-0.jsonl", "test?")
    refused(tmp_path / "d", "several splits (test, train", "prompts.split")
    assert rows(tmp_path / "d", "train") == ["train?"]
    found = read(tmp_path / "d", "test")
    assert list(found.texts.values()) == ["test?"]
    assert found.origin.left_out == (f"{tmp_path}/d/train.jsonl (another split)",)
    refused(tmp_path / "d", "no files of the split 'validation'; it has test, train", split="validation")
    jsonl(tmp_path / "d/extra.jsonl", "extra?")
    refused(tmp_path / "d", "split is 'train'", "extra.jsonl does not say", split="train")
    refused(tmp_path / "d/extra.jsonl", "split is 'train'", "leave prompts.split out", split="train")


def test_keys_of_the_hub_are_refused_for_files(tmp_path: Path) -> None:
    refused(jsonl(tmp_path / "q.jsonl", "a?"), "subset is 'main'", "leave prompts.subset out", subset="main")
    refused(tmp_path / "q.jsonl", "revision is 'v1'", "leave prompts.revision out", revision="v1")
    refused("nano", "revision is 'v1'", revision="v1")


def test_a_name_with_pattern_signs_is_read_as_it_stands_first(tmp_path: Path) -> None:
    jsonl(tmp_path / "br[1]/q*.jsonl", "as it stands?")
    jsonl(tmp_path / "br1/q2.jsonl", "by the pattern?")
    assert rows(tmp_path / "br[1]/q*.jsonl") == ["as it stands?"]
    jsonl(tmp_path / "br[1]/q3.jsonl", "three?")
    assert rows(tmp_path / "br[1]/q?.jsonl") == ["as it stands?", "three?"]
    assert rows(tmp_path / "br[0-9]/*.jsonl") == ["by the pattern?"]


def test_a_file_with_two_names_is_read_once(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "d/a.jsonl", "a?", "a?")
    os.symlink(first, tmp_path / "d/b.jsonl")
    os.link(first, tmp_path / "d/c.jsonl")
    os.symlink(tmp_path / "d", tmp_path / "d/loop")
    found = read(tmp_path / "d")
    assert (len(found.texts), found.duplicates, found.origin.rows) == (1, 1, 2)
    assert len(found.origin.left_out) == 2 and "b.jsonl (the same file as" in found.origin.left_out[0]
    os.symlink(tmp_path / "nothing", tmp_path / "d/e.jsonl")
    refused(tmp_path / "d", "e.jsonl is a link to nothing")


def test_a_rewritten_file_gives_its_new_rows(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d/a.jsonl", "old?")
    before = path.stat()
    assert rows(tmp_path / "d") == ["old?"]
    jsonl(path, "new?")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert rows(tmp_path / "d") == ["new?"]


def test_a_folder_named_like_a_parquet_file_is_read_as_a_folder(tmp_path: Path) -> None:
    table(tmp_path / "out.parquet/part-0.parquet", {"question": ["a?"]})
    assert rows(tmp_path / "out.parquet") == rows(tmp_path / "*.parquet") == ["a?"]


def test_files_behind_a_url_are_read_as_local_ones_are(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("a.jsonl", "deep/b.jsonl", ".hidden.jsonl", "_temporary/c.jsonl"):
        memory.pipe(f"/pst/{name}", json.dumps({"question": f"{name}?", "answer": 7}).encode())
    try:
        for source in ("memory://pst", "memory://pst/**/*.jsonl"):
            assert rows(source) == ["a.jsonl?", "deep/b.jsonl?"]
        assert rows("memory://pst/a.jsonl") == ["a.jsonl?"]
        refused("memory://pst/none.jsonl", "none.jsonl has no files")
    finally:
        memory.rm("/pst", recursive=True)


# --- the text of a cell -----------------------------------------------------------------------------------------

TEXTS = ["007", "1.50", "None", "NA", "null", "true", "2024-01-05", "1e3", "9007199254740993", " x", "0.1", "1" * 30]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.zst"])
@pytest.mark.parametrize("named", ["file", "folder", "pattern"])
def test_text_stays_text(ending: str, named: str, tmp_path: Path) -> None:
    if ending == ".parquet":
        path = table(tmp_path / "d/q.parquet", {"answer": TEXTS})
    else:
        csv = "answer,more\n" + "".join(f"{text},0\n" for text in TEXTS)
        data = (csv if "csv" in ending else "".join(json.dumps({"answer": text}) + "\n" for text in TEXTS)).encode()
        data = (
            gzip.compress(data[:40], mtime=0) + gzip.compress(data[40:]) if ending.endswith("gz") else data
        )  # two members
        data = pa.Codec("zstd").compress(data).to_pybytes() if ending.endswith("zst") else data
        path = content(tmp_path / f"d/q{ending}", data)
    assert cells({"file": path, "folder": path.parent, "pattern": path.parent / "*"}[named]) == TEXTS


def test_numbers_of_json_stay_as_they_are_written(tmp_path: Path) -> None:
    numbers = ["0.5", "9007199254740993", "1.50", "1e3", "-0", "1" * 5000, "true", "false"]
    path = content(tmp_path / "q.jsonl", "".join(f'{{"answer": {number}}}\n' for number in numbers))
    assert cells(path) == numbers


def test_values_of_parquet_have_their_usual_text(tmp_path: Path) -> None:
    def column(*values: object, kind: pa.DataType | None = None) -> list[str]:
        pq.write_table(pa.table({"answer": pa.array(values, kind)}), tmp_path / "q.parquet")
        return cells(tmp_path / "q.parquet")

    assert column(2**53 + 1, 7) == ["9007199254740993", "7"]
    assert column("a", "b", "a", kind=pa.dictionary(pa.int8(), pa.string())) == ["a", "b", "a"]
    assert column(decimal.Decimal("1.50"), decimal.Decimal("0.00000001"), kind=pa.decimal128(20, 8)) == [
        "1.50000000", "0.00000001"
    ]  # fmt: skip
    assert column(datetime.date(2024, 1, 5)) == ["2024-01-05"]
    assert column(True, False) == ["true", "false"]
    assert column(7.0, 0.1, kind=pa.float32()) == ["7.0", "0.1"]


@pytest.mark.parametrize(
    "values",
    [[datetime.datetime(2024, 1, 5)], [b"ab"], [["a"]], [{"a": "b"}], [datetime.time(1)], [1.0, float("nan")]],
)
def test_values_without_a_text_are_refused(values: list[object], tmp_path: Path) -> None:
    pq.write_table(pa.table({"answer": pa.array(values)}), tmp_path / "q.parquet")
    refused(tmp_path / "q.parquet", "q.parquet", "'answer'", "expected text", column="answer")


def test_damaged_text_of_parquet_is_refused(tmp_path: Path) -> None:
    offsets = pa.array([0, 3], pa.int32()).buffers()[1]
    half = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xed\xa0\x80")])
    pq.write_table(pa.table({"question": half}), tmp_path / "q.parquet")
    refused(tmp_path / "q.parquet", "q.parquet has damaged text in column 'question'")


# --- what is refused, with its place ----------------------------------------------------------------------------

WIDE = "question\nGröße?\n"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("q.jsonl", '{"question": "a"}\n{"question": "x\\ud800y"}\n', ["row 2", r"\ud800", "lone surrogate"]),
        ("q.jsonl", '{"question": "a"}\n\n{"question": "x\\u0000y"}\n', ["row 2", "NUL"]),
        ("q.jsonl", b'{"question": "a"}\n{"question": "x\0y"}\n', ["line 2", "NUL at byte 16"]),
        ("q.csv", b"question\na\0b\n", ["line 2", "NUL at byte 2"]),
        ("q.csv", WIDE.encode("latin-1"), ["line 2 is not UTF-8 text", "0xf6 at byte 3"]),
        ("q.jsonl", '{"question": "Größe"}\n'.encode("latin-1"), ["line 1 is not UTF-8 text", "0xf6 at byte 17"]),
        ("q.csv", WIDE.encode("utf-16"), ["UTF-16", "save it as UTF-8"]),
        ("q.jsonl", '{"question": "a"}\n'.encode("utf-16-be"), ["NUL at byte 1"]),
        ("q.csv", "question,more,question\na,1,b\n", ["column 'question' twice"]),
        ("q.jsonl", '{"question": "a"}\n{"question": "a", "question": "b"}\n', ["line 2 has the key 'question' twice"]),
        ("q.jsonl", '{"question": NaN}\n', ["row 1", "NaN"]),
        ("q.jsonl", '{"question": "a"}\n{"question": -Infinity}\n', ["row 2", "-Infinity"]),
        ("q.jsonl", '{"question": "a"}\n{"question": {"x": 1}}\n', ["row 2", "is an object; expected text"]),
        ("q.jsonl", '[{"question": "a"}]\n', ["line 1 is not a JSON object"]),
        ("q.jsonl", '{\n  "question": "a"\n}\n', ["line 1 is not JSON"]),
        ("q.jsonl", '{"question": "a"}{"question": "b"}\n', ["line 1 is not JSON"]),
        ("q.jsonl", "[" * 100_000 + "\n", ["line 1 is not JSON"]),
        ("q.csv", "question,answer\na,1\nb,1,2\n", ["row 2 (line 3) has 3 cells; the header has 2"]),
        ("q.csv", "question,answer\na,1\nb\n", ["row 2 (line 3) has 1 cells; the header has 2"]),
        ("q.csv", 'question,answer\n"a "b" c",1\n', ["line 2 is not CSV"]),
        ("q.csv", 'question,answer\n"open,2\n', ["is not CSV", "quotes"]),
        ("q.csv", "question,answer\ra,1\rb,2\r", ["is not CSV"]),
        ("q.csv", "question\na\nquestion\nb\n", ["row 2 (line 3) is the header again"]),
        ("q.csv", b"question\na\n\xef\xbb\xbfb\n", ["line 3 begins with a byte order mark"]),
        ("q.csv", "\n\n", ["has no column 'question'; it has none"]),
        ("q.jsonl", "\n\n", ["has no rows"]),
        ("q.jsonl.gz", gzip.compress(b'{"question": "a"}\n', mtime=0)[:-4], ["cannot be read"]),
        ("q.jsonl.gz", b'{"question": "a"}\n', ["cannot be read"]),
        ("q.parquet", b"PAR1 no more", ["cannot be read"]),
        ("q.parquet.gz", b"x", ["unknown ending"]),
        ("q.json", "[]", ["unknown ending"]),
        ("README.md", "text", ["unknown ending"]),
    ],
)  # fmt: skip
def test_what_cannot_be_read_as_it_stands_is_refused(
    name: str, data: bytes | str, words: list[str], tmp_path: Path
) -> None:
    refused(content(tmp_path / name, data), name, *words)


@pytest.mark.parametrize("name", [b"q\xff.jsonl", b"q\n.jsonl"])
def test_names_that_no_message_could_show_are_refused(name: bytes, tmp_path: Path) -> None:
    jsonl(tmp_path / os.fsdecode(name), "a?")
    refused(tmp_path, "cannot be printed; rename the file")


def test_a_parquet_column_that_comes_twice_is_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["question", "question"])
    pq.write_table(twice, tmp_path / "q.parquet")
    refused(tmp_path / "q.parquet", "column 'question' twice")


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf%s", b"%s\n\r\n\n", b"\n%s"])
@pytest.mark.parametrize("name", ["q.csv", "q.jsonl"])
def test_marks_empty_lines_and_line_ends_are_no_rows(name: str, data: bytes, tmp_path: Path) -> None:
    text = 'question,answer\r\n"a\nb",1\r\n"c, ""d""",2\r\n' if name == "q.csv" else (
        '{"question": "a\\nb"}\r\n{"question": "c, \\"d\\""}\r\n')  # fmt: skip
    assert rows(content(tmp_path / name, data % text.encode())) == ["a\nb", 'c, "d"']


def test_a_key_in_a_folders_name_must_not_contradict_a_column(tmp_path: Path) -> None:
    path = table(tmp_path / "d/split=train/part.parquet", {"question": ["a?", "b?"], "split": ["train", "test"]})
    for source in (path, tmp_path / "d", tmp_path / "d/*/*.parquet"):
        refused(source, "split=train/part.parquet row 2 has split 'test'")
    refused(tmp_path / "d", "row 2 has split 'test'", column="split")
    path = table(tmp_path / "e/level=5/part.parquet", {"question": ["a?"], "level": [5]})
    assert rows(path) == ["a?"]
    refused(jsonl(tmp_path / "answer=2/q.jsonl", "a?"), "row 1 has answer '1', but its folder says answer=2")
    refused(content(tmp_path / "x=2/q.csv", "question,x\na,1\n"), "row 1 has x '1', but its folder says x=2")


def test_each_file_needs_the_columns_and_is_named_with_its_row(tmp_path: Path) -> None:
    jsonl(tmp_path / "d/a.jsonl", "a?", "b?")
    content(tmp_path / "d/b.jsonl", '{"text": "b"}\n')
    refused(tmp_path / "d", "b.jsonl has no column 'question'; it has text")
    content(tmp_path / "d/b.jsonl", '{"question": "c?"}\n{"question": " "}\n')
    refused(tmp_path / "d", "b.jsonl row 2 has an empty 'question'")
    content(tmp_path / "d/b.jsonl", "")
    refused(tmp_path / "d", "b.jsonl is empty")
    content(tmp_path / "d/b.jsonl", "\n")  # an empty part of a table
    assert rows(tmp_path / "d") == ["a?", "b?"]


def test_a_hundred_thousand_rows_take_seconds(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", *(f"question {i} {'x' * 200}" for i in range(100_000)))
    start = time.process_time()
    assert len(cells(path, "question")) == 100_000
    assert time.process_time() - start < 8


# --- what is told, and kept -------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config over a folder of three files and a benchmark."""
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "train/a[1].jsonl", "3² + 1?", "32 + 1?", "4 MB?")
    jsonl(tmp_path / "train/b.jsonl", "4 Mb?", "4 MB?", "5?")
    content(tmp_path / "train/c.csv", "question\n6?\n")
    jsonl(tmp_path / "train/_left.jsonl", "left?")
    jsonl(tmp_path / "test.jsonl", "32 + 1?")
    peers = "".join(f'[[peers]]\nname = "{name}"\nmodel = "{name}"\n' for name in "ab")
    sources = '[prompts]\nsource = "train"\n[[benchmarks]]\nname = "held-out"\nsource = "test.jsonl"\n'
    return content(tmp_path / "c.toml", sources + peers)


def test_the_files_are_told_and_kept(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_run("t", config, ["prompts.overlap=drop"]) as run:
        manifest = read_manifest(run.prompts_dir)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "prompts: 3 files, 7 rows, 1 duplicates dropped, 2 also in a benchmark (1 except for case or typography): "
        "dropped; 4 questions taken",
        "  left out: train/_left.jsonl",
        "  '3² + 1?' in 'held-out', written '32 + 1?' there",
        "benchmark held-out: 1 file, 1 rows",
    ]
    assert manifest is not None
    files = manifest["source"]["files"]
    assert [(file["name"], file["rows"]) for file in files] == [
        ("train/a[1].jsonl", 3), ("train/b.jsonl", 3), ("train/c.csv", 1)
    ]  # fmt: skip
    for file in files:
        data = Path(file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest["benchmarks"]["held-out"]["files"][0]["name"] == "test.jsonl"
    assert manifest["overlap_loose"] == [{"question": "3² + 1?", "benchmark": "held-out", "in_benchmark": "32 + 1?"}]


def test_a_refused_overlap_shows_both_texts(config: Path) -> None:
    told = re.escape("first '3² + 1?' in 'held-out', written '32 + 1?' there")
    with pytest.raises(UserError, match=told), open_run("t", config, []):
        pass


@pytest.mark.parametrize("number", [None, 2])
def test_a_run_of_an_older_format_is_refused_before_its_config_is_compared(number: int | None, config: Path) -> None:
    with open_run("t", config, ["prompts.overlap=drop"]) as run:
        run.freeze(lambda: None)
    path = Path("runs/t/prompts/_SUCCESS.json")
    manifest = read_json(path)
    del manifest["format"]
    write_json(manifest | ({"format": number} if number else {}), path)
    told = r"^runs/t/prompts was made by another version \(format 2; this one has \d+\)"
    with pytest.raises(UserError, match=told), open_run("t", config, []):
        pass


def test_the_datasets_library_is_for_the_hub_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load(name: str, subset: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        calls.append((name, subset, split, revision))
        return datasets.Dataset.from_dict({"question": ["a?"], "answer": ["007"], "more": [[1]]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    assert rows("org/name") == ["a?"] and cells("org/name") == ["007"]
    assert rows("org/name", "test") == ["a?"]
    assert calls == [("org/name", None, "train", None)] * 2 + [("org/name", None, "test", None)]
    refused("org/name", "org/name has list", column="more")
    jsonl(tmp_path / "org/name/q.jsonl", "local?")
    assert rows("org/name") == ["local?"]
    assert len(calls) == 4
