"""From a peer's `model` key to a directory with safetensors, a config and a tokenizer.

Code and pickles that come with weights are never run: `trust_remote_code` is off everywhere, and a directory that
has only pickled weights is refused.
"""

from __future__ import annotations

import functools
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
from peers.checks import check_config, check_directory
from peers.gguf_file import check_gguf, check_pieces
from peers.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS, write_merged
from peers.start import check_base, check_fit, check_given, start_identity
from peers.weights import (
    beside_weights,
    error_first_line,
    read_header,
    read_model_json,
    remembered_checksum,
    weight_files,
    weights_fingerprint,
)
from peers.weights_check import check_kind, check_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

CACHE = Path(os.environ.get("PST_CACHE", ".cache")) / "models"
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.jinja", "*.txt"]
MODEL_COPIES = ["consolidated*", "*/*"]  # the same weights for other programs
REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
EXTRAS = ("pocket", "qwen")  # lists there of packages with models
CONVERSION = 2  # version of what is in the cache; 1 kept models with missing tensors
MERGE_SEED = 17  # seeds the rounding; not the run's seed, so that runs share the merged model
STORED_AS = {"bfloat16": "BF16", "float32": "F32"}  # in safetensors


def check_peers(config: Config) -> None:
    """Check everything about the peers that shows in files of a few kilobytes. Raises UserError.

    `model_directory` checks their weights.
    """
    for peer in config.peers:
        files = _files(peer)
        if files:
            check_pieces(peer, files)
        elif peer.sha256 is not None:
            raise UserError(
                f"peer {peer.name}: sha256 is set, but its model {peer.model!r} is not a GGUF file; leave it out "
                "(`revision` pins a hub model)"
            )
        directory = _directory(peer)
        if directory is not None:
            check_directory(peer, directory, _positions(config))
        adapter = None if peer.adapter is None else _local(peer.here(peer.adapter))
        if adapter is not None:
            given = check_given(peer, adapter)
            if directory is not None:
                check_fit(peer, adapter, given, directory)


def _check_weights(peer: PeerSection, directory: Path) -> None:
    check_weights(peer, directory, CACHE.with_name("checked"), lambda: load_tokenizer(directory))


def _positions(config: Config) -> int:
    return config.generate.context_tokens + config.generate.max_new_tokens


def _is_gguf(path: str) -> bool:
    return ".gguf" in Path(path).name


def _files(peer: PeerSection) -> list[Path]:
    """The GGUF file or its pieces; empty if the model is a directory or a hub name."""
    parts = [peer.here(part) for part in ([peer.model] if isinstance(peer.model, str) else peer.model)]
    if isinstance(peer.model, str) and not _is_gguf(parts[0]):
        return []
    return [_locate(peer, part) for part in parts]


def _locate(peer: PeerSection, path: str) -> Path:
    """A path, or package:MODULE/FILE without importing the package. Raises UserError if it is not installed."""
    if not path.startswith("package:"):
        return Path(path).expanduser()
    module, _, inside = path.removeprefix("package:").partition("/")
    try:
        spec = util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"peer {peer.name}: package {module} is not installed; {_how_to_install(module)}")
    return Path(spec.submodule_search_locations[0]) / inside


def _how_to_install(module: str) -> str:
    """How to install a module's package: by an optional list in requirements/, else by pip."""
    name = module.lower().replace("_", "-")
    for extra in EXTRAS:
        pins = (REQUIREMENTS / f"{extra}.txt").read_text(encoding="utf-8").splitlines()
        if any(pin.partition("==")[0] == name for pin in pins):
            return f"it comes with `make setup EXTRA={extra}`"
    return "install the package that has it with `.venv/bin/python -m pip install`"


def _directory(peer: PeerSection) -> Path | None:
    """The peer's local model directory; None for GGUF files and hub names."""
    model = peer.here(peer.model) if isinstance(peer.model, str) else None
    if model is None or _is_gguf(model):
        return None
    if model.startswith("package:"):
        return _locate(peer, model)
    return _local(model)


def _local(name: str) -> Path | None:
    """A local path, which may not exist; None for a hub name, which is "model" or "owner/model"."""
    path = Path(name).expanduser()
    return path if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 else None


def is_local(peer: PeerSection) -> bool:
    """Whether a peer's model is a local path, and not a name on the hub."""
    return bool(_files(peer)) or _directory(peer) is not None


