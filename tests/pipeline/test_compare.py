"""Runs side by side: figures computed by hand, and what cannot be compared."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data import shards
from data.errors import UserError
from data.run import RUNS
from data.schema import ABLATION, EVALS, METRICS
from data.shards import Row
from evaluate.compare import app, compare, tables, text
from tests.unit.test_report import metrics

CONFIG: dict[str, Any] = {
    "prompts": {"source": "q.jsonl"}, "peers": [{"name": "p", "model": "p"}, {"name": "q", "model": "q"}],
    "benchmarks": [{"name": "b", "source": "b.jsonl"}], "evaluate": {"keep": 0.5},
}  # fmt: skip


def _eval(peer: str, item: str, sample: int, correct: bool, score: float | None) -> Row:
    nothing = dict.fromkeys(("cluster", "verifier_score_frozen", "critique", "critique_frozen", "peer_agreement"))
    return {
        **nothing, "benchmark": "b", "item_id": item, "peer": peer, "sample": sample, "question": item, "response": "r",
        "answer": "1", "gold": "1", "correct": correct, "verdict": "ok", "finish_reason": "stop", "n_tokens": 3,
        "verifier_score": score, "extract_status": "ok",
    }  # fmt: skip


def write_run(name: str, rounds: dict[int, str], items: str = "abcd", peers: str = "pq", **config: Any) -> None:
    """A run whose peers are right where a round's string has a 1, item by item; both samples of an item are right
    and wrong, and the verifier prefers the right one."""
    for n, right in rounds.items():
        folder = RUNS / name / f"round={n}"
        rows = []
        for peer in peers:
            for item, one in zip(items, right, strict=True):
                rows += [_eval(peer, item, 0, one == "1", None)]
                rows += [_eval(peer, item, 1, True, 1.0), _eval(peer, item, 2, False, -1.0)]
        path = folder / "evals" / "part-00000.parquet"
        shards.write_rows(rows, path, EVALS)
        shards.write_manifest(folder / "evals", {"format": 4}, [path])
        shards.write_rows([metrics("b", peer, 0.5, 0.5) for peer in peers], folder / "metrics.parquet", METRICS)
    shards.write_json(
        {**CONFIG, "peers": [{"name": p, "model": p} for p in peers], **config}, RUNS / name / "config.json"
    )


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without runs."""
    monkeypatch.chdir(tmp_path)


def test_figures_by_hand() -> None:
    write_run("a", {0: "1000", 1: "1100"})
    write_run("b", {0: "1000", 1: "1110", 2: "1111"}, score={"weighting": "rank"})
    found = compare(["a", "b"])
    assert [side.round for side in found.sides] == [1, 2]
    assert found.figure("a", "p", "em", None).value.mean == 0.5
    assert found.figure("b", "mean", "em", "a").value.mean == 0.5
    gap = found.figure("b", "q", "gap", "a")
    assert gap.equal and text(gap) == "+0.0 (none differs)"
    assert found.figure("a", "p", "gap", None).value.mean == 0.5
    same = compare(["a", "b"], round_=1, against="b")
    assert same.figure("a", "p", "em", "b").value.mean == -0.25
    assert text(same.figure("a", "p", "em", "b")).startswith("? -25.0 (")
    assert [(f.run, f.round) for f in found.history if (f.peer, f.metric) == ("p", "em")] == [
        ("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2),
    ]  # fmt: skip
    assert [key for key, _ in found.choices] == ["score.weighting"]
    page = Console(file=StringIO(), width=140, record=True)
    for table in tables(found):
        page.print(table)
    told = " ".join(page.export_text().split())
    assert "not corrected for 6 comparisons" in told and "a, round 1" in told and '"rank"' in told


def test_the_page_of_runs_and_of_an_ablation(capsys: pytest.CaptureFixture[str]) -> None:
    write_run("a", {0: "1000", 1: "1100"})
    write_run("<b>", {0: "1000", 1: "1111"})
    for words in (["--runs", "a <b>"], ["--runs", "x"]):
        if words[1] == "x":
            row: Row = {"reads_gold": False, "peer": "mean", "metric": "em", "mean": 0.4, "low": None, "high": None}
            arms = (("pst", None), ("own", None), ("own", "pst"))
            rows = [{**row, "seeds": [1], "arm": arm, "minus": minus} for arm, minus in arms]
            shards.write_rows([*rows, {**rows[1], "metric": "gap"}], RUNS / "x.ablation.round=1.parquet", ABLATION)
        app(words, standalone_mode=False)
    assert "page: runs/compare.html" in (said := capsys.readouterr().out)
    assert "page: runs/x.ablation.round=1.html" in said
    page = (RUNS / "compare.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;: no difference in exact match is resolved" in page or "&lt;b&gt;: exact match is" in page
    assert "<b>" not in page.partition("<script")[0]
    assert "has the highest mean exact match" in (RUNS / "x.ablation.round=1.html").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        app(["--runs", "x", "--round", "4"], standalone_mode=False)
    assert "ablation 'x' has no round 4; rounds: 1" in capsys.readouterr().err


def test_the_peers_that_all_have_are_compared() -> None:
    write_run("a", {0: "1000"})
    write_run("b", {0: "1100"}, peers="qx")
    assert compare(["a", "b"]).peers == ["q"]
    write_run("c", {0: "1100"}, peers="yz")
    with pytest.raises(UserError, match="no peer of the same name"):
        compare(["b", "c"])


def test_what_cannot_be_compared_is_one_line() -> None:
    write_run("a", {0: "1000"})
    write_run("b", {0: "1000"}, items="abcx")
    with pytest.raises(UserError, match=r"different questions of b .*4 and 4, 3 in common"):
        compare(["a", "b"])
    write_run("c", {1: "1000"})
    with pytest.raises(UserError, match="round 0 of run 'c' is not evaluated; evaluated rounds: 1"):
        compare(["a", "c"], round_=0)
    for runs, told in ((["a"], "two or more runs"), (["a", "a"], "two or more runs"), (["a", "no"], "there is no run")):
        with pytest.raises(UserError, match=told):
            compare(runs)
    with pytest.raises(UserError, match=r"--against 'x': expected one of .* a, c"):
        compare(["a", "c"], against="x")
    shards.write_json({**CONFIG, "benchmarks": []}, RUNS / "d" / "config.json")
    with pytest.raises(UserError, match="it has no benchmarks"):
        compare(["a", "d"])
