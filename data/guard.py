"""What evaluate decided about a round, for the next round: runs/<run>/round=<R>/guard.json.

The file has the signs of collapse that evaluate found (evaluate/guard.py), the thresholds that it used, and checksums
of the metrics that it judged. Nothing else from the benchmarks reaches generate or train.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data import shards, sums
from data.config.sections import GuardSection
from data.errors import UserError
from data.run import Run, metrics_path


class Ended(UserError):
    """A run ends early, in order: finished stages stay, and the run has its report."""


class Collapse(Ended):
    """The guard refuses to begin the next round of a run."""


def decision_path(run: Run, round_: int) -> Path:
    """Where the decision about a round is kept."""
    return run.round_dir(round_) / "guard.json"


def write_decision(run: Run, round_: int, findings: list[str]) -> None:
    """Write the findings of a round, unless guard.json has that very decision already."""
    decision = {"findings": findings, **basis(run, round_)}
    path = decision_path(run, round_)
    if not path.is_file() or shards.read_json(path) != decision:
        with sums.noted(path):
            shards.write_json(decision, path)
    sums.note_missing(path)


def basis(run: Run, round_: int) -> dict[str, Any]:
    """What a decision rests on: the thresholds, and the checksums of the metrics of the round and of round 0."""
    metrics = [shards.checksum(metrics_path(run.name, number)) for number in (0, round_)]
    return {"thresholds": thresholds(run.config.guard), "metrics": metrics}


def thresholds(section: GuardSection) -> dict[str, Any]:
    """The settings that decide whether a sign is found: all but `action`."""
    return section.model_dump(mode="json", exclude={"action"})


def before_round(run: Run, round_: int) -> None:
    """Raises Collapse if guard.action is stop and the round before looks like collapse; UserError if that round, or
    round 0, is not evaluated, or was judged by other thresholds or metrics."""
    if run.config.guard.action != "stop" or round_ == 1:
        return
    before = round_ - 1
    ways_out = "--set guard.action=warn (SET= with make)"
    for number in (0, before):
        decided = number == 0 or decision_path(run, number).is_file()
        if not decided or not metrics_path(run.name, number).is_file():
            raise UserError(
                f"guard.action is stop, but round {number} of run {run.name!r} is not evaluated: run `make evaluate "
                f"ROUND={number}` first, or {ways_out}"
            )
    decision = shards.read_json(decision_path(run, before))
    changed = [key for key, value in basis(run, before).items() if decision.get(key) != value]
    if changed:
        raise UserError(
            f"round {before} of run {run.name!r} was judged under other {' and '.join(changed)} than the current ones: "
            f"run `make evaluate ROUND={before}` with the same SET first (it takes seconds), or {ways_out}"
        )
    if decision["findings"]:
        raise Collapse(
            f"round {before} of run {run.name!r} looks like collapse, so round {round_} is not trained: "
            f"{' | '.join(decision['findings'])}. Ways out: a lower train.lr or fewer train.epochs in a new run; other "
            f"thresholds in [guard]; or {ways_out} to go on anyway. `make report RUN={run.name}` shows the tables"
        )
