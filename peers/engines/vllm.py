"""vLLM within the peer's process (peers/workers.py), whose end gives its memory back."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from data.config.sections import GenerateSection, RuntimeSection
from peers.engines import vllm_internals
from peers.engines.protocol import Advance, Completion, Request, Sampling
from peers.prompts import PeerPrompts
from peers.weights import is_pattern

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
        on_gpu = torch.cuda.is_available()
        vllm_internals.set_environment(on_gpu)
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
        self.prompts, self.asleep, self.links = prompts, False, TemporaryDirectory(prefix="pst-")
        self.lora = LoRARequest(adapter.name, 1, str(adapter.resolve())) if adapter else None
        self.llm: Any = vllm_internals.start(
            model=str(self._without_pattern(directory)), dtype=dtype, seed=seed, max_model_len=section.context_tokens,
            max_num_seqs=runtime.max_num_seqs, enable_chunked_prefill=False,
            max_num_batched_tokens=max(section.context_tokens, 8192), enforce_eager=not on_gpu,
            kv_cache_memory_bytes=None if on_gpu else int(runtime.kv_cache_gib * 2**30),
            gpu_memory_utilization=runtime.gpu_memory_utilization * share, trust_remote_code=False,
            load_format="safetensors", disable_log_stats=True, logits_processors=processors, **lora,
        )  # fmt: skip

    def _without_pattern(self, directory: Path) -> Path:
        """The directory, or a link to it: vLLM looks for weights with glob, to which `[` in a path means a pattern."""
        if not is_pattern(directory):
            return directory
        link = Path(self.links.name) / "model"
        link.unlink(missing_ok=True)
        link.symlink_to(directory.resolve())
        return link

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Advance) -> list[Completion]:
        """See `Engine.generate`."""
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
        prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        outputs = vllm_internals.generate(self.llm, prompts, params, self.lora, advance, self.on_gpu)
        return [self._completion(output.outputs[0]) for output in outputs]

    def _completion(self, output: Any) -> Completion:
        token_ids = self.prompts.cut(output.token_ids)
        steps = zip(token_ids, output.logprobs or [], strict=False)  # the cut leaves out the tail
        logprob = sum(step[token].logprob for token, step in steps)
        reason: Literal["stop", "length"] = "length" if output.finish_reason == "length" else "stop"
        return Completion(token_ids, self.prompts.text(token_ids), logprob, reason)

    def renew(self, directory: Path, adapter: Path | None) -> bool:
        """See `Engine.renew`."""
        from vllm.lora.request import LoRARequest

        if (self.lora is None) != (adapter is None):
            return False  # whether it can serve adapters was settled at its start
        if adapter is not None:
            self.lora = LoRARequest(adapter.name, self.lora.lora_int_id + 1, str(adapter.resolve()))
            return True
        try:
            vllm_internals.renew(self.llm, str(self._without_pattern(directory)))
        except Exception:  # whatever the model's loader cannot do twice: a new engine can
            traceback.print_exc()
            return False
        return True

    @property
    def sleeps(self) -> bool:
        """See `Engine.sleeps`: vLLM has no sleep on a CPU."""
        return self.on_gpu

    def sleep(self) -> bool:
        """See `Engine.sleep`: the weights go to host memory, the key-value cache is given up."""
        if self.on_gpu and not self.asleep:
            self.llm.sleep(level=1)
            self.asleep = True
        return self.on_gpu

    def wake(self) -> None:
        """See `Engine.wake`."""
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False

    def close(self) -> None:
        """Drop the engine, which lives in the peer's process."""
        vllm_internals.shutdown(self.llm)
        self.llm = None
        self.links.cleanup()
        gc.collect()
        gc.freeze()  # vLLM's shutdown has thawed what peers/preload.py froze
