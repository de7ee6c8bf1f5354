"""Columns of one file as text, exactly as written: JSONL, CSV, Parquet.

Nothing is converted: 007, 1.50 and 9007199254740993 in a CSV or JSONL file come back character by character. Values
without a text of their own (lists, times, bytes) are refused with their row, and so is anything ambiguous.

A file may have come from anyone, and a small one may unpack to more than the memory holds: `MemoryBudget` counts what
is read, lines and cells have a maximum length, and Parquet is read in batches of rows.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.arrow_texts import MAX_NAMED_COLUMNS, BadFileError, check_columns, check_type, is_list, table_texts
from data.errors import UserError
from data.files import SourceFile

Texts = dict[str, list[str | None]]  # column -> values; None: no value
WIDE = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00": "UTF-32"}
UTF8_MARK = b"\xef\xbb\xbf"
NO_JSON = ("NaN", "Infinity", "-Infinity")
MAX_TEXT_BYTES = 2**30  # bytes of text read from one file at most; the reader needs up to four times as much memory
PER_VALUE = 64  # bytes that a value takes in addition to its text
MAX_LINE = 2**24  # bytes of a line; characters of a CSV row, which may span lines
BATCH_ROWS = 2**16  # rows of Parquet read at once at most


@dataclass(frozen=True)
class FileRead:
    """What the manifest keeps of a file that was read."""

    name: str
    bytes: int
    sha256: str
    rows: int


class MemoryBudget:
    """The bytes of MAX_TEXT_BYTES that a file has left."""

    def __init__(self) -> None:
        self.left = MAX_TEXT_BYTES

    def take(self, values: int, size: int) -> None:
        """Count values of `size` bytes, or characters, in total. Raises BadFileError if the budget is spent."""
        self.left -= values * PER_VALUE + size
        if self.left < 0:
            raise BadFileError(
                f"has more than {MAX_TEXT_BYTES / 2**30:.3g} GiB of text (counting {PER_VALUE} bytes more per value); "
                "use a part of it, or several files"
            )


class _Literal(str):
    """A number in a JSON file, or a word that JSON does not have (NaN), as written."""


def read_file(
    file: SourceFile, columns: list[str], where: str, lists: Sequence[str] = ()
) -> tuple[pl.DataFrame, FileRead]:
    """The named columns as strings, and the file's facts. The columns in `lists` may hold lists, returned as JSON.

    Raises UserError for a file that cannot be read exactly.
    """
    try:
        with file.open() as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
            size = handle.seek(0, io.SEEK_END)
            handle.seek(0)
            if not size:
                raise BadFileError(f"is empty; expected rows with {columns[0]!r}")
            keys = {key: value for key, value in file.hive_keys.items() if key not in columns}
            table = _read(file, handle, columns, list(keys), lists)
    except (BadFileError, OSError, pa.ArrowException, pl.exceptions.PolarsError, EOFError, MemoryError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = first if isinstance(error, BadFileError) else f"cannot be read: {first}"
        raise UserError(f"{where}: file {file.name} {what}") from error
    _check_hive_keys(file, table, where)
    return table.select(columns), FileRead(file.name, size, sha256, len(table))


def _read(
    file: SourceFile, handle: io.BufferedIOBase, columns: list[str], more: list[str], lists: Sequence[str]
) -> pl.DataFrame:
    ending, compression = file.format
    if ending == ".parquet":
        try:
            return _parquet(handle, columns, more, lists)
        except UnicodeDecodeError as error:  # from its header: names of columns
            raise BadFileError(f"has names or text that are not UTF-8 ({error.reason}); write it again") from error
    stream = io.BufferedReader(pa.CompressedInputStream(handle, compression)) if compression else handle
    if ending == ".csv":
        return _csv(_lines(stream), columns, more)
    return _jsonl(_lines(stream), columns, more, lists)


def _lines(stream: io.BufferedIOBase) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, and the lines as text. Raises BadFileError for a line that is not UTF-8 or too long."""
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), 1):
        if len(line) > MAX_LINE:
            raise BadFileError(f"line {number} is longer than {MAX_LINE / 2**20:.3g} MiB; expected one row per line")
        if number == 1:
            if line[:2] in WIDE:
                raise BadFileError(f"is {WIDE[line[:2]]} text; expected UTF-8: save it as UTF-8")
            line = line.removeprefix(UTF8_MARK)
        if line.startswith(UTF8_MARK):
            raise BadFileError(f"line {number} begins with a byte order mark: two files in one? Split them")
        if b"\0" in line:
            raise BadFileError(f"line {number} has a NUL at byte {line.index(0) + 1}; expected UTF-8 text without NULs")
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            raise BadFileError(
                f"line {number} is not UTF-8 text (0x{line[error.start]:02x} at byte {error.start + 1}); save the file "
                "as UTF-8"
            ) from error


