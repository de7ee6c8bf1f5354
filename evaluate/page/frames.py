"""The files of a run as polars frames: the columns that the page needs, of finished stages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data import gate, shards
from data.answers import own
from data.errors import UserError
from data.keep import keep_path
from data.run import OUTPUT, Run, metrics_path, stage_is_finished
from data.schema import CHAINS, EVALS, METRICS, SCORES
from evaluate.clustered import Bootstrap
from evaluate.intervals import Estimate
from evaluate.labels import accuracies, gold_by_id, judged, mean_weights, source_has_changed

if TYPE_CHECKING:
    import polars as pl

# at most so many questions of a round are compared with gold answers; math-verify is slow
MAX_JUDGED = {"numbers": 2_000, "choice": 2_000, "exact": 2_000, "math": 300}
CHAIN_COLUMNS = ("prompt_id", "role", "peer", "answer", "finish_reason", "n_tokens")
SCORE_COLUMNS = ("peer", "number", "target_peer", "pmi_per_token", "weight", "drop_reason", "agrees", "answer_entropy")
Weights = dict[tuple[str, bool, bool], Estimate | None]
_JUDGED: dict[tuple[Any, ...], tuple[dict[str, Estimate | None], Weights]] = {}


class Frames:
    """The frames of one run, each read on first use."""

    def __init__(self, run: Run) -> None:
        self.run, self.peers = run, run.config.peer_names
        self._samples: dict[int, list[str] | None] = {}

    def rounds(self, stage: str) -> list[int]:
        """Rounds in which a stage is finished, in order."""
        found = (int(path.name.split("=")[1]) for path in self.run.root.glob("round=*"))
        return sorted(n for n in found if stage_is_finished(self.run.name, stage, n))

    def manifest(self, stage: str, round_: int) -> dict[str, Any]:
        """The manifest of a stage; empty if it is not finished."""
        path = self.run.stage_dir(round_, OUTPUT[stage]) / shards.SUCCESS
        found: dict[str, Any] = shards.read_json(path) if path.is_file() else {}
        return found

    @cached_property
    def metrics(self) -> pl.DataFrame:
        """`METRICS` of all rounds, with their `round`; without rows if nothing is evaluated."""
        import polars as pl

        found = [(int(path.parent.name.split("=")[1]), path) for path in self.run.root.glob("round=*/metrics.parquet")]
        tables = [
            _polars(shards.read_table(metrics_path(self.run.name, n), METRICS)).with_columns(round=pl.lit(n))
            for n, _ in sorted(found)
        ]
        return pl.concat(tables) if tables else _polars(METRICS.empty_table()).with_columns(round=pl.lit(0))

    def scores(self, round_: int) -> pl.DataFrame:
        """`SCORE_COLUMNS` of a round: a row per question, peer and text."""
        return self._stage(self.run.stage_dir(round_, "scores"), SCORES, SCORE_COLUMNS)

    def responses(self, round_: int) -> pl.DataFrame:
        """Counts of the responses to a round's unlabelled questions, by role and peer: how many, their tokens, how many
        are unfinished, and how many have no answer."""
        import polars as pl

        frame = self._stage(self.run.stage_dir(round_, "chains"), CHAINS, CHAIN_COLUMNS[1:])
        return frame.group_by("role", "peer").agg(
            pl.len(),
            pl.col("n_tokens").sum(),
            (pl.col("finish_reason") != "stop").sum().alias("unfinished"),
            (pl.col("answer").is_null() | (pl.col("finish_reason") != "stop")).sum().alias("unanswered"),
        )

    def tokens(self, stage: str, round_: int) -> dict[str, int]:
        """{peer: tokens}: those that it wrote in generate or evaluate, those that it trained on in train; empty for the
        other stages."""
        if stage == "train":
            reports = self.manifest(stage, round_).get("peers", {})
            return {peer: int(report["tokens"]) for peer, report in reports.items()}
        if stage not in ("generate", "evaluate"):
            return {}
        schema = CHAINS if stage == "generate" else EVALS
        frame = self._stage(self.run.stage_dir(round_, OUTPUT[stage]), schema, ("peer", "n_tokens"))
        found: dict[str, int] = {}
        for rater, n in frame.group_by("peer").sum().iter_rows():
            peer = self.run.config.model_of(rater)
            found[peer] = found.get(peer, 0) + n
        return found

    def _stage(self, folder: Any, schema: pa.Schema, columns: Sequence[str]) -> pl.DataFrame:
        import polars as pl

        found = [_polars(shards.read_table(path, schema, columns)) for path in shards.shard_paths(folder)]
        return pl.concat(found) if found else _polars(schema.empty_table()).select(columns)

    # --- against gold answers ---

    @cached_property
    def without_gold(self) -> str:
        """Why the unlabelled questions' responses cannot be compared with gold answers; empty if they can."""
        column, source = self.run.config.evaluate.gold_column, self.run.config.prompts.source
        if column is None:
            return "the unlabelled questions have no gold answers (evaluate.gold_column is not set)"
        try:
            if source_has_changed(self.run):
                return f"{source} has changed since the run drew its questions"
            for n in self.rounds("score"):
                self.judged(n)
        except UserError as error:
            return f"their gold answers cannot be read now: {error}"
        return ""

    def judged(self, round_: int) -> tuple[dict[str, Estimate | None], Weights]:
        """How often a round's responses and labels were right, and the weights by what was right (`evaluate.labels`),
        over the `sample` of its questions. Raises UserError as `judged` does. A process judges the same scores once,
        since it writes a page after each stage."""
        scored = self.run.stage_dir(round_, "scores") / shards.SUCCESS
        section = self.run.config.evaluate
        kinds = own.kinds_fingerprint(section.gold_answers, self.run.config.prompts.answers)
        key = (scored.resolve(), scored.stat().st_mtime_ns, section.model_dump_json() + str(kinds))
        if key not in _JUDGED:
            draws = Bootstrap(section.bootstrap, self.run.config.run.seed)
            chains, scores = judged(self.run, round_, self.sample(round_), self._gold)
            chosen = keep_path(self.run.name, round_).is_file()  # by gold: all weights are 1
            _JUDGED[key] = accuracies(chains, scores, draws), {} if chosen else mean_weights(scores, draws)
        return _JUDGED[key]

    @cached_property
    def _gold(self) -> dict[str, str]:
        """The gold answers of the questions that are judged."""
        samples = [self.sample(n) for n in self.rounds("score")]
        known = [ids for ids in samples if ids is not None]
        return gold_by_id(
            self.run.config, {id_ for ids in known for id_ in ids} if len(known) == len(samples) else None
        )

    def sample(self, round_: int) -> list[str] | None:
        """Ids of the questions of a round that are judged, at most MAX_JUDGED, by the run's seed; None for all."""
        if round_ not in self._samples:
            most = MAX_JUDGED.get(self.run.config.evaluate.gold_answers, MAX_JUDGED["math"])
            ids = self._stage(self.run.stage_dir(round_, "chains"), CHAINS, ("prompt_id",))["prompt_id"].unique()
            some = random.Random(self.run.config.run.seed).sample(sorted(ids), most) if len(ids) > most else None
            self._samples[round_] = some
        return self._samples[round_]

    def few(self, round_: int) -> str:
        """The words of a caption about `sample`."""
        ids = self.sample(round_)
        return "" if ids is None else f" From a seeded sample of {len(ids):,} questions."

    # --- the gate ---

    @property
    def gated(self) -> bool:
        """Whether the untouched peers have voted on the gate's questions."""
        return gate.is_on(self.run.config) and 0 in self.rounds("gate")


def _polars(table: pa.Table) -> pl.DataFrame:
    import polars as pl

    found = pl.from_arrow(table)
    assert isinstance(found, pl.DataFrame)
    return found
