"""Whole rounds with a gate: adapters that are broken on purpose, what ends a run early, and a run without gold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data import shards
from data.run import RUNS
from data.schema import CHAINS, EVALS, GATE
from tests.conftest import ROOT, read_stage, run_module

GATED = ["prompts.limit=16", "gate.questions=8", "gate.samples=2"]
NANO = [  # peers that agree: what the tiny ones say hardly ever has the vote, so nothing could fall
    "prompts.limit=16", "gate.questions=24", "gate.samples=2", "benchmarks.0.limit=6", "benchmarks.1.limit=6",
    "generate.engine=transformers", "evaluate.samples=2", "evaluate.bootstrap=100",
]  # fmt: skip
BROKEN = ["train.lr=0.5", "train.batch_size=2", "train.max_grad_norm=100"]  # far too high: noise instead of answers


def rounds(project: Path, last: int, *overrides: str, status: int = 0, config: str = "tiny.toml") -> str:
    """What `make round` calls: all stages up to a round of run `t`; returns what it prints, errors last."""
    sets = [word for pair in overrides for word in ("--set", pair)]
    done = run_module("pipeline.round", "--run", "t", "--round", str(last), "--config", config, *sets, cwd=project)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def manifest(round_: int, folder: str) -> shards.Row:
    found = shards.read_manifest(RUNS / "t" / f"round={round_}" / folder)
    assert found is not None
    return found


def greedy(round_: int) -> list[tuple[str, str, str]]:
    rows = read_stage(RUNS / "t" / f"round={round_}" / "evals", EVALS)
    return [(row["item_id"], row["peer"], row["response"]) for row in rows if row["sample"] == 0]


@pytest.mark.slow
def test_a_broken_adapter_is_refused_and_the_next_round_starts_from_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "peers"):
        (tmp_path / name).symlink_to(ROOT / name)

    def go(last: int, *overrides: str, status: int = 0) -> str:
        return rounds(tmp_path, last, *NANO, *BROKEN, *overrides, status=status, config="configs/nano.toml")

    told = go(1)
    assert told.index("evaluate round 0") < told.index("gate round 0") < told.index("generate round 1")
    assert told.index("train round 1") < told.index("refused by the gate: ") < told.index("evaluate round 1")
    assert "gate: harm stop on 24 questions" in told and "24 more kept apart for the gate" in told
    judged = manifest(1, "gate")
    assert set(judged["accepted"].values()) == {False}, judged["decisions"]
    assert greedy(1) == greedy(0)  # of the policies in use
    answers = read_stage(RUNS / "t" / "round=1" / "gate", GATE)
    assert sum(bool(row["agrees"]) for row in answers) < 12  # of 72: it is the candidates that were asked
    trained = {row["prompt_id"] for row in read_stage(RUNS / "t" / "round=1" / "chains", CHAINS)}
    assert len(trained) == 16 and not trained & {row["prompt_id"] for row in answers}

    over = go(2, "runtime.max_hours=1e-6", status=2)
    assert "error: run 't' has taken" in over and "generate round 2 does not begin" in over
    assert "best round by the gate: 0, the untouched peers" in over and not (RUNS / "t" / "round=2" / "chains").exists()
    ended = go(2, "gate.patience=1", status=2)
    assert "error: the gate accepted no peer's adapter in round 1" in ended and "report: runs/t/report.html" in ended
    page = re.sub(r"<[^>]*>", "", (RUNS / "t" / "report.html").read_text(encoding="utf-8"))
    assert "Ship nothing new: the untouched models are best" in page and "Probabilities of one comparison on" in page
    assert "right by gold" in page and "false reject" in page  # nano has a gold_column
    assert "the gate refused llama" in page and "(untouched)" in page

    go(2)
    for folder in ("chains", "adapters"):
        assert manifest(2, folder)["fingerprint"]["policies"] == manifest(1, folder)["fingerprint"]["policies"]
    first, second = (manifest(n, "adapters")["peers"]["llama"]["losses"][0] for n in (1, 2))
    assert second < 2 * first + 1, "training goes on from the broken adapter"
    assert run_module("pipeline.status", "--run", "t", cwd=tmp_path).stdout.count("gate") == 3


@pytest.mark.slow
def test_an_accepted_adapter_is_used_as_without_a_gate(project: Path) -> None:
    told = rounds(project, 1, *GATED, "gate.level=1e-9")  # with 8 questions an interval that wide refuses nothing
    assert "refused by the gate" not in told and "accepted chatty True, plain True" in " ".join(told.split())
    gated = manifest(1, "evals")["fingerprint"]["policies"]
    assert gated != manifest(0, "evals")["fingerprint"]["policies"]
    assert rounds(project, 1, *GATED, "gate.level=1e-9").count("finished already") == 7


@pytest.mark.slow
def test_a_run_without_gold_answers(project: Path) -> None:
    """No benchmark: the round finishes, and the report has only what needs no gold answers, and says so."""
    config = (project / "tiny.toml").read_text(encoding="utf-8")
    bare = re.sub(r'\[\[benchmarks\]\]\n(\w+ = "\w+(\.jsonl)?"\n)+', "", config)
    assert "benchmarks" not in bare and "sums" not in bare
    (project / "tiny.toml").write_text(bare, encoding="utf-8")
    told = rounds(project, 1, *GATED)
    assert "evaluate round 1: there are no benchmarks, so nothing is measured by gold answers" in told
    assert not list(RUNS.glob("t/round=*/evals")) and not list(RUNS.glob("t/round=*/metrics.parquet"))
    done = run_module("evaluate.report", "--run", "t", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "there are no benchmarks; this table uses no gold answers" in done.stdout
    assert "gate, samples" in done.stdout and "best round by the gate: " in done.stdout
    assert "GV-Gap" not in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert any(line[:3] == ["1", "chain", "chatty"] and line[3] == "16" for line in lines)
    (project / "arm.toml").write_text("", encoding="utf-8")
    ablation = run_module(
        "pipeline.ablation", "--config", "tiny.toml", "--round", "1", "--arms", "arm.toml", cwd=project
    )
    assert ablation.returncode == 2 and "need a [[benchmarks]] table" in ablation.stderr
