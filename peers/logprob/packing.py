"""Sequences packed into prefix trees, so that a prefix they share goes through the model once. Pure.

    a | x        x a              one tree:  x ─┬─ a
    a | x, y1    x y1 a                         ├─ y1 a
    a | x, y2    x y2 a                         └─ y2 a

A tree is laid out one segment after the other. A token sees its ancestors and itself (attention.py), and its
position is its depth, so its hidden state is the same as in its sequence alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

WORTH_SHARING = 0.2  # of a sequence: a shorter shared prefix is not worth a segment of its own
# A batch's sequences, laid end to end, may have at most this many times the budget in tokens: attention reads shared
# tokens once per sequence.
REPEATED = 8


@dataclass(frozen=True)
class Segment:
    """Tokens [first, end) of a tree; they follow those at the places `ancestors`, root first."""

    first: int
    end: int
    ancestors: list[int]


@dataclass
class PrefixTree:
    """Tokens of some sequences. `paths[i]` lists the places of sequence i's tokens in the tree."""

    tokens: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    paths: dict[int, list[int]] = field(default_factory=dict)
    repeated: int = 0  # tokens of all its sequences, shared ones counted each time

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, i: int, sequence: list[int], ancestors: list[int]) -> None:
        """Add sequence i, whose beginning is in the tree at the places `ancestors`."""
        shared, first = len(ancestors), len(self)
        self.tokens += sequence[shared:]
        if shared < len(sequence):
            self.segments.append(Segment(first, len(self), ancestors))
        self.paths[i] = [*ancestors, *range(first, len(self))]
        self.repeated += len(sequence)


def pack(sequences: Sequence[Sequence[int]], budget: int, sharing: bool = True) -> list[PrefixTree]:
    """Trees in which every sequence (none empty) has its path; one without a worthwhile prefix gets its own tree.

    Trees of several sequences have at most `budget` tokens, and their sequences together at most REPEATED times as
    many. Raises ValueError for a budget of 0, which in a config means "by device" (peers/placement.py).
    """
    if budget < 1:
        raise ValueError(f"a budget of {budget} tokens: the config's runtime is not resolved")
    trees: list[PrefixTree] = []
    previous: list[int] = []
    path: list[int] = []
    for sequence, i in sorted((list(sequence), i) for i, sequence in enumerate(sequences)):
        shared = common_prefix(previous, sequence) if sharing else 0
        fits = (
            shared >= WORTH_SHARING * len(sequence)
            and len(trees[-1]) + len(sequence) - shared <= budget
            and trees[-1].repeated + len(sequence) <= REPEATED * budget
        )
        if not fits:
            trees.append(PrefixTree())
        trees[-1].add(i, sequence, path[:shared] if fits else [])
        previous, path = sequence, trees[-1].paths[i]
    return trees


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix of two lists."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # comparing slices is much faster than a loop over tokens
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def packed_batches(sequences: Sequence[Sequence[int]], budget: int, sharing: bool = True) -> Iterator[list[PrefixTree]]:
    """All sequences, packed, in batches of at most `budget` tokens, longest first (the peak of memory comes at once).

    A sequence longer than the budget is a batch of its own.
    """
    trees = pack(sequences, budget, sharing)
    batch: list[PrefixTree] = []
    for tree in sorted(trees, key=lambda tree: (-max(map(len, tree.paths.values())), min(tree.paths))):
        whole = [*batch, tree]
        if batch and (sum(map(len, whole)) > budget or sum(each.repeated for each in whole) > REPEATED * budget):
            yield batch
            whole = [tree]
        batch = whole
    if batch:
        yield batch


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of at most `budget` padded tokens, longest first; each index occurs exactly once.

    Raises ValueError for a budget of 0, as `pack` does.
    """
    if budget < 1:
        raise ValueError(f"a budget of {budget} tokens: the config's runtime is not resolved")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        size = max(1, budget // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]
