"""Whole rounds whose questions have options, and with a custom function."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from data import shards
from data.config.sections import PeerSection, TemplateSection
from data.schema import CHAINS, EVALS, SCORES
from peers.command import StageStep, run_steps
from peers.prompts import PeerPrompts
from peers.source import load_tokenizer
from tests.conftest import questions, read_stage, run_module, run_stage, teach, write_jsonl
from tests.unit.test_kinds import OWN


def other_words(models: dict[str, Path], folder: Path, forms: dict[str, str]) -> dict[str, Path]:
    """The tiny models, taught to say the same to every question, long enough to say it in bf16 as well."""
    import torch
    from transformers import AutoModelForCausalLM

    found = {}
    for name, form in forms.items():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_pretrained(models[name])
        model.float()
        section = PeerSection(name=name, model=str(models[name]))
        prompts = PeerPrompts(load_tokenizer(models[name]), section, TemplateSection(instruction="Solve."))
        teach(model, prompts, 5, form, steps=300)
        found[name] = folder / f"{name}-words"
        model.to(torch.bfloat16).save_pretrained(found[name])
        for file in (*models[name].glob("tokenizer*"), *models[name].glob("*.jinja")):
            shutil.copy(file, found[name])
    return found


@pytest.fixture
def choices(project: Path, tiny_models: dict[str, Path]) -> Path:
    """The project with questions with options, a benchmark of them, and one with a function of the user's."""
    forms = {"chatty": "The answer is (B).", "plain": "The answer is (A)."}
    models = other_words(tiny_models, project, forms)
    rows = [
        {"question": f"{row['question']} (A) {row['answer']} (B) 0{row['answer']}0", "answer": "A"}
        for row in questions(0, 24)
    ]
    write_jsonl(project / "train.jsonl", rows[:16])
    write_jsonl(project / "test.jsonl", rows[16:])
    write_jsonl(project / "own.jsonl", [{**row, "answer": "(b)"} for row in questions(40, 4)])
    (project / "mine.py").write_text(OWN, encoding="utf-8")
    config = (project / "tiny.toml").read_text(encoding="utf-8")
    for name, path in models.items():
        config = config.replace(str(tiny_models[name]), str(path))
    config = config.replace('answers = "numbers"', 'answers = "choice"')
    config = config.replace('source = "train.jsonl"', 'source = "train.jsonl"\nanswers = "choice"')
    config += '[[benchmarks]]\nname = "own"\nsource = "own.jsonl"\nanswers = "mine:judge"\n'
    (project / "choice.toml").write_text(config, encoding="utf-8")
    return project


def run_all(steps: list[tuple[str, int]], run: str, overrides: list[str]) -> None:
    """Stages of a run under choice.toml."""
    mains = {name: importlib.import_module("train.gate" if name == "gate" else name).main for name, _ in steps}
    run_steps([StageStep(name, round_, mains[name]) for name, round_ in steps], run, Path("choice.toml"), overrides)


@pytest.mark.slow
def test_a_round_of_questions_with_options(choices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = [
        "evaluate.gold_column=answer", "gate.questions=4", "prompts.limit=12", "generate.samples=2",
        "score.label=sample-vote", "score.text=solution", "generate.max_new_tokens=12",
    ]  # fmt: skip
    steps = [("evaluate", 0), ("gate", 0), ("generate", 1), ("score", 1), ("train", 1), ("gate", 1), ("evaluate", 1)]
    run_all(steps, "t", few)
    folder = Path("runs/t/round=1")
    chains = read_stage(folder / "chains", CHAINS)
    stated = {row["answer"] for row in chains if row["answer"] is not None}
    assert stated == {"A", "B"}
    for row in read_stage(folder / "scores", SCORES):
        assert row["label"] in (None, "A", "B") and (row["label"] is None or row["answer_entropy"] >= 0)
    evals = read_stage(folder / "evals", EVALS)
    for row in evals:
        if row["benchmark"] == "sums" and row["verdict"] in ("correct", "wrong"):
            assert row["correct"] == (row["answer"] == "A") and row["gold"] == "A"
        if row["benchmark"] == "own" and row["verdict"] in ("correct", "wrong"):
            assert row["correct"] == (str(row["answer"]).lower() == "(b)")
    assert {row["verdict"] for row in evals if row["benchmark"] == "own"} >= {"correct", "wrong"}
    manifest = shards.read_manifest(folder / "evals")
    assert manifest is not None and manifest["fingerprint"]["answers"]["mine:judge"]["sha256"]
    told = run_module("pipeline.labels", "--run", "t", cwd=choices)
    assert told.returncode == 0 and "right, the label" in told.stdout
    assert run_module("pipeline.show", "t", "--worst", "1", cwd=choices).returncode == 0
    assert run_module("evaluate.report", "--run", "t", cwd=choices).returncode == 0

    (choices / "mine.py").write_text(OWN + "\n", encoding="utf-8")  # what was graded by the file is stale
    capsys.readouterr()
    for round_ in (0, 1):
        with pytest.raises(SystemExit):
            run_stage("evaluate", "t", round_, Path("choice.toml"), few)
        assert "a function that compares answers has changed since round 0" in capsys.readouterr().err
    run_stage("generate", "t", 1, Path("choice.toml"), few)  # which that file has no part in


@pytest.mark.slow
def test_a_round_under_a_function_of_ones_own(choices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (choices / "mine.py").write_text(
        OWN + "def extract(response, question):\n    return response[-3:-2].lower() or None\n", encoding="utf-8"
    )
    own_ = ["prompts.answers=mine:judge", "generate.aggregate=vote", "score.pmi_target=answer"]
    own_ += ["generate.max_new_tokens=12", "gate.questions=4", "prompts.limit=8"]
    run_all([("gate", 0), ("generate", 1), ("score", 1)], "o", own_)
    chains = read_stage(Path("runs/o/round=1/chains"), CHAINS)
    assert {"a", "b"} <= {row["answer"] for row in chains}
    assert any(row["pmi"] is not None for row in read_stage(Path("runs/o/round=1/scores"), SCORES))
    (choices / "mine.py").write_text("def judge(text):\n    return True\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        run_stage("train", "o", 1, Path("choice.toml"), own_)
    assert "error: answers = 'mine:judge': judge(text) cannot be called as judge(text, gold)" in capsys.readouterr().err
