"""What can be said about a run without gold answers: lengths, unfinished responses, agreement of samples."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from rich import box
from rich.table import Table

from data import gate, shards
from data.answers.clusters import compare_all
from data.answers.grader import Grader
from data.answers.kinds import AnswerKindName
from data.answers.votes import consistency, voting_answer
from data.fork import fork_notice
from data.run import OUTPUT, RUNS, load_frozen
from data.schema import ChainRow, GateRow

CHAIN_COLUMNS = ("prompt_id", "peer", "role", "answer", "finish_reason", "n_tokens")
GATE_COLUMNS = ("prompt_id", "peer", "sample", "answer", "finish_reason", "n_tokens")
FinishedResponse = tuple[str, str | None, bool, int]  # question, answer (None if unfinished), finished, tokens


def rounds_without_gold(run: str) -> list[int]:
    """Rounds with finished chains or a finished gate, in order."""
    found = {path for kind in (OUTPUT["generate"], gate.FOLDER) for path in _finished(run, kind)}
    return sorted({int(path.parent.name.split("=")[1]) for path in found})


def _finished(run: str, kind: str) -> list[Path]:
    return [path.parent for path in (RUNS / run).glob(f"round=*/{kind}/{shards.SUCCESS}")]


def table_without_gold(run: str) -> Table:
    """round × responses × peer: their number, mean tokens, the share that is unfinished, the share without an answer,
    and, with several samples of a question, the mean share of their largest group of equal answers."""
    config = load_frozen(run)
    title = (
        f"run {run}: there are no benchmarks; this table uses no gold answers and does not say how many are right\n"
        "in %, except for counts and tokens; self-consistency: share of the largest group of equal answers among the "
        "samples of a question"
    )
    table = Table(title=title + fork_notice(run), title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("round", "responses", "peer"):
        table.add_column(name)
    for name in ("number", "tokens", "unfinished", "without answer", "self-consistency"):
        table.add_column(name, justify="right", no_wrap=True)
    with Grader(config.evaluate.answer_timeout_seconds, config.runtime.grader_workers) as grader:
        for n in rounds_without_gold(run):
            table.add_section()
            for (what, peer), rows in _responses(run, n).items():
                table.add_row(str(n), what, peer, *_figures(rows, config.prompts.answers, grader))
    return table


def _responses(run: str, round_: int) -> dict[tuple[str, str], list[FinishedResponse]]:
    """The responses of a round, by kind of response and peer."""
    found: dict[tuple[str, str], list[FinishedResponse]] = defaultdict(list)
    folder = RUNS / run / f"round={round_}"
    for path in shards.shard_paths(folder / OUTPUT["generate"]):
        for row in shards.rows_of(path, ChainRow, CHAIN_COLUMNS):
            found[row["role"], row["peer"]].append(_response(row))
    for path in shards.shard_paths(folder / gate.FOLDER):
        for answer in shards.rows_of(path, GateRow, GATE_COLUMNS):
            found["gate, samples" if answer["sample"] else "gate, greedy", answer["peer"]].append(_response(answer))
    return found


def _response(row: ChainRow | GateRow) -> FinishedResponse:
    stopped = row["finish_reason"] == "stop"
    return row["prompt_id"], voting_answer(row["answer"], row["finish_reason"]), stopped, row["n_tokens"]


def _figures(rows: list[FinishedResponse], kind: AnswerKindName, grader: Grader) -> list[str]:
    n = len(rows)
    questions: dict[str, list[str | None]] = defaultdict(list)
    for id_, answer, _, _ in rows:
        questions[id_].append(answer)
    shown = "–"
    if any(len(answers) > 1 for answers in questions.values()):
        compare_all(questions.values(), kind, grader)
        shown = f"{100 * consistency(list(questions.values()), kind, grader):.1f}"
    unfinished, unanswered = sum(not stopped for *_, stopped, _ in rows), sum(row[1] is None for row in rows)
    tokens = sum(tokens for *_, tokens in rows)
    return [f"{n:,}", f"{tokens / n:.1f}", f"{100 * unfinished / n:.1f}", f"{100 * unanswered / n:.1f}", shown]
