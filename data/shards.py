"""Parquet shards that are either whole or missing, and the manifest that closes a stage.

A shard is written under a temporary name in the same folder, flushed, and renamed; `_SUCCESS.json` comes last and
has the checksum of every shard. `_STARTED.json` holds the fingerprint (config and inputs) of unfinished work, so that
a rerun under another config cannot mix with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.errors import UserError, trouble
from data.schema import schema_of
from data.stage import FORMAT, check_format

SUCCESS = "_SUCCESS.json"
STARTED = "_STARTED.json"
SEAL = "sha256"  # key of a manifest's own checksum
MAX_NAME_BYTES = 255  # bytes of a file's name at most
# types of keys that many places read from manifests, which may come from anyone
STATED: dict[str, tuple[type, ...]] = {
    "rows": (int,),
    "seconds": (int, float),
    "stage": (str,),
    "round": (int,),
    "files": (dict,),
    "versions": (dict,),
    "fingerprint": (dict,),
    "quarantined": (dict,),
}
Row = dict[str, Any]
R = TypeVar("R")


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path, schema: pa.Schema) -> None:
    """Write rows as one Parquet file, atomically. Raises ValueError if a row does not fit the schema."""
    for row in rows:
        if row.keys() != set(schema.names):
            raise ValueError(f"{path.name}: columns {sorted(row)} differ from the schema's {sorted(schema.names)}")
    try:
        table = pa.Table.from_pylist(list(rows), schema=schema)
    except pa.ArrowException as error:
        raise ValueError(f"{path.name}: {error}") from error
    write_table(table, path)


def write_table(table: pa.Table, path: Path) -> None:
    """Write an Arrow table as one Parquet file, atomically. Raises ValueError for a null in a column that is not
    nullable, and for a number that is not finite."""
    for field in table.schema:
        if not field.nullable and table.column(field.name).null_count:
            raise ValueError(f"{path.name}: column {field.name} has nulls but is not nullable")
    if name := _not_finite(table):
        raise ValueError(f"{path.name}: column {name} has a number that is not finite")
    with writing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def _not_finite(table: pa.Table) -> str | None:
    """The name of a column with a NaN or an infinity; None if there is none."""
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    return next((name for name in floats if not pc.all(pc.is_finite(table[name]), min_count=0).as_py()), None)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary name for the block to write a file under; afterwards the file is flushed to disk and renamed to
    `path`. If the block fails, the temporary file is removed: on a full disk it would take up needed space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # Arrow does not set it
        raise


def replace(temporary: Path, path: Path) -> None:
    """Flush a file to disk and give it its final name."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(value: Any, path: Path) -> None:
    """Write JSON atomically. Raises ValueError for a number that is not finite: JSON has none."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON. Raises UserError if the file is damaged, or is named like a manifest and is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        wrong = _wrong(found) if path.name == SUCCESS else None
    except (OSError, ValueError, RecursionError) as error:
        if trouble(error):
            raise  # deleting the file would not help
        raise UserError(f"{path} cannot be read ({error}); delete it and run the stage again") from error
    if wrong:
        raise UserError(f"{path} is damaged: {wrong}; delete {path.parent} and run its stage again")
    return found


def _wrong(manifest: Any) -> str | None:
    """What is wrong in a manifest, by its types and its own checksum; None for one of another version."""
    if not isinstance(manifest, dict):
        return "it is not a manifest: it lists no files"
    if manifest.get("format") != FORMAT:
        return None
    for key, kinds in STATED.items():
        if key in manifest and not isinstance(manifest[key], kinds):
            return f"its {key} is {str(manifest[key])[:60]!r}"
    if not all(isinstance(count, int) for count in manifest.get("quarantined", {}).values()):
        return "its quarantined has values that are not counts"
    for name in manifest.get("files", {}):  # messages that name it must stay one line
        if not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
            return f"it lists the file {name[:60]!r}"
    if SEAL in manifest and seal(manifest) != manifest[SEAL]:
        return "its own checksum does not match"
    return None


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """One shard, or only the named columns of it.

    Raises UserError if it is damaged, has other columns than the schema, or a number that is not finite.
    """
    with _opened(path) as file:
        found, table = file.schema_arrow, file.read(None if columns is None else list(columns))
        table.validate(full=True)  # a text that is not UTF-8 would only raise where it is used
    if not _fits(found, schema):
        raise UserError(
            f"shard {path} was written by another version ({_apart(found, schema)}): delete {_unit(path)} and run its "
            "stage again"
        )
    if name := _not_finite(table):
        raise UserError(
            f"column {name} of shard {path} has a number that is not finite, which no statistic can use: "
            f"delete {_unit(path)} and run its stage again"
        )
    return table


def _fits(found: pa.Schema, schema: pa.Schema) -> bool:
    """Whether a file has a schema's columns; a column that is not nullable fits a nullable one."""
    same = found.names == schema.names and found.types == schema.types
    return same and all(mine.nullable or not theirs.nullable for mine, theirs in zip(schema, found, strict=True))


