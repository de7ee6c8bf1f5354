"""Vega-Lite specifications of the page's kinds of plots, from aggregated rows. Pure.

Colours are variables of the style sheet, which SVG accepts, so plots follow light, dark and print. Shapes tell peers
apart, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluate.page.parts import mark

Spec = dict[str, Any]
Rows = Sequence[dict[str, Any]]
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "circle")
HEIGHT, STEP = 190, 30  # pixels: of a plot; of a row of bars or dots
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', Arial, sans-serif"
DODGE = 0.05  # rounds between peers, whose intervals would overlap otherwise
YES, NO, MUTED, INK, ACCENT = (f"var(--{name})" for name in ("yes", "no", "muted", "ink", "accent"))

CONFIG: Spec = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": MUTED,
        "titleColor": MUTED,
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelPadding": 6,
        "titlePadding": 8,
        "tickSize": 4,
        "domain": False,
        "ticks": False,
    },
    "axisYQuantitative": {"minExtent": 34},  # aligns plots side by side
    "axisX": {"grid": False, "domain": True, "ticks": True},
    "header": {"labelColor": INK, "labelFontSize": 12, "title": None},
}


def _spec(rows: Rows, layers: list[Spec], height: int = HEIGHT) -> Spec:
    return {
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": list(rows)},
        "layer": layers,
        "config": CONFIG,
    }


def _peers(peers: Sequence[str], shape: bool = True) -> Spec:
    """Channels that tell peers apart; the page has the legend."""
    colours = [f"var(--{mark(n)})" for n in range(len(peers))]
    domain = {"domain": list(peers)}
    found: Spec = {"color": {"field": "peer", "type": "nominal", "scale": {**domain, "range": colours}, "legend": None}}
    if shape:
        kinds = [SHAPES[n % len(SHAPES)] for n in range(len(peers))]
        found["shape"] = {"field": "peer", "type": "nominal", "scale": {**domain, "range": kinds}, "legend": None}
    return found


def _tip(*fields: tuple[str, str]) -> list[Spec]:
    return [{"field": field, "title": title, "type": "nominal"} for field, title in fields]


def by_round(rows: Rows, peers: Sequence[str], title: str, zero: bool = False) -> Spec:
    """A line per peer over rounds. Rows: round, peer, value, low, high (these may be null), shown."""
    rounds = sorted({row["round"] for row in rows})
    middle = (len(peers) - 1) / 2
    placed = [{**row, "x": row["round"] + DODGE * (peers.index(row["peer"]) - middle)} for row in rows]
    x = {
        "field": "x",
        "type": "quantitative",
        "title": "round",
        "axis": {"values": _ticks(rounds), "format": "d"},
        "scale": {"domain": [rounds[0] - 0.25, rounds[-1] + 0.25], "nice": False, "zero": False},
    }
    y = {
        "field": "value",
        "type": "quantitative",
        "title": None,
        "axis": {"tickCount": 5},
        "scale": {"zero": zero},
    }
    who = _peers(peers)
    tip = _tip(("peer", "peer"), ("round", "round"), ("shown", title))
    layers: list[Spec] = [
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": who["color"]}},
        {
            "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
            "encoding": {"x": x, "y": y, **who, "tooltip": tip},
        },
    ]
    if any(row["low"] is not None for row in rows):
        bars = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": who["color"], "tooltip": tip}
        layers.insert(
            0,
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.55},
                "encoding": bars,
            },
        )
    return _spec(placed, layers)


def _ticks(rounds: Sequence[int], most: int = 12) -> list[int]:
    return list(rounds[:: -(-len(rounds) // most)])


def split_histogram(rows: Rows, names: tuple[str, str], x_title: str, ends: tuple[float, float]) -> Spec:
    """Two overlaid histograms, each in shares of its own group, between two `ends`. Rows: group, low, high, share, n,
    range."""
    layer: Spec = {
        "mark": {"type": "bar", "opacity": 0.6, "binSpacing": 0, "stroke": None},
        "encoding": {
            "x": {
                "field": "low",
                "type": "quantitative",
                "title": x_title,
                "axis": {"tickCount": 6},
                "scale": {"nice": False, "zero": False, "domain": list(ends)},
                "bin": {"binned": True},
            },
            "x2": {"field": "high"},
            "y": {
                "field": "share",
                "type": "quantitative",
                "stack": None,
                "title": None,
                "axis": {"format": ".0%", "tickCount": 4},
            },
            "color": {
                "field": "group",
                "type": "nominal",
                "legend": None,
                "scale": {"domain": list(names), "range": [YES, NO]},
            },
            "tooltip": _tip(("group", "its answer"), ("range", x_title), ("n", "answers")),
        },
    }
    zero = {"mark": {"type": "rule", "color": MUTED, "strokeDash": [3, 3]}, "encoding": {"x": {"datum": 0}}}
    return _spec(rows, [layer, zero] if ends[0] < 0 < ends[1] else [layer])


def scatter(rows: Rows, peers: Sequence[str], titles: tuple[str, str]) -> Spec:
    """Points. Rows: peer, x, y."""
    axes = {
        axis: {
            "field": axis,
            "type": "quantitative",
            "title": title,
            "scale": {"zero": axis == "y", "nice": True},
            "axis": {"tickCount": 6},
        }
        for axis, title in zip("xy", titles, strict=True)
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 22, "opacity": 0.5},
        "encoding": {**axes, **_peers(peers), "tooltip": _tip(("peer", "peer"), ("x", titles[0]), ("y", titles[1]))},
    }
    return _spec(rows, [points], 260)


def dots(rows: Rows, peers: Sequence[str], order: Sequence[str], x_title: str) -> Spec:
    """A row of dots per kind, a dot per peer, with intervals. Rows: kind, peer, value, low, high, shown."""
    y: Spec = {
        "field": "kind",
        "type": "nominal",
        "sort": list(order),
        "title": None,
        "axis": {"labelLimit": 260, "domain": False, "ticks": False, "labelColor": INK},
    }
    if len(peers) > 1:
        y = {**y, "scale": {"paddingInner": 0.25}}
    offset = {"yOffset": {"field": "peer", "type": "nominal", "sort": list(peers), "scale": {"paddingInner": 0.4}}}
    x = {"field": "value", "type": "quantitative", "title": x_title, "scale": {"zero": False}, "axis": {"tickCount": 5}}
    who, more = _peers(peers), offset if len(peers) > 1 else {}
    rule = {**x, "field": "low"}
    tip = {"tooltip": _tip(("kind", "what"), ("peer", "peer"), ("shown", x_title))}
    return _spec(
        rows,
        [
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.55},
                "encoding": {"y": y, **more, "x": rule, "x2": {"field": "high"}, "color": who["color"]},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {"y": y, **more, "x": x, **who, **tip},
            },
        ],
        len({row["kind"] for row in rows}) * (14 * len(peers) + 16),
    )


def steps(rows: Rows, order: Sequence[str], last: int, x_title: str) -> Spec:
    """A row per kind: the last round's dot with its interval, those of earlier rounds small. Rows: kind, round, value,
    low, high, shown."""
    y = {
        "field": "kind",
        "type": "nominal",
        "sort": list(order),
        "title": None,
        "axis": {"labelLimit": 260, "domain": False, "ticks": False, "labelColor": INK, "grid": True},
    }
    x = {"field": "value", "type": "quantitative", "title": x_title, "scale": {"zero": False}, "axis": {"tickCount": 5}}
    now = f"datum.round == {last}"
    tip = {"tooltip": _tip(("kind", "what"), ("round", "round"), ("shown", x_title))}
    layers: list[Spec] = [
        {
            "transform": [{"filter": f"{now} && isValid(datum.low)"}],
            "mark": {"type": "rule", "strokeWidth": 2, "color": ACCENT},
            "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
        },
        {
            "transform": [{"filter": now}],
            "mark": {"type": "point", "filled": True, "size": 90, "color": ACCENT, "opacity": 1},
            "encoding": {"y": y, "x": x, **tip},
        },
    ]
    if any(row["round"] != last for row in rows):  # without rows, the scale would have no ends
        layers.insert(
            1,
            {
                "transform": [{"filter": f"!({now})"}],
                "mark": {"type": "point", "size": 40, "color": MUTED, "opacity": 1},
                "encoding": {"y": y, "x": x, **tip},
            },
        )
    return _spec(rows, layers, STEP * len(order))


def stacked(rows: Rows, authors: Sequence[str], order: Sequence[str]) -> Spec:
    """A bar per learner, cut into shares by author. Rows: learner, peer (the author), share, shown."""
    bars = {
        "mark": {"type": "bar", "size": 18},
        "encoding": {
            "y": {
                "field": "learner",
                "type": "nominal",
                "sort": list(order),
                "title": None,
                "axis": {"labelColor": INK, "domain": False, "ticks": False, "labelLimit": 200},
            },
            "x": {
                "field": "share",
                "type": "quantitative",
                "title": None,
                "stack": "zero",
                "axis": {"format": ".0%", "tickCount": 5},
                "scale": {"domain": [0, 1]},
            },
            "color": _peers(authors, shape=False)["color"],
            "order": {"field": "place", "type": "quantitative"},
            "tooltip": _tip(("learner", "trained"), ("peer", "on texts of"), ("shown", "texts")),
        },
    }
    return _spec(rows, [bars], STEP * len(order))


def losses(rows: Rows, peers: Sequence[str], starts: Sequence[tuple[int, int]]) -> Spec:
    """A line per peer over optimiser steps. Rows: peer, round, step, value (smoothed), raw; `starts`: (round, first
    step)."""
    x = {
        "field": "step",
        "type": "quantitative",
        "title": "optimiser step",
        "axis": {"tickCount": 8},
        "scale": {"nice": False, "zero": False},
    }
    y = {"field": "value", "type": "quantitative", "title": None, "axis": {"tickCount": 5}}
    who = {"color": _peers(peers)["color"], "detail": {"field": "round"}}
    marks = [{"step": step, "label": f"round {n}"} for n, step in starts]
    tip = _tip(("peer", "peer"), ("round", "round"), ("step", "step"), ("raw", "loss"))
    return _spec(
        rows,
        [
            {
                "data": {"values": marks},
                "mark": {"type": "rule", "color": "var(--line)"},
                "encoding": {"x": {"field": "step", "type": "quantitative"}},
            },
            {
                "data": {"values": marks},
                "mark": {"type": "text", "align": "left", "dx": 5, "y": 6, "color": MUTED, "fontSize": 11},
                "encoding": {"x": {"field": "step", "type": "quantitative"}, "text": {"field": "label"}},
            },
            {
                "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.3},
                "encoding": {"x": x, "y": {**y, "field": "raw"}, **who},
            },
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, **who, "tooltip": tip}},
        ],
        220,
    )


def bars(rows: Rows, order: Sequence[str], x_title: str) -> Spec:
    """A bar per kind. Rows: kind, value, shown."""
    y = {
        "field": "kind",
        "type": "nominal",
        "sort": list(order),
        "title": None,
        "axis": {"labelColor": INK, "domain": False, "ticks": False, "labelLimit": 200},
    }
    x = {"field": "value", "type": "quantitative", "title": x_title, "axis": {"tickCount": 5}}
    return _spec(
        rows,
        [
            {
                "mark": {"type": "bar", "size": 18, "color": YES},
                "encoding": {"y": y, "x": x, "tooltip": _tip(("kind", "what"), ("shown", x_title))},
            },
        ],
        STEP * len(order),
    )


def forest(rows: Rows, runs: Sequence[str], peers: Sequence[str]) -> Spec:
    """Differences with their intervals, by run and within it by peer. Rows: run, peer, value, low, high, shown."""
    y = {
        "field": "run",
        "type": "nominal",
        "sort": list(runs),
        "title": None,
        "axis": {"labelColor": INK, "domain": False, "ticks": False, "labelLimit": 180},
    }
    place = {"y": y, "yOffset": {"field": "peer", "type": "nominal", "sort": list(peers)}}
    x = {"field": "value", "type": "quantitative", "title": "points", "axis": {"tickCount": 7, "grid": True}}
    who, tip = _peers(peers), _tip(("run", "run"), ("peer", "peer"), ("shown", "difference"))
    return _spec(
        rows,
        [
            {
                "data": {"values": [{"at": 0}]},
                "mark": {"type": "rule", "color": MUTED, "strokeWidth": 1},
                "encoding": {"x": {"field": "at", "type": "quantitative"}},
            },
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {**place, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": who["color"]},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
                "encoding": {**place, "x": x, **who, "tooltip": tip},
            },
        ],
        40 + 15 * len(runs) * (len(peers) + 1),
    )
