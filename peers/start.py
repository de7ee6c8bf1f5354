"""What can be wrong with the LoRA adapter that a peer starts from (`peers[].adapter`).

The adapter is merged into the base once (peers/source.py), and the result is the peer's base from then on. So the
untouched peer of round 0, of the guard and of the frozen verifier is the configured one, later code sees one model
directory, and the run trains an adapter of its own rank, whatever form the given one has. Anything but plain low-rank
factors of linear layers is refused: silently left out, it would make a different peer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from data import shards
from data.config.sections import PeerSection
from data.console import console
from data.errors import UserError
from peers.architecture import is_turned
from peers.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LORA_A, LORA_B, PREFIX
from peers.weights import (
    FLOATS,
    Stored,
    check_finite_weights,
    read_header,
    read_model_json,
    read_stored,
    weights_fingerprint,
)

INSTEAD = "merge it into its base with peft (merge_and_unload), and give the result as the peer's model"
# Options of peft's LoraConfig under which the adapted weight is still W + scale B A. Any other option that is set is
# refused, including those that later versions of peft add.
PLAIN_LORA_KEYS = {
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
}
PROOF = "pst.json"  # says what an adapter of this project was trained on
UNSET: tuple[Any, ...] = (None, False, "none", {}, [])
KEEPS_BASE = (
    None,
    True,
    False,
    "gaussian",
    "orthogonal",
    "eva",
)  # other initialisations (PiSSA, LoftQ) change the base, too


def check_given(peer: PeerSection, adapter: Path) -> dict[str, Stored]:
    """The tensors of an adapter by name: pairs of finite low-rank factors. Raises UserError if it is anything else.

    Whether it fits the base is for `check_fit`, since the base may have to be fetched or converted first.
    """
    refusal = f"peer {peer.name}: adapter {adapter}"
    if not adapter.is_dir():
        raise UserError(f"{refusal} does not exist; expected a folder that peft has saved, or a hub name")
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{refusal} has no {ADAPTER_CONFIG}; expected a folder that peft has saved with save_pretrained"
        )
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        pickled = [*adapter.glob("*.bin"), *adapter.glob("*.pt")]
        found = f"only pickled weights ({pickled[0].name}), which are refused" if pickled else "no weights"
        raise UserError(f"{refusal} has {found}; expected {ADAPTER_WEIGHTS} (save it again with a newer peft)")
    config = read_model_json(peer, adapter / ADAPTER_CONFIG)
    check_plain(refusal, config)
    advice = "fetch or make the adapter again"
    check_finite_weights(adapter / ADAPTER_WEIGHTS, advice)
    stored = read_header(adapter / ADAPTER_WEIGHTS)
    _check_factors(refusal, stored, config["r"])
    _compare_names(peer, adapter, config.get("base_model_name_or_path"))
    return stored


def check_plain(refusal: str, config: Mapping[str, Any]) -> None:
    """Raises UserError unless an adapter_config.json is of plain LoRA. With some other options peft imports a module by
    name, which a run from elsewhere could bring along."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{refusal} has peft_type {kind!r}; expected LORA; {INSTEAD}")
    for key, value in sorted(config.items()):
        if key not in PLAIN_LORA_KEYS and value not in UNSET:
            raise UserError(
                f"{refusal} has {key} = {str(value)[:60]} in {ADAPTER_CONFIG}; a peer can start only from plain LoRA; "
                f"{INSTEAD}"
            )
    begin = config.get("init_lora_weights")
    if begin not in KEEPS_BASE:
        raise UserError(
            f"{refusal} has init_lora_weights = {begin!r} in {ADAPTER_CONFIG}, which may change the base, too; "
            f"{INSTEAD}"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not 0 < float(str(alpha)) < 2**31:
        raise UserError(
            f"{refusal} has r = {rank!r} and lora_alpha = {alpha!r}; expected a whole number and a number > 0"
        )


def _check_factors(refusal: str, stored: Mapping[str, Stored], rank: int) -> None:
    odd = sorted(name for name in stored if not (name.startswith(PREFIX) and name.endswith((LORA_A, LORA_B))))
    if odd or not stored:
        raise UserError(
            f"{refusal} has {odd[0] if odd else 'no tensors'} ({len(odd)} such tensors); expected only "
            f"{PREFIX}…{LORA_A} and …{LORA_B}; {INSTEAD}"
        )
    for name, tensor in sorted(stored.items()):
        module = name.removesuffix(LORA_A).removesuffix(LORA_B)
        if module + LORA_A not in stored or module + LORA_B not in stored:
            raise UserError(f"{refusal} has {name} without its other half; fetch or make the adapter again")
        if tensor.dtype not in FLOATS:
            raise UserError(f"{refusal}: {name} is stored as {tensor.dtype}; expected bfloat16, float16 or float32")
        if len(tensor.shape) != 2 or tensor.shape[0 if name.endswith(LORA_A) else 1] != rank:
            raise UserError(
                f"{refusal}: {name} is {list(tensor.shape)}, which does not have the rank r = {rank} of its config"
            )


def check_fit(peer: PeerSection, adapter: Path, stored: Mapping[str, Stored], directory: Path) -> None:
    """Every pair of factors (`check_given`) needs a weight of its shape in the base. Raises UserError."""
    base, turned = read_stored(peer, directory), is_turned(read_model_json(peer, directory / "config.json"))
    refusal = f"peer {peer.name}: adapter {adapter}"
    for name in sorted(stored):
        if not name.endswith(LORA_A):
            continue
        module = name.removesuffix(LORA_A)
        target = f"{module.removeprefix(PREFIX)}.weight"
        shape = (stored[module + LORA_B].shape[0], stored[name].shape[1])
        shape = shape[::-1] if turned else shape
        if target not in base:
            raise UserError(
                f"{refusal} changes {target}, which {peer.model} does not have; give the adapter's own base as the "
                "model"
            )
        if base[target].shape != shape:
            raise UserError(
                f"{refusal} changes a {target} of {list(shape)}; that of {peer.model} is {list(base[target].shape)}; "
                "give the adapter's own base as the model"
            )


def check_base(peer: PeerSection, adapter: Path, base: Path) -> None:
    """Raises UserError if this project trained the adapter (it has pst.json) on other weights than this base."""
    path = adapter / PROOF
    if not path.is_file():
        return
    found, mine = read_model_json(peer, path), weights_fingerprint(base)
    if found.get("base_fingerprint") != mine:
        raise UserError(
            f"peer {peer.name}: adapter {adapter} was trained on {_name(found)} ({found.get('base_fingerprint')}); "
            f"this peer's model is {peer.model} as {peer.dtype} ({mine}); give the model and the dtype that it was "
            "trained on"
        )


def _name(found: Mapping[str, Any]) -> str:
    started = f" with the adapter {found['adapter']} merged into it" if found.get("adapter") else ""
    return f"{found.get('base')}{started}"


def _compare_names(peer: PeerSection, adapter: Path, named: Any) -> None:
    """Warn if the adapter names another base. That proves nothing: the same weights have many names (forks, paths)."""
    if (adapter / PROOF).is_file() or not isinstance(named, str) or not isinstance(peer.model, str):
        return
    theirs, mine = (PurePosixPath(name.removeprefix("local: ")).name for name in (named, peer.model))
    if theirs.lower() != mine.lower():
        _warn(
            f"  peer {peer.name}: adapter {adapter} says that its base is {named}; the peer's model is {peer.model}. "
            "If these are different weights, the merged peer is worthless"
        )


@functools.cache  # once per process: every stage checks the peers
def _warn(text: str) -> None:
    console.print(text, markup=False)


def start_identity(adapter: Path) -> list[str]:
    """What a merge depends on in an adapter: the checksums of its files."""
    return [shards.checksum(adapter / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
