"""`python -m score --run NAME --round R [--config FILE] [--set key=value]`."""

from data.cli import start
from peers.command import stage_app
from score import main

app = stage_app(
    "score",
    "Choose label and text of every training example, measure its PMI if it needs one, and set its weight.",
    first_round=1,
    main=main,
)

if __name__ == "__main__":
    start(app, "score")
