"""One small protocol for inference and two engines: vLLM and transformers (tests/fake_engine.py has a third).

Prompts and responses are token ids; what ends a response comes from `PeerPrompts`. vLLM runs within the peer's process
(data/workers.py), whose end gives its memory back.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, Literal, Protocol

from data.config import GenerateSection, RuntimeSection
from data.errors import UserError
from data.prompts import PeerPrompts

Advance = Callable[[int, int], None]


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
    `finish_reason` is `stop`, `length` (the token limit) or `context` (the prompt did not fit; nothing was generated).
    """

    token_ids: list[int]
    text: str
    logprob: float
    finish_reason: Literal["stop", "length", "context"]


LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM allows for its buffers
NUCLEUS = "nucleus"  # key in SamplingParams.extra_args that generate.nucleus reads
NOT_GENERATED = Completion([], "", 0.0, "context")


class Engine(Protocol):
    """What generate and evaluate need of an inference engine."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Advance) -> list[Completion]:
        """One completion per request, in order; `advance(requests, tokens)` reports progress."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


def top_p(sampling: Sampling, on_gpu: bool) -> dict[str, Any]:
    """How vLLM's `SamplingParams` are told the nucleus: by its own name on a GPU, for `generate.nucleus` on a CPU."""
    if not sampling.temperature or sampling.top_p == 1:
        return {}
    return {"top_p": sampling.top_p} if on_gpu else {"extra_args": {NUCLEUS: sampling.top_p}}


class VllmEngine:
    """vLLM with whole prefills.

    Per-request seeds kill the CPU engine when a prefill is split ("CPU Generator does not use offset"), hence no
    chunked prefill; in return a resumed run draws the same samples however its requests are batched.
    """

    def __init__(
        self, directory: Path, prompts: PeerPrompts, section: GenerateSection, runtime: RuntimeSection,
        dtype: Any, seed: int, adapter: Path | None = None, rank: int = 16, share: float = 1.0,
    ) -> None:  # fmt: skip
        import torch

        on_gpu = torch.cuda.is_available()
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the peer's process is the one that ends
        if not on_gpu:  # there vLLM would leave torch one thread; on a GPU one is right
            os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        # on a GPU vLLM has kernels for top-p, and takes no processor of this kind
        processors: list[Any] = []
        if not on_gpu:
            from generate.nucleus import Nucleus

            processors.append(Nucleus)
        self.on_gpu = on_gpu

        lora: dict[str, Any] = (
            {"enable_lora": True, "max_lora_rank": next(size for size in LORA_RANKS if size >= rank)} if adapter else {}
        )
        self.prompts = prompts
        set_threads = torch.set_num_threads
        self.lora = LoRARequest(adapter.name, 1, str(adapter.resolve())) if adapter else None
        self.llm: Any = LLM(
            model=str(directory), dtype=dtype, seed=seed, max_model_len=section.context_tokens,
            max_num_seqs=runtime.max_num_seqs, enable_chunked_prefill=False,
            max_num_batched_tokens=max(section.context_tokens, 8192), enforce_eager=not on_gpu,
            kv_cache_memory_bytes=None if on_gpu else int(runtime.kv_cache_gib * 2**30),
            gpu_memory_utilization=runtime.gpu_memory_utilization * share, trust_remote_code=False,
            load_format="safetensors", disable_log_stats=True, logits_processors=processors, **lora,
        )  # fmt: skip
        torch.set_num_threads = set_threads  # on a CPU vLLM puts a function there that does nothing

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Advance) -> list[Completion]:
        """See `Engine.generate`."""
        import torch
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=sampling.temperature, max_tokens=sampling.max_new_tokens,
                logprobs=0 if sampling.logprobs else None,
                seed=request.seed if sampling.temperature else None, **top_p(sampling, self.on_gpu),
                stop=self.prompts.stop_strings or None, stop_token_ids=self.prompts.stop_ids,
                detokenize=bool(self.prompts.stop_strings),  # the text is made from the tokens, once, below
            )
            for request in requests
        ]  # fmt: skip
        # vLLM compiles a function that ranks tokens: on a CPU that takes seconds in every process and gains nothing
        with torch.compiler.set_stance("default" if self.on_gpu else "force_eager"):
            outputs = self.llm.generate(
                [{"prompt_token_ids": list(request.prompt)} for request in requests], params,
                # vLLM calls it twice: around the iterable of prompts, and for the bar of the responses
                use_tqdm=lambda *prompts, **options: prompts[0] if prompts else _Bar(advance, **options),
                lora_request=self.lora,
            )  # fmt: skip
        return [self._completion(output.outputs[0]) for output in outputs]

    def _completion(self, output: Any) -> Completion:
        token_ids = self.prompts.cut(output.token_ids)
        steps = zip(token_ids, output.logprobs or [], strict=False)  # the cut leaves out the tail
        logprob = sum(step[token].logprob for token, step in steps)
        reason: Literal["stop", "length"] = "length" if output.finish_reason == "length" else "stop"
        return Completion(token_ids, self.prompts.text(token_ids), logprob, reason)

    def close(self) -> None:
        """Drop the engine; on a GPU this ends its process."""
        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        gc.collect()
        gc.freeze()  # vLLM's shutdown has thawed what data/preload.py froze


