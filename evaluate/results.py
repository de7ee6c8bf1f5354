"""The results of a run: its tables, and what the page is made from. Statistics are computed here, once."""

from __future__ import annotations

from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from data import quarantine
from data.config.sections import Config, GuardSection
from data.run import RUNS, Run, load_frozen
from data.versions import version_changes
from evaluate.changes import Change, round_changes
from evaluate.gate import gate_notes, gate_rounds, gate_table
from evaluate.guard import findings
from evaluate.tables import (
    change_table,
    choices_table,
    cross_table,
    diversity_table,
    gap_table,
    metrics_table,
    training_table,
)
from evaluate.without_gold import rounds_without_gold, table_without_gold


@dataclass(frozen=True)
class Results:
    """The results of one run."""

    run: Run  # with [guard] of the present command
    rounds: list[int]  # those with metrics; without benchmarks, those with responses
    changes: list[Change]
    warnings: list[str]  # the guard's
    tables: list[Table | str]  # for the terminal, in order
    more: list[Table]  # for the page alone

    @property
    def config(self) -> Config:
        """The run's frozen config, except for [guard]."""
        return self.run.config


def finished_rounds(run: str) -> list[int]:
    """Rounds that have metrics, in order."""
    return sorted(int(path.parent.name.split("=")[1]) for path in (RUNS / run).glob("round=*/metrics.parquet"))


def results_of(run: str, guard: GuardSection | None = None) -> Results:
    """All results so far; `guard` is [guard] of the present command, by default the frozen config's."""
    config = load_frozen(run)
    opened = Run(run, config if guard is None else config.model_copy(update={"guard": guard}))
    rounds, found, seen = finished_rounds(run), list[Change](), list[str]()
    tables, more = list[Table | str](), list[Table]()
    if rounds:
        found, seen = round_changes(run, rounds), warnings(opened, rounds)
        made = (metrics_table(run, rounds), change_table(run, found), cross_table(run, rounds))
        tables += [table for table in made if table]
        tables += ["\n".join(f"[bold]collapse?[/bold] {line}" for line in seen)] if seen else []
        more += [gap_table(run, rounds), diversity_table(run, rounds)]
    else:
        tables.append(table_without_gold(run))
        rounds = rounds_without_gold(run)
    tables += quarantine.lines_of(RUNS / run)
    if gate_rounds(run):
        tables += [gate_table(run), gate_notes(run)]
    if others := version_changes(RUNS / run):
        tables.append("\n".join(f"[bold]versions[/bold] {escape(line)}" for line in others))
    more += [training_table(run, rounds), choices_table(config)]
    return Results(opened, rounds, found, seen, tables, more)


def warnings(run: Run, rounds: list[int]) -> list[str]:
    """What the guard finds in all rounds, a line each; nothing if guard.action is "ignore"."""
    if run.config.guard.action == "ignore":
        return []
    return [f"round {n}: {found}" for n in rounds for found in findings(run, n)]
