"""What can be wrong with a model directory and seen without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.config.sections import PeerSection
from data.errors import UserError

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_directory(peer: PeerSection, directory: Path, positions: int) -> None:
    """A model directory must have safetensors, a causal-LM config and a long enough context. Raises UserError."""
    if not directory.is_dir():
        raise UserError(
            f"peer {peer.name}: model path {directory} does not exist; expected a model directory, a .gguf file, "
            "package:MODULE/FILE or a hub name"
        )
    if not list(directory.glob("*.safetensors")):
        pickled = [path.name for pattern in PICKLES for path in directory.glob(pattern)]
        found = f"only pickled weights ({pickled[0]}), which are refused" if pickled else "no weights"
        raise UserError(
            f"peer {peer.name}: {directory} has {found}; expected *.safetensors (convert it with save_pretrained)"
        )
    index = directory / "model.safetensors.index.json"
    if index.is_file() and not (directory / "model.safetensors").is_file():
        listed = read_model_json(peer, index).get("weight_map")
        names = set(listed.values()) if isinstance(listed, dict) else {"weight_map"}
        missing = sorted(name for name in names if not (directory / name).is_file())
        if missing:
            raise UserError(f"peer {peer.name}: {directory} has no {missing[0]}, which its index lists; fetch it again")
    if not (directory / "config.json").is_file():
        raise UserError(f"peer {peer.name}: {directory} has no config.json; expected a Hugging Face model directory")
    config = read_model_json(peer, directory / "config.json")
    for file in directory.glob("*.safetensors"):
        _check_weights(peer, file)
    if not any((directory / name).is_file() for name in VOCABULARIES):
        raise UserError(
            f"peer {peer.name}: {directory} has no tokenizer; expected one of {', '.join(VOCABULARIES)} beside the "
            "weights (tokenizer.save_pretrained writes it)"
        )
    architecture = (config.get("architectures") or ["unknown"])[0]
    if not architecture.endswith("ForCausalLM"):
        raise UserError(f"peer {peer.name}: {directory} is a {architecture}; expected a ...ForCausalLM")
    for key in ("logit_scale", "logits_scaling"):
        if config.get(key) not in (None, 1, 1.0):
            raise UserError(f"peer {peer.name}: {architecture} scales its logits ({key}), which is not supported yet")
    longest = config.get("max_position_embeddings")
    if longest is not None and longest < positions:
        raise UserError(
            f"peer {peer.name}: its context is {longest} tokens; generate.context_tokens + max_new_tokens is "
            f"{positions} (scoring puts a response and the aggregate after the question); lower them"
        )


def read_model_json(peer: PeerSection, path: Path) -> dict[str, Any]:
    """An object of JSON that comes with a model. Raises UserError if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"peer {peer.name}: {path} cannot be read ({error}); fetch the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"peer {peer.name}: {path} holds no JSON object; fetch the model again")
    return content


def _check_weights(peer: PeerSection, file: Path) -> None:
    """The header of a safetensors file must be readable and agree with its size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise UserError(f"peer {peer.name}: {file} is damaged ({error}); fetch the model again") from error
