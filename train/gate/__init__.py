"""The gate: is a new adapter used? It must agree with the votes of the untouched peers about as often as before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data.run import Run
    from peers.workers import Workers


def main(run: Run, round_: int, workers: Workers) -> None:
    """Run `train.gate.stage.main`, imported only here so that parsing a command line loads nothing heavy."""
    from train.gate.stage import main

    main(run, round_, workers)
