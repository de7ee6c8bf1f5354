"""The guard against collapse: what counts as a sign, and a run that does collapse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data import shards
from data.config.load import load_config
from data.config.sections import GuardSection
from data.errors import UserError
from data.guard import Collapse, before_round, write_decision
from data.run import Run, metrics_path
from evaluate.guard import signs
from tests.conftest import ROOT, run_module, stage

BASE = {
    "em": 0.4, "sample_accuracy": 0.4, "distinct_answers": 0.8, "answer_entropy": 1.0, "peer_agreement": 0.4,
    "pass_at_k": 0.6, "unanswered_rate": 0.1,
}  # fmt: skip


def seen(**after: float) -> list[str]:
    """Signs under the default thresholds."""
    return signs(BASE, BASE | after, GuardSection())


def test_what_counts_as_a_sign() -> None:
    assert seen() == []
    assert seen(distinct_answers=0.41) == [] and seen(unanswered_rate=0.34) == []
    assert seen(distinct_answers=0.2) == ["different questions get the same answers: distinct 80.0 → 20.0 %"]
    assert seen(unanswered_rate=0.5) == ["responses without an answer 10.0 → 50.0 %"]
    assert seen(sample_accuracy=0.21) == [] and seen(sample_accuracy=0.1) == ["right samples 40.0 → 10.0 %"]
    narrow = {"answer_entropy": 0.3, "peer_agreement": 0.7, "pass_at_k": 0.5}
    assert seen(**narrow) == [
        "samples agree more, fewer questions have a right one: entropy 1.00 → 0.30 nats, agreement of the peers 40.0 → "
        "70.0 %, pass@k 60.0 → 50.0 %"
    ]


def test_few_answers_are_no_sign_where_more_of_them_are_right() -> None:
    assert seen(distinct_answers=0.03, em=0.9, sample_accuracy=0.9) == []


@pytest.mark.parametrize("healthy", [{"pass_at_k": 0.59}, {"peer_agreement": 0.42}, {"answer_entropy": 0.6}])
def test_a_model_that_got_better_is_narrow_too(healthy: dict[str, float]) -> None:
    assert seen(**{"answer_entropy": 0.3, "peer_agreement": 0.7, "pass_at_k": 0.5} | healthy) == []


def test_thresholds_are_the_configs() -> None:
    after: dict[str, Any] = BASE | {"distinct_answers": 0.7, "unanswered_rate": 0.15}
    assert len(signs(BASE, after, GuardSection(diversity_fall=0.1, silence_rise=0.04))) == 2
    assert signs(BASE, after, GuardSection(diversity_fall=0.2, silence_rise=0.1)) == []


def test_a_round_begins_after_one_that_was_judged_as_the_config_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*overrides: str) -> Run:
        return Run("t", load_config(ROOT / "configs" / "nano.toml", list(overrides)))

    monkeypatch.chdir(tmp_path)
    strict = run("guard.action=stop")
    before_round(strict, 1)  # nothing was trained before it
    with pytest.raises(UserError, match="round 0 of run 't' is not evaluated"):
        before_round(strict, 2)
    for round_ in (0, 1):
        shards.write_json({}, metrics_path("t", round_))
    write_decision(strict, 1, [])
    before_round(strict, 2)
    metrics_path("t", 0).unlink()
    with pytest.raises(UserError, match="round 0 of run 't' is not evaluated"):  # against what was it judged?
        before_round(strict, 2)
    shards.write_json({}, metrics_path("t", 0))
    other = run("guard.action=stop", "guard.silence_rise=0.5")
    with pytest.raises(UserError, match="round 1 of run 't' was judged under other thresholds"):
        before_round(other, 2)
    write_decision(other, 1, ["a on sums: no answers"])
    with pytest.raises(Collapse, match="a on sums: no answers"):
        before_round(other, 2)
    before_round(run("guard.silence_rise=0.5"), 2)  # it only warns


@pytest.mark.slow
def test_a_run_that_collapses_is_stopped(project: Path) -> None:
    far_too_high = ("--set", "train.lr=0.5", "--set", "train.batch_size=2", "--set", "train.max_grad_norm=100")
    done = run_module(
        "pipeline.round", "--run", "t", "--round", "1", "--config", "tiny.toml", *far_too_high, cwd=project
    )
    assert done.returncode == 0, done.stderr
    warning = done.stdout.index("collapse?")
    assert warning > done.stdout.index("evaluate round 1") and "→" in done.stdout[warning:]
    stopped = run_module("pipeline.round", "--run", "t", "--round", "2", "--set", "guard.action=stop", cwd=project)
    assert stopped.returncode == 2
    assert "round 1 of run 't' looks like collapse, so round 2 is not trained: " in stopped.stderr
    assert "→" in stopped.stderr and "--set guard.action=warn" in stopped.stderr
    assert "collapse? round 1: " in stopped.stdout and "change since round 0" in stopped.stdout
    assert "Collapse?" in (project / "runs" / "t" / "report.html").read_text(encoding="utf-8")
    assert not list((project / "runs" / "t" / "round=2").glob("adapters*"))
    again = stage("generate", 2, project, *far_too_high, "--set", "guard.action=warn")
    assert again.returncode == 0, again.stderr
    finished = stage("generate", 2, project, *far_too_high, "--set", "guard.action=stop")
    assert finished.returncode == 0 and "finished already" in finished.stdout
    (project / "runs" / "t" / "round=1" / "metrics.parquet").unlink()
    blind = stage("train", 2, project, *far_too_high, "--set", "guard.action=stop")
    assert blind.returncode == 2 and "round 1 of run 't' is not evaluated" in blind.stderr
