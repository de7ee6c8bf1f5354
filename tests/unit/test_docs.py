"""What the documents say is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from data import schema
from data.config.docs import table

ROOT = Path(__file__).resolve().parents[2]


def test_config_table_is_the_generated_one() -> None:
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert text.endswith(table()), "run `python -m data.config.docs` and replace the table in docs/config.md"


def test_what_may_be_null_is_documented_as_such() -> None:
    _, *sections = (ROOT / "data" / "README.md").read_text(encoding="utf-8").split("\n## ")
    for name in ("PROMPTS", "CHAINS", "GATE", "EVALS"):
        (section,) = (text for text in sections if text.startswith(name.lower()))
        rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
        documented = {column for _, names, _, meaning, _ in rows if re.search(r"\bnull\b", meaning)
                      for column in re.findall(r"`([a-z_0-9]+)`", names)}  # fmt: skip
        assert documented == {field.name for field in getattr(schema, name) if field.nullable}, name


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "data" / "README.md"]:
        for link in re.findall(r"\]\(([^)#\s]+)\)", document.read_text(encoding="utf-8")):
            assert "://" in link or (document.parent / link).exists(), f"{document.name} -> {link}"


def test_every_test_that_the_documents_name_exists() -> None:
    found = 0
    for document in sorted((ROOT / "docs").glob("*.md")):
        named = re.findall(r"`(?:tests/\w+/)?(test_\w+\.py)::(test_\w+)(…?)`", document.read_text(encoding="utf-8"))
        found += len(named)
        for file, name, cut in named:
            places = [*(ROOT / "tests").glob(f"*/{file}")]
            assert len(places) == 1, f"{document.name}: {file} is in {places}"
            text = places[0].read_text(encoding="utf-8")
            assert f"\ndef {name}{'' if cut else '('}" in text, f"{document.name}: {file}::{name}"
    assert found >= 100


def test_every_file_of_tests_and_bench_that_is_named_exists() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("configs/*.toml"), ROOT / ".ci/run"]:
        for path in re.findall(r"(?<!/)\b(?:tests|bench)/[\w/*]+\.\w+", document.read_text(encoding="utf-8")):
            assert [*ROOT.glob(path)], f"{document.name}: {path}"


def test_every_row_of_the_reliability_table_names_a_test() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = text.split("## What can go wrong\n")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) >= 35
    told = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| **")]
    assert told[1:] == rows, "a row without a test"
