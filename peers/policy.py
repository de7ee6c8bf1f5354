"""A peer's policy after a round: its base, its adapter, the checkpoint that merges them, and its prompts.

The stages of round R up to train use the policy after round R - 1.
"""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data import gate, shards
from data.config.sections import Config, PeerSection, TemplateSection
from data.errors import UserError
from data.hashing import request_seed
from data.run import Run
from peers.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS, write_merged
from peers.prompts import PeerPrompts, prompts_for
from peers.source import base_model, compute_dtype, load_tokenizer, model_directory
from peers.start import check_plain
from peers.weights import check_finite_weights, read_model_json, weights_fingerprint


@dataclass(frozen=True)
class Policy:
    """A peer as some round's training left it, resolved once. It holds no tensor, so it can be handed to processes."""

    peer: PeerSection
    wording: TemplateSection
    round: int  # whose training made it; 0 is the untouched base
    base: Path  # model directory
    adapter: Path | None  # None for the base
    checkpoint: Path | None  # folder of the merge; None for the base, or if the adapter is served beside it
    rounding_seed: int  # of the merge
    compute: Literal["auto", "weights", "float32"]
    identity: str  # of the weights, for a stage's fingerprint

    @property
    def name(self) -> str:
        """The peer's name."""
        return self.peer.name

    @property
    def prompts(self) -> PeerPrompts:
        """The peer's prompts; made once per process."""
        return _prompts(self.base, load_tokenizer(self.base), self.peer, self.wording)

    @property
    def dtype(self) -> str:
        """Type of the arithmetic. Imports torch, which knows what the processor supports."""
        return compute_dtype(self.peer, self.compute)

    def weights(self) -> tuple[Path, Path | None]:
        """(model directory, adapter to serve beside it or None); makes the merged checkpoint if it is missing."""
        if self.adapter is None or self.checkpoint is None:
            return self.base, self.adapter
        merge_into(self.checkpoint, self.base, self.adapter, self.peer.dtype, self.rounding_seed)
        return self.checkpoint, None


STAMP = "merged_from.json"  # in a merged checkpoint: the adapter's checksum, and those of its files
_seen: set[tuple[Path, str]] = set()  # checkpoints known to be whole, with their adapters' checksums

# The tokenizer is part of the key: what the prompts derive from it (peers/controls.py) belongs to this very object.
_prompts = functools.lru_cache(maxsize=32)(prompts_for)


def resolve(run: Run, round_: int, name: str) -> Policy:
    """`resolve_all` of one peer."""
    return resolve_all(run, round_)[name]


def resolve_all(run: Run, round_: int) -> dict[str, Policy]:
    """Every peer's policy after a round, by name; round 0 is the base. If the gate has refused a peer's adapter, the
    policy is that of the last round whose adapter was accepted, or the untouched base if none was.

    Raises UserError if that round was not trained, or did not go through the gate of the run, or if an adapter is
    missing, belongs to another base or is not the one that the gate has judged.
    """
    trained = {round_: _trained(run, round_)}  # read once per round
    found = {}
    for name, used in gate.in_use(run, round_).items():
        if used not in trained:
            trained[used] = _trained(run, used)
        found[name] = _resolve(run, used, name, trained[used])
        if used and gate.is_on(run.config):
            _check_judged(run, found[name])
    return found


def resolve_trained(run: Run, round_: int) -> dict[str, Policy]:
    """Every peer with the adapter that a round has trained, accepted or not: what the gate judges. Raises UserError."""
    trained = _trained(run, round_)
    return {name: _resolve(run, round_, name, trained) for name in run.config.peer_names}


def _check_judged(run: Run, policy: Policy) -> None:
    if gate.judged_adapters(run, policy.round)[policy.name] != policy.identity:
        folder = run.stage_dir(policy.round, "gate")
        raise UserError(
            f"peer {policy.name}: the adapter of round {policy.round} is not the one that the gate has judged; delete "
            f"{folder} and run `make gate ROUND={policy.round}`"
        )


def _trained(run: Run, round_: int) -> dict[str, str]:
    """{file: its checksum} of a round's adapters; nothing for round 0."""
    if round_ == 0:
        return {}
    manifest = shards.read_manifest(run.stage_dir(round_, "adapters"))
    if manifest is None:
        raise UserError(f"round {round_} has not been trained: run `make train ROUND={round_}` first")
    found: dict[str, str] = manifest["files"]
    return found


def _resolve(run: Run, round_: int, name: str, trained: dict[str, str]) -> Policy:
    config, peer = run.config, run.config.peer(name)
    base = model_directory(peer, config)
    adapter = run.adapter_dir(round_, name)
    identity = weights_fingerprint(base)
    if adapter is not None:
        check_adapter(peer, base, adapter)
        identity += f"+{trained[f'{name}/{ADAPTER_WEIGHTS}'][:16]}"
    merged = adapter is not None and config.run.adapters == "merged"
    return Policy(
        peer=peer,
        wording=config.templates_of(peer),
        round=round_,
        base=base,
        adapter=adapter,
        checkpoint=run.checkpoint_dir(round_, name) if merged else None,
        rounding_seed=request_seed(config.run.seed, round_, name),
        compute=config.runtime.compute,
        identity=identity,
    )


