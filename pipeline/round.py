"""`python -m pipeline.round --run NAME --round R`: all stages up to and including round R.

What `make round` runs. The peers' processes live through all stages, so libraries are loaded once, generate finds the
engines that evaluate has used, and score the models that have verified.
"""

from __future__ import annotations

from data.cli import start
from peers.command import Plan, stage_app


def plan(last: int) -> Plan:
    """The baseline evaluation, then four stages a round. Those that are finished say so."""
    stages = ("generate", "score", "train", "evaluate")
    return [("evaluate", 0), *((stage, round_) for round_ in range(1, last + 1) for stage in stages)]


app = stage_app("round", "Run every stage up to and including a round; finished ones are skipped.", 1, plan)
if __name__ == "__main__":
    start(app, "pipeline.round")
