"""The table of a run: its rows, and the mean over benchmarks and peers."""

from __future__ import annotations

import random
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from data import shards
from data.config.load import parse_config
from data.config.sections import EvaluateSection
from data.errors import UserError
from data.guard import Collapse, before_round
from data.run import RUNS, Run
from data.schema import CROSS, EVALS, METRICS
from data.shards import Row
from evaluate import tables
from evaluate.changes import round_changes
from evaluate.guard import decide
from evaluate.metrics import metrics_row
from evaluate.report import show, write_report
from evaluate.tables import choices_table, cross_table, gap_table, metrics_table, training_table


def metrics(benchmark: str, peer: str, em: float, auroc: float | None) -> Row:
    """One row of metrics."""
    shares = dict.fromkeys(("em_lo", "em_hi", "gv_gap_lo", "gv_gap_hi", "gv_gap_rel", "no_answer_rate"), 0.0)
    shares |= dict.fromkeys(("truncated_rate", "verifier_accuracy", "abs_v_minus_g", "mean_tokens"), 0.0)
    shares |= dict.fromkeys(("unanswered_rate", "distinct_answers", "answer_entropy", "peer_agreement"), 0.0)
    shares |= dict.fromkeys(("gv_gap_70", "gv_gap_global", "verifier_undecided", "verifier_undecided_frozen"), 0.0)
    return {
        **shares, "benchmark": benchmark, "peer": peer, "n": 10, "k": 2, "n_gap_rel": 10, "n_none_kept": 0, "em": em,
        "sample_accuracy": em, "gv_gap": em / 10, "gv_gap_frozen": em / 20, "verifier_auroc": auroc, "pass_at_k": em,
        "maj_at_k": em,
    }  # fmt: skip


def change_table(run: str, rounds: list[int]) -> Table | None:
    """The metrics and their changes."""
    return tables.change_table(run, round_changes(run, rounds))


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


