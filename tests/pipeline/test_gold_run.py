"""Gold answers beside a run: what labels and the oracle read, and `python -m bench.gold`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.gold import differences, labelled_cases
from data import shards
from data.answers.grader import Grader
from data.config.sections import Config
from data.errors import UserError
from data.hashing import question_id
from data.keep import read_keep
from data.run import Run, open_run
from data.schema import CHAINS, SCORES
from data.stage import FORMAT
from evaluate.labels import gold_by_id, judged, keep_right, source_has_changed
from tests.conftest import run_module, write_jsonl
from tests.unit.test_loss import score_row


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run of peers that do not exist, with one scored round: of three questions the second is answered wrongly."""
    monkeypatch.chdir(tmp_path)
    golds = ["1+1=<<1+1=2>>2\n#### 2", "#### 4", r"\boxed{6}"]
    write_jsonl(tmp_path / "train.jsonl", [{"question": f"q{i}?", "answer": gold} for i, gold in enumerate(golds)])
    write_jsonl(tmp_path / "test.jsonl", [{"question": "t?", "answer": "1"}])
    peers = "".join(f'[[peers]]\nname = "{name}"\nmodel = "{name}"\n' for name in ("plain", "chatty"))
    (tmp_path / "c.toml").write_text(
        f'evaluate.gold_column = "answer"\nevaluate.gold_answers = "numbers"\nprompts.source = "train.jsonl"\n{peers}'
        '[[benchmarks]]\nname = "t"\nsource = "test.jsonl"\n',
        "utf-8",
    )
    with open_run("r", tmp_path / "c.toml", []) as run:
        run.freeze(lambda: None)
        chains, scores = [], []
        for number, answer in enumerate(("2", "5", "6")):
            question = f"q{number}?"
            for position, peer in enumerate(("plain", "chatty"), 1):
                chains.append({
                    "prompt_id": question_id(question), "question": question, "role": "chain", "position": position,
                    "sample": None, "peer": peer, "is_aggregate": peer == "chatty", "response": answer,
                    "answer": answer, "finish_reason": "stop", "n_tokens": 1, "logprob": -1.0, "token_ids": [1],
                })  # fmt: skip
            about = {"prompt_id": question_id(question), "question": question, "label": answer}
            scores.append({**score_row("x", 1.0, [9]), **about})
        for rows, kind, schema in ((chains, "chains", CHAINS), (scores, "scores", SCORES)):
            folder = run.stage_dir(1, kind)
            shards.write_rows(rows, folder / "part-00000.parquet", schema)
            shards.write_manifest(folder, {"format": FORMAT}, shards.shard_paths(folder))
        yield run


def rewrite(old: str, new: str) -> None:
    """Change the training questions' source."""
    text = Path("train.jsonl").read_text("utf-8")
    assert old in text
    Path("train.jsonl").write_text(text.replace(old, new), "utf-8")


def test_labels_read_gold_answers_as_evaluate_does(scored: Run) -> None:
    assert sorted(gold_by_id(scored.config).values()) == ["2", "4", "6"]
    chains, scores = judged(scored, 1)
    assert [row["right"] for row in scores] == [True, False, True]
    assert [row["right"] for row in chains] == [True, True, False, False, True, True]
    assert keep_right(scored, 1) == 2 and not source_has_changed(scored)


def test_an_oracle_of_samples_judges_each_by_its_own_answer(scored: Run) -> None:
    """Whatever the label: a sample that lacks it has weight 0, and may be the one that is right."""
    by_samples = scored.config.score.model_copy(update={"text": "samples", "label": "own-vote"})
    run = Run(scored.name, scored.config.model_copy(update={"score": by_samples}))
    folder = run.stage_dir(1, "scores")
    (rows,) = (shards.read_rows(path, SCORES) for path in shards.shard_paths(folder))
    texts = ["The answer is 3.", "The answer is 4.", None]  # gold: 2, 4, 6; the labels: 2, 5, 6
    told = zip(rows, texts, (1.0, 0.0, 1.0), strict=True)
    changed = [{**row, "target": text, "weight": weight} for row, text, weight in told]
    shards.write_rows(changed, folder / "part-00000.parquet", SCORES)
    shards.write_manifest(folder, {"format": FORMAT}, shards.shard_paths(folder))
    assert keep_right(run, 1) == 1
    kept = read_keep(run, 1)
    assert kept is not None and kept["prompt_id"].to_pylist() == [rows[1]["prompt_id"]]


def test_labels_refuse_what_cannot_be_read(scored: Run) -> None:
    rewrite("#### 4", "#### nan")
    with pytest.raises(UserError, match=r"^prompts: train\.jsonl row 2 has a 'answer' .*missing value"):
        judged(scored, 1)
    config: dict[str, Any] = scored.config.model_dump()
    config["evaluate"]["gold_column"] = "question"
    with pytest.raises(UserError, match="are both 'question'"):
        gold_by_id(Config.model_validate(config))


def test_a_source_that_lost_questions_is_named(scored: Run) -> None:
    rewrite("q1?", "q9?")
    told = (
        r"^prompts: train\.jsonl has changed since round 1 of run 'r': 1 of 3 questions are no longer in it, first 'q1"
    )
    with pytest.raises(UserError, match=told):
        judged(scored, 1)


def test_a_source_with_other_answers_is_named(scored: Run, tmp_path: Path) -> None:
    told = run_module("pipeline.labels", "--run", "r", cwd=tmp_path, check=True).stdout
    assert "66.7" in told and "changed" not in told
    rewrite("#### 4", "#### 5")
    assert source_has_changed(scored)
    told = " ".join(run_module("pipeline.labels", "--run", "r", cwd=tmp_path, check=True).stdout.split())
    assert "100.0" in told and "train.jsonl has changed since the run drew its questions" in told
    with pytest.raises(UserError, match=r"^prompts: train\.jsonl has changed since run 'r' drew its questions"):
        keep_right(scored, 1)
    manifest = scored.prompts_dir / shards.SUCCESS
    remote = json.loads(manifest.read_text("utf-8"))
    remote["source"]["files"] = []
    del remote[shards.SEAL]
    manifest.write_text(json.dumps(remote), "utf-8")
    assert not source_has_changed(scored)  # of a dataset of the hub nothing is known


def test_the_bench_command_finds_what_is_graded_otherwise(tmp_path: Path) -> None:
    solution = {"solution": "2 + 2 = <<2+2=4>>4\nA: 4", "is_correct": True}
    rows: list[dict[str, Any]] = [{"question": "?", "ground_truth": "2 + 2 = 4\nA: 4", "6b": solution}]
    path = write_jsonl(tmp_path / "s.jsonl", rows)
    with Grader(workers=1) as grader:
        assert differences(labelled_cases(path, "math"), "math", grader) == ({True: 1}, [])
        rows[0]["6b"] = {**solution, "is_correct": False}
        write_jsonl(path, rows)
        assert len(differences(labelled_cases(path, "math"), "math", grader)[1]) == 1
    done = run_module("bench.gold", "--solutions", str(path), cwd=tmp_path)
    assert done.returncode == 1 and "solutions, math: 0 labelled right, 1 wrong; 1 graded differently" in done.stdout
    missing = run_module("bench.gold", "--gsm8k", str(path), cwd=tmp_path)
    assert missing.returncode == 2 and "row 1 has no 'answer'" in missing.stdout
