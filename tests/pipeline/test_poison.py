"""Poisoned files and texts (tests/poison.py) through the real command lines: one line, in time, nothing outside."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import pytest

from data import shards
from data.answers import kinds
from data.schema import CHAINS, SCORES
from data.visible import HIDDEN, JOINERS
from tests import fixed_run
from tests.conftest import ROOT
from tests.poison import ANSWERS, CASES, TEXTS, Case, counted_bomb, long_line, plain_rows_bomb, rows_bomb

SECONDS = 60.0  # the longest that a case may take; most take milliseconds
QUICK = 4  # of so many cases one is in the quick tests
Tree = dict[str, tuple[int, int, bytes]]
Command = Callable[[tuple[str, ...]], tuple[int, str, str]]


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
    monkeypatch.setattr("peers.weights.SUMS_FOLDER", work / ".cache" / "sums")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield work


def call(arguments: tuple[str, ...]) -> int:
    """A command line, in this process; its exit status."""
    from data.cli import start

    module, *given = arguments
    package = f"{module}.__main__" if module in ("generate", "pipeline.share") else module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *given])
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        try:
            start(import_module(package).app, module)
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def judge(case: Case, place: Path, run: Command) -> None:
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
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """A command line in this process: status, output, errors."""

    def run(arguments: tuple[str, ...]) -> tuple[int, str, str]:
        capfd.readouterr()
        status = call(arguments)
        return status, *capfd.readouterr()

    return run


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 120 and len({case.name for case in CASES}) == len(CASES)


LONG = (
    "1 GiB",
    "an open quote",
    "200,000",
    "bomb",
    "model: ",
    "questions: ",
    "a huge list",
)  # slow
IN_TURN = [pytest.param(case, id=case.name[:80], marks=[] if number % QUICK == 0 and not any(
    word in case.name for word in LONG) else pytest.mark.slow) for number, case in enumerate(CASES)]  # fmt: skip


@pytest.mark.parametrize("case", IN_TURN)
def test_a_poisoned_file_is_refused_in_one_line(case: Case, place: Path, command: Command) -> None:
    judge(case, place, command)


# --- texts -----------------------------------------------------------------------------------------------------------


def poisoned_run(work: Path, texts: list[str]) -> None:
    """The run `demo`, whose questions, responses and answers are these texts."""
    folder = work / "runs" / "demo" / "round=1"
    rows = shards.read_rows(folder / "chains" / "part-00000.parquet", CHAINS)
    asked = {id_: texts[i % len(texts)] for i, id_ in enumerate(dict.fromkeys(row["prompt_id"] for row in rows))}
    for number, row in enumerate(rows):
        text = texts[number % len(texts)]
        row |= {"question": asked[row["prompt_id"]], "response": text, "answer": text}
    shutil.rmtree(folder / "chains")
    fixed_run.close(folder / "chains", "generate", 1, {"part-00000.parquet": (rows, CHAINS)})
    scored = shards.read_rows(folder / "scores" / "part-00000.parquet", SCORES)
    for number, row in enumerate(scored):
        text = texts[number % len(texts)]
        row |= {"question": asked[row["prompt_id"]], "target": text, "label": text}
    shutil.rmtree(folder / "scores")
    fixed_run.close(folder / "scores", "score", 1, {"part-00000.parquet": (scored, SCORES)})
    path = work / "runs" / "demo" / "config.json"
    config = shards.read_json(path)
    config["evaluate"] |= {"gold_answers": "math", "answer_timeout_seconds": 1.0}
    shards.write_json(config, path)


class Elements(HTMLParser):
    """What a page has that does something."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts, self.handlers, self.images = 0, list[str](), 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.images += tag in ("img", "iframe", "object", "embed", "base", "form", "link")
        self.handlers += [name for name, value in attrs if name.startswith("on") or "javascript:" in (value or "")]


