"""The generator-verifier gap, after "Mind the Gap" (arXiv 2412.02674). Pure.

For question x with k sampled responses of correctness c_j in {0, 1} and verifier scores s_j:

    u(x)          = mean_j c_j                                   accuracy of the generator
    u_filtered(x) = mean of c over the top `keep` share by s     accuracy of what the verifier keeps
    gap           = E_x[u_filtered(x) - u(x)]
    gap_rel       = E_x[(u_filtered(x) - u(x)) / (1 - u(x))]     over questions with u(x) < 1

Ties at the threshold are split fractionally: what is left of the kept mass is spread evenly over the tied samples, so
a verifier that cannot tell them apart has gap 0 and no order of samples matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby


def accuracy(correct: Sequence[bool]) -> float:
    """u(x): share of correct samples."""
    return sum(correct) / len(correct)


def filtered_accuracy(correct: Sequence[bool], scores: Sequence[float], keep: float) -> float:
    """u_filtered(x): accuracy of the `keep` share (0 < keep < 1) with the highest scores, ties split fractionally."""
    mass = left = keep * len(correct)
    total = 0.0
    ranked = sorted(zip(scores, correct, strict=True), key=lambda pair: -pair[0])
    for _, tied in groupby(ranked, key=lambda pair: pair[0]):
        group = [c for _, c in tied]
        share = min(1.0, left / len(group))
        total += share * sum(group)
        left -= share * len(group)
        if left <= 0:
            break
    return total / mass


def question_gap(correct: Sequence[bool], scores: Sequence[float], keep: float) -> float:
    """u_filtered(x) - u(x)."""
    return filtered_accuracy(correct, scores, keep) - accuracy(correct)


def relative_gap(correct: Sequence[bool], scores: Sequence[float], keep: float) -> float | None:
    """The gap as a share of what is left to gain; None where all samples are correct."""
    u = accuracy(correct)
    return None if u == 1 else question_gap(correct, scores, keep) / (1 - u)


def auroc(correct: Sequence[bool], scores: Sequence[float]) -> float | None:
    """Probability that a correct sample scores above a wrong one, ties counting half; None if there are not both."""
    from scipy.stats import mannwhitneyu

    right = [s for s, c in zip(scores, correct, strict=True) if c]
    wrong = [s for s, c in zip(scores, correct, strict=True) if not c]
    if not right or not wrong:
        return None
    return float(mannwhitneyu(right, wrong).statistic) / (len(right) * len(wrong))


def bootstrap_interval(values: Sequence[float], resamples: int, seed: int) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap interval of the mean over items; (None, None) for fewer than two items."""
    if len(values) < 2:
        return None, None
    import numpy as np
    from scipy.stats import bootstrap

    result = bootstrap(
        (np.asarray(values, dtype=float),), np.mean, n_resamples=resamples, batch=256, method="percentile",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
