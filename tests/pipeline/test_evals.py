"""What the evaluate stage stores about grading, from handwritten responses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

import evaluate.stage
import evaluate.verifier
import peers.policy_cache
from data import shards
from data.hashing import draw_key, request_seed
from data.run import open_run
from data.schema import EVALS, METRICS
from evaluate.report import write_report
from peers.engines.protocol import Completion
from tests.conftest import read_stage, write_jsonl
from tests.fake_engine import Inline

# response, extract_status, verdict; every answer is 1/2
RESPONSES = [
    (r"so \boxed{\frac12}", "boxed", "correct"),
    ("2/4 = 1/2\n#### 0.50", "hashes", "correct"),
    ("The answer is 1/3.", "phrase", "wrong"),
    ("we get 1/2", "last_number", "correct"),
    ("no idea", "none", "no_answer"),
    (r"\boxed{9^{9^{9^{9}}}+x}", "boxed", "timeout"),
]


def test_verdicts_are_stored_and_summed_up(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": f"Number {i}: what is a half?", "answer": r"\frac{1}{2}"} for i in range(len(RESPONSES))]
    write_jsonl(project / "test.jsonl", rows)
    config = project / "tiny.toml"
    config.write_text(config.read_text(encoding="utf-8").replace('"numbers"', '"math"'), encoding="utf-8")
    texts = cycle(response for response, *_ in RESPONSES)
    seeds: list[int] = []

    def complete(_: Any, prompts: Sequence[Any], asked: list[int], *arguments: Any) -> list[Completion]:
        seeds.extend(asked)
        return [Completion([1], next(texts), -0.5, "stop") for _ in prompts]

    monkeypatch.setattr(evaluate.stage, "complete", complete)
    monkeypatch.setattr(peers.policy_cache, "language_model", lambda *_: None)
    monkeypatch.setattr(evaluate.verifier, "logit_scores", lambda lm, prompts, asked, *_: [0.0] * len(asked))
    with open_run("g", config, ["evaluate.answer_timeout_seconds=1"]) as run:
        evaluate.stage.main(run, 0, Inline(run))
        evals = read_stage(run.stage_dir(0, "evals"), EVALS)
        metrics = shards.read_rows(run.round_dir(0) / "metrics.parquet", METRICS)
    greedy = [row for row in evals if row["sample"] == 0 and row["peer"] == run.config.peer_names[0]]
    stored = [(row["response"], row["extract_status"], row["verdict"]) for row in greedy]
    assert stored == RESPONSES
    drawn = [(row["peer"], draw_key(row["question"]), row["sample"]) for row in evals]
    assert sorted(seeds) == sorted(request_seed(17, 0, *key) for key in drawn)
    for row in metrics:
        assert (row["em"], row["no_answer_rate"]) == pytest.approx((3 / 6, 1 / 6))
    assert len(write_report("g")) == 1
