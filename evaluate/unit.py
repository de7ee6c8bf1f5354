"""The evaluate stage's unit of work: one peer on one shard of a benchmark; its responses and verifier scores are files
under `.work` until the stage is finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from data import quarantine, shards
from data.hashing import digest
from data.schema import EvalRow, QuarantineRow, schema_of
from evaluate.benchmarks import Item


class ResponseRow(TypedDict):
    """A response that is not graded yet."""

    benchmark: str
    item_id: str
    peer: str
    sample: int
    response: str
    finish_reason: str
    n_tokens: int


class VerdictRow(TypedDict):
    """A verifier's score of the response with a key (`key_of`), null if it is not finite, and the critique that it was
    read from."""

    key: str
    score: float | None
    critique: str | None


RESPONSES, VERDICTS = schema_of(ResponseRow), schema_of(VerdictRow)
VerifierVerdict = tuple[float | None, str | None]  # score (None: not finite), and the critique that it was read from


@dataclass(frozen=True)
class EvaluationUnit:
    """One peer on one shard of a benchmark's items."""

    peer: str
    benchmark: str
    shard: int
    items: list[Item]

    def path(self, work: Path, kind: str) -> Path:
        """File of the unit's responses, or of its verifier scores of a kind."""
        return work / f"{kind}~{self.benchmark}~{self.peer}~{self.shard:05d}.parquet"  # names contain no ~

    def questions(self, work: Path) -> dict[str, tuple[str, str]]:
        """{key: (question, response)} of the distinct sampled responses; equal ones are verified once."""
        texts = {item.id: item.question for item in self.items}
        rows = shards.rows_of(self.path(work, "responses"), ResponseRow)
        return {key_of(row): (texts[row["item_id"]], row["response"]) for row in rows if row["sample"]}

    def sampled(self, work: Path) -> list[str]:
        """The keys of all sampled responses, in order."""
        rows = shards.rows_of(self.path(work, "responses"), ResponseRow)
        return [key_of(row) for row in rows if row["sample"]]

    def scores(self, work: Path, kind: str) -> dict[str, float | None]:
        """{key: verifier score} of the sampled responses."""
        rows = shards.rows_of(self.path(work, kind), VerdictRow, ["key", "score"])
        return {row["key"]: row["score"] for row in rows}

    def quarantine_entries(self, work: Path, why: Mapping[str, str], peer: str) -> list[QuarantineRow]:
        """Quarantine entries of the responses that a peer failed to verify; `why` has the reason by key."""
        rows = shards.rows_of(self.path(work, "responses"), ResponseRow) if why else []
        return [
            quarantine.entry(row["item_id"], "verifier_error", why[key_of(row)], peer, self.benchmark)
            for row in rows
            if row["sample"] and key_of(row) in why
        ]

    def verdicts(self, work: Path, kind: str) -> dict[str, VerifierVerdict]:
        """{key: (verifier score, critique)} of the sampled responses."""
        rows = shards.rows_of(self.path(work, kind), VerdictRow)
        return {row["key"]: (row["score"], row["critique"]) for row in rows}


def key_of(row: ResponseRow | EvalRow) -> str:
    """The key of a response's verifier score: equal responses to a question share it."""
    return digest([row["item_id"], row["response"]])