class _Bar:
    """The part of tqdm's interface that vLLM uses, reporting to our own progress line."""

    def __init__(self, advance: Advance, total: int, **_: object) -> None:
        self.advance, self.total, self.n, self.seen = advance, total, 0, 0.0
        self.postfix = ""
        self.format_dict = {"elapsed": 1.0}  # vLLM divides token counts by it: with 1 the postfix holds the counts

    def update(self, n: int) -> None:
        """Called per finished request, after `postfix` was set."""
        self.n += n
        tokens = float(self.postfix.rsplit("output: ", 1)[-1].split(" ")[0])
        self.advance(n, int(tokens - self.seen))
        self.seen = tokens

    def refresh(self) -> None:
        """Nothing to draw."""

    def close(self) -> None:
        """Nothing to close."""


class TransformersEngine:
    """Plain transformers generation, for platforms without vLLM and as the reference in tests."""

    def __init__(
        self,
        directory: Path,
        prompts: PeerPrompts,
        runtime: RuntimeSection,
        dtype: str,
        adapter: Path | None = None,
    ) -> None:
        from transformers import GenerationConfig

        from score.logprob import load_language_model

        self.prompts, self.runtime = prompts, runtime
        self.lm: Any = load_language_model(directory, dtype, adapter)
        # a checkpoint's own defaults (a repetition penalty, say) would change what greedy means
        self.lm.model.generation_config = GenerationConfig()

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Advance) -> list[Completion]:
        """See `Engine.generate`. Sampled responses depend on the batch's seed, not on each request's."""
        import torch

        from score.logprob import Pair, score_pairs
        from score.packing import token_batches

        completions: list[Completion] = [NOT_GENERATED] * len(requests)
        lengths = [len(request.prompt) + sampling.max_new_tokens for request in requests]
        for batch in token_batches(lengths, self.runtime.score_tokens * 4):
            torch.manual_seed(requests[batch[0]].seed)
            for index, (ids, length) in zip(batch, self._batch([requests[i] for i in batch], sampling), strict=True):
                reason: Literal["stop", "length"] = "length" if length else "stop"
                completions[index] = Completion(ids, self.prompts.text(ids), 0.0, reason)
            advance(len(batch), sum(len(completions[i].token_ids) for i in batch))
        filled = [i for i, completion in enumerate(completions) if completion.token_ids] if sampling.logprobs else []
        pairs = [Pair(requests[i].prompt, completions[i].token_ids) for i in filled]
        scores = score_pairs(self.lm, pairs, self.runtime.score_tokens, lambda *_: None)
        for index, logprobs in zip(filled, scores, strict=True):
            done = completions[index]
            completions[index] = Completion(done.token_ids, done.text, sum(logprobs), done.finish_reason)
        return completions

    def _batch(self, requests: Sequence[Request], sampling: Sampling) -> list[tuple[list[int], bool]]:
        import torch

        longest = max(len(request.prompt) for request in requests)
        pad = self.prompts.end_id
        ids = [[*[pad] * (longest - len(r.prompt)), *r.prompt] for r in requests]
        mask = [[*[0] * (longest - len(r.prompt)), *[1] * len(r.prompt)] for r in requests]
        draw = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        stop = {"stop_strings": self.prompts.stop_strings, "tokenizer": self.prompts.tokenizer}
        with torch.no_grad():
            out = self.lm.model.generate(
                torch.tensor(ids, device=self.lm.device), attention_mask=torch.tensor(mask, device=self.lm.device),
                max_new_tokens=sampling.max_new_tokens, eos_token_id=self.prompts.stop_ids, pad_token_id=pad,
                **(draw if sampling.temperature else {"do_sample": False}),
                **(stop if self.prompts.stop_strings else {}),
            )  # fmt: skip
        return [self._finished(row.tolist(), sampling.max_new_tokens) for row in out[:, longest:]]

    def _finished(self, generated: list[int], limit: int) -> tuple[list[int], bool]:
        """The cut tokens, and whether the limit rather than an end ended them."""
        text = self.prompts.decode(generated)
        ended = any(token in self.prompts.stop_ids for token in generated)
        ended = ended or any(stop in text for stop in self.prompts.stop_strings)
        return self.prompts.cut(generated), not ended and len(generated) >= limit

    def close(self) -> None:
        """Drop the model."""
        self.lm = None
        gc.collect()


def engine_kind(section: GenerateSection) -> Literal["vllm", "transformers"]:
    """Resolve `generate.engine`. Raises UserError if vLLM is asked for and not installed."""
    installed = util.find_spec("vllm") is not None
    if section.engine == "vllm" and not installed:
        raise UserError("generate.engine = 'vllm' but vLLM is not installed; use 'transformers' or run `make setup`")
    if section.engine == "auto":
        return "vllm" if installed else "transformers"
    return section.engine
