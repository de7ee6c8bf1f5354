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
from evaluate.report import metrics_table


def metrics(benchmark: str, peer: str, em: float, auroc: float | None) -> Row:
    """One row of metrics."""
    shares = dict.fromkeys(("em_lo", "em_hi", "gv_gap_lo", "gv_gap_hi", "gv_gap_rel", "no_answer_rate"), 0.0)
    shares |= dict.fromkeys(("truncated_rate", "verifier_accuracy", "abs_v_minus_g", "mean_tokens"), 0.0)
    shares |= dict.fromkeys(("gv_gap_70", "gv_gap_global", "verifier_undecided"), 0.0)
    return {
        **shares, "benchmark": benchmark, "peer": peer, "n": 10, "k": 2, "n_gap_rel": 10, "n_none_kept": 0, "em": em,
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
