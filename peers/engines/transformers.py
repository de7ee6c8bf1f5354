"""Generation with transformers alone, for platforms without vLLM and as the reference in tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from data.config.sections import RuntimeSection
from data.task import Advance
from peers.engines.protocol import NOT_GENERATED, Completion, Request, Sampling
from peers.faults import NotFinite
from peers.prompts import PeerPrompts


class TransformersEngine:
    """See `LiveEngine`. Its model also scores its responses."""

    def __init__(
        self,
        directory: Path,
        prompts: PeerPrompts,
        runtime: RuntimeSection,
        dtype: str,
        adapter: Path | None = None,
    ) -> None:
        self.prompts, self.runtime, self.dtype = prompts, runtime, dtype
        self.renew(directory, adapter)

    def renew(self, directory: Path, adapter: Path | None) -> bool:
        """See `LiveEngine.renew`."""
        from transformers import GenerationConfig

        from peers.logprob.model import load_language_model

        self.lm: Any = None  # free the old one first: both may not fit into memory
        self.lm = load_language_model(directory, self.dtype, adapter)
        # a checkpoint's own defaults (a repetition penalty, say) would change what greedy means
        self.lm.model.generation_config = GenerationConfig()
        return True

    sleeps = False

    def sleep(self) -> bool:
        """See `LiveEngine.sleep`: it cannot."""
        return False

    def wake(self) -> None:
        """See `LiveEngine.wake`: it is always awake."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Advance) -> list[Completion]:
        """See `Engine.generate`. Sampled responses depend on the seed of a batch's first request, not on each one's."""
        import torch

        from peers.logprob.model import Pair
        from peers.logprob.packing import token_batches
        from peers.logprob.scoring import score_pairs

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
        with torch.no_grad(), self._finite():
            out = self.lm.model.generate(
                torch.tensor(ids, device=self.lm.device),
                attention_mask=torch.tensor(mask, device=self.lm.device),
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=self.prompts.stop_ids,
                pad_token_id=pad,
                **(draw if sampling.temperature else {"do_sample": False}),
                **(stop if self.prompts.stop_strings else {}),
            )
        return [self._finished(row.tolist(), sampling.max_new_tokens) for row in out[:, longest:]]

    @contextmanager
    def _finite(self) -> Iterator[None]:
        """Raises NotFinite, a UserError, instead of torch's error for a distribution with NaN or infinities."""
        try:
            yield
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            raise NotFinite(
                f"peer {self.prompts.peer.name}: its logits are not finite, so nothing can be sampled: its weights are "
                "damaged, or too large for the type they run in (try runtime.compute='float32')"
            ) from error

    def _finished(self, generated: list[int], limit: int) -> tuple[list[int], bool]:
        """(the tokens cut at the end, whether the token limit ended them)."""
        text = self.prompts.decode(generated)
        ended = any(token in self.prompts.stop_ids for token in generated)
        ended = ended or any(stop in text for stop in self.prompts.stop_strings)
        return self.prompts.cut(generated), not ended and len(generated) >= limit

    def close(self) -> None:
        """Drop the model."""
        self.lm = None
        gc.collect()
