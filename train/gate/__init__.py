"""The gate: is a new adapter used? It must agree with the votes of the untouched peers as often as before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data.run import Run
    from peers.workers import Workers


def main(run: Run, round_: int, workers: Workers) -> None:
    """`train.gate.stage.main`, imported when it is about to run: a command line parses without what is heavy."""
    from train.gate.stage import main

    main(run, round_, workers)