def test_a_verifier_that_decided_nothing_has_no_gap_and_is_in_no_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it decided nothing there is no gap, and no mean counts one."""
    monkeypatch.chdir(tmp_path)
    config: Row = {
        "prompts": {"source": "q.jsonl"}, "peers": [{"name": peer, "model": peer} for peer in "pq"],
        "benchmarks": [{"name": "a", "source": "b.jsonl"}],
    }  # fmt: skip
    rows = [metrics("a", "p", 0.5, 0.5) | {"verifier_undecided": 1.0, "verifier_undecided_frozen": 0.5}]
    rows += [metrics("a", "q", 0.5, 0.6) | {"verifier_undecided": 0.25, "verifier_undecided_frozen": 1.0}]
    cross = [
        {"benchmark": "a", "peer": peer, "verifier": verifier, **dict.fromkeys(CROSS.names[3:], 0.0)}
        | {"verifier_undecided": float(verifier == "p")}
        for peer in "pq"
        for verifier in "pq"
    ]
    for name in ("cot", "logit"):
        shards.write_rows(rows, RUNS / name / "round=0" / "metrics.parquet", METRICS)
        shards.write_rows(cross, RUNS / name / "round=0" / "cross.parquet", CROSS)
        shards.write_json({**config, "evaluate": {"verifier": name}}, RUNS / name / "config.json")
    p, q, mean = (line for line in lines_of(metrics_table("cot", [0])) if line[:1] in (["a"], ["mean"]))
    gap = "5.0 (0.0 to 0.0)"
    assert p == ["a", "p", "0", "50.0 (0.0 to 0.0)", "50.0", "–", "2.5", "–", "100.0", "50.0", "50.0"]
    assert q == ["a", "q", "0", "50.0 (0.0 to 0.0)", "50.0", gap, "–", "60.0", "25.0", "50.0", "50.0"]
    assert mean == ["mean", "0", "50.0", "50.0", "5.0", "2.5", "60.0", "62.5", "50.0", "50.0"]
    assert ["a", "0", "p", "–; 100.0", "0.0 (0.0 to 0.0); 0.0"] in lines_of(cross_table("cot", [0]))
    assert not [line for line in lines_of(metrics_table("logit", [0])) if "undecided" in line]
    assert ["a", "0", "p", "–", "0.0 (0.0 to 0.0)"] in lines_of(cross_table("logit", [0]))


def test_every_threshold_of_the_gap_has_its_column(run: str) -> None:
    """Every threshold has its column; in report.html alone."""
    full = {"gv_gap_70": 0.11, "gv_gap_global": 0.12, "gv_gap_rel": None, "verifier_accuracy": 0.13, "n_none_kept": 3}
    rows = [metrics("b", "p", 0.5, 0.5) | full, metrics("a", "p", 0.5, 0.5) | full | {"verifier_undecided": 1.0}]
    shards.write_rows(rows, RUNS / run / "round=0" / "metrics.parquet", METRICS)
    table = gap_table(run, [0])
    assert [column.header for column in table.columns][3:5] == ["top 50 %", "frozen verifier"]
    undecided, found = zip(*(column.cells for column in table.columns), strict=True)
    assert found == ("b", "p", "0", "5.0 (0.0 to 0.0)", "2.5", "11.0", "12.0", "–", "13.0", "3")
    assert undecided == ("a", "p", "0", "–", "2.5", "–", "–", "–", "–", "3")
    assert len(write_report(run)) == 1
    assert "GV-Gap in full" in (RUNS / run / "report.html").read_text("utf-8")


def test_the_report_names_each_peers_wording() -> None:
    """In report.html, beside the choices that the numbers depend on."""
    peers: list[Row] = [{"name": name, "model": name} for name in "pq"]
    peers[1]["wording"] = "short"
    raw: Row = {"prompts": {"source": "q"}, "benchmarks": [{"name": "a", "source": "b"}], "wordings": {"short": {}}}
    keys, values = (list(column.cells) for column in choices_table(parse_config({**raw, "peers": peers}, "x")).columns)
    named = {key: value for key, value in zip(keys, values, strict=True) if str(key).startswith("wording of ")}
    assert named == {"wording of p": r"\[templates]", "wording of q": "short"}


def test_merge_fidelity_has_a_column_where_it_was_measured(run: str) -> None:
    plain = {"examples": 9, "loss": "2.000 → 1.000"}
    folders = [RUNS / run / f"round={n}" / "adapters" for n in (1, 2)]
    shards.write_manifest(folders[0], {"peers": {"p": plain, "q": plain}}, [])
    columns = [column.header for column in training_table(run, [0, 1]).columns]
    assert columns == ["round", "peer", "examples", "loss"]
    measured = {"p": {**plain, "merge_fidelity": {"fidelity": 0.991}}, "q": {**plain, "examples": 0}}
    shards.write_manifest(folders[1], {"peers": measured}, [])
    table = training_table(run, [0, 1, 2])
    assert table.columns[-1].header == "merge fidelity (%)" and list(table.columns[-1].cells) == ["–", "–", "99.1", "–"]
    assert list(table.columns[2].cells) == ["9", "9", "9", "0"]


def test_the_guards_warnings_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the tables, of all rounds; and a run that the guard ends has its report."""
    monkeypatch.chdir(tmp_path)
    config: Row = {
        "prompts": {"source": "q.jsonl"}, "peers": [{"name": peer, "model": peer} for peer in "pq"],
        "benchmarks": [{"name": "a", "source": "b.jsonl", "answers": "numbers"}],
    }  # fmt: skip
    for name, action in (("r", "warn"), ("silent", "ignore")):
        for round_, em in enumerate((0.8, 0.2, 0.8, 0.1)):
            write_rows(name, round_, em)
        shards.write_json({**config, "guard": {"action": action}}, RUNS / name / "config.json")
    expected = [f"collapse? round {n}: p on a: right samples 80.0 → {now} %" for n, now in ((1, "20.0"), (3, "10.0"))]
    show("r")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[-3:-1] == expected and lines[-1].startswith("report: ")
    page = RUNS / "r" / "report.html"
    assert page.read_text("utf-8").count("Collapse?") == 2
    show("silent")
    assert "collapse?" not in capsys.readouterr().out
    page.unlink()
    stopping = Run("r", parse_config({**config, "guard": {"action": "stop"}}, "config"))
    with pytest.raises(UserError, match="round 2 of run 'r' is not evaluated"):
        before_round(stopping, 3)  # nothing was decided
    assert decide(stopping, 2) == []
    before_round(stopping, 3)
    assert len(decide(stopping, 3)) == 1
    with pytest.raises(Collapse, match="round 3 of run 'r' looks like collapse"):
        before_round(stopping, 4)
    patient = Run("r", parse_config({**config, "guard": {"action": "stop", "accuracy_fall": 0.9}}, "config"))
    with pytest.raises(UserError, match="round 3 of run 'r' was judged under other thresholds than the current ones"):
        before_round(patient, 4)
    assert decide(patient, 3) == []
    before_round(patient, 4)
    write_rows("r", 0, 0.9)  # as if round 0 had been evaluated anew
    with pytest.raises(UserError, match="round 3 of run 'r' was judged under other metrics than the current ones"):
        before_round(patient, 4)
    # the report of a run that a call ended tells why, whatever the frozen config says
    assert "collapse?" not in str(write_report("silent")[-1])
    assert "collapse? round 3" in str(write_report("silent", stopping.config.guard)[-1]).replace("[bold]", "").replace(
        "[/bold]", ""
    )


