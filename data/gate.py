"""What the gate decided about a run's rounds: which round's adapter each peer uses.

train/gate/ decides, and writes the manifest of `round=<R>/gate`; peers/policy.py reads it here. The decision rests on
agreement with the votes of the untouched peers alone, never on gold answers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from data import shards
from data.config.sections import Config
from data.errors import UserError
from data.guard import Ended
from data.run import OUTPUT, Run

FOLDER = OUTPUT["gate"]


@dataclass(frozen=True)
class GateComparison:
    """A new adapter's agreement with the votes compared with another policy's, paired by question; shares from 0 to 1.

    `low` and `high` bound the interval of `difference` that the rule uses; `passed` is the rule's outcome.
    """

    against: int  # the round of the other policy; 0 is the untouched peer
    n: int
    before: float
    after: float
    gained: int  # questions on which only the new adapter agrees
    lost: int  # questions on which only the other does
    difference: float
    low: float
    high: float
    passed: bool


@dataclass(frozen=True)
class Decision:
    """What became of a peer's new adapter."""

    peer: str
    round: int
    comparisons: tuple[GateComparison, ...]  # with the policy in use before, then with round 0's if that differs
    in_use: int  # the round whose adapter is used from now on; 0 is the untouched peer

    @property
    def accepted(self) -> bool:
        """Whether the new adapter is used."""
        return self.in_use == self.round

    def manifest(self) -> dict[str, Any]:
        """For the stage's manifest, from which `decisions` reads it."""
        return {"in_use": self.in_use, "comparisons": [asdict(each) for each in self.comparisons]}


def is_on(config: Config) -> bool:
    """Whether a run has a gate."""
    return config.gate.questions > 0


def decisions(run: Run, round_: int) -> dict[str, Decision] | None:
    """{peer: decision} of a round ≥ 1; None if its gate stage is not finished. Raises UserError if it is damaged."""
    manifest = shards.read_manifest(run.stage_dir(round_, FOLDER))
    if manifest is None:
        return None
    return {
        peer: Decision(peer, round_, tuple(GateComparison(**each) for each in found["comparisons"]), found["in_use"])
        for peer, found in manifest["decisions"].items()
    }


def in_use(run: Run, round_: int) -> dict[str, int]:
    """{peer: the round whose adapter it uses} after a round; the round itself in a run without a gate.

    Raises UserError if the round's gate stage is not finished.
    """
    if round_ == 0 or not is_on(run.config):
        return dict.fromkeys(run.config.peer_names, round_)
    found = decisions(run, round_)
    if found is None:
        raise UserError(
            f"round {round_} of run {run.name!r} has not been through the gate: run `make gate ROUND={round_}` first"
        )
    return {peer: decision.in_use for peer, decision in found.items()}


def judged_adapters(run: Run, round_: int) -> dict[str, str]:
    """{peer: identity of the policy that the gate of a round judged}."""
    manifest = shards.read_json(run.stage_dir(round_, FOLDER) / shards.SUCCESS)
    found: dict[str, str] = manifest["fingerprint"]["candidates"]
    return found


def before_round(run: Run, round_: int) -> None:
    """Raises Ended if no peer's adapter was accepted in the last `gate.patience` rounds."""
    patience = run.config.gate.patience
    if patience is None or not is_on(run.config) or round_ <= patience:
        return
    last = [decisions(run, number) for number in range(round_ - patience, round_)]
    if all(found is not None and not any(each.accepted for each in found.values()) for found in last):
        which = f"round {round_ - 1}" if patience == 1 else f"rounds {round_ - patience} to {round_ - 1}"
        raise Ended(
            f"the gate accepted no peer's adapter in {which} of run {run.name!r}, so round {round_} does not begin "
            f"(gate.patience is {patience}). Ways out: a lower train.lr or fewer train.epochs in a new run; or --set "
            f"gate.patience=null (SET= with make) to go on anyway. `make report RUN={run.name}` shows the tables"
        )
