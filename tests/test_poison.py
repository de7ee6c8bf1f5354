"""Poisoned files and texts (tests/poison.py) through the real command lines: one line, in time, nothing outside."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from data.visible import HIDDEN, JOINERS
from tests import fixed_run
from tests.poison import CASES, Case

SECONDS = 60.0  # the longest that a case may take; most take milliseconds
QUICK = 4  # of so many cases one is in the quick tests
Tree = dict[str, tuple[int, int, bytes]]


def tree(root: Path) -> Tree:
    """What is in a folder: kind, size, content, of small files."""
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        about = path.lstat()
        small = path.is_file() and not path.is_symlink() and about.st_size < 2**20
        found[str(path.relative_to(root))] = (about.st_mode, about.st_size, path.read_bytes() if small else b"")
    return found


def harmless(text: str) -> None:
    """Nothing in what is printed gives a terminal an order, or is hidden."""
    import unicodedata

    odd = {c for c in text if unicodedata.category(c) in HIDDEN and c not in f"\n{JOINERS}"}
    assert not odd, (sorted(map(hex, map(ord, odd))), text[:500])


@pytest.fixture
def place(project: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a config, a finished run `demo` and a model, and a folder outside with a secret."""
    work = project / "work"
    work.mkdir()
    for file in ("tiny.toml", "train.jsonl", "test.jsonl"):
        (project / file).rename(work / file)
    fixed_run.make(work)
    shutil.copytree(tiny_models["chatty"], work / "models" / "chatty")
    (project / "outside").mkdir()
    (project / "outside" / "secret.txt").write_text("secret")
    (project / "outside" / "part-00000.parquet").write_text("not yours")
    monkeypatch.chdir(work)
    monkeypatch.setenv("PST_CACHE", str(work / ".cache"))
    monkeypatch.setattr("peers.source.CACHE", work / ".cache" / "models")
    monkeypatch.setattr("peers.weights.SUMS", work / ".cache" / "sums")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield work


def call(arguments: tuple[str, ...]) -> int:
    """A command line, in this process; its exit status."""
    from data.cli import start

    module, *given = arguments
    package = module if "." in module else f"{module}.__main__"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *given])
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        try:
            start(import_module(package).app, module)
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def judge(case: Case, place: Path, run: Callable[[tuple[str, ...]], tuple[int, str, str]]) -> None:
    """A case ends as it should, and changes nothing but runs and the cache."""
    case.make(place)
    before, outside = tree(place), tree(place.parent / "outside")
    begun = time.monotonic()
    status, out, err = run(case.arguments)
    took = time.monotonic() - begun
    assert "Traceback" not in out + err, err
    harmless(out + err)
    assert status in ((2,) if case.word else (0, 2)), (status, out, err)
    if status == 2:
        lines = err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 9000, err
        assert case.word in lines[0], lines[0]
    assert took < SECONDS, took
    after = tree(place)
    assert tree(place.parent / "outside") == outside
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not {name for name in changed if not name.startswith(("runs", ".cache"))}, changed
    assert {path.name for path in (place.parent).iterdir()} == {"work", "outside"}
    if status == 2 and "demo" not in case.arguments:
        assert not {name for name in changed if name.startswith("runs/")}, changed


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[[tuple[str, ...]], tuple[int, str, str]]:
    """A command line in this process: status, output, errors."""

    def run(arguments: tuple[str, ...]) -> tuple[int, str, str]:
        capfd.readouterr()
        status = call(arguments)
        return status, *capfd.readouterr()

    return run


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 120 and len({case.name for case in CASES}) == len(CASES)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name[:60] for case in CASES])
def test_a_poisoned_file_is_refused_in_one_line(case: Case, place: Path, command: object) -> None:
    judge(case, place, command)  # type: ignore[arg-type]
