"""Which peers the method can trust, as far as it can see; and the losses of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluate.page import charts
from evaluate.page.frames import Frames
from evaluate.page.lines import lines_plot, point
from evaluate.page.parts import Numbers, PagePart, Plot, marks

MAX_POINTS = 150  # points of a peer's losses in a round, at most


def trust_part(frames: Frames, rounds: Sequence[int]) -> PagePart:
    """What the method itself can see of each peer's reliability."""
    import polars as pl

    title = "Which peers can the method trust?"
    plots, missing = [], []
    agreement = []
    for n in rounds:
        seen = frames.scores(n).filter(
            (pl.col("number") == 1) & pl.col("agrees").is_not_null() & (pl.col("peer") != pl.col("target_peer"))
        )
        shares = dict(seen.group_by("peer").agg(pl.col("agrees").mean()).iter_rows())
        agreement += [point(n, peer, shares[peer]) for peer in frames.peers if peer in shares]
    if agreement:
        plots.append(
            lines_plot(
                "agreement",
                "Agreement with the label, in %",
                "Share of questions on which a peer's own answer is the label, among those whose text another peer "
                "wrote.",
                agreement,
                frames.peers,
            )
        )
    shares_of = {n: frames.manifest("score", n).get("self_consistency", {}) for n in rounds}
    raters = list(dict.fromkeys(rater for shares in shares_of.values() for rater in shares))
    if raters:
        weighted = frames.run.config.score.reliability == "self-consistency"
        use = "under sample-vote it weights a peer's votes" if weighted else "it weights no votes in this run"
        plots.append(
            lines_plot(
                "reliability",
                "Self-consistency, in %",
                f"The share of a peer's samples of a question that agree with each other; {use}.",
                [point(n, rater, share) for n, shares in shares_of.items() for rater, share in shares.items()],
                raters,
            )
        )
    else:
        missing.append(
            "No reliability was estimated: this run has no samples of the unlabelled questions, and its label "
            f"({frames.run.config.score.label}) weights no votes."
        )
    return PagePart("trust", title, [], missing, marks(raters or frames.peers), plots, pairs=True)


def training_part(frames: Frames) -> PagePart:
    """The losses of all rounds, one after the other."""
    title = "Training"
    rounds, rows, starts, table, first = frames.rounds("train"), [], [], [], 0
    for n in rounds:
        reports = frames.manifest("train", n).get("peers", {})
        starts.append((n, first))
        for peer, report in reports.items():
            rows += [{"peer": peer, "round": n, **each} for each in _smooth(report.get("losses", []), first)]
            table.append([peer, str(n), f"{report['examples']:,}", report["loss"]])
        first += max((len(report.get("losses", [])) for report in reports.values()), default=0)
    if not rows:
        return PagePart("training", title, missing=["No adapter has been trained yet."])
    plot = Plot(
        "loss",
        "Training loss, nats per token",
        "Thin lines are single steps, thick ones their running mean; a loss that rises within a round is a warning.",
        charts.losses(rows, frames.peers, starts),
        Numbers("Training", ["peer", "round", "examples", "loss, first → last fifth"], sorted(table), (1, 2, 3)),
        wide=True,
    )
    return PagePart("training", title, legend=marks(frames.peers), plots=[plot])


def _smooth(values: Sequence[float | None], first: int) -> list[dict[str, Any]]:
    """At most `MAX_POINTS` points: the mean of neighbouring steps, and its running mean over a tenth of them."""
    known = [(step, value) for step, value in enumerate(values) if value is not None]
    size = -(-len(known) // MAX_POINTS) or 1
    groups = [known[i : i + size] for i in range(0, len(known), size)]
    raw = [(first + group[0][0], sum(value for _, value in group) / len(group)) for group in groups]
    reach = max(1, len(raw) // 20)
    found = []
    for i, (step, value) in enumerate(raw):
        near = [v for _, v in raw[max(0, i - reach) : i + reach + 1]]
        found.append({"step": step, "raw": round(value, 5), "value": round(sum(near) / len(near), 5)})
    return found
