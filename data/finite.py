"""A statistic is refused if one of its numbers is NaN or infinite: it would be NaN, or look right and be wrong."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite


def finite_or_none(value: float) -> float | None:
    """A measured number, or None if it is not finite."""
    return value if isfinite(value) else None


def check_finite(what: str, values: Iterable[float]) -> None:
    """Raises ValueError if a value is not finite; callers that expect such values count and drop them first."""
    for place, value in enumerate(values):
        if not isfinite(value):
            raise ValueError(f"{what}: number {place + 1} is {value}, expected finite numbers")
