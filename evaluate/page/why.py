"""Why a run came out as it did: labels, PMI, weights, training, responses, and which peers the method trusts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from evaluate.intervals import Estimate
from evaluate.page import charts
from evaluate.page.frames import Frames
from evaluate.page.learning import training_part, trust_part
from evaluate.page.parts import Numbers, PagePart, PageSection, Plot, interval_text, mark, marks, number, percent
from evaluate.page.responses import responses_part

if TYPE_CHECKING:
    import polars as pl

BINS, TAIL = 30, 0.005  # bins of a histogram; the share at each end that goes into the outermost bins
MAX_POINTS = 300  # points of a peer in a scatter plot
AGREE, DIFFER = "agrees with the label", "differs from it"


def why(frames: Frames) -> PageSection:
    """The section, which also says what cannot be shown yet."""
    lead = "From the responses to what was trained on, and to the result."
    scored = frames.rounds("score")
    if not scored:
        nothing = "Nothing is scored yet, so there are no labels, PMI, weights or losses to show."
        parts = [PagePart("nothing", "Labels, weights and training", missing=[nothing]), responses_part(frames)]
        return PageSection("why", "Why", lead, [part for part in parts if part.plots or part.missing])
    parts = [
        labels_part(frames, scored),
        _rounds(frames, scored, pmi_part),
        _rounds(frames, scored, weights_part),
        _rounds(frames, scored, authors_part),
        trust_part(frames, scored),
        training_part(frames),
        responses_part(frames),
    ]
    return PageSection("why", "Why", lead, parts)


def _rounds(frames: Frames, rounds: Sequence[int], part: Callable[[Frames, int], PagePart]) -> PagePart:
    """A part for the last round, with those of earlier rounds behind a click."""
    *earlier, last = rounds
    now = part(frames, last)
    if now.missing or not earlier:
        return now
    more = [(f"Round {n}", part(frames, n)) for n in reversed(earlier)]
    return PagePart(**{**vars(now), "more": more})


# --- labels ---


def labels_part(frames: Frames, rounds: Sequence[int]) -> PagePart:
    """How often responses and labels were right, if that is known."""
    title = "Were the labels right?"
    if frames.without_gold:
        why_not = f"Not shown: {frames.without_gold}."
        return PagePart("labels", title, missing=[why_not[0] + why_not[1:]])
    found = {n: frames.judged(n)[0] for n in rounds}
    order = list(dict.fromkeys(name for numbers in found.values() for name in numbers))
    rows = [
        {"kind": _shorter(name), "round": n, **_values(each), "shown": f"{interval_text(each)} %"}
        for n, numbers in found.items()
        for name, each in numbers.items()
        if each is not None
    ]
    last = rounds[-1]
    before = " Hollow dots: earlier rounds." if len(rounds) > 1 else ""
    plot = Plot(
        "labels",
        "Right answers to the unlabelled questions, in %",
        f"The full dot is a share of right answers in round {last}, with its 95 % interval; the label should lie to "
        f"the right of the single responses.{before}{frames.few(last)}",
        charts.steps(rows, [_shorter(name) for name in order], last, "right answers, %"),
        Numbers(
            "Right answers, in %",
            ["", *(f"round {n}" for n in rounds)],
            [[_shorter(name), *(interval_text(found[n].get(name)) for n in rounds)] for name in order],
            range(1, len(rounds) + 1),
        ),
        wide=True,
    )
    note = "Gold answers are read only for this page; the method never sees them."
    return PagePart("labels", title, [note], plots=[plot])


def _shorter(name: str) -> str:
    return name.removeprefix("right, ").removeprefix("right at ")


def _values(found: Estimate, scale: float = 100) -> dict[str, float | None]:
    mean, low, high = (None if x is None else round(scale * x, 3) for x in (found.mean, found.low, found.high))
    return {"value": mean, "low": low, "high": high}


# --- PMI ---


def pmi_part(frames: Frames, round_: int) -> PagePart:
    """Histograms of PMI, split by agreement with the label."""
    import polars as pl

    title = f"Does PMI see who agrees with the label? Round {round_}"
    scores = frames.scores(round_)
    known = scores.filter(pl.col("pmi_per_token").is_not_null() & pl.col("agrees").is_not_null())
    if not known.height:
        none = "No PMI was measured: this run compares no response with another text."
        return PagePart(f"pmi-{round_}", title, missing=[none])
    low, high = (known["pmi_per_token"].quantile(q) or 0.0 for q in (TAIL, 1 - TAIL))
    width = (high - low) / BINS or 0.01
    plots = []
    for peer in frames.peers:
        mine = known.filter(pl.col("peer") == peer)
        if mine.height:
            plots.append(_histogram(mine, peer, round_, low, width))
    legend = [(f"the peer's answer {AGREE}", "yes"), (f"it {DIFFER}", "no")]
    lines = [
        "PMI measures how much a peer's response says about the text that it trains on; the less it says, the more the "
        "peer can learn from that text."
    ]
    return PagePart(f"pmi-{round_}", title, lines, legend=legend, plots=plots)


def _histogram(mine: pl.DataFrame, peer: str, round_: int, low: float, width: float) -> Plot:
    import polars as pl

    place = ((pl.col("pmi_per_token") - low) / width).floor().cast(pl.Int64).clip(0, BINS - 1)
    bins = mine.group_by(place.alias("bin"), "agrees").len().sort("bin", "agrees")
    totals = dict(mine.group_by("agrees").len().iter_rows())
    rows, cells = [], dict[int, list[str]]()
    for number_, agrees, n in bins.iter_rows():
        start, end = low + number_ * width, low + (number_ + 1) * width
        span = f"{number(start, 3)} to {number(end, 3)}"
        rows.append(
            {
                "group": AGREE if agrees else DIFFER,
                "low": round(start, 5),
                "high": round(end, 5),
                "n": n,
                "share": round(n / totals[agrees], 5),
                "range": span,
            }
        )
        cells.setdefault(number_, [span, "0", "0"])[1 if agrees else 2] = f"{n:,}"
    counts = f"{totals.get(True, 0):,} agree, {totals.get(False, 0):,} differ"
    return Plot(
        f"pmi-{round_}-{peer}",
        f"{peer}: {counts}",
        "The further apart the two groups lie, the better PMI tells them apart. Bars are shares of their own group; "
        "the outermost ones include all values beyond them.",
        charts.split_histogram(rows, (AGREE, DIFFER), "PMI, nats per token", (low, low + BINS * width)),
        Numbers(f"PMI of {peer}, number of answers", ["nats per token", AGREE, DIFFER], list(cells.values()), (1, 2)),
    )


# --- weights ---


def weights_part(frames: Frames, round_: int) -> PagePart:
    """Weight against PMI, and by what was right."""
    import polars as pl

    title = f"What gets weight? Round {round_}"
    scores = frames.scores(round_).filter(pl.col("weight").is_not_null())
    plots, missing = [], []
    if scores["pmi_per_token"].null_count() < scores.height:
        plots.append(_scatter(frames, scores, round_))
    else:
        missing.append("Weight against PMI is not shown: no PMI was measured.")
    if frames.without_gold:
        missing.append(f"Weights by what was right are not shown: {frames.without_gold}.")
    else:
        cells = {cell: found for cell, found in frames.judged(round_)[1].items() if found is not None}
        if cells:
            plots.append(_by_right(frames, cells, round_))
        else:
            missing.append("Weights by what was right are not shown: gold answers chose the examples, or none has PMI.")
    lines = [] if scores.height else ["No example has a weight in this round."]
    return PagePart(f"weights-{round_}", title, lines, missing, marks(frames.peers), plots, pairs=True)


def _scatter(frames: Frames, scores: pl.DataFrame, round_: int) -> Plot:
    import polars as pl

    known = scores.filter(pl.col("pmi_per_token").is_not_null())
    rows: list[dict[str, Any]] = []
    table = []
    for peer in frames.peers:
        mine = known.filter(pl.col("peer") == peer)
        some = mine.sample(min(MAX_POINTS, mine.height), seed=frames.run.config.run.seed)
        rows += [
            {"peer": peer, "x": round(x, 4), "y": round(y, 4)}
            for x, y in some.select("pmi_per_token", "weight").iter_rows()
        ]
        for low, high, n, weight in _quarters(mine):
            table.append([peer, f"{number(low, 3)} to {number(high, 3)}", f"{n:,}", number(weight, 2)])
    shown = f" A sample of {MAX_POINTS} of each peer's examples." if known.height > len(rows) else ""
    return Plot(
        f"scatter-{round_}",
        "Weight against PMI",
        "A point is an example: further left, its response says less about the text; higher up, it counts for more."
        + shown,
        charts.scatter(rows, frames.peers, ("PMI, nats per token", "weight")),
        Numbers(
            "Mean weight by quarter of PMI", ["peer", "PMI, nats per token", "examples", "mean weight"], table, (2, 3)
        ),
    )


def _quarters(mine: pl.DataFrame) -> list[tuple[float, float, int, float]]:
    """(least PMI, greatest, examples, mean weight) of the quarters by PMI."""
    import polars as pl

    sorted_ = mine.sort("pmi_per_token").with_row_index("at")
    quarter = (pl.col("at") * 4 // max(1, mine.height)).alias("quarter")
    found = sorted_.group_by(quarter, maintain_order=True).agg(
        pl.col("pmi_per_token").min().alias("low"),
        pl.col("pmi_per_token").max().alias("high"),
        pl.len(),
        pl.col("weight").mean(),
    )
    return [row[1:] for row in found.iter_rows()]


def _by_right(frames: Frames, cells: dict[tuple[str, bool, bool], Estimate], round_: int) -> Plot:
    words = {True: "right", False: "wrong"}
    order = [f"own {words[own]}, label {words[label]}" for own in (False, True) for label in (True, False)]
    rows: list[dict[str, Any]] = [
        {
            "kind": f"own {words[own]}, label {words[label]}",
            "peer": peer,
            **_values(found, 1),
            "shown": interval_text(found, scale=1, digits=2),
        }
        for (peer, own, label), found in cells.items()
    ]
    return Plot(
        f"right-{round_}",
        "Mean weight by what was right",
        "Weight should be high in the first row, where the peer can learn something true, and low in the second."
        + frames.few(round_),
        charts.dots(rows, frames.peers, order, "mean weight"),
        Numbers(
            "Mean weight by what was right",
            ["", "peer", "mean weight (95 % interval)"],
            [
                [str(row[key]) for key in ("kind", "peer", "shown")]
                for kind in order
                for row in rows
                if row["kind"] == kind
            ],
            (2,),
        ),
    )


# --- whose texts ---


def authors_part(frames: Frames, round_: int) -> PagePart:
    """Whose texts each peer trained on."""
    import polars as pl

    title = f"Whose text was trained on? Round {round_}"
    trained = frames.scores(round_).filter(pl.col("weight").is_not_null() & (pl.col("weight") != 0))
    counts = trained.group_by("peer", "target_peer").len()
    n = {(peer, author): count for peer, author, count in counts.iter_rows()}
    authors = [*frames.peers, *sorted({author for _, author in n if author not in (None, *frames.peers)})]
    totals = {peer: sum(count for (learner, _), count in n.items() if learner == peer) for peer in frames.peers}
    rows = [
        {
            "learner": learner,
            "peer": author,
            "place": authors.index(author),
            "share": n[learner, author] / total,
            "shown": f"{n[learner, author]:,} ({percent(n[learner, author] / total)} %)",
        }
        for learner, total in totals.items()
        for author in authors
        if (learner, author) in n
    ]
    if not rows:
        return PagePart(f"authors-{round_}", title, missing=["No example has a weight in this round."])
    plot = Plot(
        f"authors-{round_}",
        "Share of each peer's training texts, by who wrote them",
        "A bar shows what one peer trained on; the part in its own colour is what it wrote itself.",
        charts.stacked(rows, authors, frames.peers),
        Numbers(
            "Training texts",
            ["trained", *(f"by {author}" for author in authors), "all"],
            [
                [peer, *(f"{n.get((peer, author), 0):,}" for author in authors), f"{totals[peer]:,}"]
                for peer in frames.peers
            ],
            range(1, len(authors) + 2),
        ),
        wide=True,
    )
    return PagePart(f"authors-{round_}", title, legend=[(a, mark(i)) for i, a in enumerate(authors)], plots=[plot])
