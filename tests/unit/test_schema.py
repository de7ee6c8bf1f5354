"""`python -m data`: the columns of every table, said once and shown in data/README.md and in the terminal."""

from __future__ import annotations

import sys

import pytest

from data import columns, schema
from data.__main__ import app, columns_table, overview
from data.cli import start
from data.columns import MEANINGS, TABLES, columns_of, with_lists
from data.errors import UserError
from tests.conftest import printed


def test_the_lists_of_the_readme_are_the_generated_ones() -> None:
    text = columns.README.read_text(encoding="utf-8")
    assert with_lists(text) == text, "run `python -m data.columns`, which writes the lists of data/README.md"


def test_a_readme_without_a_section_is_told() -> None:
    text = columns.README.read_text(encoding="utf-8").replace("## cross.parquet", "## other")
    with pytest.raises(ValueError, match=r"0 lists under `## cross\.parquet`"):
        with_lists(text)


def test_every_column_of_every_table_has_one_meaning() -> None:
    assert MEANINGS.keys() == TABLES.keys()
    for name, table in TABLES.items():
        named = [column for each in columns_of(name) for column in each.names]
        assert sorted(named) == sorted(schema.schema_of(table.row).names), name


def test_types_and_nulls_are_those_of_the_files() -> None:
    found = {name: (t, null) for each in columns_of("scores") for name, t, null in zip(
        each.names, each.types, each.nullable, strict=True)}  # fmt: skip
    assert found["role"] == ("string", True) and found["position"] == ("int32", True)
    assert found["answer_entropy"] == ("float64", False) and found["target_token_ids"] == ("list<int32>", False)


def test_the_terminal_shows_each_column_and_no_markup() -> None:
    text = printed(columns_table("evals"), 100)
    assert all(name in text for name in schema.EVALS.names)
    assert "](#" not in text and "as it was read (below)" in " ".join(text.split())
    assert all(name in printed(overview(), 140) for name in TABLES)


def test_an_unknown_table_is_one_line() -> None:
    with pytest.raises(UserError, match="there is no table 'chain'; expected one of prompts, chains,"):
        columns_table("chain")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_there_is_the_list(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["data", *arguments])
    start(app, "data")
    text = capsys.readouterr().out
    assert "Show the columns of a table, or all tables." in text and "Print every key of the config." in text
