"""A line per peer over rounds, with its numbers as a table. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluate.intervals import Estimate
from evaluate.page import charts
from evaluate.page.parts import Numbers, Plot, interval_text


def point(round_: int, peer: str, value: float | None, scale: float = 100, digits: int = 1) -> dict[str, Any]:
    """A row of a plot; without a value it is only a dash in the table."""
    found = None if value is None else Estimate(value, None, None)
    return estimated(round_, peer, found, scale, digits)


def estimated(round_: int, peer: str, estimate: Estimate | None, scale: float = 100, digits: int = 1) -> dict[str, Any]:
    """A row of a plot with its interval."""
    numbers = (None, None, None) if estimate is None else (estimate.mean, estimate.low, estimate.high)
    value, low, high = (None if x is None else round(scale * x, 4) for x in numbers)
    shown = interval_text(estimate, scale=scale, digits=digits)
    return {"round": round_, "peer": peer, "value": value, "low": low, "high": high, "shown": shown}


def lines_plot(
    id_: str, title: str, caption: str, rows: list[dict[str, Any]], peers: Sequence[str], zero: bool = False
) -> Plot:
    """A plot of rows made by `point` or `estimated`; with `zero` the axis begins at 0."""
    rounds = sorted({row["round"] for row in rows})
    cells = {(row["peer"], row["round"]): row["shown"] for row in rows}
    table = [[peer, *(cells.get((peer, n), "–") for n in rounds)] for peer in peers]
    known = [row for row in rows if row["value"] is not None]
    return Plot(
        id_,
        title,
        caption,
        charts.by_round(known, peers, title, zero),
        Numbers(title, ["", *(f"round {n}" for n in rounds)], table, range(1, len(rounds) + 1)),
    )
