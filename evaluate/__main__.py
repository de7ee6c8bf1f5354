"""`python -m evaluate --run NAME --round R [--config FILE] [--set key=value]`."""

from data.cli import start
from evaluate import main
from evaluate.rebuild import Rebuild
from peers.command import stage_app

app = stage_app(
    "evaluate",
    "Exact match and generator-verifier gap of every peer on every benchmark; round 0 is the untouched peer.",
    first_round=0,
    main=main,
    after=Rebuild(),
)

if __name__ == "__main__":
    start(app, "evaluate")