def test_without_a_baseline_nothing_is_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round that could not be compared with round 0 must not pass for one that is well."""
    monkeypatch.chdir(tmp_path)
    config: Row = {
        "prompts": {"source": "q.jsonl"}, "peers": [{"name": peer, "model": peer} for peer in "pq"],
        "benchmarks": [{"name": "a", "source": "b.jsonl", "answers": "numbers"}], "guard": {"action": "stop"},
    }  # fmt: skip
    run = Run("r", parse_config(config, "config"))
    write_rows("r", 1, 0.1)
    assert decide(run, 1) == []
    write_rows("r", 0, 0.8)
    with pytest.raises(UserError, match="round 1 of run 'r' is not evaluated"):
        before_round(run, 2)
    assert len(decide(run, 1)) == 1
    with pytest.raises(Collapse):
        before_round(run, 2)


def write_rows(run: str, round_: int, em: float) -> None:
    """Metrics of a round in which peer p has this accuracy."""
    rows = [metrics("a", "p", em, 0.5), metrics("a", "q", 0.5, 0.5)]
    shards.write_rows(rows, RUNS / run / f"round={round_}" / "metrics.parquet", METRICS)


def write_round(round_: int, right: dict[tuple[str, str], list[tuple[bool, str, str]]]) -> None:
    """A finished round of run r: per (benchmark, peer) and question whether the greedy response is right, which of its
    samples are ("10"), and their order by score ("21": the second is the better one); with metrics to go with it."""
    folder = RUNS / "r" / f"round={round_}" / "evals"
    rows: list[Any] = []
    for (benchmark, peer), items in right.items():
        for number, (greedy, samples, scores) in enumerate(items):
            for sample, correct in enumerate([greedy, *(c == "1" for c in samples)]):
                score = -float(scores[sample - 1]) if sample else None
                rows.append({
                    "benchmark": benchmark, "item_id": f"i{number}", "peer": peer, "sample": sample, "question": "q",
                    "response": "r", "answer": "1", "gold": "1", "correct": correct,
                    "verdict": "correct" if correct else "wrong", "finish_reason": "stop", "n_tokens": 1,
                    "cluster": None, "peer_agreement": 1.0, "extract_status": "boxed",
                    "verifier_score": score, "verifier_score_frozen": score, "critique": None, "critique_frozen": None,
                })  # fmt: skip
    shards.write_rows(rows, folder / "part-00000.parquet", EVALS)
    shards.write_manifest(folder, {}, shards.shard_paths(folder))
    section = EvaluateSection(samples=2, bootstrap=200)
    groups = [[row for row in rows if (row["benchmark"], row["peer"]) == key] for key in right]
    shards.write_rows([metrics_row(group, section, 17) for group in groups], folder.parent / "metrics.parquet", METRICS)


def lines_of(table: Table | None) -> list[list[str]]:
    """The cells of a table on a narrow terminal, line by line."""
    assert table is not None
    page = Console(file=StringIO(), width=120, record=True)
    page.print(table)
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in page.export_text().splitlines()]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    shards.write_json(
        {
            "prompts": {"source": "q.jsonl"}, "peers": [{"name": "p", "model": "p"}, {"name": "q", "model": "q"}],
            "benchmarks": [{"name": name, "source": "b.jsonl", "answers": "numbers"} for name in "ab"],
            "evaluate": {"samples": 2, "bootstrap": 200},
        },
        RUNS / "r" / "config.json",
    )  # fmt: skip
    return "r"


def test_changes_since_round_0_by_hand(run: str) -> None:
    """By hand: p's gap of 1/2 on every question of a becomes 0 on half of them; q's gap of 0 has no percentage."""
    sure, lost = (False, "10", "12"), (True, "11", "12")  # gap 1/2 and 0
    none = (True, "00", "12")
    before = {("a", "p"): [sure] * 4, ("a", "q"): [none] * 4, ("b", "p"): [sure] * 6, ("b", "q"): [none] * 6}
    write_round(0, before)
    assert change_table(run, [0]) is None
    after = {**before, ("a", "p"): [lost] * 2 + [sure] * 2, ("b", "q"): [(False, "00", "12")] * 6}
    write_round(2, after)
    lines = lines_of(change_table(run, [0, 2]))
    found = {tuple(line[:2]): line[2:] for line in lines if line and line[0] in ("a", "b")}
    # four questions, two of them changed: 1 of 16 resamples has none of those, and 1 of 16 only those
    assert found["a", "p"] == ["2", "+50.0 (+0.0 to +100.0)", "-25.0 (-50.0 to +0.0)", "-50 %"]
    assert found["a", "q"] == ["2", "+0.0 (none differs)", "+0.0 (none differs)", "–"]
    assert found["b", "p"] == ["2", "+0.0 (none differs)", "+0.0 (none differs)", "+0 %"]
    assert found["b", "q"] == ["2", "-100.0 (-100.0 to -100.0)", "+0.0 (none differs)", "–"]
    (mean,) = [line for line in lines if line[:1] == ["mean"]]
    # EM: (25 + -50) / 2; gap: a -12.5 and b 0, of a gap of 25 in both: -6.25 points are a quarter
    assert mean[1:3] == ["2", "-12.5 (-25.0 to +0.0)"] and mean[3].startswith("-6.2 (") and mean[4] == "-25 %"
    path = RUNS / run / "round=2" / "metrics.parquet"
    rows = shards.read_rows(path, METRICS)
    undecided = [row | {"verifier_undecided": float((row["benchmark"], row["peer"]) == ("a", "p"))} for row in rows]
    shards.write_rows(undecided, path, METRICS)
    found = {tuple(line[:2]): line[2:] for line in lines_of(change_table(run, [0, 2])) if line}
    assert found["a", "p"] == ["2", "+50.0 (+0.0 to +100.0)", "–", "–"]
    assert found["mean", "2"][1:] == ["–", "–"] and found["b", "p"][-1] == "+0 %"
    (RUNS / run / "round=2" / "evals" / shards.SUCCESS).unlink()
    assert change_table(run, [0, 2]) is None


def test_an_interval_has_differences_behind_it(run: str) -> None:
    """Without one there is none; those of two peers that cancel out on every question are differences."""
    right, wrong = (True, "10", "12"), (False, "10", "12")
    write_round(0, {("a", "p"): [right, wrong], ("a", "q"): [wrong, right]})
    write_round(1, {("a", "p"): [wrong, right], ("a", "q"): [right, wrong]})
    lines = lines_of(change_table(run, [0, 1]))
    (p,) = [line for line in lines if line[:2] == ["a", "p"]]
    (mean,) = [line for line in lines if line[:1] == ["mean"]]
    assert p[3:5] == ["+0.0 (-100.0 to +100.0)", "+0.0 (none differs)"]
    assert mean[2:4] == ["+0.0 (+0.0 to +0.0)", "+0.0 (none differs)"]


def test_no_number_is_minus_nothing(run: str) -> None:
    """One of 3000 samples more or less is 0.0, and 0 % of a gap of 1/2."""
    row = metrics("a", "p", 0.5, 0.5) | {"gv_gap": -1e-4, "gv_gap_lo": -4e-4, "gv_gap_frozen": -0.0}
    shards.write_rows([row], RUNS / run / "round=0" / "metrics.parquet", METRICS)
    (line,) = [line for line in lines_of(metrics_table(run, [0])) if line[:1] == ["a"]]
    assert line[5:7] == ["0.0 (0.0 to 0.0)", "0.0"]
    sure = (False, "10", "12")
    write_round(0, {("a", "p"): [sure] * 3000})
    write_round(1, {("a", "p"): [(False, "10", "21")] + [sure] * 2999})
    (line,) = [line for line in lines_of(change_table(run, [0, 1])) if line[:2] == ["a", "p"]]
    assert line[4].startswith("+0.0 (-0.1 to ") and line[5] == "+0 %"


def test_a_change_is_paired(run: str) -> None:
    """Every question that improves improves by the same: the change is sure, though both rounds' gaps are not."""
    draw = random.Random(2)
    gaps = [draw.random() < 0.5 for _ in range(40)]
    first = [(False, "10", "12") if gap else (False, "10", "21") for gap in gaps]  # 1/2 or -1/2
    second = [(True, samples, order) for _, samples, order in first]
    write_round(0, {("a", "p"): first})
    write_round(1, {("a", "p"): second})
    (line,) = [line for line in lines_of(change_table(run, [0, 1])) if line[:2] == ["a", "p"]]
    assert line[2:] == ["1", "+100.0 (+100.0 to +100.0)", "+0.0 (none differs)", "–"]


