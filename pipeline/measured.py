"""What stages of finished rounds took, from their manifests: the best of all rates, since they are of the real work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import run as runs
from data import shards
from data.config.load import parse_config
from data.config.sections import Config
from data.errors import UserError
from pipeline.projection import Cost, RoundWork

STAGES = {"generate": "chains", "score": "scores", "train": "adapters", "gate": "gate", "evaluate": "evals"}


@dataclass(frozen=True)
class Measured:
    """A stage that is finished: seconds and bytes for so many rows, and where."""

    seconds: float
    bytes: int
    rows: int
    where: str  # run and round


def measured_stages(config: Config, first: str) -> dict[str, Measured]:
    """{stage: its last finished one}, with `baseline` and `votes` for round 0, of the run `first` and, for stages that
    it has not finished, of other runs of the same peers under the same engine."""
    same = json.dumps(_identity(config))
    found: dict[str, Measured] = {}
    for name in sorted({path.parent.name for path in runs.RUNS.glob("*/config.json")}, key=lambda each: each != first):
        try:
            theirs = parse_config(shards.read_json(runs.RUNS / name / "config.json"), name)
        except (UserError, OSError, ValueError):
            continue  # of another version, or half written
        if json.dumps(_identity(theirs)) == same:
            for stage, each in _stages_of(name):
                found.setdefault(stage, each)
    return found


def _identity(config: Config) -> Any:
    """What a stage's time per row depends on, apart from the machine."""
    peers = [peer.model_dump(mode="json", exclude={"name", "sha256"}) for peer in config.peers]
    limits = config.generate.model_dump(mode="json", include={"engine", "max_new_tokens", "context_tokens"})
    runtime = {"compute": config.runtime.compute}
    return [peers, limits, runtime, config.train.rank, config.train.epochs, config.evaluate.verifier]


def _stages_of(name: str) -> Iterator[tuple[str, Measured]]:
    """The last round's first."""
    root = runs.RUNS / name
    rounds = sorted((int(path.name.partition("=")[2]) for path in root.glob("round=*")), reverse=True)
    for round_ in rounds:
        for stage, folder in STAGES.items():
            path = root / f"round={round_}" / folder
            manifest = json.loads((path / shards.SUCCESS).read_text()) if (path / shards.SUCCESS).is_file() else None
            if manifest and manifest.get("seconds") and manifest.get("rows"):
                named = {"evaluate": "baseline", "gate": "votes"}.get(stage, stage) if round_ == 0 else stage
                yield named, Measured(manifest["seconds"], _size(path), manifest["rows"], f"{name}, round {round_}")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rows_of(work: RoundWork, peers: int) -> dict[str, float]:
    """How many rows each stage's manifest will count."""
    evals = work.items * (work.samples + 1) * peers
    return {
        "baseline": evals, "votes": work.gate * (work.votes + 1) * peers,
        "generate": work.questions * work.responses * peers, "score": work.questions * work.responses * peers,
        "train": work.questions * work.examples * peers, "gate": work.gate * peers, "evaluate": evals,
    }  # fmt: skip


def scaled(stage: str, found: Measured, rows: float, temporary: float) -> Cost:
    """A stage's cost for other numbers of rows; an adapter is as large whatever it was trained on."""
    share = rows / found.rows
    return Cost(found.seconds * share, found.bytes * (1 if stage == "train" else share), temporary)
