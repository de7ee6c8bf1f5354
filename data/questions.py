"""Reading questions from files, folders and the Hugging Face hub; each question once."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from data.answers.choice import parse_options, problem_of, with_options
from data.arrow_texts import BadFileError, table_texts
from data.config.sections import SourceSection
from data.errors import UserError
from data.files import FORMATS, list_files, looks_like_files
from data.hashing import draw_key, question_id
from data.readers import FileRead, read_file

NANO = "nano"  # the project's own questions
HUB_SPLIT = "train"  # for a hub name without a split


@dataclass(frozen=True)
class SourceOrigin:
    """Where the rows of a source came from."""

    source: str
    rows: int  # of the whole source, before its section's `rows`
    files: tuple[FileRead, ...] = ()  # none: nano, or a hub name
    left_out: tuple[str, ...] = ()
    first: int = 0  # index of the first row that its section uses

    def location(self, row: int) -> str:
        """The name of a row for errors: file, and row in the file from 1. `row` counts from 0 over the rows read."""
        row += self.first
        for file in self.files:
            if row < file.rows:
                return f"{file.name} row {row + 1}"
            row -= file.rows
        return f"{self.source} row {row + 1}"

    def manifest(self) -> dict[str, Any]:
        """For the prompts' manifest: each file with its size in bytes, its checksum and its number of rows."""
        return {"source": self.source, "rows": self.rows, "files": [asdict(file) for file in self.files]}

    def __str__(self) -> str:
        many = f"{len(self.files)} file{'' if len(self.files) == 1 else 's'}" if self.files else self.source
        return f"{many}, {self.rows:,} rows"


class Questions(NamedTuple):
    """The questions of a source."""

    texts: dict[str, str]  # by id, in the source's order
    duplicates: int  # rows dropped because an earlier one has the same question
    origin: SourceOrigin


def read_source(section: SourceSection, columns: list[str], where: str) -> pl.DataFrame:
    """The named columns of a source as strings, in the source's order, before any limit.

    `where` names the config section in errors. Raises UserError for a missing or empty source, a missing column, an
    empty value, or a value that is not text.
    """
    return read_with_origin(section, columns, where)[0]


def unique_questions(section: SourceSection, where: str) -> Questions:
    """The questions of a source, each once (by normalised text). Raises UserError as `read_source` does."""
    table, origin = read_with_origin(section, [section.question_column], where)
    unique: dict[str, str] = {}
    for question in table[section.question_column]:
        unique.setdefault(question_id(question), question)
    return Questions(unique, len(table) - len(unique), origin)


def shuffled(questions: Mapping[str, str], seed: int) -> list[str]:
    """The ids of {id: question} in a seeded order that depends on the questions and the seed alone."""
    ordered = sorted(questions, key=lambda id_: (draw_key(questions[id_]), id_))
    return random.Random(seed).sample(ordered, len(ordered))


def read_with_origin(
    section: SourceSection, columns: list[str], where: str, lists: Sequence[str] = ()
) -> tuple[pl.DataFrame, SourceOrigin]:
    """What `read_source` returns, and where it comes from. The columns in `lists` may hold lists, returned as JSON. A
    column of options becomes part of the question.

    Raises UserError as `read_source` does, and for a question without proper options.
    """
    more = [section.options] if section.options is not None and section.options not in columns else []
    table, origin = _open(section, list(dict.fromkeys([*columns, *more])), where, (*lists, *more))
    first, end = section.rows or (0, len(table))
    table, origin = table.slice(first, end - first), replace(origin, first=first)
    if table.is_empty():
        raise UserError(
            f"{where}: {section.source} has no rows" + (f" in {list(section.rows)}" if section.rows else "")
        )
    for column in table.columns:
        empty = table[column].is_null() | (table[column].str.strip_chars() == "")
        if empty.any():
            row = origin.location(empty.arg_true()[0])
            raise UserError(f"{where}: {row} has an empty {column!r}; fix or remove the row")
        nul = table[column].str.contains("\0", literal=True)
        if nul.any():
            row = origin.location(nul.arg_true()[0])
            raise UserError(f"{where}: {row} has a NUL character in {column!r}; fix or remove the row")
    if section.question_column in table.columns:
        table = _with_options(section, table, origin, where)
    return table.select(list(dict.fromkeys(columns))), origin


def _with_options(section: SourceSection, table: pl.DataFrame, origin: SourceOrigin, where: str) -> pl.DataFrame:
    """Write the options of a column below the questions; check the options of multiple-choice questions."""
    questions = table[section.question_column].to_list()
    if section.options is not None:
        try:
            for row, cell in enumerate(table[section.options].to_list()):
                questions[row] = with_options(questions[row], parse_options(cell))
        except ValueError as error:
            raise UserError(
                f"{where}: {origin.location(row)} has options in {section.options!r} that {error}"
            ) from None
    if getattr(section, "answers", None) == "choice":
        for row, question in enumerate(questions):
            if problem := problem_of(question):
                raise UserError(f"{where}: {origin.location(row)} {problem}")
    return table.with_columns(pl.Series(section.question_column, questions, dtype=pl.String))


def _open(
    section: SourceSection, columns: list[str], where: str, lists: Sequence[str]
) -> tuple[pl.DataFrame, SourceOrigin]:
    if section.source == NANO:
        return _open_nano(section, columns, where)
    source = section.here(section.source)
    if not looks_like_files(source):
        return _open_hub(section, columns, where, lists)
    for key in ("subset", "revision"):
        if getattr(section, key) is not None:
            raise UserError(
                f"{where}: {key} is {getattr(section, key)!r}, but {section.source} is not a name on the hub; leave "
                f"{where}.{key} out, and name the files to read in {where}.source"
            )
    listing = list_files(source, section.split, where)
    tables, files = zip(*(read_file(file, columns, where, lists) for file in listing.files), strict=True)
    table: pl.DataFrame = pl.concat(tables)
    return table, SourceOrigin(section.source, len(table), files, tuple(listing.left_out))


def _open_nano(section: SourceSection, columns: list[str], where: str) -> tuple[pl.DataFrame, SourceOrigin]:
    from data.nano import source

    if section.revision is not None:
        raise UserError(f"{where}: revision is {section.revision!r}, but source 'nano' has none; leave it out")
    rows = source(section.subset, section.split or "train")
    table = pl.DataFrame([{"question": row.question, "answer": row.answer} for row in rows])
    return _texts(table.to_arrow(), columns, NANO, where), SourceOrigin(NANO, len(table))


def _open_hub(
    section: SourceSection, columns: list[str], where: str, lists: Sequence[str]
) -> tuple[pl.DataFrame, SourceOrigin]:
    """A name on the hub, through the `datasets` library."""
    import datasets

    split = section.split or HUB_SPLIT
    try:
        dataset = datasets.load_dataset(section.source, section.subset, split=split, revision=section.revision)
    except Exception as error:  # the library raises a dozen kinds of errors; all mean "no such data"
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{where}: {section.source!r} is neither a folder nor a {FORMATS} file here, and loading it as a "
            f"dataset of the hub failed: {first}"
        ) from error
    found: Any = dataset
    table = _texts(found.with_format("arrow")[:], columns, section.source, where, lists)
    return table, SourceOrigin(section.source, len(table))


def _texts(table: pa.Table, columns: list[str], source: str, where: str, lists: Sequence[str] = ()) -> pl.DataFrame:
    try:
        return table_texts(table, columns, lists)
    except BadFileError as error:
        raise UserError(f"{where}: {source} {error}") from error
