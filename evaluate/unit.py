"""What the evaluate stage does at a time: one peer on one shard of a benchmark; its responses and verifier scores are
files under `.work` until the stage is closed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data import shards
from data.hashing import digest
from data.schema import EVALS
from data.shards import Row
from evaluate.benchmarks import Item

RESPONSES = pa.schema([EVALS.field(n) for n in (
    "benchmark", "item_id", "peer", "sample", "response", "finish_reason", "n_tokens",
)])  # fmt: skip
VERDICTS = pa.schema([
    pa.field("key", pa.string(), nullable=False), pa.field("score", pa.float64(), nullable=False),
    pa.field("critique", pa.string()),
])  # fmt: skip
Verdict = tuple[float, str | None]  # score, and the critique from which it was read


@dataclass(frozen=True)
class Unit:
    """One peer on one shard of a benchmark's items."""

    peer: str
    benchmark: str
    shard: int
    items: list[Item]

    def path(self, work: Path, kind: str) -> Path:
        """Where the unit's responses, or the verifier scores of a kind, are kept."""
        return work / f"{kind}~{self.benchmark}~{self.peer}~{self.shard:05d}.parquet"  # no name has a ~

    def questions(self, work: Path) -> dict[str, tuple[str, str]]:
        """{key: (question, response)} of the distinct sampled responses; equal ones are asked once."""
        texts = {item.id: item.question for item in self.items}
        rows = shards.read_rows(self.path(work, "responses"), RESPONSES)
        return {key_of(row): (texts[row["item_id"]], row["response"]) for row in rows if row["sample"]}

    def scores(self, work: Path, kind: str) -> dict[str, float]:
        """{key: verifier score} of those."""
        rows = shards.read_rows(self.path(work, kind), VERDICTS, ["key", "score"])
        return {row["key"]: row["score"] for row in rows}

    def verdicts(self, work: Path, kind: str) -> dict[str, Verdict]:
        """{key: verifier score, critique} of those."""
        rows = shards.read_rows(self.path(work, kind), VERDICTS)
        return {row["key"]: (row["score"], row["critique"]) for row in rows}


def key_of(row: Row) -> str:
    """By which a verifier score is found again: equal responses to a question have one."""
    return digest([row["item_id"], row["response"]])
