"""docs/inspect.md: every recipe runs and prints what the page says.

`python -m tests.pipeline.test_inspect` updates the page.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests import fixed_run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "inspect.md"
RECIPE = re.compile(r"```python\n(.*?)```\n(?:```\n(.*?)```\n)?", re.S)


def with_outputs(page: str) -> str:
    """The page with what its recipes print, run in the current directory one after the other."""
    names: dict[str, Any] = {}

    def run(found: re.Match[str]) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), pl.Config(restore_defaults=True):
            exec(found[1], names)
        output = printed.getvalue()
        return f"```python\n{found[1]}```\n" + (f"```\n{output}```\n" if output else "")

    return RECIPE.sub(run, page)


def test_the_recipes_print_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fixed_run.make(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    assert with_outputs(page) == page, "run `python -m tests.pipeline.test_inspect`, look at what it changed"


def test_there_are_twelve_and_each_is_short() -> None:
    page = PAGE.read_text(encoding="utf-8")
    recipes = page.split("\n## ")[1:]
    assert [each.split(".")[0] for each in recipes] == [str(n) for n in range(1, 13)]
    for each in recipes:
        (code, output), *more = RECIPE.findall(each)
        assert not more and output and code.count("\n") <= 16, each.splitlines()[0]
        assert max(map(len, output.splitlines())) <= 100


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        fixed_run.make(Path(folder))
        os.chdir(folder)
        PAGE.write_text(with_outputs(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
