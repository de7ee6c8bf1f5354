"""What a peer's process has loaded: an engine and a language model, each kept while it is of the policy asked for."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from data.config.sections import Config, TemplateSection
from data.console import console
from peers.engines.protocol import Engine, engine_kind
from peers.policy import Policy

if TYPE_CHECKING:
    from peers.logprob.model import LanguageModel

_held: dict[str, tuple[Policy, Any]] = {}  # kind -> (of which policy, the thing)


def engine(policy: Policy, config: Config) -> Engine:
    """An inference engine with a policy."""
    found: Engine = _get("engine", policy, config, _load_engine)
    return found


def language_model(policy: Policy, config: Config) -> LanguageModel:
    """The same policy for teacher forcing."""
    found: LanguageModel = _get("language model", policy, config, _load_language_model)
    return found


def _get(kind: str, policy: Policy, config: Config, load: Callable[[Policy, Config], Any]) -> Any:
    policy = replace(policy, wording=TemplateSection())  # a model is the same however it is asked
    if kind not in _held or _held[kind][0] != policy:
        if config.runtime.resident == "one":  # there is no room for two kinds either
            drop_all()
        _drop(kind)
        _held[kind] = policy, load(policy, config)
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


def _load_engine(policy: Policy, config: Config) -> Engine:
    console.print(f"  loading {policy.name}")
    directory, adapter = policy.weights()
    if engine_kind(config.generate) == "transformers":
        from peers.engines.transformers import TransformersEngine

        return TransformersEngine(directory, policy.prompts, config.runtime, policy.dtype, adapter)
    from peers.engines.vllm import VllmEngine

    return VllmEngine(
        directory,
        policy.prompts,
        config.generate,
        config.runtime,
        policy.dtype,
        config.run.seed,
        adapter,
        config.train.rank,
        share=1 / len(config.peers) if config.runtime.resident == "all" else 1.0,
    )


def _load_language_model(policy: Policy, config: Config) -> LanguageModel:
    from peers.logprob.model import load_language_model

    directory, adapter = policy.weights()
    lm = load_language_model(directory, policy.dtype, adapter)
    lm.compile = config.runtime.compile
    if not lm.packed:
        kind = type(lm.model).__name__
        console.print(f"  {policy.name}: {kind} cannot be packed, so score and train pad it, which is slower")
    return lm
