"""Checks of GGUF files: complete, in the right pieces, and with the tensors that transformers expects."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.config.sections import PeerSection
from data.errors import UserError
from peers.weights import error_first_line

if TYPE_CHECKING:
    from gguf import GGUFReader

MAGIC = b"GGUF"
JOIN = "join them with llama.cpp (llama-gguf-split --merge FIRST WHOLE) and name the whole file"


def check_pieces(peer: PeerSection, files: list[Path]) -> None:
    """Raises UserError unless these are a GGUF file, or its pieces in order. Reads a few bytes of each."""
    starts = []
    for file in files:
        if not file.is_file():
            raise UserError(f"peer {peer.name}: file {file} does not exist; set its model to an existing file")
        with file.open("rb") as content:
            starts.append(content.read(len(MAGIC)))
    names = [file.name for file in files]
    if starts[0] != MAGIC:
        raise UserError(
            f"peer {peer.name}: {files[0]} does not begin like a GGUF file; expected a GGUF file"
            + (", with its first piece listed first" if len(files) > 1 else "")
        )
    whole = [file for file, start in zip(files[1:], starts[1:], strict=True) if start == MAGIC]
    if whole:
        raise UserError(
            f"peer {peer.name}: {whole[0]} is a GGUF file of its own, not a piece of {names[0]}: files of gguf-split "
            f"cannot be joined byte by byte; {JOIN}"
        )
    if _are_numbered(names) and names != sorted(set(names), key=_natural):
        raise UserError(
            f"peer {peer.name}: the pieces of its GGUF file are {', '.join(names)}; expected each once, in the order "
            "of their numbers"
        )


def _are_numbered(names: list[str]) -> bool:
    """Whether the pieces' names differ only in their numbers, or in the letters that `split` puts at the end."""
    return any(len({re.sub(pattern, "#", name) for name in names}) == 1 for pattern in (r"\d+", r"[a-z]{2,3}$"))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: numbers by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def check_gguf(peer: PeerSection, path: Path, named: str) -> None:
    """Raises UserError unless a GGUF file is complete and its header lists exactly its model's tensors.

    `named` names in messages the pieces that the file was joined from.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except Exception as error:  # numpy's, struct's or its own, for a file that is cut off or not GGUF
        raise UserError(
            f"peer {peer.name}: {named} is not a complete GGUF file ({error_first_line(error)}); fetch it again"
        ) from error
    split = _number(reader, "split.count")
    if split > 1:
        raise UserError(f"peer {peer.name}: {named} is one of {split} files of a split GGUF; {JOIN}")
    if not reader.tensors:
        raise UserError(f"peer {peer.name}: {named} has no tensors; expected a GGUF file with a model's weights")
    end = max(int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors)
    padded, more = -(-end // int(reader.alignment)) * int(reader.alignment), path.stat().st_size - end
    if more not in (0, padded - end):  # a missing piece would shift all numbers
        what = f"{-more} bytes fewer" if more < 0 else f"{more} bytes more"
        raise UserError(
            f"peer {peer.name}: {named} has {what} than its header says; list each of its pieces once, in order"
        )
    _check_layout(peer, named, reader)
    _check_tensors(peer, path, named, reader)


def _check_layout(peer: PeerSection, named: str, reader: GGUFReader) -> None:
    """Raises UserError unless each tensor begins where the one before it ends, as llama.cpp requires, and has a type
    that can be dequantised, or if the header claims more layers than tensors: such a model could be endlessly large."""
    from gguf import GGML_QUANT_SIZES, dequantize

    expected, again = reader.data_offset, "the file is damaged: fetch it again"
    for tensor in reader.tensors:
        if int(tensor.data_offset) != expected:
            raise UserError(
                f"peer {peer.name}: {named} has {tensor.name} at byte {int(tensor.data_offset)}, and the tensors "
                f"before it end at {expected}; {again}"
            )
        expected += -(-int(tensor.n_bytes) // reader.alignment) * int(reader.alignment)
    for kind in {tensor.tensor_type for tensor in reader.tensors}:
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            raise UserError(
                f"peer {peer.name}: {named} has tensors of the type {kind.name}, which cannot be dequantised; use a "
                "file of another type (Q4_K_M, Q8_0, F16)"
            ) from None
    layers = max((_number(reader, key) for key in reader.fields if key.endswith(".block_count")), default=0)
    if layers > len(reader.tensors):
        raise UserError(
            f"peer {peer.name}: {named} has {len(reader.tensors)} tensors, but its header says {layers} layers; {again}"
        )


def _number(reader: GGUFReader, key: str) -> int:
    """A whole number of the header; 0 if the key is missing or has another type."""
    field = reader.get_field(key)
    try:
        found = None if field is None else field.contents()
    except ValueError:  # text that is not UTF-8
        return 0
    return found if isinstance(found, int) else 0


def _check_tensors(peer: PeerSection, path: Path, named: str, reader: GGUFReader) -> None:
    """Raises UserError for unknown or missing tensors: transformers would drop the first and make up the others."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        architecture = reader.get_field("general.architecture")
        kind: Any = TENSOR_PROCESSORS.get(architecture.contents() if architecture else "", TensorProcessor)
        known = get_gguf_hf_weights_map(model, kind(config=config.to_dict()))
    except Exception as error:  # transformers may raise anything for an architecture that it cannot read from GGUF
        raise UserError(
            f"peer {peer.name}: {named} is a GGUF file that cannot be read: {error_first_line(error)}"
        ) from error
    names = {tensor.name for tensor in reader.tensors}
    spare = sorted(name for name in names - known.keys() if not re.search(r"_exps\.", name))
    if spare:
        raise UserError(
            f"peer {peer.name}: {named} has the tensor {spare[0]} ({len(spare)} such), which transformers would leave "
            f"out of a {type(model).__name__}; use the model's safetensors instead"
        )
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    wanted = {name: gguf for gguf, name in known.items() if name not in tied}
    missing = sorted(gguf for gguf in wanted.values() if gguf not in names)
    if missing:
        raise UserError(
            f"peer {peer.name}: {named} has no tensor {missing[0]} ({len(missing)} such), which a "
            f"{type(model).__name__} needs; fetch it again, or use the model's safetensors"
        )