def with_voters(policies: dict[str, Policy], config: Config) -> dict[str, Policy]:
    """The policies by rater: the peers', and for each voter its peer's under the voter's wording."""
    voters = {
        voter.name: replace(policies[voter.peer], wording=config.templates_of_voter(voter))
        for voter in config.voters
        if voter.name in config.raters  # an unused voter's prompts need not fit
    }
    return {**policies, **voters}


def prompts_of(policies: dict[str, Policy]) -> dict[str, PeerPrompts]:
    """Each peer's (or rater's) prompts, by name; loads their tokenizers."""
    return {name: policy.prompts for name, policy in policies.items()}


def merge_into(checkpoint: Path, base: Path, adapter: Path, dtype: str, seed: int) -> None:
    """Make a peer's merged checkpoint unless it exists; removes the peer's checkpoints of other rounds.

    If the peer has several processes, the first one makes it and the others wait.
    """
    from filelock import FileLock

    checkpoint.parent.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(checkpoint.parent.parent / f".{checkpoint.name}.lock"):
        _merge_into(checkpoint, base, adapter, dtype, seed)


def _merge_into(checkpoint: Path, base: Path, adapter: Path, dtype: str, seed: int) -> None:
    adapter_checksum = shards.checksum(adapter / ADAPTER_WEIGHTS)
    stamp = checkpoint / STAMP
    if _is_merged(checkpoint, adapter_checksum):
        return
    work = checkpoint.with_name(f"{checkpoint.name}.tmp")
    for name in (checkpoint.name, work.name):
        for stale in checkpoint.parent.parent.glob(f"round=*/{name}"):
            (stale / stamp.name).unlink(missing_ok=True)  # first: a partial checkpoint must not look complete
            shutil.rmtree(stale)
    try:
        write_merged(base, adapter, work, dtype, seed)
        files = {path.name: shards.checksum(path) for path in sorted(work.iterdir())}
        shards.write_json({"adapter": adapter_checksum, "files": files}, work / stamp.name)
        os.replace(work, checkpoint)
        _seen.add((checkpoint, adapter_checksum))
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)  # the disk may be full
        raise


def _is_merged(checkpoint: Path, adapter: str) -> bool:
    """Whether a checkpoint is the merge of the adapter with this checksum, with unchanged files. One that this process
    has made or checked is not read again."""
    try:
        found = shards.read_json(checkpoint / STAMP)
        if found["adapter"] != adapter:
            return False
        if (checkpoint, adapter) not in _seen:
            if any(shards.checksum(checkpoint / name) != expected for name, expected in found["files"].items()):
                return False
            _seen.add((checkpoint, adapter))
        return True
    except (UserError, OSError, KeyError, TypeError):  # an earlier version's, damaged or missing: make it again
        return False


def adapter_identity(peer: PeerSection, base: Path) -> dict[str, Any]:
    """What pst.json beside an adapter says about its base."""
    started = {} if peer.adapter is None else {"adapter": peer.adapter}
    return {"peer": peer.name, "base": peer.model, **started, "base_fingerprint": weights_fingerprint(base)}


def check_adapter(peer: PeerSection, base: Path, adapter: Path) -> None:
    """Raises UserError unless an adapter exists, was trained on this very base, and is finite."""
    path = adapter / "pst.json"
    if not path.is_file() or not (adapter / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"peer {peer.name}: no adapter in {adapter}; run that round's train stage first")
    check_plain(f"peer {peer.name}: adapter {adapter}", read_model_json(peer, adapter / ADAPTER_CONFIG))
    found = shards.read_json(path)
    expected = adapter_identity(peer, base)
    if found["base_fingerprint"] != expected["base_fingerprint"]:
        raise UserError(
            f"peer {peer.name}: the adapter in {adapter} was trained for another base ({found['base']}, "
            f"{found['base_fingerprint']}); this peer's is {expected['base']} ({expected['base_fingerprint']}). "
            "Restore the base, or delete that round and all later ones and train again"
        )
    check_finite_weights(
        adapter / ADAPTER_WEIGHTS, "delete that round and all later ones and train again, with a lower train.lr"
    )


def publish_adapter(peer: PeerSection, base: Path, adapter: Path, round_: int) -> None:
    """Prepare an adapter that peft has saved for use elsewhere: name its base. Raises UserError if it is not finite.

    peft writes the folder from which the base was loaded, maybe a cache folder, into adapter_config.json and into an
    otherwise empty README.md.
    """
    check_finite_weights(
        adapter / ADAPTER_WEIGHTS, f"training has diverged; lower train.lr in a new run (peer {peer.name})"
    )
    config = {**shards.read_json(adapter / ADAPTER_CONFIG), "base_model_name_or_path": base_model(peer)}
    shards.write_json({**config, "revision": peer.revision}, adapter / ADAPTER_CONFIG)
    (adapter / "README.md").unlink(missing_ok=True)
    shards.write_json({**adapter_identity(peer, base), "round": round_}, adapter / "pst.json")
