"""vLLM within the peer's process (peers/workers.py), whose end gives its memory back."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from data.config.sections import GenerateSection, RuntimeSection
from peers.engines.protocol import Advance, Completion, Request, Sampling
from peers.prompts import PeerPrompts

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM allows for its buffers
NUCLEUS = "nucleus"  # key in SamplingParams.extra_args that peers.engines.nucleus reads


def top_p(sampling: Sampling, on_gpu: bool) -> dict[str, Any]:
    """How vLLM's `SamplingParams` are told the nucleus: `top_p` on a GPU; on a CPU for peers/engines/nucleus.py."""
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
            from peers.engines.nucleus import Nucleus

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
        gc.freeze()  # vLLM's shutdown has thawed what peers/preload.py froze


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
