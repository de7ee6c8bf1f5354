"""The building blocks of the page: sections, parts, plots and tables; and how it writes numbers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluate.intervals import Estimate

MARKS = 7  # colours and shapes of peers in page.css; more peers reuse them
Cells = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Numbers:
    """A table. The first column names the rows; columns in `numeric` are right-aligned."""

    title: str
    columns: Sequence[str]
    rows: Cells
    numeric: Sequence[int] = ()
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A Vega-Lite plot with a sentence on how to read it, and its numbers as a table."""

    id: str
    title: str
    caption: str
    spec: dict[str, Any]
    table: Numbers
    wide: bool = False


@dataclass(frozen=True)
class Tile:
    """A large number about a peer."""

    name: str
    mark: str
    value: str
    unit: str
    lines: Sequence[str]


@dataclass(frozen=True)
class PagePart:
    """A heading and its content. `missing` says what is not shown, and why."""

    id: str
    title: str
    lines: Sequence[str] = ()
    missing: Sequence[str] = ()
    legend: Sequence[tuple[str, str]] = ()  # name, mark
    plots: Sequence[Plot] = ()
    tables: Sequence[Numbers] = ()
    more: Sequence[tuple[str, PagePart]] = ()  # behind a click: the words to click on, and the part
    pairs: bool = False  # two plots in a row, not three


@dataclass(frozen=True)
class PageSection:
    """One entry of the navigation."""

    id: str
    title: str
    lead: str = ""
    parts: Sequence[PagePart] = field(default_factory=list)

    def plots(self) -> list[Plot]:
        """All plots, including those behind a click."""
        return [plot for part in self.parts for each in (part, *(p for _, p in part.more)) for plot in each.plots]


def mark(number: int) -> str:
    """The class of a peer in the style sheet, by its place in the config."""
    return f"peer-{number % MARKS}"


def marks(peers: Sequence[str]) -> list[tuple[str, str]]:
    """A legend of peers; empty for a single peer."""
    return [(peer, mark(number)) for number, peer in enumerate(peers)] if len(peers) > 1 else []


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign; 0 has none."""
    rounded = round(value, digits) + 0.0  # + 0.0: no -0.0
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{rounded:.{digits}f}"


def number(value: float | None, digits: int = 1) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share of 0 to 1 in percent, without the sign."""
    return number(None if share is None else 100 * share)


def interval_text(estimate: Estimate | None, sign: bool = False, scale: float = 100, digits: int = 1) -> str:
    """A mean and its interval; a dash for None."""
    if estimate is None:
        return "–"
    shown = signed if sign else number
    mean, low, high = (
        None if x is None else shown(scale * x, digits) for x in (estimate.mean, estimate.low, estimate.high)
    )
    return f"{mean}" if low is None or high is None else f"{mean} ({low} to {high})"


def join_words(items: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)


def plural(n: int, what: str, many: str | None = None) -> str:
    """1 round, 2 rounds"""
    return f"{n:,} {what if n == 1 else many or what + 's'}"


def long_duration(seconds: float) -> str:
    """In the largest two units."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{int(hours)} h {round(minutes) % 60} min" if hours < 48 else f"{hours:,.0f} h"
