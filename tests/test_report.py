"""The table of a run: its rows, and the mean over benchmarks and peers."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from data import shards
from data.run import RUNS
from data.schema import METRICS
from data.shards import Row
from evaluate.report import metrics_table, write_report


def metrics(benchmark: str, peer: str, em: float, auroc: float | None) -> Row:
    """One row of metrics."""
    shares = dict.fromkeys(("em_lo", "em_hi", "gv_gap_lo", "gv_gap_hi", "gv_gap_rel", "no_answer_rate"), 0.0)
    shares |= dict.fromkeys(("truncated_rate", "verifier_accuracy", "abs_v_minus_g", "mean_tokens"), 0.0)
    shares |= dict.fromkeys(("unanswered_rate", "distinct_answers", "answer_entropy", "peer_agreement"), 0.0)
    shares |= {"em_strict": em - 0.1, "em_stated": em - 0.05, "grader_disagreement": 0.15}
    return {
        **shares, "benchmark": benchmark, "peer": peer, "n": 10, "k": 2, "n_gap_rel": 10, "em": em,
        "sample_accuracy": em, "gv_gap": em / 10, "gv_gap_frozen": em / 20, "verifier_auroc": auroc, "pass_at_k": em,
        "maj_at_k": em,
    }  # fmt: skip


@pytest.mark.parametrize("benchmarks", [("a",), ("a", "b")])
def test_the_mean_counts_every_benchmark_and_peer_once(
    benchmarks: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {
        "prompts": {"source": "q.jsonl"}, "peers": [{"name": "p", "model": "p"}, {"name": "q", "model": "q"}],
        "benchmarks": [{"name": name, "source": "b.jsonl"} for name in benchmarks],
    }  # fmt: skip
    for round_, better in ((0, 0.0), (1, 0.25)):
        rows = [metrics("a", "p", 0.25 + better, 0.5), metrics("b", "p", 0.75 + better, 0.7)]
        rows += [metrics("a", "q", 0.5 + better, None), metrics("b", "q", 0.5 + better, 0.6)]
        shards.write_rows(
            [row for row in rows if row["benchmark"] in benchmarks],
            RUNS / "r" / f"round={round_}" / "metrics.parquet", METRICS,
        )  # fmt: skip
    shards.write_json(config, RUNS / "r" / "config.json")
    page = Console(file=StringIO(), width=160, record=True)
    page.print(metrics_table("r", [0, 1]))
    lines = [line.split() for line in page.export_text().splitlines()]
    shown = [tuple(line[:3]) for line in lines if line[:1] in (["a"], ["b"])]
    assert shown == [(name, peer, "0") for name in benchmarks for peer in ("p", "q")]  # each benchmark's peers together
    means = [line for line in lines if line[:1] == ["mean"]]
    if len(benchmarks) == 1:
        assert means == [["mean", "0", "37.5", "37.5", "3.8", "1.9", "50.0", "37.5", "37.5"]]
        assert lines[lines.index(means[0]) + 1] == ["1", "62.5", "62.5", "6.2", "3.1", "50.0", "62.5", "62.5"]
    else:
        assert means == [["mean", "0", "50.0", "50.0", "5.0", "2.5", "60.0", "50.0", "50.0"]]
        assert lines[lines.index(means[0]) + 1] == ["1", "75.0", "75.0", "7.5", "3.8", "60.0", "75.0", "75.0"]


def test_grading_has_a_table_where_answers_are_mathematics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, kinds in (("both", ("math", "numbers")), ("numbers", ("numbers", "numbers"))):
        config = {
            "prompts": {"source": "q.jsonl"}, "peers": [{"name": peer, "model": peer} for peer in "pq"],
            "benchmarks": [{"name": b, "source": "b.jsonl", "answers": k} for b, k in zip("ab", kinds, strict=True)],
        }  # fmt: skip
        for round_, em in ((0, 0.25), (1, 0.5)):
            rows = [{**metrics(b, "p", em, None), "truncated_rate": 0.03} for b in "ab"]
            shards.write_rows(rows, RUNS / name / f"round={round_}" / "metrics.parquet", METRICS)
        shards.write_json(config, RUNS / name / "config.json")
        page = Console(file=StringIO(), width=160, record=True)
        for table in write_report(name):
            page.print(table)
        _, _, grading = page.export_text().partition("grading in round 1")  # the last round
        lines = [line.split() for line in grading.splitlines() if line.split()[:2] == ["a", "p"]]
        assert lines == ([["a", "p", "50.0", "45.0", "40.0", "15.0", "0.0", "3.0"]] if name == "both" else [])
        assert not [line for line in grading.splitlines() if line.split()[:1] == ["b"]]
        assert ("grading in round 1" in (RUNS / name / "report.html").read_text("utf-8")) == (name == "both")
