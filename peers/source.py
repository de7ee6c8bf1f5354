"""From a peer's `model` key to a directory with safetensors, a config and a tokenizer.

Code and pickles that come with weights are never run: `trust_remote_code` is off everywhere, and a directory that
has only pickled weights is refused.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from importlib import util
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data.config.sections import Config, PeerSection
from data.errors import UserError, trouble
from data.locks import take
from data.shards import checksum
from peers.checks import check_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHE = Path(os.environ.get("PST_CACHE", ".cache")) / "models"
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.jinja", "*.txt"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")
STORED_AS = {"bfloat16": "BF16", "float32": "F32"}  # in safetensors


def check_peers(config: Config) -> None:
    """Everything about the peers that can be wrong and seen without loading one. Raises UserError."""
    for peer in config.peers:
        for file in _files(peer):
            if not file.is_file():
                raise UserError(f"peer {peer.name}: file {file} does not exist; set its model to an existing file")
        directory = _directory(peer)
        if directory is not None:
            check_directory(peer, directory, _positions(config))


def _positions(config: Config) -> int:
    return config.generate.context_tokens + config.generate.max_new_tokens


def _is_gguf(path: str) -> bool:
    return ".gguf" in Path(path).name


def _files(peer: PeerSection) -> list[Path]:
    """GGUF file or its pieces; empty if the model is a directory or a hub name."""
    parts = [peer.model] if isinstance(peer.model, str) else list(peer.model)
    if isinstance(peer.model, str) and not _is_gguf(peer.model):
        return []
    return [_locate(peer, part) for part in parts]


def _locate(peer: PeerSection, path: str) -> Path:
    """Resolve package:MODULE/FILE without importing the package."""
    if not path.startswith("package:"):
        return Path(path).expanduser()
    module, _, inside = path.removeprefix("package:").partition("/")
    try:
        spec = util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"peer {peer.name}: package {module} is not installed; the pocket peers come with `make setup EXTRA=pocket`"
        )
    return Path(spec.submodule_search_locations[0]) / inside


def _directory(peer: PeerSection) -> Path | None:
    """The peer's local model directory; None for GGUF files and hub names."""
    if not isinstance(peer.model, str) or _is_gguf(peer.model):
        return None
    if peer.model.startswith("package:"):
        return _locate(peer, peer.model)
    path = Path(peer.model).expanduser()
    # a hub name is "model" or "owner/model"; anything else must be a path
    return path if path.exists() or peer.model.startswith((".", "/", "~")) or peer.model.count("/") > 1 else None


def model_directory(peer: PeerSection, config: Config) -> Path:
    """The peer's base model as a directory with weights of its dtype; downloads and converts on first use."""
    files = _files(peer)
    directory = _converted(peer, files) if files else _directory(peer) or _downloaded(peer)
    check_directory(peer, directory, _positions(config))
    return _in_dtype(peer, directory)


def _downloaded(peer: PeerSection) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert isinstance(peer.model, str)
    try:
        return Path(snapshot_download(peer.model, revision=peer.revision, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        if trouble(error):  # the hub's cache is on a full disk, say
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"peer {peer.name}: {peer.model!r} is no local directory and cannot be fetched from the hub: {reason}"
        ) from error


def _converted(peer: PeerSection, files: list[Path]) -> Path:
    """Dequantise a GGUF file (or pieces of one) into the cache, once."""

    def make(work: Path) -> None:
        whole = work / "model.gguf"
        with whole.open("wb") as out:
            for file in files:
                with file.open("rb") as piece:
                    shutil.copyfileobj(piece, out)
        _dequantise(work, whole.name, peer.dtype)
        whole.unlink()

    stamps = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return _cached(peer, files[0], stamps, make)


def _in_dtype(peer: PeerSection, directory: Path) -> Path:
    """The directory if its weights are of the peer's dtype, else a converted copy in the cache: engines, scoring
    and merges must all begin with the same numbers."""
    from safetensors import safe_open

    types = set()
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            types |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    if types.isdisjoint({"F64", "F32", "F16", "BF16"} - {STORED_AS[peer.dtype]}):
        return directory

    def make(work: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        for file in directory.glob("*.safetensors"):
            stored = {n: t.to(getattr(torch, peer.dtype)) if t.is_floating_point() else t
                      for n, t in load_file(file).items()}  # fmt: skip
            save_file(stored, work / file.name, metadata={"format": "pt"})
        for file in beside_weights(directory):
            shutil.copyfile(file, work / file.name)

    identity = [weights_fingerprint(directory), *(checksum(file) for file in beside_weights(directory))]
    return _cached(peer, directory, identity, make)


def beside_weights(directory: Path) -> list[Path]:
    """Config, tokenizer and template files of a model directory."""
    return sorted(file for file in directory.iterdir() if file.suffix in (".json", ".jinja", ".model", ".txt"))


def _cached(peer: PeerSection, source: Path, identity: list[Any], make: Callable[[Path], None]) -> Path:
    """The model that `make` writes into a folder, made once for each identity of its source and dtype."""
    key = hashlib.sha256(json.dumps([identity, peer.dtype]).encode()).hexdigest()[:12]
    target = CACHE / f"{peer.name}-{key}"
    if (target / "config.json").is_file():
        return target
    from data.console import console

    CACHE.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f"{target.name}.lock")
    with FileIO(path, "w") as lock:
        take(lock, path, wait=True)  # another run may be at it: wait for its result
        if (target / "config.json").is_file():
            return target
        console.print(f"  converting {source.name} for peer {peer.name} (once; the result is kept in {CACHE})")
        work = target.with_name(f"{target.name}.tmp")
        shutil.rmtree(work, ignore_errors=True)  # of a call that was killed
        work.mkdir(parents=True)
        try:
            make(work)
        except Exception as error:
            shutil.rmtree(work, ignore_errors=True)
            if trouble(error):
                raise
            raise UserError(f"peer {peer.name}: {source} cannot be converted: {error!r}") from error
        os.replace(work, target)
    return target


def _dequantise(folder: Path, gguf: str, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf, quantization_config=GgufConfig(dequantize=True), dtype=getattr(torch, dtype)
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@functools.cache  # Gemma's 33 MB of JSON take seconds
def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)


def compute_dtype(peer: PeerSection, compute: Literal["auto", "weights", "float32"]) -> str:
    """Type in which a peer is run; its stored weights keep `peer.dtype`. See `runtime.compute`."""
    import torch

    if compute == "float32":
        return "float32"
    if compute == "auto" and not torch.cuda.is_available() and not cpu_multiplies_bf16():
        return "float32"
    return peer.dtype


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products; without them they are many times slower than float32's."""
    import torch

    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def weights_fingerprint(directory: Path) -> str:
    """Identity of a model directory: config, tokenizer, and size and samples of every weight file (not all: speed)."""
    state = hashlib.sha256((directory / "config.json").read_bytes())
    for name in TOKENIZER_FILES:
        if (directory / name).is_file():
            state.update((directory / name).read_bytes())
    for name in sorted(glob.glob(str(directory / "*.safetensors"))):
        size = os.path.getsize(name)
        state.update(f"{Path(name).name}:{size}".encode())
        with open(name, "rb") as file:
            for i in range(16):
                file.seek(size * i // 16)
                state.update(file.read(65536))
    return state.hexdigest()[:16]
