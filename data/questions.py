"""Reading questions from files, folders and the Hugging Face hub; ids; normalised text."""

from __future__ import annotations

import glob
import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from data.config.sections import SourceSection
from data.errors import UserError
from data.hashing import question_id

NANO = "nano"  # the questions that the project makes itself
READERS: dict[str, Callable[..., pl.LazyFrame]] = {
    ".jsonl": pl.scan_ndjson,
    ".ndjson": pl.scan_ndjson,
    ".parquet": pl.scan_parquet,
    ".csv": pl.scan_csv,
}


def read_source(section: SourceSection, columns: list[str], where: str, typed: str | None = None) -> pl.DataFrame:
    """The named columns of a source as strings, in the source's order, before any limit.

    `where` names the config section in errors. The column `typed` keeps its own type and may hold lists and nulls:
    data/answers/gold.py reads it. Raises UserError for a missing or empty source, a column that is not there, or an
    empty question.
    """
    frame = _open(section, where)
    names = frame.collect_schema().names()
    for column in columns:
        if column not in names:
            raise UserError(f"{where}: {section.source} has no column {column!r}; it has {', '.join(names)}")
    for column, kind in frame.select(columns).collect_schema().items():
        if kind.is_nested() and column != typed:
            raise UserError(f"{where}: column {column!r} of {section.source} is a {kind}; expected text")
    try:
        table = frame.select(c if c == typed else pl.col(c).cast(pl.String) for c in columns).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{where}: {section.source} cannot be read: {_first_line(error)}") from error
    if section.rows is not None:
        first, end = section.rows
        table = table.slice(first, end - first)
    if table.is_empty():
        raise UserError(
            f"{where}: {section.source} has no rows" + (f" in {list(section.rows)}" if section.rows else "")
        )
    for column in (each for each in columns if each != typed):
        empty = table[column].is_null() | (table[column].str.strip_chars() == "")
        if empty.any():
            row = empty.arg_true()[0] + (section.rows or (0, 0))[0]
            raise UserError(f"{where}: {section.source} row {row + 1} has an empty {column!r}; fix or remove the row")
    return table


def _open(section: SourceSection, where: str) -> pl.LazyFrame:
    if section.source == NANO:
        return _open_nano(section)
    source = section.source if "://" in section.source else str(Path(section.source).expanduser())
    reader = READERS.get(Path(source).suffix.lower())
    if reader is None:
        return _open_dataset(section, where)
    # CSV cells are taken as text: a 007 or 1.50 read as a number would not come back as it stands
    options: dict[str, Any] = {"infer_schema": False} if reader is pl.scan_csv else {}
    options |= {"infer_schema_length": None} if reader is pl.scan_ndjson else {}
    if Path(source).is_file():
        source = glob.escape(source)  # a [ in the name of a file that is there is no pattern
    if "://" not in source:
        if not glob.glob(source):
            raise UserError(f"{where}: file {source} does not exist; set {where}.source to an existing one")
        if not any(Path(path).stat().st_size for path in glob.glob(source)):
            raise UserError(f"{where}: file {source} is empty; expected rows with {section.question_column!r}")
    try:
        frame = reader(source, **options)
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{where}: {source} cannot be read: {_first_line(error)}") from error
    return frame


def _open_nano(section: SourceSection) -> pl.LazyFrame:
    from data.nano import source

    rows = source(section.subset, section.split)
    return pl.DataFrame([{"question": row.question, "answer": row.answer} for row in rows]).lazy()


def _open_dataset(section: SourceSection, where: str) -> pl.LazyFrame:
    """A dataset folder or hub name through the `datasets` library."""
    source = str(Path(section.source).expanduser())
    looks_local = section.source.startswith((".", "/", "~")) or section.source.count("/") > 1
    if Path(source).is_file():
        raise UserError(f"{where}: {source} has an unknown ending; expected .jsonl, .parquet or .csv")
    if looks_local and not Path(source).exists():
        raise UserError(
            f"{where}: {section.source} does not exist; expected a .jsonl, .parquet or .csv file, a dataset folder, "
            "or a dataset name on the Hugging Face hub"
        )
    import datasets

    try:
        dataset = datasets.load_dataset(source, section.subset, split=section.split, revision=section.revision)
    except Exception as error:  # the library raises a dozen kinds; all mean "no such data", and none is ours to cure
        raise UserError(f"{where}: dataset {section.source!r} cannot be loaded: {_first_line(error)}") from error
    table: Any = dataset
    return pl.DataFrame(pl.from_arrow(table.with_format("arrow")[:])).lazy()


def source_digest(section: SourceSection) -> str | None:
    """SHA-256 over the bytes of a source's files; None where they are not on this machine, and for nano."""
    path = Path(section.source).expanduser()
    if section.source == NANO or "://" in section.source:
        return None
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
    else:
        files = [path] if path.is_file() else [Path(found) for found in glob.glob(str(path))]
    found = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest() if files else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unique_questions(section: SourceSection, where: str) -> tuple[dict[str, str], int]:
    """{id: question} in the source's order, and how many duplicates (by normalised text) were left out."""
    table = read_source(section, [section.question_column], where)
    unique: dict[str, str] = {}
    for question in table[section.question_column]:
        unique.setdefault(question_id(question), question)
    return unique, len(table) - len(unique)


def shuffled(ids: list[str], seed: int) -> list[str]:
    """A seeded permutation that depends on the ids and the seed alone."""
    return random.Random(seed).sample(sorted(ids), len(ids))
