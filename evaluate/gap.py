"""The generator-verifier gap, after "Mind the Gap" (arXiv 2412.02674). Pure.

For question x with k sampled responses of correctness c_j in {0, 1} and verifier scores s_j:

    u(x)          = mean_j c_j                                   accuracy of the generator
    u_filtered(x) = mean of c over the top `keep` share by s     accuracy of what the verifier keeps
    gap           = E_x[u_filtered(x) - u(x)]
    gap_rel       = E_x[(u_filtered(x) - u(x)) / (1 - u(x))]     over questions with u(x) < 1

Ties at the threshold are split fractionally: the rest of the kept mass is spread evenly over the tied samples, so a
verifier that cannot tell them apart has gap 0, and the order of samples does not matter.

With one threshold for all questions, the top `keep` share of all their samples together is kept, sample j of x with the
share w_j(x) (1 above the threshold, 0 below, a common fraction at it):

    u_filtered(x) = sum_j w_j(x) c_j(x) / sum_j w_j(x)           undefined if nothing of x is kept; then its gap is 0
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb
from typing import Any

from data.finite import check_finite


def accuracy(correct: Sequence[bool]) -> float:
    """u(x): share of correct samples."""
    return sum(correct) / len(correct)


def kept_shares(scores: Sequence[float], keep: float) -> dict[float, float]:
    """{score: kept share of each sample with it}, if the top `keep` share (0 < keep < 1) of all samples is kept.

    Raises ValueError for a score that is not finite.
    """
    check_finite("verifier scores", scores)
    left, shares = keep * len(scores), {}
    crumb = 1e-9 * left  # rounding can leave that much: 0.55 * 100 is more than 55
    for score, tied in sorted(Counter(scores).items(), reverse=True):
        shares[score] = min(1.0, left / tied) if left > crumb else 0.0
        left -= shares[score] * tied
    return shares


def filtered_accuracy(correct: Sequence[bool], scores: Sequence[float], keep: float) -> float:
    """u_filtered(x): accuracy of the `keep` share (0 < keep < 1) with the highest scores, ties split fractionally."""
    return sum(kept * c for kept, c in _kept(correct, scores, kept_shares(scores, keep))) / (keep * len(scores))


def _kept(correct: Sequence[bool], scores: Sequence[float], shares: dict[float, float]) -> list[tuple[float, bool]]:
    return [(shares[s], c) for s, c in zip(scores, correct, strict=True)]


def question_gap(correct: Sequence[bool], scores: Sequence[float], keep: float) -> float:
    """u_filtered(x) - u(x)."""
    return filtered_accuracy(correct, scores, keep) - accuracy(correct)


def relative_gap(correct: Sequence[bool], scores: Sequence[float], keep: float) -> float | None:
    """The gap as a share of what is left to gain; None if all samples are correct."""
    u = accuracy(correct)
    return None if u == 1 else question_gap(correct, scores, keep) / (1 - u)


def global_gaps(questions: Sequence[tuple[Sequence[bool], Sequence[float]]], keep: float) -> list[float | None]:
    """u_filtered(x) - u(x) of each question, given as (correct, scores), under one threshold for all of them that keeps
    the top `keep` share of their samples; None if nothing of a question is kept."""
    shares = kept_shares([score for _, scores in questions for score in scores], keep)
    gaps: list[float | None] = []
    for correct, scores in questions:
        kept = _kept(correct, scores, shares)
        mass = sum(share for share, _ in kept)
        gaps.append(sum(share * c for share, c in kept) / mass - accuracy(correct) if mass else None)
    return gaps


def pass_at_k(n: int, n_correct: int, k: int) -> float:
    """Probability that k of n samples, drawn without replacement, include a correct one: 1 - C(n - c, k) / C(n, k), the
    unbiased estimate of pass@k (Chen et al. 2021, arXiv 2107.03374). With k = n: whether any is correct.

    Raises ValueError unless 0 <= n_correct <= n and 1 <= k <= n.
    """
    if not (0 <= n_correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} samples, {n_correct} of them correct, is not defined")
    return 1 - comb(n - n_correct, k) / comb(n, k)


def auroc(correct: Sequence[bool], scores: Sequence[float]) -> float | None:
    """Probability that a correct sample scores above a wrong one, ties counting half; None unless there are both.

    Raises ValueError for a score that is not finite.
    """
    from scipy.stats import mannwhitneyu

    check_finite("verifier scores", scores)
    right = [s for s, c in zip(scores, correct, strict=True) if c]
    wrong = [s for s, c in zip(scores, correct, strict=True) if not c]
    if not right or not wrong:
        return None
    return float(mannwhitneyu(right, wrong).statistic) / (len(right) * len(wrong))


def bootstrap_interval(
    benchmarks: Sequence[Sequence[float]], resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap interval of the mean over benchmarks of their means over items, resampled within each
    benchmark; (None, None) if one has fewer than two items. Raises ValueError for a value that is not finite."""
    check_finite("values of items", (value for values in benchmarks for value in values))
    if min(map(len, benchmarks)) < 2:
        return None, None
    import numpy as np
    from scipy.stats import bootstrap

    def mean(*drawn: Any, axis: int) -> Any:
        return np.mean([values.mean(axis=axis) for values in drawn], axis=0)

    result = bootstrap(
        [np.asarray(values, dtype=float) for values in benchmarks],
        mean,
        n_resamples=resamples,
        batch=256,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
