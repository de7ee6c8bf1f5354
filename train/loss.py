"""The training loss, and which examples make an optimiser step. Pure.

    L = (1 / B) sum_i w_i (1 / |a_i|) sum_t -log p(a_i,t | x_i, a_i,<t)

over the B examples of one optimiser step; |a_i| counts the tokens of the text, its end token included. The division
by B happens once per step, since micro-batches differ in size: if each were averaged by itself, an example's share of
the step would depend on which micro-batch it is in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from data.finite import check_finite


def weighted_nll(logprobs: Sequence[Tensor], weights: Sequence[float], batch_size: int) -> Tensor:
    """A micro-batch's share of the step's loss, in nats per token: scalar.

    `logprobs`: one tensor [|a_i|] per example of the micro-batch; `batch_size`: B, the examples of the whole step.
    Raises ValueError for a weight that is not finite.
    """
    check_finite("weights", weights)
    terms = [-w * logprob.mean() for logprob, w in zip(logprobs, weights, strict=True)]
    return torch.stack(terms).sum() / batch_size


def clipped_advantage(
    logprobs: Sequence[Tensor],
    before: Sequence[Sequence[float]],
    weights: Sequence[float],
    batch_size: int,
    clip: float,
) -> Tensor:
    """A micro-batch's share of the step's loss where weights have signs (advantages): scalar.

        L = -(1 / B) sum_i (1 / |a_i|) sum_t min(r_t w_i, clip(r_t, 1 - e, 1 + e) w_i),   r_t = exp(logprob - before)

    PPO's clipped surrogate (arXiv 1707.06347, eq. 7): a log-likelihood alone has no minimum where a weight is below 0.
    `before`: per example the log-probabilities [|a_i|] under the policy that the round began with. Raises ValueError
    for a weight that is not finite.
    """
    check_finite("weights", weights)
    terms = []
    for logprob, then, weight in zip(logprobs, before, weights, strict=True):
        ratio = (logprob - torch.as_tensor(then, dtype=logprob.dtype, device=logprob.device)).exp()
        terms.append(-torch.minimum(ratio * weight, ratio.clamp(1 - clip, 1 + clip) * weight).mean())
    return torch.stack(terms).sum() / batch_size


def optimiser_steps(n: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Indices of the examples of each step: an epoch is a seeded permutation, and its last step may be smaller."""
    steps = []
    for epoch in range(epochs):
        order = random.Random(f"{seed}/{epoch}").sample(range(n), n)
        steps += [order[first : first + batch_size] for first in range(0, n, batch_size)]
    return steps
