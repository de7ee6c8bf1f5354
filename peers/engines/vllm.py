"""vLLM within the peer's process (peers/workers.py); the end of the process frees its memory."""

from __future__ import annotations

import gc
import json
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from data.config.sections import GenerateSection, RuntimeSection
from data.errors import UserError
from data.hashing import digest
from data.task import Advance
from peers.engines import vllm_internals
from peers.engines.protocol import Completion, Request, Sampling
from peers.positions import longest, rope_of, stated_length
from peers.prompts import PeerPrompts
from peers.source import CACHE
from peers.weights import is_pattern

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the ranks that vLLM allows for its buffers
STARTS_WITH = 0.01  # share of the GPU that must be free when an engine starts: peers/placement.py plans its memory
# Tokens to generate from which vLLM's compiling pays on a GPU. On an H100 (docs/gpu.md) compiling and the many graphs
# took some 30 s of a start, and a model of 2.6 billion weights generated 13.5 k tokens/s: compiling pays if it saves a
# tenth of 300 s at that rate. How much it saves was not measured.
COMPILING_PAYS = 4_000_000
NUCLEUS = "nucleus"  # key in SamplingParams.extra_args that peers.engines.nucleus reads


def top_p(sampling: Sampling, on_gpu: bool) -> dict[str, Any]:
    """The nucleus as options of vLLM's `SamplingParams`: `top_p` on a GPU; on a CPU for peers/engines/nucleus.py."""
    if not sampling.temperature or sampling.top_p == 1:
        return {}
    return {"top_p": sampling.top_p} if on_gpu else {"extra_args": {NUCLEUS: sampling.top_p}}


def engine_options(
    on_gpu: bool,
    section: GenerateSection,
    runtime: RuntimeSection,
    rank: int | None = None,
    requests: int | None = None,
) -> dict[str, Any]:
    """Options of `LLM()` besides the model. `rank` is that of the adapter, None without one; `requests` as in
    `VllmEngine`."""
    options = {
        "max_model_len": section.context_tokens,
        "max_num_seqs": runtime.max_num_seqs,
        "kv_cache_memory_bytes": int(runtime.kv_cache_gib * 2**30),
        "trust_remote_code": False,
        "load_format": "safetensors",
        "disable_log_stats": True,
    }
    if rank is not None:
        options |= {"enable_lora": True, "max_lora_rank": next(size for size in LORA_RANKS if size >= rank)}
    return options | (_gpu_options(section, runtime, requests) if on_gpu else _cpu_options(section))


