"""`python -m pipeline.round --run NAME --round R`: all stages up to and including round R.

`make round` runs this. The peers' processes live through all stages: libraries are loaded once, generate reuses the
engines of evaluate, and score its verifiers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import evaluate
import generate
import score
import train
import train.gate
from data.cli import start
from evaluate.rebuild import Rebuild
from peers.command import StageStep, steps_app

if TYPE_CHECKING:
    from data.run import Run


def plan(last: int) -> list[StageStep]:
    """The baseline evaluation and the gate's votes, then the stages of each round. Finished stages say so;
    without a gate, its steps are skipped."""
    steps = [StageStep("evaluate", 0, evaluate.main), StageStep("gate", 0, train.gate.main)]
    for round_ in range(1, last + 1):
        steps += [
            StageStep("generate", round_, generate.main),
            StageStep("score", round_, score.main),
            StageStep("train", round_, train.main),
            StageStep("gate", round_, train.gate.main),
            StageStep("evaluate", round_, evaluate.main),
        ]
    return steps


def ended(run: Run) -> None:
    """Write the report of a run that ended early, under the [guard] of this command."""
    from evaluate.report import has_results, show

    if has_results(run.name):
        show(run.name, run.config.guard)


app = steps_app("Run every stage up to and including a round; skip finished ones.", 1, plan, ended, Rebuild())

if __name__ == "__main__":
    start(app, "pipeline.round")
