"""Means over seeds and items with bootstrap intervals. Pure.

Seeds and items are crossed: every seed is evaluated on the same items. So both are resampled with replacement, and a
resample takes every drawn item of every drawn seed (Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1,
2007, which shows that it is conservative). Items of one benchmark stay together, seeds are drawn once for all of them:

    mean*  =  mean over benchmarks b of  mean_{s in seeds*, i in items*_b} values_b[s, i]

For a paired difference `values` are the differences, seed by seed and item by item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Matrix = Any  # numpy array [seeds, items]


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval; without an interval where there are fewer than two items."""

    mean: float
    low: float | None
    high: float | None

    @property
    def contains_zero(self) -> bool:
        """Whether 0 is a value that the data allow; True without an interval."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


def estimate(benchmarks: Sequence[Matrix], resamples: int, seed: int) -> Estimate:
    """Mean over benchmarks, seeds and items, each [seeds, items], with a 95 % percentile interval over seeds and items.

    With one seed the interval is over items alone. Raises ValueError for benchmarks of different numbers of seeds.
    """
    import numpy as np

    arrays = [np.asarray(values, dtype=float) for values in benchmarks]
    seeds = {len(values) for values in arrays}
    if len(seeds) != 1:
        raise ValueError(f"benchmarks have different numbers of seeds: {sorted(seeds)}")
    mean = float(np.mean([values.mean() for values in arrays]))
    if min(values.shape[1] for values in arrays) < 2:
        return Estimate(mean, None, None)
    rng, n_seeds = np.random.default_rng(seed), seeds.pop()
    means = np.empty(resamples)
    for b in range(resamples):
        drawn = np.bincount(rng.integers(n_seeds, size=n_seeds), minlength=n_seeds) / n_seeds
        parts = []
        for values in arrays:
            n = values.shape[1]
            parts.append((drawn @ values)[rng.integers(n, size=n)].mean())
        means[b] = np.mean(parts)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(mean, float(low), float(high))
