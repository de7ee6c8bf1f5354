"""Shards are whole or not there; a manifest notices what changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import shards
from data.errors import UserError
from data.schema import EVALS, METRICS, PROMPTS, ChainRow, PromptRow, Role, schema_of
from data.stage import FORMAT, Stage
from tests.conftest import read_stage

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("n", pa.int32(), nullable=False),
        pa.field("note", pa.string(), nullable=True),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
    ]
)
ROWS = [
    {"id": "a", "n": 1, "note": None, "token_ids": [1, 2]},
    {"id": "b", "n": 2, "note": "é", "token_ids": []},
]


def broken(**changes: Any) -> list[dict[str, Any]]:
    """The rows with a change to the last one; `...` removes a column."""
    row = {key: value for key, value in {**ROWS[1], **changes}.items() if value is not ...}
    return [ROWS[0], row]


def no_leftovers(folder: Path) -> bool:
    """No temporary file."""
    return not list(folder.rglob("*.tmp"))


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "new" / "part-00000.parquet"
    shards.write_rows(ROWS, path, SCHEMA)
    assert shards.read_rows(path, SCHEMA) == ROWS
    assert no_leftovers(tmp_path)


def test_no_rows_are_rows(tmp_path: Path) -> None:
    shards.write_rows([], tmp_path / "part-00000.parquet", SCHEMA)
    assert shards.read_rows(tmp_path / "part-00000.parquet", SCHEMA) == []


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (broken(note=...), "differ from the schema"),
        (broken(gold="4"), "gold"),
        (broken(n=None), "column n has nulls"),
        (broken(token_ids=None), "column token_ids has nulls"),
        (broken(n="two"), "two"),
        (broken(id=5), "int"),
        (broken(n=2**31), "2147483648"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: list[dict[str, Any]], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        shards.write_rows(rows, tmp_path / "part-00000.parquet", SCHEMA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["while it is written", "before it is renamed"])
def test_a_write_that_fails_leaves_what_was_there(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part-00000.parquet"
    shards.write_rows(ROWS[:1], path, SCHEMA)

    def half_written(_: pa.Table, where: Path, **__: object) -> None:
        Path(where).write_bytes(b"PAR1 and no more")
        raise OSError("disk full")

    def not_renamed(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        if moment == "while it is written":
            patch.setattr(pq, "write_table", half_written)
        else:
            patch.setattr("os.replace", not_renamed)
        for target in (path, tmp_path / "part-00001.parquet"):
            with pytest.raises(OSError, match="disk full"):
                shards.write_rows(ROWS, target, SCHEMA)
    assert shards.shard_paths(tmp_path) == [path]
    assert shards.read_rows(path, SCHEMA) == ROWS[:1]
    for target in (path, tmp_path / "part-00001.parquet"):
        shards.write_rows(ROWS, target, SCHEMA)
    assert read_stage(tmp_path, SCHEMA) == [*ROWS, *ROWS]
    assert no_leftovers(tmp_path)


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    rename = os.replace

    def renamed(temporary: Path, path: Path) -> None:
        done.append(path.name)
        rename(temporary, path)

    monkeypatch.setattr("os.fsync", lambda _: done.append("flushed"))
    monkeypatch.setattr("os.replace", renamed)
    shards.write_rows(ROWS, tmp_path / "part-00000.parquet", SCHEMA)
    shards.write_json({}, tmp_path / "value.json")
    assert done == ["flushed", "part-00000.parquet", "flushed", "value.json"]


def test_shards_are_read_in_order_and_alone(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        rows = [{**ROWS[0], "n": number}]
        shards.write_rows(rows, tmp_path / f"part-{number:05d}.parquet", SCHEMA)
    shards.write_rows(ROWS, tmp_path / "metrics.parquet", SCHEMA)
    (tmp_path / "part-00003.parquet.tmp").write_bytes(b"half")
    assert [row["n"] for row in read_stage(tmp_path, SCHEMA)] == [0, 2, 10]


@pytest.mark.parametrize("damage", ["empty", "cut", "no parquet", "missing"])
def test_a_damaged_shard_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    shards.write_rows(ROWS, path, SCHEMA)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "no parquet": b"{}" * 100}[damage])
    with pytest.raises(UserError, match=r"part-00000\.parquet is damaged .*delete"):
        shards.read_rows(path, SCHEMA)


@pytest.mark.parametrize(
    "schema",
    [
        pa.schema([field for field in SCHEMA if field.name != "note"]),
        pa.schema([*SCHEMA, pa.field("more", pa.string())]),
        SCHEMA.set(1, pa.field("n", pa.int64(), nullable=False)),
        SCHEMA.set(2, pa.field("note", pa.string(), nullable=False)),
        pa.schema(list(SCHEMA)[::-1]),
    ],
    ids=["column missing", "column more", "type", "nullability", "order"],
)
def test_a_shard_of_another_schema_is_refused(schema: pa.Schema, tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    shards.write_rows([{**ROWS[1]}], path, SCHEMA)
    with pytest.raises(UserError, match="written by another version"):
        shards.read_rows(path, schema)


def test_a_run_of_the_version_before_is_refused_in_one_line(tmp_path: Path) -> None:
    """Evals and metrics had columns for a second verdict: the line names them and says what to delete, no more."""
    evals, metrics = tmp_path / "round=0" / "evals" / "part-00000.parquet", tmp_path / "round=0" / "metrics.parquet"
    for path, schema, more, unit in (
        (evals, EVALS, {"correct_strict": pa.bool_()}, evals.parent),
        (metrics, METRICS, dict.fromkeys(("em_strict", "em_stated", "grader_disagreement"), pa.float64()), metrics),
    ):
        before = pa.schema([*schema, *(pa.field(name, kind) for name, kind in more.items())])
        shards.write_table(before.empty_table(), path)
        with pytest.raises(UserError) as error:
            shards.read_rows(path, schema, schema.names[:1])
        assert str(error.value) == (
            f"shard {path} was written by another version (it also has {', '.join(more)}): delete {unit} and run its "
            "stage again"
        )


def test_the_cure_for_metrics_is_not_to_delete_the_round(tmp_path: Path) -> None:
    for name, cure in (("metrics.parquet", f"delete {tmp_path / 'metrics.parquet'} "), ("part-00000.parquet", None)):
        (tmp_path / name).write_bytes(b"PAR1")
        with pytest.raises(UserError) as error:
            shards.read_rows(tmp_path / name, SCHEMA)
        assert (cure or f"delete {tmp_path} ") in str(error.value)


def closed_stage(folder: Path) -> list[Path]:
    """A finished stage of two shards."""
    files = [folder / f"part-{number:05d}.parquet" for number in range(2)]
    for file in files:
        shards.write_rows(ROWS, file, SCHEMA)
    shards.write_json({"config": "1"}, folder / shards.STARTED)
    shards.write_rows(ROWS, folder / ".work" / "unit.parquet", SCHEMA)
    shards.write_manifest(folder, {"rows": 4}, files)
    return files


def test_a_manifest_closes_the_stage(tmp_path: Path) -> None:
    assert shards.read_manifest(tmp_path) is None
    assert shards.read_manifest(tmp_path / "nowhere") is None
    files = closed_stage(tmp_path)
    manifest = shards.read_manifest(tmp_path)
    assert manifest == {"rows": 4, "format": FORMAT, "files": {file.name: shards.checksum(file) for file in files}}
    assert sorted(path.name for path in tmp_path.iterdir()) == [shards.SUCCESS, *(file.name for file in files)]


def test_a_stage_killed_before_its_manifest_is_known_by_what_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    write = shards.write_manifest

    def killed(folder: Path, manifest: dict[str, Any], files: list[Path]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", full)
            write(folder, manifest, files)

    monkeypatch.setattr(shards, "write_manifest", killed)
    with pytest.raises(OSError, match="disk full"):
        closed_stage(tmp_path)
    assert shards.read_manifest(tmp_path) is None and shards.read_json(tmp_path / shards.STARTED) == {"config": "1"}
    assert (tmp_path / ".work" / "unit.parquet").is_file()


def test_a_manifest_notices_a_missing_and_a_changed_file(tmp_path: Path) -> None:
    first, second = closed_stage(tmp_path)
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(UserError, match=r"part-00001\.parquet is missing"):
        shards.read_manifest(tmp_path)
    second.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # one bit
    with pytest.raises(UserError, match=r"part-00001\.parquet is damaged"):
        shards.read_manifest(tmp_path)
    second.write_bytes(content)
    assert shards.read_manifest(tmp_path) is not None
    shards.write_rows(ROWS[:1], first, SCHEMA)
    with pytest.raises(UserError, match=r"part-00000\.parquet is damaged"):
        shards.read_manifest(tmp_path)


def test_json_is_written_whole_and_read_with_a_cure(tmp_path: Path) -> None:
    path = tmp_path / "new" / "value.json"
    shards.write_json({"a": ["é", 1.5, None]}, path)
    assert shards.read_json(path) == {"a": ["é", 1.5, None]}
    assert no_leftovers(tmp_path)
    path.write_text('{"a": ', encoding="utf-8")
    with pytest.raises(UserError, match=r"value\.json cannot be read .*delete it"):
        shards.read_json(path)
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        shards.read_json(tmp_path / "none.json")


def test_some_columns_and_the_number_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    shards.write_rows(ROWS, path, SCHEMA)
    assert shards.read_rows(path, SCHEMA, ["n"]) == [{"n": row["n"]} for row in ROWS]
    assert shards.row_count(path) == len(ROWS)
    other = SCHEMA.append(pa.field("more", pa.int32()))
    with pytest.raises(UserError, match="it lacks more"):  # the whole schema is checked, whatever is read
        shards.read_rows(path, other, ["n"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged"):
        shards.row_count(path)


def test_a_schema_follows_from_its_row_type() -> None:
    class Example(TypedDict):
        text: str
        role: Role
        count: int | None
        share: float | None
        tokens: list[int]

    expected = [
        pa.field("text", pa.string(), nullable=False),
        pa.field("role", pa.string(), nullable=False),
        pa.field("count", pa.int32()),
        pa.field("share", pa.float64()),
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),
    ]
    assert schema_of(Example) == pa.schema(expected)

    class Bad(TypedDict):
        when: bytes

    with pytest.raises(KeyError):
        schema_of(Bad)


def test_rows_of_a_type_have_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    shards.write_rows([{"id": "a", "question": "q", "source": "s"}], path, PROMPTS)
    assert shards.rows_of(path, PromptRow) == [{"id": "a", "question": "q", "source": "s"}]
    assert shards.rows_of(path, PromptRow, ["id"]) == [{"id": "a"}]
    with pytest.raises(UserError, match="written by another version"):
        shards.rows_of(path, ChainRow)


def test_a_stage_of_another_format_is_refused_in_one_line(tmp_path: Path) -> None:
    stage = Stage("score", 1, tmp_path / "scores", {"config": "a"})
    assert stage.begin()
    stage.finish([], 0, {})
    assert not stage.begin()
    manifest = shards.read_json(stage.folder / shards.SUCCESS)
    del manifest["format"]  # versions before the first number wrote none
    shards.write_json(manifest, stage.folder / shards.SUCCESS)
    with pytest.raises(UserError, match=r"^\S+scores was made by another version \(format 1; .* new run .*$"):
        stage.begin()
