"""One small protocol for inference. Two engines implement it, vLLM and transformers; tests/fake_engine.py has a third.

Prompts and responses are token ids; `PeerPrompts` says what ends a response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from data.config.engine import engine_here
from data.config.sections import GenerateSection
from data.errors import UserError
from data.task import Advance
from peers.faults import Fault, isolate_faults


@dataclass(frozen=True)
class Sampling:
    """How to draw a response; temperature 0 is greedy."""

    temperature: float
    top_p: float
    max_new_tokens: int
    logprobs: bool = True  # evaluate does not need them


@dataclass(frozen=True)
class Request:
    """A prompt and the seed of its own random stream."""

    prompt: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Completion:
    """A response: its tokens without stop string and end token, and their log-probability.

    `logprob` is the sum over `token_ids` in nats at temperature 1, whatever the sampling temperature was; 0 where it
    was not requested.
    `finish_reason` is `stop`, `length` (the token limit), `context` (the prompt did not fit) or `error` (the engine
    failed on this request, `error` says why in one line); for the last two nothing was generated.
    """

    token_ids: list[int]
    text: str
    logprob: float
    finish_reason: Literal["stop", "length", "context", "error"]
    error: str | None = None


NOT_GENERATED = Completion([], "", 0.0, "context")


class Engine(Protocol):
    """What generate and evaluate need of an inference engine."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Advance) -> list[Completion]:
        """One completion per request, in order; `advance(requests, tokens)` reports progress."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


class LiveEngine(Engine, Protocol):
    """What a peer's process needs in addition, to keep an engine from one policy and stage to the next."""

    def renew(self, directory: Path, adapter: Path | None) -> bool:
        """Replace the weights by others of the same model, and forget what was cached of the old ones. False if it
        cannot; the engine must then not be used any more."""
        ...

    @property
    def sleeps(self) -> bool:
        """Whether it can free most of its device's memory without being closed."""
        ...

    def sleep(self) -> bool:
        """Free most of the device's memory until `wake`. False if it cannot; nothing has changed then."""
        ...

    def wake(self) -> None:
        """Be ready to generate; does nothing if it is."""
        ...


def engine_kind(section: GenerateSection) -> Literal["vllm", "transformers"]:
    """Resolve `generate.engine`. Raises UserError if it is "vllm" and vLLM is not installed."""
    here = engine_here()
    if section.engine == "vllm" and here != "vllm":
        raise UserError(
            "generate.engine = 'vllm' (a run keeps the engine that it began with), but vLLM is not installed here; "
            "install it (`make setup` with KIND=cpu or gpu), continue on a machine that has it, or begin a new run "
            "with 'transformers'"
        )
    return here if section.engine == "auto" else section.engine


def complete(
    engine: Callable[[], Engine],
    prompts: list[list[int]],
    seeds: list[int],
    sampling: Sampling,
    max_prompt_tokens: int,
    advance: Advance,
    max_faults: int | None = None,
) -> list[Completion]:
    """Completions of all prompts, in order. They are empty, with finish_reason `context`, for prompts longer than
    `max_prompt_tokens`, and, with `error`, for requests on which the engine fails, up to `max_faults` of them.

    Raises UserError for more faults, and the engine's error if it can do no request; with `max_faults` None any error.
    """
    fits = [i for i, prompt in enumerate(prompts) if len(prompt) <= max_prompt_tokens]
    completions = [NOT_GENERATED] * len(prompts)
    if fits:
        requests = [Request(prompts[i], seeds[i]) for i in fits]
        live = engine()  # here: if it cannot start, no request is to blame

        def work(some: Sequence[Request], attempt: Advance) -> Sequence[Completion]:
            return live.generate(some, sampling, attempt)

        found = work(requests, advance) if max_faults is None else isolate_faults(requests, work, max_faults, advance)
        for index, each in zip(fits, found, strict=True):
            completions[index] = Completion([], "", 0.0, "error", each.reason) if isinstance(each, Fault) else each
    advance(len(prompts) - len(fits), 0)
    return completions
