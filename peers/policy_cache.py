"""What a peer's process has loaded: an engine and a language model, each kept while it is the policy asked for."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from data.console import console
from data.run import Run
from peers.engines.protocol import Engine

if TYPE_CHECKING:
    from peers.logprob.model import LanguageModel

_held: dict[str, tuple[Any, Any]] = {}  # kind -> (which policy, the thing)


def engine(run: Run, round_: int, name: str) -> Engine:
    """An inference engine with a peer's policy after a round (0: the base model)."""
    found: Engine = _get("engine", run, round_, name, lambda: _load_engine(run, round_, name))
    return found


def language_model(run: Run, round_: int, name: str) -> LanguageModel:
    """The same policy for teacher forcing."""
    found: LanguageModel = _get("language model", run, round_, name, lambda: _load_language_model(run, round_, name))
    return found


def _get(kind: str, run: Run, round_: int, name: str, load: Callable[[], Any]) -> Any:
    which = run.root.resolve(), round_, name  # the run is locked: its policies do not change
    if kind not in _held or _held[kind][0] != which:
        if run.config.runtime.resident == "one":  # there is no room for two kinds either
            drop_all()
        _drop(kind)
        _held[kind] = which, load()
    return _held[kind][1]


def drop_all() -> None:
    """Give all memory back."""
    for kind in list(_held):
        _drop(kind)


def _drop(kind: str) -> None:
    if kind in _held:
        thing = _held.pop(kind)[1]
        if hasattr(thing, "close"):
            thing.close()
        del thing
        gc.collect()


def _load_engine(run: Run, round_: int, name: str) -> Engine:
    from peers.engines.protocol import engine_kind
    from peers.engines.transformers import TransformersEngine
    from peers.engines.vllm import VllmEngine
    from peers.policy import policy
    from peers.prompts import load_prompts
    from peers.source import compute_dtype

    config = run.config
    console.print(f"  loading {name}")
    dtype = compute_dtype(config.peer(name), config.runtime)
    directory, adapter = policy(run, round_, name)
    prompts = load_prompts(config, name)
    if engine_kind(config.generate) == "transformers":
        return TransformersEngine(directory, prompts, config.runtime, dtype, adapter)
    return VllmEngine(
        directory,
        prompts,
        config.generate,
        config.runtime,
        dtype,
        config.run.seed,
        adapter,
        config.train.rank,
        share=1 / len(config.peers) if config.runtime.resident == "all" else 1.0,
    )


def _load_language_model(run: Run, round_: int, name: str) -> LanguageModel:
    from peers.logprob.model import load_language_model
    from peers.policy import policy
    from peers.source import compute_dtype

    directory, adapter = policy(run, round_, name)
    lm = load_language_model(directory, compute_dtype(run.config.peer(name), run.config.runtime), adapter)
    lm.compile = run.config.runtime.compile
    if not lm.packed:
        kind = type(lm.model).__name__
        console.print(f"  {name}: {kind} cannot be packed, so score and train pad it, which is slower")
    return lm
