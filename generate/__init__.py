"""Generate: the peers' responses to each question, and which of them is the aggregate."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data.run import Run
    from peers.workers import Workers


def main(run: Run, round_: int, workers: Workers) -> None:
    """Run `generate.stage.main`, imported only here so that parsing a command line loads nothing heavy."""
    from generate.stage import main

    main(run, round_, workers)