# --- JSONL ------------------------------------------------------------------------------------------------------


def _jsonl(lines: Iterator[tuple[int, str]], columns: list[str], more: list[str], lists: Sequence[str]) -> pl.DataFrame:
    known: dict[str, None] = {}
    texts: Texts = {column: [] for column in (*columns, *more)}
    room = MemoryBudget()
    for number, line in lines:
        if line.isspace():
            room.take(1, 0)
            continue
        try:
            row = DECODER.decode(line)
        except BadFileError as error:
            raise BadFileError(f"line {number} {error}") from error
        except (ValueError, RecursionError) as error:
            raise BadFileError(f"cannot be read: line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise BadFileError(f"line {number} is not a JSON object; expected one object per line, with its columns")
        if len(known) < MAX_NAMED_COLUMNS or not set(columns) <= known.keys():  # needed for an error only
            known |= dict.fromkeys(row)
        for column, found in texts.items():
            try:
                found.append(_json_text(row.get(column), column in lists))
                room.take(1, len(found[-1] or ""))
            except BadFileError as error:
                raise BadFileError(f"row {len(found) + 1} (line {number}): {column!r} {error}") from error
    if known:
        check_columns(columns, list(known))
    return pl.DataFrame(texts, schema=dict.fromkeys(texts, pl.String))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadFileError(f"has the key {_twice(name for name, _ in pairs)!r} twice; remove one")
    return found


def _twice(names: Iterable[str]) -> str | None:
    """The first name that occurs more than once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_Literal, parse_int=_Literal, parse_constant=_Literal)


def _json_text(value: Any, lists: bool) -> str | None:
    """A JSON value as text, as written. With `lists`, a list as the JSON of its items' texts, an object as its JSON."""
    if lists and isinstance(value, dict):
        try:
            return json.dumps(value, ensure_ascii=False)
        except RecursionError:
            raise BadFileError("is an object nested too deep") from None
    if lists and isinstance(value, list):
        return json.dumps([_json_text(part, lists=False) for part in value], ensure_ascii=False)
    if value is None or isinstance(value, bool):
        return None if value is None else json.dumps(value)
    if not isinstance(value, str):
        raise BadFileError(f"is {'a list' if isinstance(value, list) else 'an object'}; expected text")
    if isinstance(value, _Literal) and value in NO_JSON:
        raise BadFileError(f"is {value}, which JSON does not have; expected text or a number")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadFileError(f"has half a character (\\u{ord(value[error.start]):04x}, a lone surrogate)") from error
    return str(value)


# --- CSV --------------------------------------------------------------------------------------------------------


class _RowLines:
    """The lines of a CSV file. A row may span lines in quotes, but takes at most MAX_LINE characters."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self.lines, self.taken = lines, 0

    def __iter__(self) -> Iterator[str]:
        for number, line in self.lines:
            self.taken += len(line)
            if self.taken > MAX_LINE:
                raise BadFileError(
                    f"line {number}: a row is longer than {MAX_LINE >> 20} MiB; check the quotes before it"
                )
            yield line

    def one_by_one(self, rows: Iterator[list[str]], room: MemoryBudget) -> Iterator[list[str]]:
        """The rows. An empty one, which is dropped later, counts towards the budget, too."""
        for row in rows:
            self.taken = 0
            if not row:
                room.take(1, 0)
            yield row


def _csv(lines: Iterator[tuple[int, str]], columns: list[str], more: list[str]) -> pl.DataFrame:
    csv.field_size_limit(MAX_LINE)
    room, row_lines = MemoryBudget(), _RowLines(lines)
    rows = csv.reader(row_lines, strict=True)
    try:
        header = next((row for row in row_lines.one_by_one(rows, room) if row), [])
        if twice := _twice(filter(None, header)):
            raise BadFileError(f"has the column {twice!r} twice; rename or remove one")
        check_columns(columns, header)
        places = {column: header.index(column) for column in (*columns, *more) if column in header}
        texts: Texts = {column: [] for column in places}
        for row in row_lines.one_by_one(rows, room):
            if not row:  # an empty line
                continue
            place_text = f"row {len(texts[columns[0]]) + 1} (line {rows.line_num})"
            if len(row) != len(header):
                raise BadFileError(f"{place_text} has {len(row)} cells; the header has {len(header)}")
            if row == header:
                raise BadFileError(f"{place_text} is the header again: two files in one? Remove the row")
            for column, place in places.items():
                texts[column].append(row[place])
                room.take(1, len(row[place]))
    except csv.Error as error:
        raise BadFileError(f"cannot be read: line {rows.line_num} is not CSV ({error}); check its quotes") from error
    return pl.DataFrame(texts, schema=dict.fromkeys(texts, pl.String))


# --- Parquet, and tables of the hub -----------------------------------------------------------------------------


def _parquet(handle: io.BufferedIOBase, columns: list[str], more: list[str], lists: Sequence[str]) -> pl.DataFrame:
    with pq.ParquetFile(handle) as file:
        names = file.schema_arrow.names
        if twice := _twice(names):
            raise BadFileError(f"has the column {twice!r} twice; rename or remove one")
        check_columns(columns, names)
        wanted = [column for column in (*columns, *more) if column in names]
        for column in wanted:
            check_type(file.schema_arrow.field(column).type, column, column in lists)
        return table_texts(_rows(file, wanted), wanted, lists)


def _rows(file: pq.ParquetFile, wanted: list[str]) -> pa.Table:
    """Columns of a Parquet file, in batches of so few rows that none can exceed MAX_TEXT_BYTES: a value is at most as
    large as its unpacked row group, and one stored value may stand in every row."""
    room, batches = MemoryBudget(), []
    fields = [file.schema_arrow.field(name) for name in wanted]
    room.take(file.metadata.num_rows * len(wanted), 0)  # before anything is read
    for number in range(file.metadata.num_row_groups):
        about = file.metadata.row_group(number)
        sizes = (about.column(i) for i in range(about.num_columns))
        size = sum(c.total_uncompressed_size for c in sizes if c.path_in_schema.partition(".")[0] in wanted)
        if size > MAX_TEXT_BYTES:
            room.take(0, size)
        for batch in file.iter_batches(max(1, min(BATCH_ROWS, MAX_TEXT_BYTES // max(size, 1))), [number], wanted):
            columns = [_without_dictionary(batch.column(name), room) for name in wanted]
            room.take(sum(map(_parts, columns)), sum(column.nbytes for column in columns))
            batches.append(pa.RecordBatch.from_arrays(columns, wanted))
    return pa.Table.from_batches(batches, pa.schema([(field.name, _plain_type(field.type)) for field in fields]))


def _parts(column: pa.Array) -> int:
    """The number of values inside a column's lists or structs, each of which is read as text."""
    if pa.types.is_struct(column.type):
        return sum(len(part) + _parts(part) for part in column.flatten())
    if is_list(column.type):
        inner = column.flatten()
        return len(inner) + _parts(inner)
    return 0


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _without_dictionary(column: pa.Array, room: MemoryBudget) -> pa.Array:
    """A dictionary column as plain values. Raises BadFileError if the budget is too small for them."""
    if not pa.types.is_dictionary(column.type):
        return column
    if not pa.types.is_primitive(column.type.value_type):
        lengths = pc.take(pc.binary_length(column.dictionary.cast(pa.large_string())), column.indices)
        size = pc.sum(lengths).as_py() or 0
        room.take(0, size)
        room.take(0, -size)  # a check only: the caller counts it
    return column.cast(column.type.value_type)


def _check_hive_keys(file: SourceFile, table: pl.DataFrame, where: str) -> None:
    for key, value in file.hive_keys.items():
        if key not in table.columns:
            continue
        other = (table[key] != value).fill_null(False)
        if other.any():
            row = other.arg_true()[0]
            raise UserError(
                f"{where}: file {file.name} row {row + 1} has {key} {table[key][row]!r}, but its folder says "
                f"{key}={value}; rename the folder, or the column"
            )
