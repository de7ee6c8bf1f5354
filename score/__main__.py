"""`python -m score --run NAME --round R [--config FILE] [--set key=value]`."""

from data.cli import start
from peers.command import stage_app
from score import main

app = stage_app(
    "score",
    "Measure how much each response says about the aggregate (PMI) and turn it into training weights.",
    first_round=1,
    main=main,
)

if __name__ == "__main__":
    start(app, "score")
