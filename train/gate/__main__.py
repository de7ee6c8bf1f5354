"""`python -m train.gate --run NAME --round R [--config FILE] [--set key=value]`."""

from data.cli import start
from peers.command import stage_app
from train.gate import main

app = stage_app(
    "gate",
    "Have the untouched peers vote on questions kept apart (round 0); accept or refuse adapters by these votes.",
    first_round=0,
    main=main,
)

if __name__ == "__main__":
    start(app, "train.gate")
