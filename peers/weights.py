"""The weights of a model directory: all the tensors that the model wants, of its shapes, and only finite numbers.

What transformers does not find in the files it fills with random numbers, and says so in a log only; vLLM reads files
and names in its own ways. So names, shapes and types are compared before either of them loads anything: transformers
loads the headers' tensors without their numbers, into a model without numbers (torch's meta device), which heeds its
own renames and ties. The numbers are read once: a directory that was found sound is remembered by a seal, an empty file
under the cache whose name is a hash of all that was looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.config.sections import PeerSection
from data.errors import UserError
from data.shards import checksum
from peers.architecture import check_architecture, linear_layers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")
# how a safetensors header calls a type: (unsigned integer of its size, the bits of its infinity)
FLOATS = {
    "F64": (np.uint64, 0x7FF << 52),
    "F32": (np.uint32, 0xFF << 23),
    "F16": (np.uint16, 0x1F << 10),
    "BF16": (np.uint16, 0xFF << 7),
}
BLOCK = 1 << 22  # numbers that are looked at together
SUMS = Path(os.environ.get("PST_CACHE", ".cache")) / "sums"  # checksums of weight files
CHECKS = 2  # version of what a seal stands for

_sound: set[object] = set()  # in this process


class Stored(NamedTuple):
    """A tensor as a file's header describes it; `start` and `size` in bytes of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, sorted; no pattern is made of its path, which may have a `[`."""
    return sorted(path for path in directory.iterdir() if path.suffix == ".safetensors")


def beside_weights(directory: Path) -> list[Path]:
    """Config, tokenizer and template files of a model directory."""
    return sorted(file for file in directory.iterdir() if file.suffix in (".json", ".jinja", ".model", ".txt"))


def weights_fingerprint(directory: Path) -> str:
    """Identity of a model directory: config, tokenizer, and all bytes of every weight file."""
    state = hashlib.sha256((directory / "config.json").read_bytes())
    for name in TOKENIZER_FILES:
        if (directory / name).is_file():
            state.update((directory / name).read_bytes())
    for path in weight_files(directory):
        state.update(f"{path.name}:{remembered_checksum([path])}".encode())
    return state.hexdigest()[:16]


def remembered_checksum(files: Sequence[Path]) -> str:
    """SHA-256 of files joined byte by byte, which may take seconds, read again when anything about one has changed.

    The change time is among it, which no copying program can set back.
    """
    key = [value for file in files for value in _about(file)]
    note = SUMS / hashlib.sha256(json.dumps(key).encode()).hexdigest()
    if note.is_file() and len(found := note.read_text("ascii")) == 64:
        return found
    found = checksum(*files)
    SUMS.mkdir(parents=True, exist_ok=True)
    temporary = note.with_name(f"{note.name}.{os.getpid()}.tmp")
    temporary.write_text(found, "ascii")
    os.replace(temporary, note)
    return found


