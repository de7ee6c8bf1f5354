"""`python -m evaluate --run NAME --round R [--config FILE] [--set key=value]`, `… ablate …`, `… labels …`."""

import importlib
import sys

from data.stage import stage_app, start

app = stage_app(
    "evaluate",
    "Exact match and generator-verifier gap of every peer on every benchmark; round 0 is the untouched base. "
    "`python -m evaluate ablate --help`: arms and seeds of one experiment side by side; `python -m evaluate labels "
    "--help`: how good a run's aggregates are as labels.",
    first_round=0,
)

if __name__ == "__main__":
    if sys.argv[1:2] in (["ablate"], ["labels"]):
        name = sys.argv.pop(1)
        start(importlib.import_module(f"evaluate.{name}").app, f"evaluate {name}")
    else:
        start(app, "evaluate")