def missing_files(peer: PeerSection, local: bool) -> list[Path]:
    """Paths of a peer's model, and of the adapter that it starts from, that do not exist.

    `local`: the model is known to be a path, although it (models/a) could also be a hub name. Raises UserError for a
    package that is not installed.
    """
    model: list[Path | None] = [*_files(peer)] or [_directory(peer)]
    if local and model == [None] and isinstance(peer.model, str):
        model = [Path(peer.here(peer.model)).expanduser()]
    adapter = None if peer.adapter is None else _local(peer.here(peer.adapter))
    return [path for path in (*model, adapter) if path is not None and not path.exists()]


def model_directory(peer: PeerSection, config: Config) -> Path:
    """The peer's base model as a directory with weights of its dtype, the adapter that it starts from merged into them;
    downloads, converts and merges on first use.

    Raises UserError if there is no such model, its weights are incomplete, another model's or not finite, or the
    adapter does not fit them.
    """
    files = _files(peer)
    directory = _converted(peer, files) if files else _directory(peer) or _downloaded(peer, _positions(config))
    check_directory(peer, directory, _positions(config))
    _check_weights(peer, directory)
    converted = _in_dtype(peer, directory)
    if converted != directory:
        _check_weights(peer, converted)  # it may have been damaged since
    return converted if peer.adapter is None else _started(peer, converted)


def _started(peer: PeerSection, base: Path) -> Path:
    """The base merged with the adapter that the peer starts from, made once in the cache."""
    assert peer.adapter is not None
    name = peer.here(peer.adapter)
    adapter = _local(name) or _fetched(peer, name, None, [ADAPTER_CONFIG, ADAPTER_WEIGHTS, "pst.json"])
    check_fit(peer, adapter, check_given(peer, adapter), base)
    check_base(peer, adapter, base)

    def make(work: Path) -> None:
        write_merged(base, adapter, work, peer.dtype, MERGE_SEED, advice="use another adapter, or dtype = 'float32'")

    merged = _cached(peer, adapter, [*_content(base), *start_identity(adapter)], make)
    _check_weights(peer, merged)
    return merged


def _content(directory: Path) -> list[str]:
    return [weights_fingerprint(directory), *(checksum(file) for file in beside_weights(directory))]


def base_model(peer: PeerSection) -> str:
    """What an adapter says about its base: the hub model's name, or that it is local; never a cache folder.

    If the peer started from an adapter, it is not a name that can be loaded: the base alone would be the wrong one.
    """
    if isinstance(peer.model, str) and not _files(peer) and _directory(peer) is None:
        base = peer.model
    else:
        base = f"local: {Path(peer.model if isinstance(peer.model, str) else peer.model[0]).name}"
    return base if peer.adapter is None else f"{base} + adapter {Path(peer.adapter).name}"


def hub_config(peer: PeerSection) -> dict[str, Any] | None:
    """A hub model's config.json, fetched alone; None for local models. Raises UserError."""
    if _files(peer) or _directory(peer) is not None:
        return None
    assert isinstance(peer.model, str)
    return read_model_json(peer, _fetched(peer, peer.model, peer.revision, ["config.json"]) / "config.json")


def _downloaded(peer: PeerSection, positions: int) -> Path:
    assert isinstance(peer.model, str)
    about = _fetched(peer, peer.model, peer.revision, ["config.json"])
    if (about / "config.json").is_file():  # before gigabytes are fetched
        check_config(peer, about, positions)
        check_kind(peer, about)
    return _fetched(peer, peer.model, peer.revision, HUB_FILES)


