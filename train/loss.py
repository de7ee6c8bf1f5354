"""The training loss, and which examples make an optimiser step. Pure.

    L = (1 / B) sum_i w_i (1 / n_i) sum_t -log p(a_i,t | x_i, a_i,<t)

over the B examples of one optimiser step. The division by B happens once per step, not per micro-batch: a weight
multiplied into an already averaged micro-batch loss, or an average of averages of unequal micro-batches, would
weight examples by the company they happen to keep.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from data.finite import check_finite


def weighted_nll(logprobs: Sequence[Tensor], weights: Sequence[float], batch_size: int) -> Tensor:
    """A micro-batch's share of the step's loss, in nats per token: scalar.

    `logprobs`: one tensor [n_i] per example of the micro-batch; `batch_size`: B, the examples of the whole step. Raises
    ValueError for a weight that is not finite.
    """
    check_finite("weights", weights)
    terms = [-w * logprob.mean() for logprob, w in zip(logprobs, weights, strict=True)]
    return torch.stack(terms).sum() / batch_size


def optimiser_steps(n: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Indices of the examples of every step: each epoch a seeded permutation, the last step of it may be smaller."""
    steps = []
    for epoch in range(epochs):
        order = random.Random(f"{seed}/{epoch}").sample(range(n), n)
        steps += [order[first : first + batch_size] for first in range(0, n, batch_size)]
    return steps