@pytest.mark.slow
def test_poisoned_texts_are_harmless_wherever_they_are_shown(place: Path, command: Command) -> None:
    clean = Elements()
    for folder in place.glob("runs/demo/round=*/gate"):  # whose figures the fixed run does not have
        shutil.rmtree(folder)
    assert command(("evaluate.report", "--run", "demo"))[0] == 0
    clean.feed((place / "runs/demo/report.html").read_text(encoding="utf-8"))
    poisoned_run(place, list(TEXTS.values()))
    for arguments in (
        ("pipeline.show", "demo", "12", "--random", "--round", "1"), ("evaluate.report", "--run", "demo"),
        ("pipeline.table", "demo", "--csv"), ("pipeline.table", "demo", "--markdown"),
        ("pipeline.status", "--run", "demo"), ("pipeline.share", "verify", "--run", "demo"),
    ):  # fmt: skip
        status, out, err = command(arguments)
        assert status in (0, 2) and "Traceback" not in err, (arguments, err)
        harmless(out + err)
    page = Elements()
    page.feed((place / "runs/demo/report.html").read_text(encoding="utf-8"))
    assert (page.scripts, page.images, page.handlers) == (clean.scripts, clean.images, [])


@pytest.mark.slow
def test_poisoned_answers_cost_a_second_each_and_little_memory(tmp_path: Path) -> None:
    """In a process of its own, whose largest child is the grader's."""
    (tmp_path / "grade.py").write_text(GRADE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "grade.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    right, kibibytes = done.stdout.split()
    assert right == "0" and int(kibibytes) < 2.2 * 2**20
    assert not list(tmp_path.rglob("owned"))


GRADE = """
import resource
from data.answers.grader import Grader
from tests.poison import ANSWERS

if __name__ == "__main__":
    chosen = ("tower in LaTeX", "factorial of a power", "call", "megabyte")
    with Grader(timeout_seconds=1.0, workers=1) as grader:
        found = list(grader.matches([(ANSWERS[name], "42") for name in chosen], "math"))
    print(found.count(True), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TEXTS, *ANSWERS])
def test_an_answer_is_looked_for_in_time(name: str) -> None:
    text = {**TEXTS, **ANSWERS}[name]
    begun = time.monotonic()
    for form in ("The answer is {}.", r"\boxed{{{}}}", "{}", r"\[ {} \]", "#### {}"):
        for kind in ("math", "numbers", "choice", "exact"):
            found = kinds.of(kind).find(form.format(text), "Which?\n(A) one\n(B) two")
            assert found is None or isinstance(found.answer, str)
            if found is not None and kind in ("math", "numbers"):
                kinds.of(kind).right(found.answer, "42")
    assert time.monotonic() - begun < 20


# --- limits ----------------------------------------------------------------------------------------------------------

READ = """
import resource, sys
from data.files import list_files
from data.errors import UserError
from data.readers import MAX_TEXT_BYTES, read_file
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MAX_TEXT_BYTES, size + 4 * MAX_TEXT_BYTES))
for name in sys.argv[1:]:
    try:
        read_file(list_files(name, None, "prompts").files[0], ["question"], "prompts")
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
def test_files_that_unpack_without_end_are_refused_within_the_stated_memory(tmp_path: Path) -> None:
    makers = {"a.parquet": rows_bomb, "b.parquet": plain_rows_bomb, "c.parquet": counted_bomb, "d.jsonl": long_line}
    for name, make in makers.items():
        make(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", READ, *(str(tmp_path / name) for name in makers)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all("GiB of text" in line or "longer than 16 MiB" in line for line in lines), lines


def test_no_call_trusts_the_code_of_a_model() -> None:
    folders = ("data", "peers", "generate", "score", "train", "evaluate", "pipeline")
    for path in (path for folder in folders for path in ROOT.glob(f"{folder}/**/*.py")):
        for call_ in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call_, ast.Call) and isinstance(call_.func, ast.Attribute)):
                continue
            owner = call_.func.value.id if isinstance(call_.func.value, ast.Name) else ""
            given = {each.arg: ast.unparse(each.value) for each in call_.keywords}
            if call_.func.attr == "from_pretrained" and owner.startswith("Auto"):
                assert given.get("trust_remote_code") == "False", f"{path}:{call_.lineno}"
            if ast.unparse(call_.func) == "torch.load":
                assert given.get("weights_only") == "True", f"{path}:{call_.lineno}"
