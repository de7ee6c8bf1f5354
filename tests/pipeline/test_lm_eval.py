"""The tasks for lm-evaluation-harness, its process, and its figures beside ours; with the real one if installed."""

from __future__ import annotations

import json
from collections import Counter
from importlib import metadata, util
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import pipeline.lm_eval.__main__ as command
from data.config.load import load_config
from data.errors import UserError
from data.run import Run
from evaluate.benchmarks import load_benchmarks
from peers.prompts import load_prompts
from pipeline.lm_eval.figures import figures_table, task_rows
from pipeline.lm_eval.grading import process_results, same_numbers
from pipeline.lm_eval.tasks import HERE, write_questions
from tests.conftest import run_module


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        ("10+6=16, 16-4=12 #### 12", "12", True),
        ("20-13=7 #### 13, 7", "7, 13", True),
        ("20-13=7 #### 13", "13, 7", False),
        ("12 - 4 = 8", "8", True),
        ("12 - 4 = 8", "4", False),
        ("The answer is 1,200.", "1200", True),
        ("First #### 3, no: #### 4", "4", True),
        ("\\boxed{3}, which is 1 more than 2", "3", True),
        ("I do not know.", "3", False),
    ],
)
def test_numbers_are_compared_as_the_response_ends(response: str, gold: str, right: bool) -> None:
    assert same_numbers(response, gold) == right


def test_mathematics_is_graded_by_math_verify() -> None:
    def graded(response: str, gold: str) -> float:
        return process_results({"kind": "math", "gold": gold}, [response])["exact_match"]

    assert graded("So it is $\\boxed{0.5}$.", "\\frac{1}{2}") == 1.0
    assert graded("The answer is 7.", "8") == 0.0 and graded("", "8") == 0.0
    assert process_results({"kind": "numbers", "gold": "8"}, ["#### 8"]) == {"exact_match": 1.0}