def _fetched(peer: PeerSection, name: str, revision: str | None, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files, ignore_patterns=MODEL_COPIES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        if trouble(error):  # such as a full disk under the hub's cache
            raise
        answers = [each for each in (error, error.__cause__) if isinstance(each, HfHubHTTPError)]
        if answers and answers[0].response.status_code in (401, 403):
            raise UserError(
                f"peer {peer.name}: the hub refuses {name!r} ({answers[0].response.status_code}), as it does for "
                f"gated, private and unknown models; accept the licence on https://huggingface.co/{name}, then "
                "log in with `.venv/bin/hf auth login` or set HF_TOKEN"
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"peer {peer.name}: {name!r} is not a local directory and cannot be fetched from the hub: {reason}"
        ) from error


def _converted(peer: PeerSection, files: list[Path]) -> Path:
    """Dequantise a GGUF file (or pieces of one) into the cache, once."""

    named = " + ".join(file.name for file in files)
    found = remembered_checksum(files)
    if peer.sha256 is not None and found != peer.sha256.lower():
        raise UserError(
            f"peer {peer.name}: {named} has the SHA-256 {found}; expected {peer.sha256.lower()} (the peer's sha256); "
            "fetch or install it again, or correct sha256"
        )

    def make(work: Path) -> None:
        from peers.gguf_load import dequantise, read_quickly

        whole = work / "model.gguf"
        with whole.open("wb") as out:
            for file in files:
                with file.open("rb") as piece:
                    shutil.copyfileobj(piece, out)
        with read_quickly():
            check_gguf(peer, whole, named)
            dequantise(work, whole.name, peer.dtype)
        whole.unlink()

    return _cached(peer, files[0], [found], make)


def _in_dtype(peer: PeerSection, directory: Path) -> Path:
    """The directory if its weights have the peer's dtype, else a converted copy in the cache: engines, scoring and
    merges must all start from the same numbers."""

    types = {tensor.dtype for file in weight_files(directory) for tensor in read_header(file).values()}
    if types.isdisjoint({"F64", "F32", "F16", "BF16"} - {STORED_AS[peer.dtype]}):
        return directory

    def make(work: Path) -> None:
        from safetensors.torch import load_file, save_file

        for file in weight_files(directory):
            stored = {name: _cast(peer, file, name, tensor) for name, tensor in load_file(file).items()}
            save_file(stored, work / file.name, metadata={"format": "pt"})
        for file in beside_weights(directory):
            shutil.copyfile(file, work / file.name)

    return _cached(peer, directory, _content(directory), make)


def _cast(peer: PeerSection, file: Path, name: str, tensor: Tensor) -> Tensor:
    """A tensor in the peer's dtype; integers stay. Raises UserError for numbers that are too large for it."""
    import torch

    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(getattr(torch, peer.dtype))
    if not cast.isfinite().all():  # the file's own numbers are finite
        raise UserError(
            f"peer {peer.name}: {file}: {name} has numbers up to {tensor.abs().max().item():.4g}, which {peer.dtype} "
            f"cannot hold; set the peer's dtype to {'float32' if peer.dtype != 'float32' else 'one that can'}"
        )
    return cast


def _cached(peer: PeerSection, source: Path, identity: list[Any], make: Callable[[Path], None]) -> Path:
    """The model that `make` writes into a folder, made once for each identity of its source and dtype."""
    key = hashlib.sha256(json.dumps([CONVERSION, identity, peer.dtype]).encode()).hexdigest()[:12]
    target = CACHE / key  # without the peer's name: several peers may have the same model
    if (target / "config.json").is_file():
        return target
    from data.console import console

    CACHE.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f"{target.name}.lock")
    with FileIO(path, "w") as lock:
        take(lock, path, wait=True)  # another run may be making it: wait for its result
        if (target / "config.json").is_file():
            return target
        console.print(
            f"  converting {source.name} for peer {peer.name} (once; the result is kept in {CACHE})", markup=False
        )
        work = target.with_name(f"{target.name}.tmp")
        shutil.rmtree(work, ignore_errors=True)  # left by a call that was killed
        work.mkdir(parents=True)
        try:
            make(work)
            _check_weights(peer, work)
        except UserError as error:
            shutil.rmtree(work, ignore_errors=True)
            raise UserError(str(error).replace(str(work), f"{source}, converted")) from error
        except Exception as error:
            shutil.rmtree(work, ignore_errors=True)
            if trouble(error):
                raise
            raise UserError(f"peer {peer.name}: {source} cannot be converted: {error_first_line(error)}") from error
        os.replace(work, target)
    return target


@functools.cache  # Gemma's 33 MB of JSON take seconds
def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory. Raises UserError if it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # JSON, library and config errors of many kinds
        if trouble(error):
            raise
        raise UserError(
            f"{directory}: its tokenizer or its config.json cannot be read ({error_first_line(error)}); fetch the "
            "model again"
        ) from error


def compute_dtype(peer: PeerSection, compute: Literal["auto", "weights", "float32"]) -> str:
    """Type in which a peer runs; its stored weights keep `peer.dtype`. See `runtime.compute`."""
    import torch

    if compute == "float32":
        return "float32"
    if compute == "auto" and not torch.cuda.is_available() and not cpu_multiplies_bf16():
        return "float32"
    return peer.dtype


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products, which without them are much slower than float32 ones."""
    import torch

    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