def length_to_tell(directory: Path, context: int) -> int | None:
    """The scaled length of a YaRN model whose config states the unscaled one, if the context needs it: vLLM believes
    what is stated. None for all others."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    stated, found = stated_length(config)[1], longest(config)
    return found if rope_of(config)[0] == "yarn" and stated and stated < context else None


def _cpu_options(section: GenerateSection) -> dict[str, Any]:
    from peers.engines.nucleus import Nucleus  # it imports vLLM

    return {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(section.context_tokens, 8192),
        "enforce_eager": True,
        "logits_processors": [Nucleus],
    }


def _gpu_options(section: GenerateSection, runtime: RuntimeSection, requests: int | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        # Logits as we compute them: in bf16 they tie, and a token's log-probability was off by up to 0.06 nats. vLLM
        # has a product with float32 sums for that, also for tied heads (layers/logits_processor.py).
        "hf_overrides": {"head_dtype": "float32"},
        "enable_sleep_mode": True,  # scoring and training use the same memory in turn
        "enable_flashinfer_autotune": False,  # we use none of FlashInfer, whose kernels need nvcc
        # With a fixed cache vLLM only checks at the start that this share is free, and refuses if a neighbour holds it.
        "gpu_memory_utilization": STARTS_WITH,
    }
    compiling = compilation(requests, section.max_new_tokens, runtime.max_num_seqs)
    return options if compiling is None else options | {"compilation_config": compiling}


def compilation(requests: int | None, max_new_tokens: int, max_num_seqs: int) -> dict[str, Any] | None:
    """vLLM's `compilation_config` on a GPU: None is its default, torch.compile and some 50 CUDA graphs.

    If little is left to generate: no torch.compile, and CUDA graphs for decoding only, one for each power of two. An
    unknown number of requests counts as many.
    """
    if requests is None or requests * max_new_tokens >= COMPILING_PAYS:
        return None
    most = max(1, min(max_num_seqs, requests))
    sizes = [2**i for i in range(most.bit_length()) if 2**i < most]
    return {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [*sizes, most]}


class VllmEngine:
    """vLLM, on a CPU without chunked prefill.

    Per-request seeds kill the CPU engine when a prefill is split ("CPU Generator does not use offset"). With whole
    prefills a resumed run also draws the same samples however its requests are batched. On a GPU vLLM warns that whole
    prefills may crash it, and bf16 depends on the batch anyway.
    """

    def __init__(
        self,
        directory: Path,
        prompts: PeerPrompts,
        section: GenerateSection,
        runtime: RuntimeSection,
        dtype: Any,
        seed: int,
        adapter: Path | None = None,
        rank: int = 16,
        *,
        requests: int | None = None,
    ) -> None:
        """`requests`: how many the engine will answer in its life, None if unknown."""
        self.on_gpu = torch.cuda.is_available()
        vllm_internals.set_environment(self.on_gpu)
        from vllm.lora.request import LoRARequest

        self.prompts, self.asleep = prompts, False
        self.lora = LoRARequest(adapter.name, 1, str(adapter.resolve())) if adapter else None
        options = engine_options(self.on_gpu, section, runtime, rank if adapter else None, requests)
        longer = length_to_tell(directory, section.context_tokens)
        if longer is not None:
            options["hf_overrides"] = {**options.get("hf_overrides", {}), "max_position_embeddings": longer}
        self.options = {"dtype": dtype, "seed": seed, **options}
        self.llm: Any = None
        self._start(directory)

    def _start(self, directory: Path) -> None:
        model = self.model = str(self._without_pattern(directory))
        self.llm = vllm_internals.start(self.prompts.peer.name, model=model, **self.options)

    def _without_pattern(self, directory: Path) -> Path:
        """The directory, or a link to it: vLLM finds weights with glob, which reads a `[` in a path as a pattern."""
        if not is_pattern(directory):
            return directory
        link = CACHE.with_name("links") / digest(str(directory.resolve()))[:16]
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(directory.resolve())
        return link

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Advance) -> list[Completion]:
        """See `Engine.generate`."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=sampling.temperature,
                max_tokens=sampling.max_new_tokens,
                logprobs=0 if sampling.logprobs else None,
                seed=request.seed if sampling.temperature else None,
                **top_p(sampling, self.on_gpu),
                stop=self.prompts.stop_strings or None,
                stop_token_ids=self.prompts.stop_ids,
                detokenize=bool(self.prompts.stop_strings),  # `_completion` decodes the tokens
            )
            for request in requests
        ]
        prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        try:
            outputs = vllm_internals.generate(self.llm, prompts, params, self.lora, advance, self.on_gpu)
        except UserError:  # vLLM cannot run this model
            raise
        except Exception:
            self._recover()
            raise
        return [self._completion(output.outputs[0]) for output in outputs]

    def _recover(self) -> None:
        """Restart the engine after an error that leaves requests in it: their state is unknown after an error within a
        step, and the next call would answer them, too."""
        if vllm_internals.is_idle(self.llm):
            return  # it did not accept the request
        traceback.print_exc()
        print("restarting the engine after an error", flush=True)  # into the stage's log
        with suppress(Exception):  # it is broken
            self.close()
        self._start(Path(self.model))

    def _completion(self, output: Any) -> Completion:
        token_ids = self.prompts.cut(output.token_ids)
        steps = zip(token_ids, output.logprobs or [], strict=False)  # `cut` dropped the last tokens
        logprob = sum(step[token].logprob for token, step in steps)
        reason: Literal["stop", "length"] = "length" if output.finish_reason == "length" else "stop"
        return Completion(token_ids, self.prompts.text(token_ids), logprob, reason)

    def renew(self, directory: Path, adapter: Path | None) -> bool:
        """See `LiveEngine.renew`."""
        from vllm.lora.request import LoRARequest

        if self.lora is not None and adapter is not None:
            self.lora = LoRARequest(adapter.name, self.lora.lora_int_id + 1, str(adapter.resolve()))
            return True
        if self.lora is not None or adapter is not None:
            return False  # whether it can serve adapters is fixed at its start
        try:
            self.model = str(self._without_pattern(directory))
            vllm_internals.renew(self.llm, self.model)
        except Exception:  # some models' loaders cannot load twice; a new engine can
            traceback.print_exc()
            return False
        return True

    @property
    def sleeps(self) -> bool:
        """See `LiveEngine.sleeps`: vLLM has no sleep on a CPU."""
        return self.on_gpu

    def sleep(self) -> bool:
        """See `LiveEngine.sleep`: the weights go to host memory, the key-value cache is dropped."""
        if self.on_gpu and not self.asleep:
            self.llm.sleep(level=1)
            self.asleep = True
        return self.on_gpu

    def wake(self) -> None:
        """See `LiveEngine.wake`."""
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False

    def close(self) -> None:
        """Drop the engine, which lives in the peer's process."""
        vllm_internals.shutdown(self.llm)
        self.llm = None
        gc.collect()
        if self.on_gpu:
            vllm_internals.release_gpu()
        else:
            gc.freeze()  # vLLM's shutdown unfroze what peers/preload.py froze
