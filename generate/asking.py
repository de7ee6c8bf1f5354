"""Who answers what, and who sees what: one small class per way of asking. Pure.

A `Turn` is a set of requests that can be made together. A way of asking says which turns there are, which peer answers
which question in a turn, and which earlier responses it sees. To add one: a class here, its name in `asking_of`, the
config's key and its description.

In the chain, position 1 sees the question; position k sees it and the k-1 earlier responses, numbered and anonymous.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from data.config.sections import Config
from data.schema import Role


@dataclass(frozen=True)
class Question:
    """An unlabelled question with its order of peers; `number` is its place after the seeded shuffle."""

    id: str
    text: str
    number: int
    order: list[str]


@dataclass(frozen=True)
class Turn:
    """Requests of one role; `number` is the place in the chain, or which of the k samples, from 1; else 0."""

    role: Role
    number: int = 0


class Asking(Protocol):
    """A way of asking; `turns` are in the order in which a question's rows are stored."""

    turns: list[Turn]

    def asks(self, turn: Turn, peer: str, question: Question) -> bool:
        """Whether a peer answers a question in a turn."""
        ...

    def shown(self, turn: Turn) -> list[Turn]:
        """The turns whose responses are shown in a turn, in order; they have to be done before it."""
        ...

    def seed_of(self, turn: Turn, peer: str, question: Question) -> tuple[object, ...]:
        """What the seed of a request is made from, beside the run's seed, the round and the question."""
        ...


@dataclass
class Chain:
    """Each peer in the question's order, the earlier responses in view; with `synthesis` one more response to all."""

    peers: list[str]
    round: int
    synthesis: bool = False

    def __post_init__(self) -> None:
        self.turns = [Turn("chain", number + 1) for number in range(len(self.peers))]
        self.turns += [Turn("synthesis")] * self.synthesis

    def asks(self, turn: Turn, peer: str, question: Question) -> bool:
        """See `Asking.asks`."""
        if turn.role == "synthesis":
            return synthesiser(self.peers, question.number, self.round) == peer
        return question.order[turn.number - 1] == peer

    def shown(self, turn: Turn) -> list[Turn]:
        """See `Asking.shown`."""
        return self.turns[: self.turns.index(turn)]

    def seed_of(self, turn: Turn, peer: str, question: Question) -> tuple[object, ...]:
        """The place among the responses to the question."""
        return (self.turns.index(turn) + 1,)


@dataclass
class ChainAndSolo(Chain):
    """The chain, and a response to the question alone of each peer that does not come first, and so has none there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chain = Chain(self.peers, self.round, self.synthesis)
        self.turns = [Turn("solo"), *self.turns]

    def asks(self, turn: Turn, peer: str, question: Question) -> bool:
        """See `Asking.asks`."""
        return question.order[0] != peer if turn.role == "solo" else self.chain.asks(turn, peer, question)

    def shown(self, turn: Turn) -> list[Turn]:
        """See `Asking.shown`."""
        return [] if turn.role == "solo" else self.chain.shown(turn)

    def seed_of(self, turn: Turn, peer: str, question: Question) -> tuple[object, ...]:
        """As in the chain; 0 for a response to the question alone."""
        return (0,) if turn.role == "solo" else self.chain.seed_of(turn, peer, question)


@dataclass
class Solo:
    """A control without peers: each answers the question alone, once."""

    peers: list[str]

    def __post_init__(self) -> None:
        self.turns = [Turn("solo")]

    def asks(self, turn: Turn, peer: str, question: Question) -> bool:
        """See `Asking.asks`."""
        return True

    def shown(self, turn: Turn) -> list[Turn]:
        """See `Asking.shown`."""
        return []

    def seed_of(self, turn: Turn, peer: str, question: Question) -> tuple[object, ...]:
        """The peer's place in the question's order."""
        return (question.order.index(peer) + 1,)


@dataclass
class Samples:
    """Each peer answers the question alone, k times."""

    peers: list[str]
    k: int

    def __post_init__(self) -> None:
        self.turns = [Turn("sample", number + 1) for number in range(self.k)]

    def asks(self, turn: Turn, peer: str, question: Question) -> bool:
        """See `Asking.asks`."""
        return True

    def shown(self, turn: Turn) -> list[Turn]:
        """See `Asking.shown`."""
        return []

    def seed_of(self, turn: Turn, peer: str, question: Question) -> tuple[object, ...]:
        """The sample's number and the peer."""
        return (turn.number, peer)


def asking_of(config: Config, round_: int) -> Asking:
    """How the peers are asked under a config."""
    section, peers = config.generate, config.peer_names
    if section.aggregate == "self":
        return Solo(peers)
    if section.aggregate == "self-vote":
        return Samples(peers, section.votes)
    kind = ChainAndSolo if config.score.y_source == "alone" else Chain
    return kind(peers, round_, section.aggregate == "synthesis")


def synthesiser(peers: Sequence[str], number: int, round_: int) -> str:
    """The peer that writes the synthesis of question `number`: in rotation."""
    return peers[(number + round_) % len(peers)]


def peer_order(
    peers: Sequence[str],
    order: Literal["rotate", "fixed", "random"],
    number: int,
    round_: int,
    seed: int,
    id_: str,
) -> list[str]:
    """Order of the peers for one question.

    `rotate`: the list rotated left by (number + round) mod N, where `number` is the question's place after the
    seeded shuffle, so that over N consecutive questions, or N rounds, each peer stands once at each position.
    """
    if order == "fixed":
        return list(peers)
    if order == "random":
        return random.Random(f"{seed}/{round_}/{id_}").sample(list(peers), len(peers))
    shift = (number + round_) % len(peers)
    return [*peers[shift:], *peers[:shift]]
