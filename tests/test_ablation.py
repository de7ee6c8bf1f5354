"""Arms and seeds side by side: intervals, what is shared, labels against gold."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data.errors import UserError
from evaluate.ablate import ARMS, DEFAULT_ARMS, load_arm
from evaluate.intervals import estimate
from evaluate.labels import quality
from tests.conftest import ROOT, run_module, write_jsonl


def test_one_seed_is_the_bootstrap_over_items() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(3).random((1, 80)) < 0.3
    ours = estimate([values], 4000, seed=1)
    theirs = bootstrap((values[0].astype(float),), np.mean, n_resamples=4000, method="percentile", rng=2)
    assert ours.mean == values.mean()
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_seeds_are_resampled_too() -> None:
    """Two seeds that differ in every item: a quarter of the resamples draw the first alone, a quarter the second."""
    found = estimate([np.array([[0.0] * 50, [1.0] * 50])], 2000, seed=1)
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    same = estimate([np.full((3, 5), 0.25)], 100, seed=1)
    assert (same.mean, same.low, same.high) == (0.25, 0.25, 0.25)


def test_benchmarks_count_alike_whatever_their_size() -> None:
    assert estimate([np.zeros((2, 10)), np.ones((2, 1000))], 100, seed=1).mean == 0.5
    with pytest.raises(ValueError, match="different numbers of seeds"):
        estimate([np.zeros((2, 10)), np.zeros((3, 10))], 100, seed=1)


def test_a_single_item_has_no_interval_and_decides_nothing() -> None:
    found = estimate([np.array([[1.0]])], 100, seed=1)
    assert (found.mean, found.low, found.contains_zero) == (1.0, None, True)


def test_intervals_cover() -> None:
    """Nominal 95 %, over items; with few seeds, whose own spread three draws can hardly show, less is known."""
    rng, hits, trials = np.random.default_rng(11), 0, 600
    for trial in range(trials):
        found = estimate([rng.random((1, 150)) < 0.6], 400, seed=trial)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.6 <= found.high
    assert 0.93 <= hits / trials <= 0.97


def test_all_arms_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert set(DEFAULT_ARMS.split()) <= {path.stem for path in ARMS.glob("*.toml")}
    for path in ARMS.glob("*.toml"):
        arm = load_arm(path.stem)
        assert arm.oracle == (path.stem == "oracle")
    assert load_arm("uniform").overrides == ['score.weighting="uniform"']
    own = tmp_path / "mine.toml"
    own.write_text("[train]\nlr = 1e-3\n[score]\nbeta = 2.0\n")
    assert load_arm(str(own)).overrides == ["train.lr=0.001", "score.beta=2.0"]
    with pytest.raises(UserError, match=r"no arm 'uniforn': expected one of .*uniform"):
        load_arm("uniforn")


def rows_of(right: str, pmi: list[float | None], weight: list[float | None]) -> list[dict[str, Any]]:
    """Scores, one question each."""
    return [
        {"prompt_id": str(i), "right": r == "1", "pmi_per_token": p, "weight": w, "agrees": r == "1"}
        for i, (r, p, w) in enumerate(zip(right, pmi, weight, strict=True))
    ]


def test_quality_by_hand() -> None:
    chains = [
        {"prompt_id": id_, "position": position, "is_aggregate": position == 2, "right": right, "vote_right": vote}
        for id_, position, right, vote in (
            ("a", 1, True, 1),
            ("a", 2, False, 1),
            ("b", 1, True, 0.5),
            ("b", 2, True, 0.5),
        )
    ]
    scores = rows_of("1100", [0.3, 0.1, 0.2, 0.0], [1.5, 0.5, 1.0, 1.0]) + rows_of("1", [None], [None])
    found = quality(chains, scores)
    assert found["right at position 1"] == 1.0 and found["right at position 2"] == 0.5
    assert found["right, the aggregate"] == 0.5 and found["right, a vote of the chain"] == 0.75
    assert found["examples whose aggregate is wrong"] == 0.5 and found["training weight on them"] == 0.5
    assert found["AUROC of PMI: is the aggregate right"] == 0.75  # 3 of 4 pairs in order
    assert found["AUROC of the weight: the same"] == 0.5
    assert found["correlation of PMI with agreement"] == pytest.approx(0.4472136)


@pytest.mark.slow
def test_an_ablation(project: Path) -> None:
    """Two arms and the oracle: the chains and round 0 are made once; the table compares with the first two."""
    os.symlink(ROOT / "configs", project / "configs")
    write_jsonl(project / "train.jsonl", [{**row, "answer": "1"} for row in _questions(16)])
    arguments: tuple[str, ...] = ("ablate", "--config", "tiny.toml", "--arms", "pst uniform oracle", "--run", "x")
    refused = run_module("evaluate", *arguments, cwd=project)
    assert refused.returncode == 2 and "set evaluate.label_column" in refused.stderr
    assert not (project / "runs").exists()
    arguments += ("--set", "evaluate.label_column=answer", "--set", "evaluate.label_answers=numbers")
    done = run_module("evaluate", *arguments, cwd=project)
    assert done.returncode == 0, done.stderr
    for arm in ("uniform", "oracle"):
        assert f"run x.{arm}.17" in done.stdout
    assert done.stdout.count("generate round 1: the same as in run x.pst.17, linked") == 2
    assert done.stdout.count("evaluate round 0: the same as in run x.pst.17, linked") == 2
    assert "oracle (reads gold)" in done.stdout and "EM − uniform" in done.stdout
    runs = project / "runs"
    scores = {arm: pl.read_parquet(runs / f"x.{arm}.17/round=1/scores/*.parquet") for arm in ("uniform", "oracle")}
    assert set(scores["uniform"]["weight"].drop_nulls()) == {1.0}
    assert set(scores["oracle"]["weight"].drop_nulls()) <= {0.0, 1.0}
    assert 0.0 in scores["oracle"]["weight"].to_list()
    times = {path: path.stat().st_mtime_ns for path in runs.rglob("*.parquet")}
    again = run_module("evaluate", *arguments, cwd=project)
    assert again.returncode == 0, again.stderr
    assert times == {path: path.stat().st_mtime_ns for path in runs.rglob("*.parquet")}
    assert again.stdout.splitlines()[-3:] == done.stdout.splitlines()[-3:]
    labels = run_module("evaluate", "labels", "--run", "x.oracle.17", cwd=project)
    assert labels.returncode == 0, labels.stderr
    assert "training weight on them" in labels.stdout


def _questions(count: int) -> list[dict[str, Any]]:
    from tests.conftest import questions

    rows = questions(0, count)
    random.Random(1).shuffle(rows)
    return rows