def _about(file: Path) -> list[str | int]:
    about = file.stat()
    return [str(file.resolve()), about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def read_header(file: Path) -> dict[str, Stored]:
    """{name: where and what} of a safetensors file. Raises safetensors.SafetensorError or OSError if it is damaged."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy"):  # holds header and size of the file to the format
        pass
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header: dict[str, Any] = json.loads(content.read(length))
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            found[name] = Stored(file, entry["dtype"], tuple(entry["shape"]), 8 + length + first, end - first)
    return found


def non_finite(stored: Mapping[str, Stored]) -> str | None:
    """Name of the first tensor with a NaN or an infinity, None if there is none. Reads all the numbers."""
    for name, tensor in stored.items():
        if tensor.dtype not in FLOATS:
            continue
        unsigned, infinity = FLOATS[tensor.dtype]
        width = np.dtype(unsigned).itemsize
        magnitude = np.array((1 << (8 * width - 1)) - 1, unsigned)  # all bits but the sign
        for first in range(0, tensor.size // width, BLOCK):
            count = min(BLOCK, tensor.size // width - first)
            bits = np.fromfile(tensor.file, unsigned, count, offset=tensor.start + first * width)
            if (bits & magnitude).max() >= infinity:
                return name
    return None


def check_finite_weights(file: Path, advice: str) -> None:
    """Raises UserError, which ends with `advice`, if a safetensors file cannot be read or has a NaN or an infinity."""
    from safetensors import SafetensorError

    try:
        name = non_finite(read_header(file))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is damaged ({error}); {advice}") from error
    if name is not None:
        raise UserError(f"{file}: {name} has numbers that are not finite (NaN or infinity); {advice}")


def check_weights(peer: PeerSection, directory: Path, seals: Path, tokenizer: Any) -> None:
    """Raises UserError unless a model directory has all weights of its model, as it wants them, and finite.

    `tokenizer` is called for the directory's tokenizer. The files are looked at again only when one of them changes.
    """
    files = [(path.name, *_times(path)) for path in sorted(directory.iterdir())]
    seen = (str(directory.resolve()), *files)
    if seen in _sound:
        return
    stored = read_stored(peer, directory)
    looked_at: list[Any] = [CHECKS, version("transformers"), weights_fingerprint(directory)]
    looked_at += [(path.name, checksum(path)) for path in beside_weights(directory)]
    seal = hashlib.sha256(json.dumps(looked_at).encode()).hexdigest()
    if seal not in _sound and not (seals / seal).is_file():
        _check_names(peer, directory, stored, tokenizer())
        name = non_finite(stored)
        if name is not None:
            raise UserError(
                f"peer {peer.name}: {stored[name].file}: {name} has numbers that are not finite (NaN or infinity); "
                "fetch or make the model again"
            )
        seals.mkdir(parents=True, exist_ok=True)
        (seals / seal).touch()
    _sound.update((seal, seen))


def _times(path: Path) -> tuple[int, int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


def read_stored(peer: PeerSection, directory: Path) -> dict[str, Stored]:
    """{name: tensor} of all weight files, which must be what transformers and vLLM both read. Raises UserError."""
    from safetensors import SafetensorError

    listed = _listed(peer, directory)
    expected = set(listed.values()) if listed else {WHOLE}
    found: dict[str, Stored] = {}
    for file in weight_files(directory):
        if file.name not in expected:
            raise UserError(
                f"peer {peer.name}: {directory} has {file.name} beside or instead of "
                f"{'the files that its index lists' if listed else WHOLE}, so it is not clear which are the weights; "
                f"keep one set of them ({WHOLE}, or several files with {INDEX})"
            )
        try:
            header = read_header(file)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"peer {peer.name}: {file} is damaged ({error}); fetch the model again") from error
        twice = sorted(header.keys() & found.keys())
        if twice:
            raise UserError(
                f"peer {peer.name}: {directory} has {twice[0]} twice, in {found[twice[0]].file.name} and {file.name}; "
                "expected each tensor once; fetch the model again"
            )
        found |= header
    lost = sorted(name for name, file in listed.items() if name not in found or found[name].file.name != file)
    if lost:
        raise UserError(
            f"peer {peer.name}: {directory / listed[lost[0]]} has no {lost[0]}, which the index says is there "
            f"({len(lost)} such tensors); fetch the model again"
        )
    return found


def _listed(peer: PeerSection, directory: Path) -> dict[str, str]:
    """{tensor: file} of the index, {} without one. Raises UserError if it cannot be read or lists absent files."""
    index = directory / INDEX
    if not index.is_file():
        return {}
    listed = read_model_json(peer, index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise UserError(f"peer {peer.name}: {index} has no weight_map of tensors and files; fetch the model again")
    missing = sorted(name for name in set(listed.values()) if not (directory / name).is_file())
    if missing:
        raise UserError(f"peer {peer.name}: {directory} has no {missing[0]}, which its index lists; fetch it again")
    return listed


def read_model_json(peer: PeerSection, path: Path) -> dict[str, Any]:
    """An object of JSON that comes with a model. Raises UserError if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"peer {peer.name}: {path} cannot be read ({error}); fetch the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"peer {peer.name}: {path} holds no JSON object; fetch the model again")
    return content


def _check_names(
    peer: PeerSection, directory: Path, stored: Mapping[str, Stored], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Compare names, shapes and types of the tensors, and the tokenizer's ids, with what the model wants."""
    model, info = _load_headers(peer, directory, stored)
    wants = model.state_dict()
    refusal = f"peer {peer.name}: {directory}"
    check_architecture(refusal, model)
    advice = "; the files and config.json do not belong together, or are not whole: fetch or convert the model again"
    typed = sorted(name for name, tensor in stored.items() if tensor.dtype not in FLOATS and not _is_spare(name, model))
    if typed:
        raise UserError(
            f"{refusal}: {typed[0]} is stored as {stored[typed[0]].dtype} ({len(typed)} such tensors); expected "
            "plain weights (bfloat16, float16, float32): take the model that is not quantised, or dequantise it"
        )
    tied = _tied(model)
    missing = sorted(info["missing_keys"] - tied.keys())  # what is tied to a missing tensor is missing, too
    if missing:
        other = f"; they have {min(info['unexpected_keys'])} instead" if info["unexpected_keys"] else ""
        raise UserError(
            f"{refusal}: {type(model).__name__} wants {missing[0]}, which is not in its files ({len(missing)} such "
            f"tensors{other}){advice}"
        )
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise UserError(
            f"{refusal}: {name} is {list(found)} in its files; by config.json it is {list(expected)}{advice}"
        )
    for name in sorted(info["unexpected_keys"]):
        raise UserError(
            f"{refusal}: {type(model).__name__} has no {name}, which is in its files "
            f"({len(info['unexpected_keys'])} such tensors){advice}"
        )
    renamed = sorted({f"{name}.weight" for name in linear_layers(model)} - stored.keys())
    if renamed:
        raise UserError(
            f"{refusal}: its files have no {renamed[0]} under that name, so an adapter cannot be merged into them; "
            "load it with transformers and save it with save_pretrained"
        )
    for target, source in tied.items():
        if source not in stored:  # transformers takes the one for the other both ways, vLLM does not
            raise UserError(
                f"{refusal}: its files have {target} but not {source}, to which config.json ties it{advice}"
            )
        if target in stored and _bytes(stored[target]) != _bytes(stored[source]):
            raise UserError(
                f"{refusal}: config.json ties {target} to {source}, but its files have other numbers for it; set "
                "tie_word_embeddings to false in config.json if both were trained"
            )
    _check_ids(refusal, tokenizer, len(wants[f"{_embeddings(model)}.weight"]))


def check_kind(peer: PeerSection, directory: Path) -> None:
    """Raises UserError if the model that a directory's config.json makes is of a kind that cannot be a peer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # of any kind, for a config that makes no model
        raise _no_model(peer, directory, error) from error
    check_architecture(f"peer {peer.name}: {directory}", model)


def _no_model(peer: PeerSection, directory: Path, error: Exception) -> UserError:
    told = f"peer {peer.name}: {directory}: its config.json makes no causal language model that this version of "
    if "auto_map" in read_model_json(peer, directory / "config.json"):
        return UserError(
            f"{told}transformers knows; it comes with Python code of its own (auto_map), which is never run: take a "
            "model of a kind that transformers has"
        )
    return UserError(f"{told}transformers knows: {error_first_line(error)}")


def _load_headers(peer: PeerSection, directory: Path, stored: Mapping[str, Stored]) -> tuple[Any, dict[str, Any]]:
    """(the directory's model without numbers, what transformers says about loading it)."""
    import torch
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    tensors = {name: torch.empty(tensor.shape, dtype=torch.bfloat16, device="meta") for name, tensor in stored.items()}
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        with _quiet():
            model, info = kind.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=torch.bfloat16,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # of any kind, for a config that makes no model
        raise _no_model(peer, directory, error) from error
    named = (read_model_json(peer, directory / "config.json").get("architectures") or [kind.__name__])[0]
    if named != kind.__name__:
        raise UserError(
            f"peer {peer.name}: {directory}: config.json names the architecture {named}, which vLLM would run, and the "
            f"model_type {config.model_type}, of which transformers makes a {kind.__name__}; correct it"
        )
    return model, info


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report and progress bar: what they say becomes one line, and nothing is loaded."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _tied(model: Any) -> dict[str, str]:
    """{name: that of the tensor it is tied to}"""
    found: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return found


def _is_spare(name: str, model: Any) -> bool:
    """Whether a tensor holds no weights: a buffer of integers, or what transformers leaves out on purpose (masks)."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), r"(^|\.)position_ids$", r"rotary_emb\.inv_freq$"]
    if any(re.search(pattern, name) for pattern in patterns):
        return True
    wanted = model.state_dict().get(name)
    return wanted is not None and not wanted.is_floating_point()


def _embeddings(model: Any) -> str:
    """Name of the input embeddings' module."""
    wanted = model.get_input_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is wanted)


def _bytes(tensor: Stored) -> bytes:
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        return file.read(tensor.size)


def _check_ids(refusal: str, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Each token that a prompt may have needs a row of the embeddings.

    Special tokens without one are allowed where neither the template nor the model's own ends have them: Gemma 3's
    text models have the id of a picture, but no row for it.
    """
    template = str(tokenizer.chat_template or "")
    ends = {tokenizer.bos_token, tokenizer.eos_token}
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    beyond = [(i, token) for token, i in tokenizer.get_vocab().items() if i >= rows]
    needed = sorted((i, t) for i, t in beyond if t not in special or t in ends or t in template)
    if needed:
        number, token = needed[-1]
        raise UserError(
            f"{refusal}: its tokenizer has the token {token!r} with id {number}, but the model has embeddings for "
            f"{rows} ids only; take the tokenizer that belongs to the model, or resize its embeddings"
        )


def check_loading(what: object, info: Mapping[str, Any]) -> None:
    """Raises UserError if transformers says that a model has weights that it made up, or left some out.

    `info` is what `from_pretrained` returns with `output_loading_info`; `what` is named in the message.
    """
    for key, kind in (
        ("missing_keys", "are not there"),
        ("mismatched_keys", "are of other shapes"),
        ("unexpected_keys", "have no place in the model"),
    ):
        if info[key]:
            first = min(each if isinstance(each, str) else each[0] for each in info[key])
            raise UserError(f"{what}: {len(info[key])} tensors {kind}, {first} among them; fetch or make it again")


def error_first_line(error: Exception) -> str:
    """The first line of what an error says, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def is_pattern(path: os.PathLike[str] | str) -> bool:
    """Whether a path has characters that glob takes for a pattern."""
    return any(character in os.fspath(path) for character in "*?[")
