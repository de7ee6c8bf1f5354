"""One small protocol for inference. Two engines follow it, vLLM and transformers; tests/fake_engine.py has a third.

Prompts and responses are token ids; what ends a response comes from `PeerPrompts`.
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
    logprobs: bool = True  # evaluate does without


@dataclass(frozen=True)
class Request:
    """A prompt and the seed of its own random stream."""

    prompt: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Completion:
    """A response: its tokens without stop string and end token, and their log-probability.

    `logprob` is the sum over `token_ids` in nats at temperature 1, whatever the sampling temperature was; 0 where it
    was not asked for.
    `finish_reason` is `stop`, `length` (the token limit), `context` (the prompt did not fit; nothing was generated) or
    `error` (the engine failed on this request; neither), which `error` describes in one line.
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
        """Give the memory back."""
        ...


class LiveEngine(Engine, Protocol):
    """What a peer's process needs of it besides, to keep it from one policy and stage to the next."""

    def renew(self, directory: Path, adapter: Path | None) -> bool:
        """Take other weights of the same model in place of the present ones; what was cached of these is forgotten.
        False if it cannot, and is not to be used any more."""
        ...

    @property
    def sleeps(self) -> bool:
        """Whether it can give most of its device's memory back without being closed."""
        ...

    def sleep(self) -> bool:
        """Give most of the device's memory back until `wake`; False if it cannot, and nothing has happened."""
        ...

    def wake(self) -> None:
        """Be ready to generate; nothing if it is."""
        ...


def engine_kind(section: GenerateSection) -> Literal["vllm", "transformers"]:
    """Resolve `generate.engine`. Raises UserError if vLLM is asked for and not installed."""
    here = engine_here()
    if section.engine == "vllm" and here != "vllm":
        raise UserError(
            "generate.engine = 'vllm' (a run keeps the engine that it began with), but vLLM is not installed here; "
            "go on where it is (the cpu or gpu set of `make setup`), or begin a new run with 'transformers'"
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
    """Completions of all prompts; those longer than `max_prompt_tokens` come back empty with finish_reason `context`,
    and those of requests on which the engine fails, of which there may be `max_faults`, with `error`.

    Raises what the engine does if it can do none, UserError for more faults; with None any error of the engine.
    """
    fits = [i for i, prompt in enumerate(prompts) if len(prompt) <= max_prompt_tokens]
    completions = [NOT_GENERATED] * len(prompts)
    if fits:
        requests = [Request(prompts[i], seeds[i]) for i in fits]
        live = engine()  # an error of its start is none of a request

        def work(some: Sequence[Request], told: Advance) -> Sequence[Completion]:
            return live.generate(some, sampling, told)

        found = work(requests, advance) if max_faults is None else isolate_faults(requests, work, max_faults, advance)
        for index, each in zip(fits, found, strict=True):
            completions[index] = Completion([], "", 0.0, "error", each.reason) if isinstance(each, Fault) else each
    advance(len(prompts) - len(fits), 0)
    return completions
