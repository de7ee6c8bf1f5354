"""From PMI to training weights, over all examples of one peer in one round.

    sigmoid    w = σ(-β (pmi_per_token - c))          c = their median, or a number
    exp        w = exp(-β (pmi_per_token - c))
    rank       w = (number of larger values + ½ number of equal ones, itself included) / n
    agreement  w = 1 if the answer of the measured response (if none is, of the text) is equivalent to the label, else 0
    entropy    w = entropy of the question's answers, in nats: what the peers disagree on counts most (the entropy
               weighting of self-training on labels, EAST, arXiv 2503.23913, without the labels)
    uniform    w = 1
    shuffled   the sigmoid weights, permuted (which example gets which weight carries no information)
    signed     w = 1; the example's factor (agreement with the label, less the question's mean) is the whole weight

Weights are clipped to [weight_min, weight_max] (except under `agreement`, whose 0 stays 0), then divided by the mean
over the examples with w > 0, which are those that are trained on. So a change of weighting does not change the learning
rate, and an example of weight 0 is the same as one left out. Under a weighting by PMI or agreement, and whenever the
text is not a sample, an example without a PMI (nothing to measure, or the aggregate's author under train_final) has
w = 1 and is in neither median nor mean. If examples have factors other than 1 (1/m for each of a question's m texts;
the reward or advantage under `samples`), all weights are multiplied by them, and divided by the mean absolute value of
those not 0.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from statistics import fmean, median
from typing import assert_never

from data.config.sections import ScoreSection
from data.finite import check_finite


def weights(
    pmi_per_token: Sequence[float],
    agrees: Sequence[int],
    entropies: Sequence[float],
    section: ScoreSection,
    seed: int,
) -> list[float]:
    """Weights with mean 1 over those above 0, same length and order as the inputs; `seed` is for `shuffled`.

    Raises ValueError for a number that is not finite: a single one would make all weights NaN.
    """
    check_finite("PMI per token", pmi_per_token)
    check_finite("answer entropy", entropies)
    if not pmi_per_token:
        return []
    raw = _raw(pmi_per_token, agrees, entropies, section)
    if section.weighting == "agreement":
        clipped = raw  # its 0 means "left out" and must not be lifted to weight_min
    else:
        clipped = [min(max(w, section.weight_min), section.weight_max) for w in raw]
    positive = [w for w in clipped if w > 0]
    mean = fmean(positive) if positive else 1.0
    normalised = [w / mean for w in clipped]
    if section.weighting == "shuffled":
        random.Random(seed).shuffle(normalised)
    return normalised


def round_weights(
    pmi_per_token: Sequence[float],
    agrees: Sequence[int],
    entropies: Sequence[float],
    factors: Sequence[float],
    section: ScoreSection,
    seed: int,
) -> list[float]:
    """The weights of all examples of a peer in a round, in their order; a PMI that is unknown is NaN."""
    # Unless the text is a sample, a row without a PMI is the aggregate's author's (train_final): weight 1 in any case.
    needs_pmi = section.weighs_by_response or not section.trains_on_samples
    weighed = [i for i, pmi in enumerate(pmi_per_token) if not (needs_pmi and math.isnan(pmi))]
    pmi = [0.0 if math.isnan(pmi_per_token[i]) else pmi_per_token[i] for i in weighed]
    found = weights(pmi, [agrees[i] for i in weighed], [entropies[i] for i in weighed], section, seed)
    all_weights = [1.0] * len(pmi_per_token)
    for i, weight in zip(weighed, found, strict=True):
        all_weights[i] = weight
    check_finite("factors of weights", factors)
    if all(factor == 1 for factor in factors):
        return all_weights
    scaled = [weight * factor for weight, factor in zip(all_weights, factors, strict=True)]
    sizes = [abs(weight) for weight in scaled if weight]
    return [weight / fmean(sizes) for weight in scaled] if sizes else scaled


def _raw(pmi: Sequence[float], agrees: Sequence[int], entropies: Sequence[float], section: ScoreSection) -> list[float]:
    if section.weighting == "uniform" or section.weighting == "signed":
        return [1.0] * len(pmi)
    if section.weighting == "agreement":
        return [float(agree) for agree in agrees]
    if section.weighting == "entropy":
        return list(entropies)
    if section.weighting == "rank":
        ranked = sorted(pmi)
        return [1 - 0.5 * (bisect_left(ranked, p) + bisect_right(ranked, p)) / len(pmi) for p in pmi]
    center = median(pmi) if section.center == "median" else section.center
    exponents = [-section.beta * (p - center) for p in pmi]
    if section.weighting == "exp":
        return [math.exp(min(e, 700.0)) for e in exponents]  # exp overflows a double at 709.8; the clip is far below
    if section.weighting == "sigmoid" or section.weighting == "shuffled":
        return [sigmoid(e) for e in exponents]
    assert_never(section.weighting)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
