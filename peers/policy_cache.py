"""What a peer's process has loaded: an engine and a language model.

A language model is kept while the same policy is requested. An engine is kept longer: a new policy's weights are
written into it, which takes a fraction of the time of a start. It is closed if that fails, or if its memory is needed
and it cannot sleep. On a GPU the two are never awake together: the engine sleeps while the model scores or trains.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from data.config.sections import Config, TemplateSection
from data.console import console
from data.run import Run
from peers.engines.protocol import Engine, LiveEngine, engine_kind
from peers.policy import Policy

if TYPE_CHECKING:
    from peers.logprob.model import LanguageModel

ENGINE, MODEL = "engine", "language model"

_held: dict[str, tuple[Policy, Any]] = {}  # kind -> (its policy, the engine or model)
_requests: int | None = None  # expected for an engine in a round; None: unknown


def expect_requests(requests: int) -> None:
    """Set about how many requests an engine will get in each round: few are not worth long preparations."""
    global _requests
    _requests = requests


def engine(policy: Policy, config: Config) -> Engine:
    """An inference engine with this policy, awake."""
    policy = _model_of(policy)
    if ENGINE in _held:
        found: LiveEngine = _held[ENGINE][1]
        if found.sleeps or config.runtime.resident == "one":
            _drop(MODEL)
        found.wake()
        if _held[ENGINE][0] == policy or _renew(policy, found):
            return found
        _drop(ENGINE)
    if config.runtime.resident == "one":  # no memory for an engine beside a model
        _drop(MODEL)
    begun = time.monotonic()
    _held[ENGINE] = policy, _load_engine(policy, config)
    _tell(f"engine of {policy.name} started with round {policy.round}", begun)
    loaded: Engine = _held[ENGINE][1]
    return loaded


def language_model(policy: Policy, config: Config) -> LanguageModel:
    """A language model with this policy, for teacher forcing."""
    policy = _model_of(policy)
    if MODEL not in _held or _held[MODEL][0] != policy:
        evict(config)
        _held[MODEL] = policy, _load_language_model(policy, config)
    found: LanguageModel = _held[MODEL][1]
    return found


def evict(config: Config) -> None:
    """Free memory before another language model is loaded or trained."""
    _drop(MODEL)
    if ENGINE in _held and not _held[ENGINE][1].sleep() and config.runtime.resident == "one":
        _drop(ENGINE)


def sleep(run: Run, advance: Callable[[int, int], None]) -> None:
    """Free the device's memory for another process: a call of `peers.workers`."""
    _drop(MODEL)
    if ENGINE in _held and not _held[ENGINE][1].sleep():
        _drop(ENGINE)


def drop_all() -> None:
    """Close the engine and drop the model."""
    for kind in list(_held):
        _drop(kind)


def _model_of(policy: Policy) -> Policy:
    """The policy without its wording, which does not affect the model."""
    return replace(policy, wording=TemplateSection())


def _renew(policy: Policy, found: LiveEngine) -> bool:
    """Write a policy's weights into the engine of another. False if a new engine is needed."""
    held = _held[ENGINE][0]
    if (held.name, held.base, held.dtype) != (policy.name, policy.base, policy.dtype):
        return False
    begun = time.monotonic()
    # until it is done the engine has no policy: after an error it may hold half of each
    _held[ENGINE] = replace(policy, identity=""), found
    if not found.renew(*policy.weights()):
        return False
    _held[ENGINE] = policy, found
    _tell(f"engine of {policy.name} renewed with round {policy.round}", begun)
    return True


def _tell(what: str, begun: float) -> None:
    print(f"{what} in {time.monotonic() - begun:.2f} s, process {os.getpid()}", flush=True)  # into the stage's log


def _drop(kind: str) -> None:
    if kind in _held:
        thing = _held.pop(kind)[1]
        if hasattr(thing, "close"):
            thing.close()
        del thing
        collect()


def collect() -> None:
    """Collect garbage, and make torch give up the GPU memory that it caches."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _load_engine(policy: Policy, config: Config) -> LiveEngine:
    console.print(f"  loading {policy.name}")
    directory, adapter = policy.weights()
    if engine_kind(config.generate) == "transformers":
        from peers.engines.transformers import TransformersEngine

        return TransformersEngine(directory, policy.prompts, config.runtime, policy.dtype, adapter)
    from peers.engines import vllm_internals
    from peers.engines.vllm import VllmEngine

    made = VllmEngine(
        directory,
        policy.prompts,
        config.generate,
        config.runtime,
        policy.dtype,
        config.run.seed,
        adapter,
        config.train.rank,
        requests=_requests,
    )
    if config.run.adapters == "unmerged":  # check now, not once there is an adapter
        vllm_internals.check_serves_adapters(made.llm, policy.name)
    return made


def _load_language_model(policy: Policy, config: Config) -> LanguageModel:
    from peers.logprob.model import load_language_model

    directory, adapter = policy.weights()
    lm = load_language_model(directory, policy.dtype, adapter)
    lm.compile = config.runtime.compile
    if not lm.packed:
        kind = type(lm.model).__name__
        console.print(f"  {policy.name}: a {kind} cannot run packed batches, so score and train pad, which is slower")
    return lm