def test_everyday_questions_are_what_they_are_said_to_be() -> None:
    rows = [json.loads(line) for line in (HERE / "everyday.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["question"] for row in rows}) == 60
    assert all(len(set(row["choices"])) == 4 for row in rows)
    assert set(Counter(row["answer"] for row in rows).items()) == {(n, 15) for n in range(4)}
    assert not any(character.isdigit() for row in rows for character in json.dumps([row["question"], row["choices"]]))


def test_a_peer_is_asked_as_in_our_own_evaluation(project: Path) -> None:
    config = load_config(Path("tiny.toml"), [])
    items = load_benchmarks(config)["sums"]
    for name in config.peer_names:
        folder = project / name
        folder.mkdir()
        prompts = load_prompts(config, name)
        assert write_questions(folder, "sums", "numbers", items, prompts, config.generate) == 0
        rows = [json.loads(line) for line in (folder / "pst-sums.jsonl").read_text().splitlines()]
        assert [row["gold"] for row in rows] == [item.gold for item in items]
        encode = prompts.tokenizer.encode
        assert encode(rows[0]["prompt"], add_special_tokens=False) == prompts.solve(items[0].question)
        text = (folder / "pst-sums.yaml").read_text()
        assert f"test: {json.dumps(str(folder / 'pst-sums.jsonl'))}" in text and "max_gen_toks: 16" in text
        ends = json.loads(next(line for line in text.splitlines() if "until:" in line).partition("until: ")[2])
        assert ends == (["<|end|>"] if name == "chatty" else ["\nQuestion:", "<eos>"])
        assert (folder / "grading.py").read_text() == (HERE / "grading.py").read_text()
    strange = [item.__class__(item.id, f"{item.question} <|end|>", item.gold) for item in items[:3]]
    assert write_questions(folder.with_name("chatty"), "odd", "math", strange, load_prompts(config, "chatty"),
                           config.generate) == 3  # fmt: skip


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in the place of harness.py."""
    monkeypatch.setattr(command, "HERE", tmp_path)
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    return tmp_path / "harness.py"


def test_the_harness_runs_where_no_package_of_ours_is(harness: Path, tmp_path: Path) -> None:
    harness.write_text(
        "import json, os, sys\n"
        "names = ('PYTHONPATH', 'HF_HUB_OFFLINE')\n"
        "told = {'path': sys.path, 'cwd': os.getcwd(), **{name: os.environ.get(name) for name in names}}\n"
        "told['ours'] = [f for p in sys.path for f in ('evaluate', 'pipeline') if os.path.isdir(os.path.join(p, f))]\n"
        "open(sys.argv[2], 'w').write(json.dumps(told))\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    found: dict[str, Any] = command.call_harness({"hub": []}, work, tmp_path / "logs/lm_eval.log", "p")
    assert found["cwd"] == str(work) and found["PYTHONPATH"] is None and found["HF_HUB_OFFLINE"] == "1"
    assert str(tmp_path) not in found["path"] and "pipeline" not in found["ours"]
    assert command.call_harness({"hub": ["gsm8k"]}, work, tmp_path / "log", "p")["HF_HUB_OFFLINE"] in (None, "0", "1")


def test_a_harness_that_fails_is_one_line(harness: Path, tmp_path: Path) -> None:
    harness.write_text("print('loading')\nraise SystemExit('Tasks not found: gsm9k')\n")
    with pytest.raises(UserError) as error:
        command.call_harness({"hub": ["gsm9k"]}, tmp_path, tmp_path / "lm_eval.log", "p")
    said = f"lm-evaluation-harness failed on peer p: Tasks not found: gsm9k (its output is in {tmp_path}"
    assert str(error.value).startswith(said) and "loading" in (tmp_path / "lm_eval.log").read_text()


def test_without_the_harness_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(UserError, match=r"not installed here: it comes with `make setup EXTRA=bench`"):
        command.check_harness_installed()


def test_figures_beside_ours_count_what_the_harness_judged_alike(project: Path) -> None:
    """By hand: of four questions one more is right, and seven of our eight verdicts are the harness's."""

    def figures(*values: float) -> dict[str, Any]:
        numbers = {str(n): value for n, value in enumerate(values)}
        return {"value": sum(values) / len(values), "stderr": 0.25, "values": numbers}

    found = {
        "base": {"pst-sums": {"exact_match,none": figures(1, 0, 0, 0)}, "everyday": {"acc,none": figures(1, 1)}},
        "adapter": {"pst-sums": {"exact_match,none": figures(1, 1, 0, 0)}, "everyday": {"acc,none": figures(1, 1)}},
    }
    of = ("sums", "p")
    ours = {
        "base": {of: {item: {"em": float(item == "a")} for item in "abcd"}},
        "adapter": {of: {item: {"em": float(item in "abc")} for item in "abcd"}},
    }
    run = Run("t", load_config(Path("tiny.toml"), []))
    first, second = task_rows(run, "p", found, {"pst-sums": ("sums", list("abcd"))}, ours)
    assert (first.task, first.metric, first.n, first.base) == ("pst-sums", "exact_match", 4, (0.25, 0.25))
    assert first.change is not None and first.change[0] == 0.25 and first.change[1] == 0.0
    assert first.ours == {"base": 0.25, "adapter": 0.75, "agree": 7 / 8}
    assert second.ours is None and second.change == (0.0, 0.0, 0.0)
    (limited,) = task_rows(run, "p", {name: {"pst-sums": each["pst-sums"]} for name, each in found.items()},
                         {"pst-sums": ("sums", list("abxd"))}, ours)  # fmt: skip
    assert limited.ours is None  # other questions by now
    page = Console(file=StringIO(), width=160, record=True)
    page.print(figures_table("title", [second, first]))
    lines = [line.split() for line in page.export_text().splitlines()]
    shown = ["25.0", "±", "25.0", "50.0", "±", "25.0", "+25.0", "(+0.0", "to", "+75.0)", "25.0", "75.0", "87.5"]
    assert ["pst-sums", "(exact_match)", "p", "4", *shown] in lines
    assert ["everyday", "(acc)", "p", "2", "100.0", "±", "25.0", "100.0", "±", "25.0", "+0.0", "–", "–", "–"] in lines


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("lm_eval") is None, reason="lm-eval is not installed (make setup EXTRA=bench)")
def test_the_harness_gives_our_verdicts(project: Path) -> None:
    """Both evaluate greedy responses of the same weights to the same prompts; sums of tiny models are not close."""
    done = run_module("pipeline.round", "--config", "tiny.toml", "--run", "t", "--round", "1", cwd=project)
    assert done.returncode == 0, done.stderr
    done = run_module("pipeline.lm_eval", "--run", "t", "--round", "1", cwd=project)
    assert done.returncode == 0, done.stderr
    found = json.loads(Path("runs/t/round=1/lm_eval.json").read_text())
    rows = {(row["task"], row["peer"]): row for row in found["rows"]}
    assert set(rows) == {(task, peer) for task in ("pst-sums", "everyday") for peer in ("chatty", "plain")}
    for peer in ("chatty", "plain"):
        row = rows["pst-sums", peer]
        assert row["n"] == 8 and row["ours"]["agree"] >= 15 / 16
        assert rows["everyday", peer]["n"] == 60 and 0 < rows["everyday", peer]["base"][0] < 0.6
    Path("more.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    arguments = ("--questions", "more.jsonl", "--tasks", "questions", "--peer", "plain", "--unmerged")
    done = run_module("pipeline.lm_eval", "--run", "t", "--round", "1", *arguments, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "pst-questions (exact_match)" in done.stdout
    done = run_module("pipeline.lm_eval", "--run", "t", "--round", "1", "--tasks", "no_such_task", cwd=project)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no_such_task" in done.stderr