def _apart(found: pa.Schema, expected: pa.Schema) -> str:
    """How the columns of a shard differ from a schema's, in words."""
    more, missing = ([n for n in a.names if n not in b.names] for a, b in ((found, expected), (expected, found)))
    parts = [f"{what} {', '.join(names)}" for what, names in (("it also has", more), ("it lacks", missing)) if names]
    return "; ".join(parts) or "the types or the order of its columns differ"


def read_rows(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> list[Row]:
    """The rows of `read_table`. Raises UserError as it does."""
    rows: list[Row] = read_table(path, schema, columns).to_pylist()
    return rows


def rows_of(path: Path, row: type[R], columns: Sequence[str] | None = None) -> list[R]:
    """The rows of `read_table` under the schema of a row type; with `columns`, rows have only those."""
    found: list[R] = read_table(path, schema_of(cast(Hashable, row)), columns).to_pylist()
    return found


def row_count(path: Path) -> int:
    """Rows of a shard, from its metadata alone. Raises UserError if it is damaged."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        # without page checksums, 2 of 5 flipped bits gave other rows
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last of pyarrow, for a column's name
        if trouble(error):
            raise
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"shard {path} is damaged ({first}); delete {_unit(path)} and run its stage again") from error


def check_parts(folder: Path) -> None:
    """Raises UserError if a shard of an unfinished stage, which has no manifest yet, is damaged."""
    for path in shard_paths(folder):
        try:
            with _opened(path) as file:
                file.read()
        except UserError as error:
            raise UserError(f"{path} is damaged: delete it and run the same command again") from error


def _unit(path: Path) -> Path:
    """What to delete if a file is damaged: the stage's folder, or a file on its own (metrics.parquet)."""
    return path.parent if path.name.startswith("part-") else path


def shard_paths(folder: Path) -> list[Path]:
    """The finished shards of a stage in order."""
    return sorted(folder.glob("part-*.parquet"))


def checksum(*paths: Path) -> str:
    """SHA-256 of a file, or of the concatenation of several."""
    state = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: state)
    return state.hexdigest()


def write_sum(path: Path) -> None:
    """Write a file's checksum beside it, for files that no manifest lists and whose format has no checksum."""
    with writing(_sum_of(path)) as temporary:
        temporary.write_text(checksum(path), encoding="ascii")


def is_whole(path: Path) -> bool:
    """Whether a file exists and still has the checksum of `write_sum`."""
    try:
        return _sum_of(path).read_text(encoding="ascii") == checksum(path)
    except (OSError, ValueError):
        return False


def _sum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def seal(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own seal."""
    content = {key: value for key, value in manifest.items() if key != SEAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def manifest_alone(folder: Path) -> dict[str, Any]:
    """The manifest of a finished stage, without checking its files. Raises UserError if it is damaged or of another
    version."""
    path = folder / SUCCESS
    manifest = read_json(path)
    if isinstance(manifest, dict):
        manifest.pop(SEAL, None)
        check_format(manifest, folder)
        if isinstance(manifest.get("files"), dict):
            return manifest
    raise UserError(f"{path} is not a manifest: it lists no files; delete {folder} and run its stage again")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage, or None. Raises UserError if it is of another version, or if a file it lists is
    missing or changed."""
    path = folder / SUCCESS
    if not path.is_file():
        return None
    manifest = manifest_alone(folder)
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing but {path} lists it; delete {folder} and run its stage again")
        if checksum(file) != expected:
            raise UserError(
                f"{file} is damaged: its checksum is not the one in {path}; delete {folder} and run its stage again"
            )
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any], files: list[Path]) -> None:
    """Close a stage: add the format number and the checksums to its manifest, write `_SUCCESS.json`, then delete the
    work files."""
    files_of = {str(path.relative_to(folder)): checksum(path) for path in files}
    whole = json.loads(json.dumps({**manifest, "format": FORMAT, "files": files_of}, allow_nan=False))
    write_json({**whole, SEAL: seal(whole)}, folder / SUCCESS)
    (folder / STARTED).unlink(missing_ok=True)
    shutil.rmtree(folder / ".work", ignore_errors=True)
