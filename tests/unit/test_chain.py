"""Who answers when: orders, units of work, seeds of requests."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import pytest

from data.config.load import load_config
from data.hashing import request_seed
from generate.asking import (
    Asking,
    ChainAsking,
    CombinedAsking,
    Question,
    SampleAsking,
    SoloAsking,
    Turn,
    asking_of,
    peer_order,
)
from tests.conftest import ROOT

PEERS = ["a", "b", "c"]


def rotated(number: int, round_: int) -> str:
    """The rotating order of three peers as one word."""
    return "".join(peer_order(PEERS, "rotate", number, round_, seed=17, id_="x"))


def test_rotation_by_hand() -> None:
    # the list rotated left by (number + round) mod 3
    assert [rotated(number, 1) for number in range(4)] == ["bca", "cab", "abc", "bca"]
    assert [rotated(0, round_) for round_ in range(4)] == ["abc", "bca", "cab", "abc"]


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("start", [0, 4])
def test_each_peer_stands_once_at_each_position(n: int, start: int) -> None:
    peers = [f"p{i}" for i in range(n)]
    by_question = [peer_order(peers, "rotate", start + i, 3, 0, "x") for i in range(n)]
    by_round = [peer_order(peers, "rotate", 7, start + i, 0, "x") for i in range(n)]
    for orders in (by_question, by_round):
        seen = Counter((position, peer) for order in orders for position, peer in enumerate(order))
        assert seen == {(position, peer): 1 for position in range(n) for peer in peers}


def test_fixed_order_is_the_list_as_it_stands() -> None:
    assert all(peer_order(PEERS, "fixed", number, 2, 5, f"q{number}") == PEERS for number in range(5))


def test_random_order_is_a_seeded_permutation() -> None:
    def orders(seed: int, round_: int) -> list[str]:
        return ["".join(peer_order(PEERS, "random", 0, round_, seed, f"q{i}")) for i in range(40)]

    first = orders(17, 1)
    assert first == orders(17, 1)
    assert {"".join(sorted(order)) for order in first} == {"abc"}
    assert len(set(first)) == 6  # 40 draws miss one of the 6 permutations with probability below 6 (5/6)^40 = 0.4 %
    assert first != orders(18, 1)
    assert first != orders(17, 2)


@pytest.mark.parametrize("order", ["rotate", "fixed", "random"])
def test_order_leaves_the_list_alone(order: Literal["rotate", "fixed", "random"]) -> None:
    peers = list(PEERS)
    peer_order(peers, order, 1, 1, 1, "x").clear()
    assert peers == PEERS


def test_request_seed_follows_from_its_parts() -> None:
    parts = [(seed, round_, id_, k) for seed in (1, 2) for round_ in (1, 2) for id_ in ("ab", "cd") for k in (1, 2, 3)]
    seeds = [request_seed(*part) for part in parts]
    assert seeds == [request_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert request_seed(1, 23) != request_seed(12, 3)
    # sha256("17/1/ab/2") begins a74000f5; the upper 31 bits of it. A resumed run of another day must draw the same.
    assert request_seed(17, 1, "ab", 2) == 0xA74000F5 >> 1


def asked(asking: Asking, question: Question) -> list[tuple[str, int, str, tuple[object, ...], int]]:
    """Every request for a question: role, number, peer, what its seed is made from, how many responses it is shown."""
    return [
        (
            turn.role,
            turn.position or number,
            peer,
            asking.seed_of(turn, peer, question, number),
            len(asking.shown(turn)),
        )
        for turn in asking.turns
        for peer in PEERS
        for number in range(1, asking.asks(turn, peer, question) + 1)
    ]


def test_who_answers_what_by_hand() -> None:
    """Seeds are those of earlier versions, which counted every response to a question as a position."""
    question = Question("q", "?", number=0, order=["b", "c", "a"])
    chain = [("chain", 1, "b", (1,), 0), ("chain", 2, "c", (2,), 1), ("chain", 3, "a", (3,), 2)]
    assert asked(ChainAsking(PEERS, round=1), question) == chain
    assert asked(ChainAsking(PEERS, round=1, synthesis=True), question) == [*chain, ("synthesis", 1, "b", (4,), 3)]
    solo = [("solo", 1, "a", (0,), 0), ("solo", 1, "c", (0,), 0)]
    beside = CombinedAsking([SoloAsking(beside_chain=True), ChainAsking(PEERS, round=1, synthesis=True)])
    assert asked(beside, question) == [*solo, *chain, ("synthesis", 1, "b", (4,), 3)]
    assert beside.shown(Turn("chain", 2)) == [Turn("chain", 1)]
    alone = [("solo", 1, "a", (3,), 0), ("solo", 1, "b", (1,), 0), ("solo", 1, "c", (2,), 0)]
    assert asked(SoloAsking(), question) == alone
    assert SoloAsking().asks(Turn("solo"), "voter", question) == 0  # who stands in no order gives samples alone
    samples = [("sample", n, peer, (n, peer), 0) for peer in PEERS for n in (1, 2)]
    assert asked(SampleAsking(k=2), question) == samples
    assert asked(CombinedAsking([SoloAsking(), SampleAsking(k=2)]), question) == [*alone, *samples]


@pytest.mark.parametrize(
    ("overrides", "roles"),
    [
        ([], {"chain"}),
        (["score.y_source=alone"], {"solo", "chain"}),
        (["generate.aggregate=synthesis"], {"chain", "synthesis"}),
        (["generate.aggregate=self"], {"solo"}),
        (["score.label=sample-vote", "score.text=solution"], {"solo", "sample"}),
        (["score.label=sample-vote", "score.text=solution", "score.weighting=uniform"], {"sample"}),
        (["score.label=sample-vote"], {"chain", "sample"}),
        (["score.text=solution"], {"solo", "chain", "sample"}),
        (["score.text=solution", "score.weighting=uniform", "score.y_source=alone"], {"chain", "sample"}),
        (["score.label=own-vote", "score.text=samples", "score.weighting=signed"], {"sample"}),
        (["score.label=none", "score.text=teacher-solution", "score.weighting=uniform"], {"sample"}),
    ],
)
def test_what_label_text_and_weight_need_is_asked_for_and_no_more(overrides: list[str], roles: set[str]) -> None:
    config = load_config(ROOT / "configs/nano.toml", overrides)
    assert {turn.role for turn in asking_of(config, 1).turns} == roles
