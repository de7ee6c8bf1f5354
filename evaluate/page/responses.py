"""What responses look like over rounds: length, unfinished ones, distinct answers, entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluate.page.frames import Frames
from evaluate.page.lines import lines_plot, point
from evaluate.page.parts import PagePart, Plot, marks

Measures = Sequence[tuple[str, str, int, int, str]]
ON_BENCHMARKS: Measures = (  # column of metrics, title, scale, digits, caption
    ("mean_tokens", "Length, tokens", 1, 1, "Mean of all responses; a sudden fall or rise is a change of manner."),
    ("unanswered_rate", "Without an answer, in %", 100, 1, "Greedy responses in which no answer was found."),
    ("truncated_rate", "Unfinished, in %", 100, 1, "Responses cut off at the token limit before they named an answer."),
    (
        "distinct_answers",
        "Distinct answers, in %",
        100,
        1,
        "Distinct answers per question: a fall means that different questions get the same answer.",
    ),
    (
        "answer_entropy",
        "Answer entropy, nats",
        1,
        2,
        "How much the samples of a question differ: it falls as a model becomes certain, rightly or not.",
    ),
)
ON_QUESTIONS: Measures = (
    ("tokens", "Length, tokens", 1, 1, "Mean of all responses; a sudden fall or rise is a change of manner."),
    ("unfinished", "Unfinished, in %", 100, 1, "Responses cut off at the token limit."),
    ("unanswered", "Without an answer, in %", 100, 1, "Responses cut off, or in which no answer was found."),
    ("entropy", "Answer entropy, nats", 1, 2, "How much the answers to a question differ."),
)


def responses_part(frames: Frames) -> PagePart:
    """The part: on the benchmarks, or, without them, on the unlabelled questions."""
    title = "What responses look like"
    if frames.metrics.height:
        measures, where = ON_BENCHMARKS, "On the benchmarks: the mean over them, each counted once."
        found = [_on_benchmarks(frames, measure[0]) for measure in measures]
    else:
        measures, where = ON_QUESTIONS, "On the unlabelled questions, since there are no benchmarks."
        rows = _on_questions(frames)
        found = [[(row["round"], row["peer"], row[measure[0]]) for row in rows] for measure in measures]
        if not rows:
            return PagePart("responses", title, missing=["There are no responses yet."])
    lines, plots = [where], []
    for measure, rows_ in zip(measures, found, strict=True):
        known = [value for *_, value in rows_ if value is not None]
        if any(known):
            plots.append(_plot(*measure, rows_, frames))
        elif known:
            lines.append(f"{measure[1].partition(',')[0]}: 0 in every round, for every peer.")
    return PagePart("responses", title, lines, legend=marks(frames.peers), plots=plots)


def _on_benchmarks(frames: Frames, name: str) -> list[tuple[int, str, float | None]]:
    import polars as pl

    found = frames.metrics.group_by("round", "peer").agg(pl.col(name).mean()).sort("round", "peer")
    return list(found.iter_rows())


def _on_questions(frames: Frames) -> list[dict[str, Any]]:
    """By round and peer, over all roles; entropy is the round's, of the rows that the peer is scored on."""
    import polars as pl

    rows = []
    scored = frames.rounds("score")
    for n in frames.rounds("generate"):
        counts = frames.responses(n).group_by("peer").agg(pl.exclude("role", "peer").sum())
        entropy: dict[str, float] = {}
        if n in scored:
            entropy = dict(frames.scores(n).group_by("peer").agg(pl.col("answer_entropy").mean()).iter_rows())
        for peer, size, tokens, unfinished, unanswered in counts.iter_rows():
            if peer in frames.peers:
                rows.append(
                    {
                        "round": n,
                        "peer": peer,
                        "tokens": tokens / size,
                        "unfinished": unfinished / size,
                        "unanswered": unanswered / size,
                        "entropy": entropy.get(peer),
                    }
                )
    return rows


def _plot(
    id_: str,
    title: str,
    scale: int,
    digits: int,
    caption: str,
    rows: list[tuple[int, str, float | None]],
    frames: Frames,
) -> Plot:
    points = [point(n, peer, value, scale, digits) for n, peer, value in rows if peer in frames.peers]
    return lines_plot(f"responses-{id_}", title, caption, points, frames.peers, zero=True)
