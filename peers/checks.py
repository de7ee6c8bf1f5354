"""Checks of a model directory that need not load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.config.sections import PeerSection
from data.errors import UserError
from peers.architecture import TURNED
from peers.positions import longest, rope_of, stated_length
from peers.weights import read_model_json, read_stored, weight_files

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
PARTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
)
MAX_PARTS = 2000
QUANTISED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # of GPTQ, AWQ, ModelOpt


def check_directory(peer: PeerSection, directory: Path, positions: int) -> None:
    """Raises UserError unless a model directory has plain safetensors, a causal-LM config and a long enough context.

    Whether the weights are those of the model is for peers/weights_check.py, which takes longer.
    """
    if not directory.is_dir():
        raise UserError(
            f"peer {peer.name}: model path {directory} does not exist; expected a model directory, a .gguf file, "
            "package:MODULE/FILE or a hub name; for a run from another machine set runtime.places to where it is here"
        )
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"peer {peer.name}: {directory} is an adapter (it has adapter_config.json); expected a whole model: "
            "give its base as the peer's model, and the adapter as the peer's adapter"
        )
    if not weight_files(directory):
        pickled = [path.name for pattern in PICKLES for path in directory.glob(pattern)]
        found = f"only pickled weights ({pickled[0]}), which are refused" if pickled else "no weights"
        raise UserError(
            f"peer {peer.name}: {directory} has {found}; expected *.safetensors (convert it with save_pretrained)"
        )
    if not (directory / "config.json").is_file():
        raise UserError(f"peer {peer.name}: {directory} has no config.json; expected a Hugging Face model directory")
    check_config(peer, directory, positions)
    read_stored(peer, directory)
    if not any((directory / name).is_file() for name in VOCABULARIES):
        raise UserError(
            f"peer {peer.name}: {directory} has no tokenizer; expected one of {', '.join(VOCABULARIES)} beside the "
            "weights (tokenizer.save_pretrained writes it)"
        )


def check_config(peer: PeerSection, directory: Path, positions: int) -> None:
    """Raises UserError unless config.json describes a usable model: its kind, plain weights, context."""
    config = read_model_json(peer, directory / "config.json")
    _check_plain(peer, directory, config)
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else f"model without an architecture ({named!r})"
    if not (architecture.endswith("ForCausalLM") or architecture in TURNED):
        raise UserError(f"peer {peer.name}: {directory} is a {architecture}; expected a ...ForCausalLM")
    _check_size(peer, directory, config)
    _check_positions(peer, directory, config, positions)


def _check_size(peer: PeerSection, directory: Path, config: dict[str, Any]) -> None:
    """Raises UserError for absurdly many layers or experts: the model is built from its config before its weights are
    read, in a time proportional to them."""
    for key in PARTS:
        found = config.get(key)
        if isinstance(found, int) and found > MAX_PARTS:
            raise UserError(
                f"peer {peer.name}: {directory / 'config.json'} has {key} {found}; expected at most {MAX_PARTS}; "
                "fetch the model again"
            )


def _check_positions(peer: PeerSection, directory: Path, config: dict[str, Any], positions: int) -> None:
    """Raises UserError if the context is shorter than a prompt and a response may be."""
    key, stated = stated_length(config)
    if stated is not None and not (type(stated) is int and stated > 0):
        raise UserError(
            f"peer {peer.name}: {directory / 'config.json'} has {key} {stated!r}; expected a whole number of tokens"
        )
    found = longest(config)
    if found is not None and found < positions:
        scaled = f" (its {kind} scaling included)" if (kind := rope_of(config)[0]) != "default" else ""
        raise UserError(
            f"peer {peer.name}: its context is {found} tokens{scaled}; generate.context_tokens + max_new_tokens is "
            f"{positions} (scoring puts a response and the aggregate after the question); lower one of them"
        )


def _check_plain(peer: PeerSection, directory: Path, config: dict[str, Any]) -> None:
    """Raises UserError if the weights are quantised."""
    for key in ("quantization_config", "compression_config"):
        if config.get(key) is not None:
            method = config[key].get("quant_method") if isinstance(config[key], dict) else None
            raise UserError(
                f"peer {peer.name}: {directory} is quantised ({key} in config.json, {method or 'of no known method'}); "
                "expected plain weights: use the model that is not quantised, or dequantise it"
            )
    for name in QUANTISED:
        if (directory / name).is_file():
            raise UserError(
                f"peer {peer.name}: {directory} is quantised (it has {name}); expected plain weights: use the model "
                "that is not quantised, or dequantise it and remove that file"
            )
