"""Memory of a stage follows from the size of a shard, not from the number of questions."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import generate.stage
import peers.policy_cache
import score.stage
from bench.data_plane import bank_engine, questions, score_pairs
from data import shards
from data.answers.grader import Grader
from data.run import open_run
from data.schema import EVALS, SCORES
from data.shards import Row
from evaluate.stage import count_evals
from peers.policy import resolve
from tests.conftest import read_stage, write_jsonl
from tests.fake_engine import Inline
from train.stage import training_examples

SMALL, LARGE, SHARD = 96, 480, 16


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes that Python objects took at once, beyond those that were there before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peaks_of_a_round(n: int) -> dict[str, int]:
    """Peaks of the steps of a round of n questions up to the examples to train on."""
    source = write_jsonl(Path(f"train-{n}.jsonl"), list(questions(n)))
    overrides = [f"prompts.source={source}", f"run.shard_questions={SHARD}", "generate.max_new_tokens=64"]
    with open_run(f"n{n}", Path("tiny.toml"), overrides) as run:
        peaks = {
            "generate": peak_of(lambda: generate.stage.main(run, 1, Inline(run))),
            "score": peak_of(lambda: score.stage.main(run, 1, Inline(run))),
            "train": peak_of(lambda: training_examples(run, 1, resolve(run, 0, "plain"))),
        }
        assert len(shards.shard_paths(run.stage_dir(1, "scores"))) == n / SHARD
        examples = training_examples(run, 1, resolve(run, 0, "plain"))
        peaks["examples"] = peak_of(lambda: sum(len(examples[i].pair) for i in range(len(examples))))
        assert n / 4 < len(examples) < n
    return peaks


def with_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine and a scorer without models."""
    monkeypatch.setattr(peers.policy_cache, "engine", bank_engine)
    monkeypatch.setattr(peers.policy_cache, "language_model", lambda *_: None)
    monkeypatch.setattr("peers.logprob.scoring.score_pairs", score_pairs)


def test_no_stage_holds_the_round(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_fakes(monkeypatch)
    peaks_of_a_round(SHARD)  # what is imported and cached once
    small, large = peaks_of_a_round(SMALL), peaks_of_a_round(LARGE)
    # five times the questions; names of files, checksums and two numbers per row may grow
    assert all(large[step] < 1.3 * small[step] + 20_000 for step in small), (small, large)


class Killed(BaseException):
    """Stands for kill -9: nothing is cleaned up after it."""


def test_scoring_that_is_killed_after_each_of_its_files_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_fakes(monkeypatch)
    found: dict[str, list[Row]] = {}
    written: list[Path] = []
    limit, replace = 10**9, shards.replace

    def replace_or_die(temporary: Path, path: Path) -> None:
        if len(written) == limit:
            raise Killed
        written.append(path)
        replace(temporary, path)

    monkeypatch.setattr(shards, "replace", replace_or_die)
    made: list[Path] = []
    for name in ("clean", "killed"):
        with open_run(name, Path("tiny.toml"), ["generate.max_new_tokens=64"]) as run:
            generate.stage.main(run, 1, Inline(run))
            limit = 2 if name == "killed" else limit  # _STARTED.json, one more file, and the end
            while shards.read_manifest(run.stage_dir(1, "scores")) is None:
                written.clear()
                with suppress(Killed):
                    score.stage.main(run, 1, Inline(run))
                made += written[1:]
            found[name] = read_stage(run.stage_dir(1, "scores"), SCORES)
    assert found["clean"] == found["killed"] and len(found["clean"]) == 48
    # for each of 3 shards: examples, passes of 2 scorers, rows without and with weights; then the manifest
    assert len(made) == len(set(made)) == 2 * (3 * 5 + 1)


def test_the_summary_of_evals_is_counted_shard_by_shard(tmp_path: Path) -> None:
    row = {
        "benchmark": "b", "item_id": "i", "peer": "p", "sample": 0, "question": "q" * 500, "response": "r" * 500,
        "answer": None, "gold": "1", "correct": False, "verdict": "no_answer", "finish_reason": "context",
        "n_tokens": 2, "cluster": None, "verifier_score": None, "verifier_score_frozen": None,
        "critique": None, "critique_frozen": None, "peer_agreement": None,
        "extract_status": "none",
    }  # fmt: skip
    peaks = []
    for n in (4, 40):
        for number in range(n):
            shards.write_rows([row] * 256, tmp_path / f"part-{number:05d}.parquet", EVALS)
        rows, counts = count_evals(tmp_path)
        assert rows == 256 * n and counts == {
            "tokens": 512 * n, "verdicts": {"no_answer": 256 * n}, "not_fitting_the_context": 256 * n
        }  # fmt: skip
        peaks.append(peak_of(lambda: count_evals(tmp_path)))
    assert peaks[1] < 1.3 * peaks[0] + 20_000, peaks


def test_a_grader_forgets_when_it_is_told_to() -> None:
    with Grader() as grader:
        assert grader.equivalent([("1/2", "0.5")], "math") == [True]
        assert grader._known
        grader.forget()
        assert grader._known == {}
        assert grader.equivalent([("1/2", "0.5")], "math") == [True]
