"""Examples chosen from outside are listed in a separate file, and train uses only those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import evaluate.labels
import train.stage
from data import shards
from data.errors import UserError
from data.keep import keep_path, read_keep
from data.run import Run, open_run
from data.schema import KEEP, SCORES
from evaluate.labels import keep_right
from evaluate.tables import oracle_notice
from peers.policy import resolve
from tests.unit.test_loss import score_row
from train.stage import training_examples

WEIGHTS = [2.0, 0.0, 1.0, None]
RIGHT = [True, True, False, True]


class Begun(Exception):
    """Train got as far as its work."""


class NoWorkers:
    """Refuses all work."""

    def submit(self, *_: Any) -> None:
        """Raises Begun."""
        raise Begun


def write_scores(run: Run, targets: list[list[int]]) -> None:
    """Finished scores of one peer."""
    folder = run.stage_dir(1, "scores")
    rows = [score_row(f"q{i}", weight, targets[i]) for i, weight in enumerate(WEIGHTS)]
    shards.write_rows(rows, folder / "part-00000.parquet", SCORES)
    shards.write_manifest(folder, {"to_train": 2}, shards.shard_paths(folder))


@pytest.fixture
def judgements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Whether aggregates are right is known without gold answers; how often it was asked."""
    asked: list[int] = []

    def judged(_: Run, round_: int) -> tuple[list[Any], list[Any]]:
        asked.append(round_)
        pairs = enumerate(zip(WEIGHTS, RIGHT, strict=True))
        return [], [
            {"prompt_id": f"q{i}", "peer": "plain", "number": 1, "weight": w, "right": r} for i, (w, r) in pairs
        ]

    monkeypatch.setattr(evaluate.labels, "judged", judged)
    return asked


def test_train_takes_the_listed_examples_alone(project: Path, judgements: list[int]) -> None:
    with open_run("k", project / "tiny.toml", []) as run:
        write_scores(run, [[9, 10], [11], [12], [13]])
        before = shards.checksum(run.stage_dir(1, "scores") / "part-00000.parquet")
        assert not oracle_notice("k") and keep_right(run, 1) == 2
        path = keep_path("k", 1)
        assert pq.read_table(path).to_pylist() == [{"prompt_id": f"q{i}", "peer": "plain", "number": 1} for i in (0, 1)]
        assert set(pq.read_schema(path).metadata) == {b"scores"}
        assert oracle_notice("k") and keep_right(run, 1) == 2 and judgements == [1]  # made once
        assert shards.checksum(run.stage_dir(1, "scores") / "part-00000.parquet") == before
        examples = training_examples(run, 1, resolve(run, 0, "plain"))
        assert [(example.pair.target, example.weight) for example in examples] == [([9, 10], 1.0), ([11], 1.0)]
        assert len(training_examples(run, 1, resolve(run, 0, "chatty"))) == 0


def test_a_list_of_other_scores_is_refused_and_made_anew(project: Path, judgements: list[int]) -> None:
    with open_run("k", project / "tiny.toml", []) as run:
        assert read_keep(run, 1) is None
        write_scores(run, [[9]] * 4)
        keep_right(run, 1)
        write_scores(run, [[10]] * 4)
        with pytest.raises(UserError, match="lists examples of other scores"):
            train.stage.main(run, 1, NoWorkers())  # type: ignore[arg-type]
        assert keep_right(run, 1) == 2 and judgements == [1, 1]
        shards.write_table(SCORES.empty_table(), keep_path("k", 1))
        with pytest.raises(UserError, match="another version"):
            read_keep(run, 1)
        assert keep_right(run, 1) == 2 and read_keep(run, 1).schema.equals(KEEP)  # type: ignore[union-attr]


def test_the_list_belongs_to_what_train_is_known_by(project: Path, judgements: list[int]) -> None:
    """Ordinary runs keep their fingerprint; work begun without the list does not go on with it, nor the reverse."""
    with open_run("k", project / "tiny.toml", []) as run:
        write_scores(run, [[9]] * 4)
        with pytest.raises(Begun):
            train.stage.main(run, 1, NoWorkers())  # type: ignore[arg-type]
        started = run.stage_dir(1, "adapters") / shards.STARTED
        assert shards.read_json(started).keys() == {"config", "scores", "policies"}
        keep_right(run, 1)
        with pytest.raises(UserError, match=r"\(keep changed since\)"):
            train.stage.main(run, 1, NoWorkers())  # type: ignore[arg-type]
        started.unlink()
        with pytest.raises(Begun):
            train.stage.main(run, 1, NoWorkers())  # type: ignore[arg-type]
        keep_path("k", 1).unlink()
        with pytest.raises(UserError, match=r"\(keep changed since\)"):
            train.stage.main(run, 1, NoWorkers())  # type: ignore[arg-type]
