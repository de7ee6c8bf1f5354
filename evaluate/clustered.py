"""Shares and AUROCs of rows that belong to questions, with 95 % intervals. Pure.

The interval is a percentile bootstrap over questions. A question is drawn with all its rows: the peers' rows of a
question share its aggregate, so they are not independent. Draws in which the number is undefined (an AUROC without a
wrong row) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data.finite import check_finite
from evaluate.intervals import Estimate

Vector = Any  # numpy array
MAX_CACHED = 4_000_000  # numbers of resamples that are cached: 32 MB


@dataclass(frozen=True)
class Bootstrap:
    """The number of resamples, and their seed."""

    resamples: int
    seed: int

    def share(
        self, questions: Sequence[str], values: Sequence[float], weights: Sequence[float] | None = None
    ) -> Estimate | None:
        """Mean of values [rows], weighted by weights [rows]; None if all weights are 0. Raises ValueError for a number
        that is not finite."""
        import numpy as np

        check_finite("values", values)
        check_finite("weights", weights or ())
        count, of_row = _numbered(questions)
        mass = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
        masses = np.bincount(of_row, mass, minlength=count)
        sums = np.bincount(of_row, mass * np.asarray(values, dtype=float), minlength=count)
        return self._estimate(lambda drawn: (drawn @ sums, drawn @ masses), count)

    def auroc(self, questions: Sequence[str], right: Sequence[bool], scores: Sequence[float]) -> Estimate | None:
        """`evaluate.gap.auroc` of rows; None unless there are right and wrong ones. Raises ValueError for a score that
        is not finite."""
        import numpy as np

        check_finite("scores", scores)
        order = np.argsort(scores)
        count, of_row = _numbered(questions)
        of_row, good, ordered = of_row[order], np.asarray(right, dtype=bool)[order], np.asarray(scores)[order]
        ties = np.flatnonzero(np.diff(ordered, prepend=-np.inf))  # where each group of equal scores begins

        def pairs(drawn: Vector) -> tuple[float, float]:
            rows = drawn[of_row].astype(float)
            rights, wrongs = (np.add.reduceat(rows * kind, ties) for kind in (good, ~good))
            below = np.cumsum(wrongs) - wrongs / 2  # wrong rows with a lower score, ties half
            return float(rights @ below), float(rights.sum() * wrongs.sum())

        return self._estimate(pairs, count)

    def _estimate(self, ratio: Callable[[Vector], tuple[float, float]], count: int) -> Estimate | None:
        """Estimate a ratio, whose numerator and denominator follow from how often each question is drawn."""
        import numpy as np

        above, below = ratio(np.ones(count))
        if below == 0:
            return None
        if count < 2:
            return Estimate(float(above / below), None, None)
        few = self.resamples * count <= MAX_CACHED
        draws = _kept(self.resamples, self.seed, count) if few else _draws(self.resamples, self.seed, count)
        found = [top / bottom for top, bottom in map(ratio, draws) if bottom]
        low, high = np.quantile(found, (0.025, 0.975))
        return Estimate(float(above / below), float(low), float(high))


def _draws(resamples: int, seed: int, count: int) -> Iterator[Vector]:
    """How often each of `count` questions is drawn, resample by resample."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return (np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(resamples))


@lru_cache(maxsize=2)
def _kept(resamples: int, seed: int, count: int) -> Sequence[Vector]:
    """The same, drawn once for all shares of a round: drawing takes longer than using the draws."""
    return list(_draws(resamples, seed, count))


def _numbered(questions: Sequence[str]) -> tuple[int, Vector]:
    """The number of distinct questions, and each row's question as a number from 0."""
    import numpy as np

    names, of_row = np.unique(np.asarray(questions, dtype=object), return_inverse=True)
    return len(names), of_row
