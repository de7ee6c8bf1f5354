"""The weight files of a model directory: what their headers say, checksums, finite numbers, one consistent set.

Whether they are the weights that the model wants is for peers/weights_check.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.config.sections import PeerSection
from data.errors import UserError
from data.shards import checksum

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")
# {type in a safetensors header: (unsigned integer of its size, the bits of its infinity)}
FLOATS = {
    "F64": (np.uint64, 0x7FF << 52),
    "F32": (np.uint32, 0xFF << 23),
    "F16": (np.uint16, 0x1F << 10),
    "BF16": (np.uint16, 0xFF << 7),
}
BLOCK_NUMBERS = 1 << 22  # numbers checked at a time
SUMS_FOLDER = Path(os.environ.get("PST_CACHE", ".cache")) / "sums"  # checksums of weight files


class Stored(NamedTuple):
    """A tensor as a file's header describes it; `start` and `size` in bytes of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, sorted. Without glob: its path may contain a `[`."""
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
    """SHA-256 of files joined byte by byte, computed again (in seconds) only when anything about a file has changed.

    That includes its change time, which no copying program can set back.
    """
    key = [value for file in files for value in _about(file)]
    note = SUMS_FOLDER / hashlib.sha256(json.dumps(key).encode()).hexdigest()
    if note.is_file() and len(found := note.read_text("ascii")) == 64:
        return found
    found = checksum(*files)
    SUMS_FOLDER.mkdir(parents=True, exist_ok=True)
    temporary = note.with_name(f"{note.name}.{os.getpid()}.tmp")
    temporary.write_text(found, "ascii")
    os.replace(temporary, note)
    return found


def _about(file: Path) -> list[str | int]:
    about = file.stat()
    return [str(file.resolve()), about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def read_header(file: Path) -> dict[str, Stored]:
    """{name: tensor} of a safetensors file. Raises safetensors.SafetensorError or OSError if it is damaged."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy"):  # validates the header and the size of the file
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
        for first in range(0, tensor.size // width, BLOCK_NUMBERS):
            count = min(BLOCK_NUMBERS, tensor.size // width - first)
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


def read_stored(peer: PeerSection, directory: Path) -> dict[str, Stored]:
    """{name: tensor} of all weight files. Raises UserError unless transformers and vLLM would read the same ones."""
    from safetensors import SafetensorError

    listed = _listed(peer, directory)
    expected = set(listed.values()) if listed else {WHOLE}
    found: dict[str, Stored] = {}
    for file in weight_files(directory):
        if file.name not in expected:
            raise UserError(
                f"peer {peer.name}: {directory} has {file.name} beside or instead of "
                f"{'the files that its index lists' if listed else WHOLE}, so it is unclear which are the weights; "
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
            f"peer {peer.name}: {directory / listed[lost[0]]} has no {lost[0]}, which the index lists for it "
            f"({len(lost)} such tensors); fetch the model again"
        )
    return found


def _listed(peer: PeerSection, directory: Path) -> dict[str, str]:
    """{tensor: file} of the index, {} without one. Raises UserError if it cannot be read or lists missing files."""
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
    """The JSON object in a model's file. Raises UserError if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"peer {peer.name}: {path} cannot be read ({error}); fetch the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"peer {peer.name}: {path} is not a JSON object; fetch the model again")
    return content


def error_first_line(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def is_pattern(path: os.PathLike[str] | str) -> bool:
    """Whether a path has characters that glob reads as a pattern."""
    return any(character in os.fspath(path) for character in "*?[")
