"""Who answers what, and who sees what: one small class per way of asking. Pure.

A `Turn` is a set of requests that can be made together. A way of asking says which turns there are, how many responses
to which question a peer gives in a turn, and which earlier responses it sees. Several ways can be combined. To add one,
write a class here and add it to `asking_of`; docs/architecture.md has the rest.

In the chain, position 1 sees only the question; position k also sees the k-1 earlier responses, numbered and anonymous.
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
    """Requests of one role; `position` is that in the chain, from 1, and 0 for the other roles."""

    role: Role
    position: int = 0


class Asking(Protocol):
    """A way of asking; `turns` are in the order in which a question's rows are stored."""

    turns: list[Turn]

    def asks(self, turn: Turn, peer: str, question: Question) -> int:
        """How many responses to a question a peer gives in a turn."""
        ...

    def shown(self, turn: Turn) -> list[Turn]:
        """The turns whose responses a turn shows, in order; they must be finished before it."""
        ...

    def seed_of(self, turn: Turn, peer: str, question: Question, sample: int) -> tuple[object, ...]:
        """What goes into the seed of a peer's response, besides the run's seed, the round and the question; `sample`
        counts a peer's responses to a question in a turn, from 1."""
        ...


@dataclass
class ChainAsking:
    """Each peer answers in the question's order and sees the earlier responses; with `synthesis`, one more response
    sees them all."""

    peers: list[str]
    round: int
    synthesis: bool = False

    def __post_init__(self) -> None:
        self.turns = [Turn("chain", index + 1) for index in range(len(self.peers))]
        self.turns += [Turn("synthesis")] * self.synthesis

    def asks(self, turn: Turn, peer: str, question: Question) -> int:
        """See `Asking.asks`."""
        if turn.role == "synthesis":
            return int(synthesiser(self.peers, question.number, self.round) == peer)
        return int(question.order[turn.position - 1] == peer)

    def shown(self, turn: Turn) -> list[Turn]:
        """See `Asking.shown`."""
        return self.turns[: self.turns.index(turn)]

    def seed_of(self, turn: Turn, peer: str, question: Question, sample: int) -> tuple[object, ...]:
        """The position among the responses to the question."""
        return (self.turns.index(turn) + 1,)


@dataclass
class SoloAsking:
    """Each peer answers the question alone, once. With `beside_chain` the first peer of the chain is left out: its
    response in the chain already is one to the question alone."""

    beside_chain: bool = False

    def __post_init__(self) -> None:
        self.turns = [Turn("solo")]

    def asks(self, turn: Turn, peer: str, question: Question) -> int:
        """See `Asking.asks`."""
        return int(peer in question.order and not (self.beside_chain and question.order[0] == peer))

    def shown(self, turn: Turn) -> list[Turn]:
        """See `Asking.shown`."""
        return []

    def seed_of(self, turn: Turn, peer: str, question: Question, sample: int) -> tuple[object, ...]:
        """The peer's position in the question's order; 0 beside a chain, which uses the positions itself."""
        return (0,) if self.beside_chain else (question.order.index(peer) + 1,)


@dataclass
class SampleAsking:
    """Each peer, and each voter, answers the question alone, k times."""

    k: int

    def __post_init__(self) -> None:
        self.turns = [Turn("sample")]

    def asks(self, turn: Turn, peer: str, question: Question) -> int:
        """See `Asking.asks`."""
        return self.k

    def shown(self, turn: Turn) -> list[Turn]:
        """See `Asking.shown`."""
        return []

    def seed_of(self, turn: Turn, peer: str, question: Question, sample: int) -> tuple[object, ...]:
        """The sample's number and the peer."""
        return (sample, peer)


class CombinedAsking:
    """Several ways of asking at once; each sees only its own turns."""

    def __init__(self, parts: Sequence[Asking]) -> None:
        self.part = {turn: part for part in parts for turn in part.turns}
        self.turns = list(self.part)

    def asks(self, turn: Turn, peer: str, question: Question) -> int:
        """See `Asking.asks`."""
        return self.part[turn].asks(turn, peer, question)

    def shown(self, turn: Turn) -> list[Turn]:
        """See `Asking.shown`."""
        return self.part[turn].shown(turn)

    def seed_of(self, turn: Turn, peer: str, question: Question, sample: int) -> tuple[object, ...]:
        """See `Asking.seed_of`."""
        return self.part[turn].seed_of(turn, peer, question, sample)


def asking_of(config: Config, round_: int) -> Asking:
    """How a config asks the peers: for what its label, text and weighting need, and no more."""
    section, needs = config.generate, config.score
    if section.alone:
        return SoloAsking()
    parts: list[Asking] = []
    if needs.needs_solo:
        parts.append(SoloAsking(beside_chain=needs.needs_aggregate))
    if needs.needs_aggregate:
        parts.append(ChainAsking(config.peer_names, round_, section.aggregate == "synthesis"))
    if needs.needs_samples:
        parts.append(SampleAsking(section.samples))
    return CombinedAsking(parts)


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
    seeded shuffle, so that over N consecutive questions, or N rounds, each peer takes each position once.
    """
    if order == "fixed":
        return list(peers)
    if order == "random":
        return random.Random(f"{seed}/{round_}/{id_}").sample(list(peers), len(peers))
    shift = (number + round_) % len(peers)
    return [*peers[shift:], *peers[:shift]]
