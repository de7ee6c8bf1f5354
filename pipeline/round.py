"""`python -m pipeline.round --run NAME --round R`: all stages up to and including round R.

What `make round` runs. The peers' processes live through all stages, so libraries are loaded once, generate finds the
engines that evaluate has used, and score the models that have verified.
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
    """The baseline evaluation and the gate's votes, then the stages of each round. Those that are finished say so; a
    run without a gate has no such stage."""
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
    """A run that is ended early has its report, under the [guard] of this call."""
    from evaluate.report import has_results, show

    if has_results(run.name):
        show(run.name, run.config.guard)


app = steps_app("Run every stage up to and including a round; finished ones are skipped.", 1, plan, ended, Rebuild())

if __name__ == "__main__":
    start(app, "pipeline.round")
