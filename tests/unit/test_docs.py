"""What the documents say is what the code says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from data import schema
from data.config.docs import key_list

ROOT = Path(__file__).resolve().parents[2]


def tracked(*patterns: str) -> list[Path]:
    """The files of the checkout that match one of these patterns of git."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


# Not written by hand, or kept as it came: locked requirements, data, pictures, chat templates of other projects.
WIDE = ("requirements/", "LICENSE", "*.jsonl", "*.json", "*.csv", "*.txt", "*.svg", "*.min.js", "*.jinja")


def test_no_line_is_wider_than_120_columns() -> None:
    wide = []
    for path in tracked(".", *(f":(exclude){pattern}" for pattern in WIDE)):
        data = path.read_bytes()
        if b"\0" not in data:  # a binary file
            lines = enumerate(data.decode("utf-8", "replace").split("\n"), 1)
            wide += [f"{path.relative_to(ROOT)}:{number}" for number, line in lines if len(line) > 120]
    assert wide == []


def test_the_list_of_config_keys_is_the_generated_one() -> None:
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert text.endswith(f"\n\n{key_list()}"), "run `python -m data.config.docs` and replace the list in docs/config.md"


def test_what_may_be_null_is_documented_as_such() -> None:
    _, *sections = (ROOT / "data" / "README.md").read_text(encoding="utf-8").split("\n## ")
    for name in ("PROMPTS", "CHAINS", "GATE", "EVALS"):
        (section,) = (text for text in sections if text.startswith(name.lower()))
        items = re.findall(r"^- (`.*?) \(.*?\): (.*(?:\n  .*)*)", section, re.M)
        null = [names for names, meaning in items if re.search(r"\bnull\b", meaning)]
        documented = {column for names in null for column in re.findall(r"`([a-z_0-9]+)`", names)}
        assert documented == {field.name for field in getattr(schema, name) if field.nullable}, name


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    for document in tracked("*.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            assert "://" in link or target.exists(), f"{document.relative_to(ROOT)} -> {link}: no such file"
            known = anchors(target) if anchor and "://" not in link else {anchor}
            assert anchor in known, f"{document.relative_to(ROOT)} -> {link}: no such heading"


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
    section = text.split("## What can go wrong\n")[1].split("\n## ")[0]
    items = re.findall(r"^- .*(?:\n  .*)*", section, re.M)
    assert len(items) >= 35
    assert [item for item in items if "::" not in item] == [], "an item without a test"
