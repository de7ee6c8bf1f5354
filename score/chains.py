"""All responses to one question, and which response of each peer is measured against the aggregate.

`score.y_source` chooses the response that is measured: a function per choice, in MEASURED. Pure except for reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from data import shards
from data.schema import ChainRow


@dataclass(frozen=True)
class Chain:
    """All responses to one question, in the order of the file."""

    rows: list[ChainRow]

    @property
    def id(self) -> str:
        """The prompt's id."""
        return str(self.rows[0]["prompt_id"])

    @property
    def question(self) -> str:
        """The question."""
        return str(self.rows[0]["question"])

    @property
    def aggregates(self) -> list[ChainRow]:
        """The aggregate; in the controls without peers, one per peer."""
        return [row for row in self.rows if row["is_aggregate"]]

    @property
    def own_aggregates(self) -> bool:
        """Whether each peer is the author of its own aggregate (a control without peers)."""
        return len(self.aggregates) > 1

    def aggregate(self, row: ChainRow) -> ChainRow:
        """The aggregate that a response is measured against: itself if it is one, else the only one."""
        return row if row["is_aggregate"] else self.aggregates[0]

    def aggregate_of(self, peer: str) -> ChainRow:
        """The aggregate for a peer: its own if it has one, else the first."""
        own = [row for row in self.aggregates if row["peer"] == peer]
        return own[0] if own else self.aggregates[0]

    def response_of(self, peer: str, source: str) -> ChainRow:
        """The response of a peer that is measured against the aggregate."""
        return next(row for row in responses(self, source) if row["peer"] == peer)

    def samples(self, rater: str | None = None) -> list[int]:
        """Indices of the samples of the question alone: those of one rater, or of all."""
        return [n for n, row in enumerate(self.rows) if row["role"] == "sample" and rater in (None, row["peer"])]

    def solo(self, peer: str) -> int | None:
        """Index of the peer's response to the question alone, which may be the first one of the chain."""
        alone = [n for n, row in enumerate(self.rows) if row["role"] == "solo" or row["position"] == 1]
        return next((n for n in alone if self.rows[n]["peer"] == peer), None)

    def index_of(self, row: ChainRow) -> int:
        """Index of one of the rows."""
        return next(n for n, other in enumerate(self.rows) if other is row)

    def with_role(self, *roles: str) -> list[ChainRow]:
        """The responses that have one of the roles."""
        return [row for row in self.rows if row["role"] in roles]


def chain_responses(chain: Chain) -> dict[str, ChainRow]:
    """{peer: its response in the chain}."""
    return {row["peer"]: row for row in chain.with_role("chain")}


def solo_responses(chain: Chain) -> dict[str, ChainRow]:
    """{peer: its response to the question alone}; for the aggregate's author, its response in the chain.

    The first peer of the chain has seen no other response, so its response counts as solo.
    """
    in_chain = chain_responses(chain)
    alone = [row for row in chain.rows if row["role"] == "solo" or row["position"] == 1]
    return in_chain | {row["peer"]: row for row in alone if not in_chain[row["peer"]]["is_aggregate"]}


MEASURED: dict[str, Callable[[Chain], dict[str, ChainRow]]] = {"chain": chain_responses, "alone": solo_responses}


def responses(chain: Chain, source: str) -> list[ChainRow]:
    """One row per peer: the response that is measured; in the controls without peers, its own aggregate."""
    return chain.aggregates if chain.own_aggregates else list(MEASURED[source](chain).values())


def read_chains(path: Path, columns: Sequence[str] | None = None) -> Iterator[Chain]:
    """The chains of a shard, whose rows are sorted by question."""
    for _, rows in groupby(shards.rows_of(path, ChainRow, columns), key=lambda row: row["prompt_id"]):
        yield Chain(list(rows))
