"""Columns of an Arrow table as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

EXACT = {"Float64": 2.0**53, "Float32": 2.0**24}  # from here on a float cannot hold odd numbers
MAX_NAMED_COLUMNS = 20  # columns listed in an error at most


class BadFileError(ValueError):
    """What is wrong in a file, and where. The message completes a sentence that begins with the file's name."""


def table_texts(table: pa.Table, columns: list[str], lists: Sequence[str] = ()) -> pl.DataFrame:
    """Columns of an Arrow table as text: strings as they are; numbers, dates and booleans in their usual form; lists,
    in the columns `lists`, as the JSON of their items' texts.

    Raises BadFileError for a missing column, or one with values that have no text.
    """
    check_columns(columns, table.column_names)
    return pl.DataFrame({name: _arrow_texts(table[name], name, name in lists) for name in columns})


def is_list(kind: pa.DataType) -> bool:
    """Whether a column's values are lists."""
    types: Any = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def check_type(kind: pa.DataType, name: str, lists: bool) -> None:
    """Raises BadFileError if the column's values have no text; with `lists`, those of lists and objects have one."""
    types = pa.types
    if lists and types.is_struct(kind):
        return
    if lists and is_list(kind):
        kind = kind.value_type
    inner = kind.value_type if types.is_dictionary(kind) else kind
    checks = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_boolean,
        types.is_integer,
        types.is_float32,
        types.is_float64,
        types.is_decimal128,
        types.is_date32,
        types.is_null,
    )
    if not any(check(inner) for check in checks):
        raise BadFileError(f"has {kind} values in column {name!r}; expected text (numbers and dates will do, too)")


def _arrow_texts(column: pa.ChunkedArray, name: str, lists: bool) -> pl.Series:
    check_type(column.type, name, lists)
    if pa.types.is_struct(column.type):
        rows = column.to_pylist()
        texts = [None if row is None else json.dumps(row, ensure_ascii=False, default=str) for row in rows]
        return pl.Series(name, texts, dtype=pl.String)
    if is_list(column.type):
        return _list_texts(column, name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise BadFileError(f"has damaged text in column {name!r} ({error})") from error
    series = pl.Series(name, pl.from_arrow(column))
    if series.dtype.is_float():
        odd = (~series.is_finite()).fill_null(False)
        if odd.any():
            row = odd.arg_true()[0]
            raise BadFileError(f"row {row + 1}: {name!r} is {series[row]}; expected text or a finite number")
        vague = (series.abs() >= EXACT[str(series.dtype)]).fill_null(False)
        if vague.any():
            row = vague.arg_true()[0]
            raise BadFileError(f"row {row + 1}: {name!r} is too large for a float to hold exactly; store it as text")
    return series.cast(pl.String)


def _list_texts(column: pa.ChunkedArray, name: str) -> pl.Series:
    column = column.combine_chunks()
    parts = iter(_arrow_texts(pa.chunked_array([column.flatten()]), name, lists=False).to_list())
    rows = [length.as_py() for length in pc.list_value_length(column)]
    texts = [None if n is None else json.dumps([next(parts) for _ in range(n)], ensure_ascii=False) for n in rows]
    return pl.Series(name, texts, dtype=pl.String)


def check_columns(columns: list[str], names: list[str]) -> None:
    """Raises BadFileError if one of the `columns` is not among the `names` of a file's columns."""
    for column in columns:
        if column not in names:
            more = f" and {len(names) - MAX_NAMED_COLUMNS:,} more" if len(names) > MAX_NAMED_COLUMNS else ""
            raise BadFileError(
                f"has no column {column!r}; it has {', '.join(names[:MAX_NAMED_COLUMNS]) or 'none'}{more}"
            )
