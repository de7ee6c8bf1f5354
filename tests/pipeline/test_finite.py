"""A number that is not finite drops its row, is counted, and enters no statistic."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.table import Table

import evaluate.stage
import evaluate.verifier
import generate.stage
import peers.logprob.scoring
import score.stage
from data import shards
from data.answers.grader import Grader
from data.config.sections import ScoreSection
from data.errors import UserError
from data.run import open_run
from data.schema import CHAINS, EVALS, METRICS, SCORES
from evaluate.clustered import Bootstrap
from evaluate.gap import auroc, bootstrap_interval, filtered_accuracy, global_gaps, question_gap
from evaluate.intervals import estimate
from evaluate.report import write_report
from generate.aggregate import vote
from peers.engines.protocol import Completion
from peers.engines.transformers import TransformersEngine
from score.pmi import Measured, combine
from score.weights import weights
from tests.conftest import read_stage
from tests.fake_engine import Inline
from tests.pipeline.test_evals import RESPONSES
from tests.pipeline.test_streaming import with_fakes
from train.loss import weighted_nll

RIGHT = [True, False, True, False]
Statistic = Callable[[list[float]], object]
STATISTICS: dict[str, Statistic] = {
    "weights": lambda x: weights(x, [1, 0, 1, 0], [0.1] * 4, ScoreSection(), 1),
    "rank": lambda x: weights(x, [1, 0, 1, 0], [0.1] * 4, ScoreSection(weighting="rank"), 1),
    "entropies": lambda x: weights([0.1] * 4, [1, 0, 1, 0], x, ScoreSection(weighting="entropy"), 1),
    "pmi": lambda x: combine([Measured(each, -2.0, 3) for each in x]),
    "pmi alone": lambda x: combine([Measured(-2.0, each, 3) for each in x]),
    "gap": lambda x: question_gap(RIGHT, x, 0.5),
    "global gap": lambda x: global_gaps([(RIGHT, x)], 0.5),
    "auroc": lambda x: auroc(RIGHT, x),
    "bootstrap": lambda x: bootstrap_interval([x], 100, 1),
    "estimate": lambda x: estimate([[x, x]], 100, 1),
    "share": lambda x: Bootstrap(100, 1).share(list("abcd"), x),
    "weighted share": lambda x: Bootstrap(100, 1).share(list("abcd"), [1.0] * 4, x),
    "clustered auroc": lambda x: Bootstrap(100, 1).auroc(list("abcd"), RIGHT, x),
    "loss": lambda x: weighted_nll([torch.tensor([-1.0])] * 4, x, 4),
    "vote": lambda x: vote(["1", "2", "3", "4"], x, "numbers", Grader(5, 1)),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", STATISTICS)
def test_no_statistic_over_what_is_no_number(name: str, value: float) -> None:
    assert STATISTICS[name]([0.1, 0.4, -0.2, 0.0]) is not None
    with pytest.raises(ValueError, match=f"number . is {value}"):
        STATISTICS[name]([0.1, value, -0.2, 0.0])


def test_no_file_holds_what_is_no_number(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("x", pa.float64())])
    path = tmp_path / "part-00000.parquet"
    shards.write_rows([{"x": 1.0}, {"x": None}], path, schema)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="column x has a number that is not finite"):
            shards.write_rows([{"x": 1.0}, {"x": value}], path, schema)
        with pytest.raises(ValueError, match="not JSON compliant"):
            shards.write_json({"x": [value]}, tmp_path / "x.json")
    assert shards.read_rows(path, schema) == [{"x": 1.0}, {"x": None}]
    pq.write_table(pa.table({"x": [math.nan]}, schema=schema), path)  # as earlier versions did
    with pytest.raises(UserError, match=rf"column x of shard {path} .* delete {tmp_path} and run its stage again"):
        shards.read_rows(path, schema)


def test_a_column_that_may_have_nulls_takes_a_file_that_has_none(tmp_path: Path) -> None:
    had, has = (pa.schema([pa.field("x", pa.float64(), nullable=nullable)]) for nullable in (False, True))
    shards.write_rows([{"x": 1.0}], tmp_path / "a.parquet", had)
    shards.write_rows([{"x": None}], tmp_path / "b.parquet", has)
    assert shards.read_rows(tmp_path / "a.parquet", has) == [{"x": 1.0}]
    with pytest.raises(UserError, match="another version"):
        shards.read_rows(tmp_path / "b.parquet", had)


def test_a_small_share_is_kept_all_the_same() -> None:
    assert filtered_accuracy([True, False], [2.0, 1.0], 1e-12) == pytest.approx(1.0)


def test_an_unknown_log_probability_wins_no_tie() -> None:
    with Grader(5, 1) as grader:
        assert vote(["1", "2", "3"], [None, -9.0, -8.0], "numbers", grader) == 2
        assert vote(["1", "2"], [None, None], "numbers", grader) == 0


def test_a_score_that_is_not_finite_costs_its_row(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_fakes(monkeypatch)
    finite = peers.logprob.scoring.score_pairs

    def spoilt(lm: Any, pairs: Any, *rest: Any) -> list[list[float]]:
        found = finite(lm, pairs, *rest)
        return [[math.nan, *each[1:]] if number == 0 else each for number, each in enumerate(found)]

    monkeypatch.setattr("peers.logprob.scoring.score_pairs", spoilt)
    with open_run("f", Path("tiny.toml"), ["generate.max_new_tokens=64"]) as run:
        generate.stage.main(run, 1, Inline(run))
        score.stage.main(run, 1, Inline(run))
        rows = read_stage(run.stage_dir(1, "scores"), SCORES)
        manifest = shards.read_manifest(run.stage_dir(1, "scores"))
    lost = [row for row in rows if row["drop_reason"] == "score_not_finite"]
    assert lost and {(row["pmi"], row["pmi_per_token"], row["weight"]) for row in lost} == {(None, None, None)}
    assert manifest is not None and manifest["dropped"]["score_not_finite"] == len(lost)
    assert f"score_not_finite {len(lost)}" in capsys.readouterr().out
    for peer in ("chatty", "plain"):
        kept = [row["weight"] for row in rows if row["peer"] == peer and row["pmi"] is not None]
        assert kept and math.fsum(kept) / len(kept) == pytest.approx(1)


def test_a_log_probability_that_is_not_finite_is_null_and_counted(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("peers.policy_cache.engine", lambda *_: None)

    calls: list[int] = []

    def complete(_: Any, prompts: Any, *rest: Any) -> list[Completion]:
        calls.append(len(prompts))
        first = len(calls) <= 6  # of position 1, in three shards
        found = [-math.inf if n == 0 and first else -0.5 for n in range(len(prompts))]
        return [Completion([5], "The answer is 1.", logprob, "stop") for logprob in found]

    monkeypatch.setattr(generate.stage, "complete", complete)
    with open_run("f", Path("tiny.toml"), ["generate.aggregate=vote"]) as run:
        generate.stage.main(run, 1, Inline(run))
        rows = read_stage(run.stage_dir(1, "chains"), CHAINS)
    unknown = [row for row in rows if row["logprob"] is None]
    assert len(unknown) == 6 and not any(row["is_aggregate"] for row in unknown)
    assert f"logprob not finite {len(unknown)}" in capsys.readouterr().out


def test_a_verifier_score_that_is_not_finite_is_in_no_gap(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [text for text, *_ in RESPONSES[:4]]

    def complete(_: Any, prompts: Any, *rest: Any) -> list[Completion]:
        return [Completion([1], texts[n % 4], -0.5, "stop") for n in range(len(prompts))]

    def logit_scores(lm: Any, prompts: Any, asked: list[Any], *rest: Any) -> list[float]:
        broken = prompts.peer.name == "plain"
        return [math.nan if broken or n == 0 else float(n) for n in range(len(asked))]

    monkeypatch.setattr(evaluate.stage, "complete", complete)
    monkeypatch.setattr("peers.policy_cache.language_model", lambda *_: None)
    monkeypatch.setattr(evaluate.verifier, "logit_scores", logit_scores)
    with open_run("f", Path("tiny.toml"), ["evaluate.cross_verify=true"]) as run:
        evaluate.stage.main(run, 0, Inline(run))
        rows = read_stage(run.stage_dir(0, "evals"), EVALS)
        chatty, plain = shards.read_rows(run.round_dir(0) / "metrics.parquet", METRICS)
        manifest = shards.read_manifest(run.stage_dir(0, "evals"))
    out = capsys.readouterr().out
    unscored = {
        peer: sum(row["sample"] > 0 and row["peer"] == peer and row["verifier_score"] is None for row in rows)
        for peer in ("chatty", "plain")
    }
    assert 0 < unscored["chatty"] < unscored["plain"] == 16
    assert chatty["gv_gap"] is not None and (plain["gv_gap"], plain["verifier_auroc"]) == (None, None)
    assert plain["verifier_accuracy"] is None and plain["pass_at_k"] is not None
    assert manifest is not None
    counts = manifest["scores_not_finite"]
    assert (counts["chatty on sums"], counts["plain on sums"]) == (unscored["chatty"], 16)
    assert counts["chatty on sums, verifier plain"] == 16
    assert f"chatty on sums {unscored['chatty']}" in out and "left out of gaps and AUROC" in out
    table = write_report("f")[0]
    assert isinstance(table, Table)
    cells = zip(*(column.cells for column in table.columns), strict=True)
    (row,) = (list(row) for row in cells if row[:3] == ("sums", "plain", "0"))
    assert row[-6:-2] == ["0.0", "–", "–", "–"]  # samples, gap, frozen, AUROC
    page = Path("runs/f/report.html").read_text(encoding="utf-8")
    assert "samples without a finite verifier score" in page and "Some GV-Gaps on sums are missing" in page


def test_drawing_from_what_is_no_distribution_is_refused() -> None:
    engine = object.__new__(TransformersEngine)
    engine.prompts = type("Prompts", (), {"peer": type("Peer", (), {"name": "p"})})()
    with pytest.raises(UserError, match="peer p: its logits are not finite"), engine._finite():
        torch.multinomial(torch.tensor([math.nan, 1.0]), 1)
    with pytest.raises(RuntimeError, match="another"), engine._finite():
        raise RuntimeError("another")
