"""Merge fidelity: how much of an adapter's effect the merged checkpoint keeps (`train.merge_fidelity`).

    fidelity = (L_base - L_merged) / (L_base - L_adapter)

L is the unweighted loss on some training examples. L_base and L_adapter are float32 forwards of the base without and
with the adapter; L_merged is a float32 forward of the merged weights as they are stored, so the figure shows only what
rounding the weights costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean

from data.finite import finite_or_none
from peers.logprob.model import LanguageModel, Pair, load_language_model
from peers.logprob.scoring import score_pairs


def mean_loss(lm: LanguageModel, pairs: Sequence[Pair], budget: int) -> float:
    """Mean over examples of the mean negative log-probability per token, in nats."""
    return -fmean(fmean(logprobs) for logprobs in score_pairs(lm, pairs, budget, lambda *_: None))


def merge_fidelity(
    base: Path, adapter: Path, merged: Path, pairs: Sequence[Pair], budget: int
) -> dict[str, float | None]:
    """The three losses, and the share of the adapter's effect that the merge keeps: None if the adapter has no effect,
    or if a loss is not finite (that loss is None, too)."""
    losses = {
        "loss_base": mean_loss(load_language_model(base, "float32"), pairs, budget),
        "loss_adapter": mean_loss(load_language_model(base, "float32", adapter), pairs, budget),
        "loss_merged": mean_loss(load_language_model(merged, "float32"), pairs, budget),
    }
    if not all(map(isfinite, losses.values())):
        return {**{name: finite_or_none(loss) for name, loss in losses.items()}, "fidelity": None}
    effect = losses["loss_base"] - losses["loss_adapter"]
    share = (losses["loss_base"] - losses["loss_merged"]) / effect if abs(effect) > 1e-6 else None
    return {**losses, "fidelity": share}
