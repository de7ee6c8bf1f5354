"""`python -m pipeline table`: the results of a run for a paper."""

from __future__ import annotations

import csv
import re
import shutil
from io import StringIO
from pathlib import Path

import pytest

from data import shards
from data.errors import UserError
from data.schema import METRICS
from evaluate.changes import round_changes
from pipeline import __main__
from pipeline.table import as_csv, escaped, latex, markdown
from tests import fixed_run
from tests.conftest import questions, write_jsonl

SPECIAL = r"a_b & 5 % of {x} \ #1 $2 ^ ~"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return fixed_run.make(tmp_path)


def metrics(run: Path, round_: int) -> list[shards.Row]:
    return shards.read_rows(run / f"round={round_}" / "metrics.parquet", METRICS)


def test_csv_has_the_very_numbers_of_the_files(run: Path) -> None:
    rows = list(csv.DictReader(StringIO(as_csv("demo"))))
    assert [(row["peer"], row["round"]) for row in rows] == [(p, n) for p in fixed_run.PEERS for n in "012"]
    changed = {(*change.group, str(change.round)): change for change in round_changes("demo", [0, 1, 2])}
    for row in rows:
        (expected,) = (each for each in metrics(run, int(row["round"])) if each["peer"] == row["peer"])
        for name, value in expected.items():
            found = row[name]
            assert found == ("" if value is None else str(value)), name
        change = changed.get((row["benchmark"], row["peer"], row["round"]))
        assert row["em_change"] == ("" if change is None else str(change.em.mean))
        assert row["gv_gap_change_lo"] == ("" if change is None or change.gap is None else str(change.gap.low))


def test_markdown_shows_them_in_percent_with_intervals(run: Path) -> None:
    text = markdown("demo")
    (row,) = (each for each in metrics(run, 1) if each["peer"] == "ben")
    interval = f"{100 * row['em']:.1f} ({100 * row['em_lo']:.1f} to {100 * row['em_hi']:.1f})"
    (change,) = (each for each in round_changes("demo", [0, 1]) if each.group == ("sums_1", "ben"))
    assert change.em.mean is not None and change.em.low is not None and change.em.high is not None
    mean, low, high = 100 * change.em.mean, 100 * change.em.low, 100 * change.em.high
    changed = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
    lines = [line for line in text.splitlines() if line.startswith("|")]
    ben = next(n for n, line in enumerate(lines) if line.startswith("| sums_1 | ben | 0 |"))
    assert interval in lines[ben + 1] and changed in lines[ben + 1] and lines[ben + 1].startswith("|  |  | 1 |")
    assert {line.count("|") for line in lines} == {10} and " – | – |" in lines[ben]
    assert "sums_1: 12 questions, k = 2" in text and "the gate refused ben's adapter" in text


def test_latex_is_escaped_and_has_the_rules_of_booktabs(run: Path) -> None:
    text = latex("demo")
    assert r"sums\_1 & ada & 0 & 41.7 (16.7 to 66.7)" in text and not re.search(r"(?<!\\)[%_](?! \\use)", text)
    for rule, times in ((r"\toprule", 1), (r"\midrule", 3), (r"\bottomrule", 1)):
        assert text.count(rule) == times
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    assert {line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")} == {8}
    assert "$-$8.3" in text and not re.search(r"[ (]-\d", text)
    assert escaped(SPECIAL) == (r"a\_b \& 5 \% of \{x\} \textbackslash{} \#1 \$2 \textasciicircum{} \textasciitilde{}")


def test_what_does_not_differ_has_no_interval(run: Path) -> None:
    shutil.rmtree(run / "round=2" / "evals")
    shutil.copytree(run / "round=0" / "evals", run / "round=2" / "evals")
    shutil.copy(run / "round=0" / "metrics.parquet", run / "round=2" / "metrics.parquet")
    assert markdown("demo").count("+0.0 (none differs) | +0.0 (none differs) |") == 3
    last = list(csv.DictReader(StringIO(as_csv("demo"))))[-1]
    assert (last["round"], last["em_change"], last["em_change_lo"]) == ("2", "0.0", "")


def test_a_verifier_that_decided_nothing_has_no_gap(run: Path) -> None:
    path = run / "round=1" / "metrics.parquet"
    rows = [{**row, "verifier_undecided": 1.0} for row in metrics(run, 1)]
    shards.write_rows(rows, path, METRICS)
    first, *_ = [line for line in markdown("demo").splitlines() if line.startswith("|  |  | 1 |")]
    assert first.split("|")[5].strip() == "–" and first.split("|")[9].strip() == "–"


def test_rounds_whose_evals_are_gone_have_no_change(run: Path) -> None:
    shutil.rmtree(run / "round=0" / "evals")
    assert all(line.endswith("| – | – |") for line in markdown("demo").splitlines() if line.startswith("|  |"))


def test_a_run_without_benchmarks_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fixed_run.make(tmp_path, benchmarks=False)
    with pytest.raises(UserError, match="run 'demo' has no benchmarks, so there is no table of results"):
        markdown("demo")


def test_a_run_without_an_evaluated_round_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in run.glob("round=*/metrics.parquet"):
        path.unlink()
    with pytest.raises(SystemExit):
        __main__.main(["table", "demo"])
    assert "has no evaluated round yet: run `make evaluate RUN=demo ROUND=0` first" in capsys.readouterr().err


def test_one_format_at_a_time(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    __main__.main(["table", "demo", "--latex"])
    assert capsys.readouterr().out == latex("demo")
    with pytest.raises(SystemExit):
        __main__.main(["table", "demo", "--latex", "--csv"])
    assert "give only one of them" in capsys.readouterr().err


def test_training_questions_that_are_on_a_benchmark_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = fixed_run.make(tmp_path)
    write_jsonl(tmp_path / "test.jsonl", questions(0, 2))
    config = shards.read_json(run / "config.json")
    config["prompts"]["overlap"] = "transductive"
    shards.write_json(config, run / "config.json")
    assert "Transductive: training questions may also be benchmark questions." in markdown("demo")
