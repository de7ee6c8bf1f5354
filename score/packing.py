"""Sequences packed into rows, so that a prefix they share goes through the model once. Pure.

    a | x        x a              one row:   x ─┬─ a
    a | x, y1    x y1 a                         ├─ y1 a
    a | x, y2    x y2 a                         └─ y2 a

A row is a tree of tokens laid out one branch after the other. A token sees its ancestors and itself, and its position
is its depth, so its hidden state is the one that it would have in its sequence alone. In a row of one branch that is
what any causal model does anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

LONGEST_ROW = 512  # of shared rows, unless sequences are longer: attention is quadratic in the row
WORTH_SHARING = 0.2  # of a sequence: less is not worth the larger attention


@dataclass
class Row:
    """Tokens of a tree. `paths[i]` lists the places in the row of sequence i's tokens."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    branches: list[tuple[int, int]] = field(default_factory=list)  # (first place, place of its parent; -1 at the root)
    paths: dict[int, list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)


def pack(sequences: Sequence[Sequence[int]], sharing: bool = True, longest: int = LONGEST_ROW) -> list[Row]:
    """Rows in which every sequence (none empty) has its path; a sequence without a worthwhile prefix has its own row.

    Rows that several share have at most `longest` tokens, or twice the longest sequence.
    """
    ordered = sorted((list(sequence), i) for i, sequence in enumerate(sequences))
    longest = max([longest, *(2 * len(sequence) for sequence in sequences)])
    rows: list[Row] = []
    previous: list[int] = []
    path: list[int] = []
    for sequence, i in ordered:
        shared = common_prefix(previous, sequence) if sharing else 0
        fits = rows and len(rows[-1]) + len(sequence) - shared <= longest
        if not fits or shared < WORTH_SHARING * len(sequence):
            rows.append(Row())
            shared = 0
        row, first = rows[-1], len(rows[-1])
        if shared < len(sequence):
            row.branches.append((first, path[shared - 1] if shared else -1))
        path = path[:shared] + list(range(first, first + len(sequence) - shared))
        row.tokens += sequence[shared:]
        row.depths += range(shared, len(sequence))
        row.paths[i] = path
        previous = sequence
    return rows


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix of two lists."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # comparing slices is much faster than a loop over tokens
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def visible(row: Row, length: int) -> Tensor:
    """Which token (first axis) sees which, bool [length, length]; padding sees itself."""
    mask = torch.eye(length, dtype=torch.bool)
    ends = [first for first, _ in row.branches[1:]] + [len(row)]
    for (first, parent), end in zip(row.branches, ends, strict=True):
        if parent >= 0:
            mask[first:end] = mask[parent]
        mask[first:end, first:end] = torch.ones(end - first, end - first, dtype=torch.bool).tril()
    return mask


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of at most `budget` padded tokens, longest first (so that the peak comes at once).

    A sequence longer than the budget is a batch of its own. Every index comes exactly once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        size = max(1, budget // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def row_batches(sequences: Sequence[Sequence[int]], budget: int, sharing: bool = True) -> Iterator[list[Row]]:
    """All sequences, packed, in batches of at most `budget` padded tokens."""
    rows = pack(sequences, sharing, min(LONGEST_ROW, budget))
    for batch in token_batches([len(row) for row in rows], budget):
        yield [rows[i] for i in batch]
