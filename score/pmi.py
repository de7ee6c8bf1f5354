"""Pointwise mutual information between a response and the text `a`: the one to train on (under score.text = "own": the
aggregate).

    pmi_i = log p(a | x, y_i) - log p(a | x)      [nats]

Both passes are teacher-forced under one policy with one template; the prompts differ only by the presence of y_i
(`PeerPrompts.solve` with and without it). `pmi_per_token = pmi_i / n_target_tokens`. Under `scorer = "mean"` each
quantity is the mean over the peers, the per-token value being the mean of the peers' per-token values, since their
tokenizers differ. The sum is over the whole target with its end token, or over the answer's tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from data.finite import check_finite


@dataclass(frozen=True)
class Measured:
    """log p(a | x, y) and log p(a | x) under one scorer, in nats, over the same `n_tokens` target tokens."""

    given: float
    alone: float
    n_tokens: int


@dataclass(frozen=True)
class Pmi:
    """PMI of one response with a text."""

    logp_given_response: float
    logp_alone: float
    n_target_tokens: int
    pmi: float
    pmi_per_token: float


def combine(measured: Sequence[Measured]) -> Pmi:
    """PMI from one scorer, or its mean over several. Raises ValueError without a scorer, for an empty target, and for
    a log-probability that is not finite."""
    if not measured or any(m.n_tokens < 1 for m in measured):
        raise ValueError("PMI needs at least one scorer and one target token")
    check_finite("log-probability", (value for m in measured for value in (m.given, m.alone)))
    return Pmi(
        fmean(m.given for m in measured),
        fmean(m.alone for m in measured),
        round(fmean(m.n_tokens for m in measured)),
        fmean(m.given - m.alone for m in measured),
        fmean((m.given - m.alone) / m.n_tokens for m in measured),
    )


def scorers(scorer: Literal["own", "mean", "aggregator"], peer: str, author: str, peers: Sequence[str]) -> list[str]:
    """Whose policies measure the PMI of `peer`'s response with `author`'s text: its own, all, or the author's."""
    return {"own": [peer], "mean": list(peers), "aggregator": [author]}[scorer]
