"""The cost of a run: time and tokens per stage and peer, what waited for what, device hours and their price."""

from __future__ import annotations

from collections import Counter
from typing import Any

from data.run import OUTPUT
from evaluate.page import charts
from evaluate.page.frames import Frames
from evaluate.page.parts import Numbers, PagePart, PageSection, Plot, long_duration, number, percent
from evaluate.page.verdict import overall
from evaluate.results import Results


def cost(results: Results, frames: Frames, price: float | None) -> PageSection:
    """The section. `price` is that of a device hour."""
    found = [
        {**frames.manifest(stage, n), "stage": stage, "round": n} for stage in OUTPUT for n in frames.rounds(stage)
    ]
    stages = [each for each in found if "seconds" in each]
    lead = "From the stages' manifests; a stage that was interrupted has the seconds of its last call only."
    if not stages:
        return PageSection("cost", "Cost", parts=[PagePart("none", "Time", missing=["No stage is finished yet."])])
    tokens = {(each["stage"], each["round"]): frames.tokens(each["stage"], each["round"]) for each in stages}
    parts = [_time(stages), _tokens(frames, stages, tokens), _waits(frames, stages), _hours(results, stages, price)]
    return PageSection("cost", "Cost", lead, parts)


def _time(stages: list[dict[str, Any]]) -> PagePart:
    seconds = Counter[str]()
    for each in stages:
        seconds[each["stage"]] += each["seconds"]
    order, whole = [stage for stage in OUTPUT if stage in seconds], sum(seconds.values())
    unit, size = ("hours", 3600) if whole > 5400 else ("minutes", 60) if whole > 180 else ("seconds", 1)
    rounds = sorted({each["round"] for each in stages})
    of = {(each["stage"], each["round"]): each["seconds"] for each in stages}
    table = [
        [
            f"round {n}",
            *(long_duration(of[stage, n]) if (stage, n) in of else "–" for stage in order),
            long_duration(sum(s for (_, m), s in of.items() if m == n)),
        ]
        for n in rounds
    ]
    table.append(["all", *(long_duration(seconds[stage]) for stage in order), long_duration(whole)])
    rows = [
        {
            "kind": stage,
            "value": round(seconds[stage] / size, 3),
            "shown": f"{long_duration(seconds[stage])}, {percent(seconds[stage] / whole if whole else 0)} %",
        }
        for stage in order
    ]
    plot = Plot(
        "time",
        f"Time by stage, all rounds: {long_duration(whole)} in total",
        "The longest bar is where a faster machine, or fewer samples, saves most.",
        charts.bars(rows, order, unit),
        Numbers("Time", ["", *order, "all"], table, range(1, len(order) + 2)),
        wide=True,
    )
    return PagePart("time", "Time", plots=[plot])


def _tokens(frames: Frames, stages: list[dict[str, Any]], tokens: dict[tuple[str, int], dict[str, int]]) -> PagePart:
    """Tokens per stage, and per peer where known, with tokens per second."""
    rows = []
    for stage in OUTPUT:
        mine = [each for each in stages if each["stage"] == stage]
        total = sum(each.get("tokens", 0) for each in mine)
        if not mine or not total:
            continue
        seconds = sum(each["seconds"] for each in mine)
        by_peer = Counter[str]()
        for each in mine:
            by_peer.update(tokens[stage, each["round"]])
        peers = [f"{by_peer[peer]:,}" if by_peer else "–" for peer in frames.peers]
        rows.append([stage, f"{total:,}", *peers, f"{total / seconds:,.0f}" if seconds else "–"])
    if not rows:
        return PagePart("tokens", "Tokens", missing=["The manifests have no tokens."])
    columns = ["stage", "tokens", *frames.peers, "tokens per second"]
    caption = (
        "Generate and evaluate: tokens written (evaluate's time has its verifier's passes, too). Score and train: "
        "tokens passed through a model."
    )
    table = Numbers("Tokens by stage and peer, all rounds", columns, rows, range(1, len(columns)), caption)
    return PagePart("tokens", "Tokens", tables=[table])


def _waits(frames: Frames, stages: list[dict[str, Any]]) -> PagePart:
    """How much of a stage's time each peer's process worked."""
    title = "What waited for what"
    known = [each for each in stages if each.get("peer_seconds")]
    if not known:
        return PagePart("waits", title, missing=["Not shown: this run's version did not record it in the manifests."])
    wall, busy = Counter[str](), dict[str, Counter[str]]()
    for each in known:
        wall[each["stage"]] += each["seconds"]
        busy.setdefault(each["stage"], Counter()).update(each["peer_seconds"])

    def share(stage: str, peer: str) -> str:
        worked = busy[stage][peer]
        return f"{long_duration(worked)} ({100 * worked / wall[stage]:.0f} %)" if wall[stage] else "–"

    rows = [[stage, *(share(stage, peer) for peer in frames.peers)] for stage in OUTPUT if stage in busy]
    caption = (
        "The time that a peer's processes were at work, and its share of the stage's time. Much less than 100 % means "
        "that the peer waited for the others, for its turn on the device, or for the main process; more than 100 % "
        "means that it has several processes."
    )
    columns = ["stage", *frames.peers]
    table = Numbers("Work of each peer by stage", columns, rows, range(1, len(columns)), caption)
    return PagePart("waits", title, tables=[table])


def _hours(results: Results, stages: list[dict[str, Any]], price: float | None) -> PagePart:
    title = "Device hours and price"
    devices = {each["devices"] for each in stages if each.get("devices")}
    assumed = not devices
    hours = sum(each["seconds"] * each.get("devices", 1) for each in stages) / 3600
    how = "assuming one device, since the manifests do not say" if assumed else "a stage's time on all its devices"
    lines = [f"{number(hours, 2)} device hours ({how})."]
    if price is None:
        return PagePart("hours", title, lines, ["No price: set that of a device hour with make report PRICE=2.5."])
    paid = price * hours
    lines.append(f"At {price:g} per device hour that is {number(paid, 2)}.")
    change = overall(results)
    if change is None:
        return PagePart("hours", title, lines, ["No price of a point: there is no change of exact match to pay for."])
    if change.em.contains_zero:
        return PagePart("hours", title, lines, ["No price of a point: the change's interval contains 0."])
    if change.em.mean < 0:
        return PagePart("hours", title, lines, ["No price of a point: exact match fell."])
    lines.append(f"That is {number(paid / (100 * change.em.mean), 2)} per point of exact match gained.")
    return PagePart("hours", title, lines)
