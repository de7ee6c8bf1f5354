"""No statistic is taken over a number that is not finite: it would be none itself, or look like one and be wrong."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite


def finite_or_none(value: float) -> float | None:
    """A measured number, None where it is not finite."""
    return value if isfinite(value) else None


def check_finite(what: str, values: Iterable[float]) -> None:
    """Raises ValueError if one of the values is not finite; what counts them leaves them out before."""
    for place, value in enumerate(values):
        if not isfinite(value):
            raise ValueError(f"{what}: number {place + 1} is {value}, and no statistic is taken over such numbers")
