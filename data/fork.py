"""The origin of a run that `make fork` began from another run's round: runs/<run>/forked_from/.

Its manifest names the other run, the round and the folders that were linked from there; its config.json is the other
run's. Whatever led to the adapters up to that round was made under that config and is not made again. Evaluations are
made again under the new run's config, where the two differ.
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
    checksum: str  # SHA-256 of the manifest of the round's adapters; for round 0, of the prompts'
    linked: frozenset[str]  # folders of the new run, relative to its own, that the other run made
    before: dict[str, Any] | None  # `forked_from` in the other run's manifest, if it was forked, too

    def made(self, stage: str, round_: int) -> bool:
        """Whether a stage's output is taken from the other run, whatever the new run's config says. (In round 0 that
        may be the gate's votes. Chains of a later round may be missing and are not made again.)"""
        led_there = stage != "evaluate" and round_ <= self.round
        return led_there and (round_ > 0 or f"round=0/{OUTPUT[stage]}" in self.linked)


def origin_path(run: str) -> Path:
    """runs/<run>/forked_from"""
    return RUNS / run / FOLDER


def origin_of(run: str) -> ForkOrigin | None:
    """Where a run was forked from; None if it was not. Raises UserError if the manifest that says so is damaged."""
    manifest = shards.read_manifest(origin_path(run))
    if manifest is None:
        return None
    found = manifest["forked_from"]
    return ForkOrigin(
        found["run"], found["round"], found["checksum"], frozenset(manifest["linked"]), found["forked_from"]
    )


def fork_notice(run: str) -> str:
    """The line about a run's origin below its tables; empty for a run that was not forked."""
    origin = origin_of(run)
    if origin is None:
        return ""
    text, before = _origin_text(origin.run, origin.round), origin.before
    while before is not None:
        text += f", itself {_origin_text(before['run'], before['round'])}"
        before = before["forked_from"]
    return f"\n[bold]{escape(text)}: its rounds up to {origin.round} were trained there, under that run's config[/bold]"


def _origin_text(run: str, round_: int) -> str:
    return f"forked from run {run} after round {round_}"
