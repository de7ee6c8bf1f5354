"""`python -m generate --run NAME --round R [--config FILE] [--set key=value]`."""

from data.cli import start
from generate import main
from peers.command import stage_app

app = stage_app(
    "generate",
    "Let the peers answer each unlabelled question: in a chain, alone, or k times, as label, text and weighting need.",
    first_round=1,
    main=main,
)

if __name__ == "__main__":
    start(app, "generate")
