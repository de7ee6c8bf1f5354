"""Whether a directory's weights are those its model wants: the same names, shapes and types, only finite numbers.

transformers fills tensors that it does not find with random numbers and says so only in a log; vLLM reads files and
names in its own ways. So everything is compared before either loads the model: transformers gets the tensors of the
headers without their numbers, in a model on torch's meta device, which applies its own renames and ties. The numbers
are read once: a directory that passed is remembered by a seal, an empty file under the cache whose name is a hash of
everything that was checked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.config.sections import PeerSection
from data.errors import UserError
from data.shards import checksum
from peers.architecture import check_architecture, linear_layers
from peers.weights import (
    FLOATS,
    Stored,
    beside_weights,
    error_first_line,
    non_finite,
    read_model_json,
    read_stored,
    weights_fingerprint,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHECKS = 2  # version of what a seal stands for

_sound: set[object] = set()  # seals, and directories as they were when they passed, in this process


def check_weights(peer: PeerSection, directory: Path, seals: Path, tokenizer: Any) -> None:
    """Raises UserError unless a model directory has exactly the weights that its model wants, all of them finite.

    `tokenizer()` returns the directory's tokenizer. The files are checked again only when one of them changes.
    """
    files = [(path.name, *_times(path)) for path in sorted(directory.iterdir())]
    seen = (str(directory.resolve()), *files)
    if seen in _sound:
        return
    stored = read_stored(peer, directory)
    checked: list[Any] = [CHECKS, version("transformers"), weights_fingerprint(directory)]
    checked += [(path.name, checksum(path)) for path in beside_weights(directory)]
    seal = hashlib.sha256(json.dumps(checked).encode()).hexdigest()
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


def _check_names(
    peer: PeerSection, directory: Path, stored: Mapping[str, Stored], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Compare names, shapes and types of the tensors, and the tokenizer's ids, with what the model wants."""
    model, info = _load_headers(peer, directory, stored)
    wants = model.state_dict()
    refusal = f"peer {peer.name}: {directory}"
    check_architecture(refusal, model)
    advice = "; the files and config.json do not match, or are incomplete: fetch or convert the model again"
    typed = sorted(name for name, tensor in stored.items() if tensor.dtype not in FLOATS and not _is_spare(name, model))
    if typed:
        raise UserError(
            f"{refusal}: {typed[0]} is stored as {stored[typed[0]].dtype} ({len(typed)} such tensors); expected "
            "plain weights (bfloat16, float16, float32): use the model that is not quantised, or dequantise it"
        )
    tied = _tied(model)
    missing = sorted(info["missing_keys"] - tied.keys())  # a tied tensor is missing only if its source is
    if missing:
        other = f"; they have {min(info['unexpected_keys'])} instead" if info["unexpected_keys"] else ""
        raise UserError(
            f"{refusal}: {type(model).__name__} wants {missing[0]}, which is not in its files ({len(missing)} such "
            f"tensors{other}){advice}"
        )
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise UserError(f"{refusal}: {name} is {list(found)} in its files; config.json says {list(expected)}{advice}")
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
    """Raises UserError if config.json describes a kind of model that cannot be a peer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # a config that makes no model may raise anything
        raise _no_model(peer, directory, error) from error
    check_architecture(f"peer {peer.name}: {directory}", model)


def _no_model(peer: PeerSection, directory: Path, error: Exception) -> UserError:
    refusal = (
        f"peer {peer.name}: {directory}: its config.json describes no causal language model that this version of "
        "transformers knows"
    )
    if "auto_map" in read_model_json(peer, directory / "config.json"):
        return UserError(
            f"{refusal}; it comes with its own Python code (auto_map), which is never run: use a model of a kind that "
            "transformers has"
        )
    return UserError(f"{refusal}: {error_first_line(error)}")


def _load_headers(peer: PeerSection, directory: Path, stored: Mapping[str, Stored]) -> tuple[Any, dict[str, Any]]:
    """(the directory's model without numbers, transformers' report on loading it)."""
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
    except Exception as error:  # a config that makes no model may raise anything
        raise _no_model(peer, directory, error) from error
    named = (read_model_json(peer, directory / "config.json").get("architectures") or [kind.__name__])[0]
    if named != kind.__name__:
        raise UserError(
            f"peer {peer.name}: {directory}: config.json names the architecture {named}, which vLLM would run, and the "
            f"model_type {config.model_type}, from which transformers makes a {kind.__name__}; correct it"
        )
    return model, info


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report and progress bar: nothing is loaded, and the report becomes one line of ours."""
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
    """{name: name of the tensor that it is tied to}"""
    found: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return found


def _is_spare(name: str, model: Any) -> bool:
    """Whether a tensor holds no weights: a buffer of integers, or one that transformers ignores on purpose (masks)."""
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
    """Each token that a prompt may have needs a row of the embeddings. Raises UserError.

    A special token may lack one if it is neither in the template nor the BOS or EOS token: Gemma 3's text models have
    an id for a picture, but no row for it.
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
            f"{rows} ids only; use the tokenizer that belongs to the model, or resize its embeddings"
        )


def check_loading(what: object, info: Mapping[str, Any]) -> None:
    """Raises UserError if transformers filled in weights of a model, or left some out.

    `info` is what `from_pretrained` returns with `output_loading_info`; `what` is named in the message.
    """
    for key, kind in (
        ("missing_keys", "are missing"),
        ("mismatched_keys", "have other shapes"),
        ("unexpected_keys", "have no place in the model"),
    ):
        if info[key]:
            first = min(each if isinstance(each, str) else each[0] for each in info[key])
            raise UserError(f"{what}: {len(info[key])} tensors {kind}, such as {first}; fetch or make it again")
