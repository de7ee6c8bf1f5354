"""Who answers when, and who sees what. Pure functions.

Position 1 sees the question; position k sees it and the k-1 earlier responses, numbered and anonymous.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal


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