def test_the_matrix_of_cross_verification(run: str) -> None:
    assert cross_table(run, [0, 1]) is None
    rows = [
        {
            "benchmark": benchmark, "peer": peer, "verifier": verifier, "gv_gap": gap, "gv_gap_lo": gap - 0.01,
            "gv_gap_hi": gap + 0.02, "verifier_auroc": None, "verifier_accuracy": 0.5, "verifier_undecided": 0.0,
        }
        for benchmark, extra in (("a", 0.0), ("b", 0.5))
        for peer, verifier, gap in (("p", "p", 0.1), ("p", "q", 0.2), ("q", "p", 0.3), ("q", "q", 0.4))
        for gap in [gap + extra]
    ]  # fmt: skip
    shards.write_rows(rows, RUNS / run / "round=1" / "cross.parquet", CROSS)
    lines = lines_of(cross_table(run, [0, 1]))
    assert ["benchmark", "round", "generator", "p", "q"] in lines
    assert ["a", "1", "p", "10.0 (9.0 to 12.0)", "20.0 (19.0 to 22.0)"] in lines
    assert ["q", "30.0 (29.0 to 32.0)", "40.0 (39.0 to 42.0)"] in lines
    assert ["b", "1", "p", "60.0 (59.0 to 62.0)", "70.0 (69.0 to 72.0)"] in lines


def test_the_report_has_the_changes(run: str) -> None:
    items = {("a", "p"): [(False, "10", "12")] * 3, ("a", "q"): [(True, "10", "12")] * 3}
    write_round(0, items)
    assert len(write_report(run)) == 1
    write_round(1, items)
    assert len(write_report(run)) == 2
    page = (RUNS / run / "report.html").read_text(encoding="utf-8")
    assert "Change since round 0" in page and "agreement of peers" in page
