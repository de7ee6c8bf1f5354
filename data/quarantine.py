"""A bad question costs only itself and leaves a reason: notes beside the units of work, and quarantine.parquet.

The process that does a unit writes down what went wrong, in a file beside the unit's own and before it, so that a kill
loses no reason. The stage counts these notes as units are done, stops if there are too many, and at its end moves them
to `runs/<run>/round=<R>/quarantine.parquet`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from data import shards, sums
from data.errors import UserError
from data.run import Run
from data.schema import QUARANTINE, QuarantineRow
from data.stage import Stage

MIN_ALLOWED = 10  # questions that a stage may lose whatever the allowed share, unless that is 0
OUTCOMES = ("too_long", "not_compared")  # they cost nothing, or count as undecided
NOTES = ".quarantine.json"
MAX_REASON = 300  # characters of a reason


def allowed(share: float, questions: int) -> int:
    """How many of `questions` may be lost; `share` is `runtime.quarantine_share`."""
    return max(MIN_ALLOWED, ceil(share * questions)) if share else 0


def path_of(round_dir: Path) -> Path:
    """runs/<run>/round=<R>/quarantine.parquet"""
    return round_dir / "quarantine.parquet"


def notes_of(unit: Path) -> Path:
    """The file for notes on what went wrong in a unit; `unit` is the unit's own file."""
    return unit.with_name(unit.name + NOTES)


def entry(
    question_id: str, reason: str, detail: str | None = None, peer: str | None = None, benchmark: str | None = None
) -> QuarantineRow:
    """A note; its stage is filled in later."""
    short = None if detail is None else detail[:MAX_REASON]
    return {
        "stage": "",
        "peer": peer,
        "benchmark": benchmark,
        "question_id": question_id,
        "reason": reason,
        "detail": short,
    }


def note(unit: Path, rows: Sequence[QuarantineRow]) -> None:
    """Write the notes of a unit, before the unit's own file; each question and reason once."""
    kept = {(row["peer"], row["question_id"], row["reason"]): row for row in reversed(rows)}
    if kept:
        shards.write_json(list(reversed(kept.values())), notes_of(unit))
    else:
        notes_of(unit).unlink(missing_ok=True)  # left by a command that was killed before it wrote the unit


def entries(round_dir: Path) -> list[shards.Row]:
    """The questions that the stages of a round have lost."""
    path = path_of(round_dir)
    return shards.read_rows(path, QUARANTINE) if path.is_file() else []


def set_rows(round_dir: Path, stage: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the rows of a stage. An empty file is not made."""
    before = entries(round_dir)
    after = [row for row in before if row["stage"] != stage] + list(rows)
    if after != before:
        with sums.noted(path_of(round_dir)):
            shards.write_rows(after, path_of(round_dir), QUARANTINE)


def summary(counts: dict[str, int]) -> str:
    """The counts by reason, for people."""
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())


def lines_of(root: Path) -> list[str]:
    """A line for each finished stage of a run that has lost questions. Damaged manifests are skipped: others report
    them."""
    lines = []
    for path in sorted(root.glob(f"round=*/*/{shards.SUCCESS}"), key=lambda path: (len(path.parts[-3]), str(path))):
        try:
            manifest = shards.read_json(path)
        except UserError:
            continue
        if counts := manifest.get("quarantined"):
            stage, round_ = manifest.get("stage", path.parent.name), manifest.get("round", "?")
            lines.append(f"{stage} round {round_}: quarantined {summary(counts)} ({path_of(path.parent.parent)})")
    return lines


class Quarantine:
    """The losses of a stage among its `questions`. `files_of_unit(unit)` lists the files to delete before a unit is
    done again.

    After a stop for too many losses, units with losses that are not in a shard yet are done again. All other work is
    kept.
    """

    def __init__(
        self,
        run: Run,
        stage: Stage,
        questions: int,
        files_of_unit: Callable[[Path], Iterable[Path]] = lambda unit: [unit],
    ) -> None:
        self.run, self.stage, self.questions = run, stage, questions
        self.lost: dict[str, set[tuple[str | None, str]]] = defaultdict(set)  # reason -> benchmark and question
        self.details: dict[str, str] = {}  # reason -> one example
        units = [path.with_name(path.name.removesuffix(NOTES)) for path in stage.work.glob(f"*{NOTES}")]
        self._count(units)
        if self._why() is not None:
            for unit in [unit for unit in units if unit.is_file()]:
                for path in files_of_unit(unit):
                    notes_of(path).unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
            self.lost.clear()
            self._count(unit for unit in units if notes_of(unit).is_file())

    def look(self, units: Iterable[Path]) -> None:
        """Count the notes of finished units. Raises UserError if too many questions are lost."""
        self._count(units)
        if (why := self._why()) is not None:
            raise UserError(why)

    def close(self, outcomes: Sequence[QuarantineRow] = ()) -> dict[str, Any]:
        """Write the stage's rows, with those of `outcomes`, and return their counts for its summary; {} if there are
        none."""
        noted = [row for path in sorted(self.stage.work.glob(f"*{NOTES}")) for row in shards.read_json(path)]
        mine = [{**row, "stage": self.stage.name} for row in (*outcomes, *noted)]
        set_rows(self.run.round_dir(self.stage.round), self.stage.name, mine)
        counts = Counter(row["reason"] for row in mine)
        return {"quarantined": dict(sorted(counts.items()))} if counts else {}

    def _count(self, units: Iterable[Path]) -> None:
        for path in map(notes_of, units):
            for row in shards.read_json(path) if path.is_file() else []:
                if row["reason"] not in OUTCOMES:
                    self.lost[row["reason"]].add((row["benchmark"], row["question_id"]))
                    self.details.setdefault(row["reason"], row["detail"] or "")

    def _why(self) -> str | None:
        """Why the stage cannot go on, if too many questions are lost, or all; else None."""
        lost = len(set().union(*self.lost.values())) if self.lost else 0
        most = allowed(self.run.config.runtime.quarantine_share, self.questions)
        if lost <= most and (lost < self.questions or not lost or not self.questions):
            return None
        reasons = "; ".join(
            f"{reason} {len(found)}" + (f" (such as: {self.details[reason]})" if self.details[reason] else "")
            for reason, found in sorted(self.lost.items())
        )
        return (
            f"{self.stage.title}: {lost} of {self.questions} questions are quarantined, {most} may be: {reasons}. "
            "Finished work is kept: run the same command again to retry those questions, or raise "
            f"runtime.quarantine_share ({self.run.config.runtime.quarantine_share:g}) to go on without them; "
            f"{self.stage.work}/*{NOTES} lists them"
        )
