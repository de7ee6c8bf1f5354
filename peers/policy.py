"""A peer's policy after a round: its base, its adapter, and the checkpoint in which they are merged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from data import shards
from data.config.sections import PeerSection
from data.errors import UserError
from data.hashing import request_seed
from data.run import Run
from data.shards import read_json
from peers.merge import write_merged
from peers.source import model_directory, weights_fingerprint


def adapter_identity(peer: PeerSection, directory: Path) -> dict[str, Any]:
    """What pst.json beside an adapter says about the base it belongs to."""
    return {"peer": peer.name, "base": peer.model, "base_fingerprint": weights_fingerprint(directory)}


def check_adapter(peer: PeerSection, directory: Path, adapter: Path) -> None:
    """An adapter must exist and have been trained on this very base. Raises UserError."""
    path = adapter / "pst.json"
    if not path.is_file() or not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"peer {peer.name}: there is no adapter in {adapter}; run that round's train stage first")
    found = read_json(path)
    expected = adapter_identity(peer, directory)
    if found["base_fingerprint"] != expected["base_fingerprint"]:
        raise UserError(
            f"peer {peer.name}: the adapter in {adapter} was trained for another base ({found['base']}, "
            f"{found['base_fingerprint']}); this peer's is {expected['base']} ({expected['base_fingerprint']}). "
            "Restore the base, or delete the rounds from there on and train again"
        )


def policy(run: Run, round_: int, name: str) -> tuple[Path, Path | None]:
    """(model directory, adapter to serve beside it or None): a peer's policy after a round; round 0 is the base."""
    peer = run.config.peer(name)
    base = model_directory(peer, run.config)
    adapter = run.adapter_dir(round_, name)
    if adapter is None:
        return base, None
    check_adapter(peer, base, adapter)
    if run.config.run.adapters == "unmerged":
        return base, adapter
    return merged_checkpoint(run, round_, peer, base, adapter), None


def policy_identity(run: Run, round_: int, name: str) -> str:
    """What a stage's fingerprint says about a policy: the base's identity and the adapter's checksum.

    Raises UserError if the adapter is missing or belongs to another base.
    """
    peer = run.config.peer(name)
    base = model_directory(peer, run.config)
    adapter = run.adapter_dir(round_, name)
    if adapter is None:
        return weights_fingerprint(base)
    if shards.read_manifest(adapter.parent) is None:
        raise UserError(f"round {round_} has not been trained: run `make train ROUND={round_}` first")
    check_adapter(peer, base, adapter)
    return f"{weights_fingerprint(base)}+{shards.checksum(adapter / 'adapter_model.safetensors')[:16]}"


def merged_checkpoint(run: Run, round_: int, peer: PeerSection, base: Path, adapter: Path) -> Path:
    """The temporary checkpoint of a peer after a round; made if it is not there. Those of other rounds are removed."""
    target = run.root / ".checkpoints" / f"round={round_}" / peer.name
    identity = shards.checksum(adapter / "adapter_model.safetensors")
    stamp = target / "merged_from.json"
    if stamp.is_file() and shards.read_json(stamp)["adapter"] == identity:
        return target
    work = target.with_name(f"{target.name}.tmp")
    for name in (target.name, work.name):
        for stale in (run.root / ".checkpoints").glob(f"round=*/{name}"):
            (stale / stamp.name).unlink(missing_ok=True)  # first: half a checkpoint must not look like a whole one
            shutil.rmtree(stale)
    write_merged(base, adapter, work, peer.dtype, request_seed(run.config.run.seed, round_, peer.name))
    shards.write_json({"adapter": identity, "round": round_}, work / stamp.name)
    os.replace(work, target)
    return target
