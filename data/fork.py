"""Where a run comes from that `make fork` began from another's round: runs/<run>/forked_from/.

Its manifest says which run and round, and which folders were linked from there; config.json in it is that run's. What
led to the adapters up to that round was made there, under that config, and is not made again. Evaluations are: under
the new run's config, where theirs is another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from data import shards
from data.run import OUTPUT, RUNS

FOLDER = "forked_from"


@dataclass(frozen=True)
class ForkOrigin:
    """A round of another run."""

    run: str
    round: int
    checksum: str  # SHA-256 of the manifest of the round's adapters; of round 0, of the prompts'
    linked: frozenset[str]  # folders of the new run, below its own, that were made there
    before: dict[str, Any] | None  # the manifest's `forked_from` of that run, if it was forked, too

    def made(self, stage: str, round_: int) -> bool:
        """Whether a stage is the other run's, as it is, whatever the new run's config says. (Of round 0 that may be the
        gate's votes; chains of a later round may be gone, and are not made again.)"""
        led_there = stage != "evaluate" and round_ <= self.round
        return led_there and (round_ > 0 or f"round=0/{OUTPUT[stage]}" in self.linked)


def origin_path(run: str) -> Path:
    """runs/<run>/forked_from"""
    return RUNS / run / FOLDER


def origin_of(run: str) -> ForkOrigin | None:
    """Where a run was forked from; None if it was not. Raises UserError if what says so is damaged."""
    manifest = shards.read_manifest(origin_path(run))
    if manifest is None:
        return None
    found = manifest["forked_from"]
    return ForkOrigin(
        found["run"], found["round"], found["checksum"], frozenset(manifest["linked"]), found["forked_from"]
    )


def fork_notice(run: str) -> str:
    """What tables of a run say of where it comes from; else nothing."""
    origin = origin_of(run)
    if origin is None:
        return ""
    told, before = _told(origin.run, origin.round), origin.before
    while before is not None:
        told += f", itself {_told(before['run'], before['round'])}"
        before = before["forked_from"]
    return f"\n[bold]{escape(told)}: its rounds up to {origin.round} were trained there, under that run's config[/bold]"


def _told(run: str, round_: int) -> str:
    return f"forked from run {run} after round {round_}"
