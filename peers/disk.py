"""Whether a stage clearly lacks disk space, checked before it begins by a lower bound of what it needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.filesize import decimal

from data import gate, shards
from data.errors import FREE_SPACE, UserError
from data.run import OUTPUT, Run
from peers.memory import Shape, shape_in
from peers.policy import STAMP
from peers.source import model_directory

ROW = 10.0  # bytes on disk of a row without its response
CHECKPOINT_ADAPTERS = 3  # adapters that a training checkpoint holds: the adapter and AdamW's two moments
AS_BEFORE = 0.5  # a round takes at least this share of what the one before it took


def check_disk(run: Run, stage: str, round_: int) -> None:
    """Raises UserError if less disk space is free than the rest of the stage needs at least."""
    try:
        parts = bytes_needed(run, stage, round_)
        free = shutil.disk_usage(run.root).free
    except (UserError, OSError):
        return  # the stage itself reports what is wrong
    least = sum(parts.values())
    if free < least:
        listed = ", ".join(f"{what} {decimal(round(size))}" for what, size in parts.items() if size)
        raise UserError(
            f"{stage} round {round_} does not begin: the disk of {run.root} has {decimal(free)} free, but the stage "
            f"needs at least {decimal(round(least))} ({listed}): {FREE_SPACE}; then run the same command again"
        )


def bytes_needed(run: Run, stage: str, round_: int) -> dict[str, float]:
    """Bytes that a stage still needs at least, beyond what it has on disk already, by their use."""
    folder = run.stage_dir(round_, OUTPUT[stage])
    there = size_of(folder)
    if stage == "train":
        adapters = sum(4 * run.config.train.rank * _shape(run, name).linear for name in run.config.peer_names)
        return {"adapters and checkpoints": max(0.0, (1 + CHECKPOINT_ADAPTERS) * adapters - there)}
    before = size_of(run.stage_dir(round_ - 1, OUTPUT[stage])) if round_ else 0
    rows = 0.0
    if stage == "generate":
        questions = (shards.read_manifest(run.prompts_dir) or {"rows": 0})["rows"]
        rows = ROW * questions * len(run.config.peers)
    uses = round_ - 1 if stage in ("generate", "score") else round_
    return {"its files": max(0.0, max(AS_BEFORE * before, rows) - there), "merged checkpoints": _merged(run, uses)}


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if it is missing."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _merged(run: Run, round_: int) -> float:
    """Bytes of the missing merged checkpoints of a round's policies, less those of other rounds, which they replace."""
    if round_ < 1 or run.config.run.adapters != "merged":
        return 0
    missing = 0
    for name, used in gate.in_use(run, round_).items():
        checkpoint = run.checkpoint_dir(used, name)
        if used and not (checkpoint / STAMP).is_file():
            others = sum(map(size_of, checkpoint.parent.parent.glob(f"round=*/{name}")))
            missing += max(0, _shape(run, name).stored - others)
    return missing


def _shape(run: Run, name: str) -> Shape:
    peer = run.config.peer(name)
    return shape_in(peer, model_directory(peer, run.config))
