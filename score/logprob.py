"""Teacher-forced log-probabilities: one function for scoring, the verifier and the training loss.

    log p(t_k | prompt, t_<k) = z_k[t_k] - log sum_v exp z_k[v],   z_k = head(h at the position before t_k)

Hidden states may be bf16. The logits are float32: a difference of two sums of bf16 log-softmax values is off by up
to half a nat over 50 tokens, which is more than a typical PMI. They are computed for the rows that are read, in
chunks, never for a whole [batch, length, vocabulary] block.

Axes: B sequences, T padded positions, R rows that are read, H hidden size, V vocabulary, C columns that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from data.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_LOGITS = 2**26  # float32 logits that exist at once: 256 MiB


@dataclass(frozen=True)
class Pair:
    """A prompt and the target whose tokens are scored after it. Neither may be empty."""

    prompt: Sequence[int]
    target: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


class LanguageModel:
    """A causal LM split into the decoder (in its own dtype) and a float32 head on selected rows."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.decoder = model.get_decoder()
        head = model.get_output_embeddings()
        self.head_V_H: Tensor = head.weight.float()  # frozen but where a model is made from nothing
        self.bias_V: Tensor | None = None if getattr(head, "bias", None) is None else head.bias.float()
        self.softcap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self.device = head.weight.device
        self._check_head()

    @torch.no_grad()
    def _check_head(self) -> None:
        """Architectures scale or cap their logits in their own ways: compare with the model's own head once."""
        ids = torch.arange(1, 9, device=self.device)[None]
        ours = self.logits(self.hidden(ids)[0])
        theirs = self.model(input_ids=ids, use_cache=False).logits[0].float()
        error = (ours - theirs).abs().max().item()
        if not error <= 0.02 * theirs.abs().max().item() + 1e-3:
            raise UserError(
                f"{type(self.model).__name__} computes its logits in a way that this version does not know "
                f"(off by {error:.3g}); it cannot be a peer yet"
            )

    def hidden(self, ids_B_T: Tensor) -> Tensor:
        """Last hidden states [B, T, H]. No attention mask: in a right-padded causal batch nothing real sees padding."""
        hidden: Tensor = self.decoder(input_ids=ids_B_T, use_cache=False).last_hidden_state
        return hidden

    def logits(self, hidden_R_H: Tensor) -> Tensor:
        """Float32 logits [R, V]."""
        logits = torch.nn.functional.linear(hidden_R_H.float(), self.head_V_H, self.bias_V)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def row_logprobs(self, hidden_R_H: Tensor, columns_R_C: Tensor) -> Tensor:
        """Natural-log probabilities [R, C] of the tokens `columns_R_C` after each row, in nats. Differentiable."""
        rows = max(1, CHUNK_LOGITS // self.head_V_H.shape[0])
        chunks = []
        for first in range(0, len(hidden_R_H), rows):
            part = hidden_R_H[first : first + rows], columns_R_C[first : first + rows]
            if torch.is_grad_enabled() and hidden_R_H.requires_grad:
                chunks.append(checkpoint(self._chunk, *part, use_reentrant=False))
            else:
                chunks.append(self._chunk(*part))
        return torch.cat(chunks)

    def _chunk(self, hidden_R_H: Tensor, columns_R_C: Tensor) -> Tensor:
        logits = self.logits(hidden_R_H)
        return logits.gather(1, columns_R_C) - logits.logsumexp(1, keepdim=True)

    def target_logprobs(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Per-token target log-probabilities, one float32 tensor [len(target)] per pair, in nats. Differentiable.

        One forward over the right-padded batch. Raises ValueError for an empty prompt or target.
        """
        if any(not pair.prompt or not pair.target for pair in pairs):
            raise ValueError("a prompt or a target is empty")
        hidden_B_T_H = self.hidden(self._pad([[*pair.prompt, *pair.target[:-1]] for pair in pairs]))
        rows = [hidden_B_T_H[i, len(p.prompt) - 1 : len(p) - 1] for i, p in enumerate(pairs)]
        columns = torch.tensor([token for pair in pairs for token in pair.target], device=self.device)
        flat = self.row_logprobs(torch.cat(rows), columns[:, None])[:, 0]
        return list(flat.split([len(pair.target) for pair in pairs]))

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]], columns: Sequence[int]) -> Tensor:
        """Log-probabilities [B, C] of some tokens right after each prompt: one prefill, in nats."""
        hidden_B_T_H = self.hidden(self._pad(prompts))
        last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
        rows = hidden_B_T_H[torch.arange(len(prompts), device=self.device), last]
        return self.row_logprobs(rows, torch.tensor([list(columns)] * len(prompts), device=self.device))

    def _pad(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        longest = max(len(sequence) for sequence in sequences)
        return torch.tensor([[*s, *[0] * (longest - len(s))] for s in sequences], device=self.device)


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of at most `budget` padded tokens, longest first (so that the peak comes at once).

    A sequence longer than the budget is a batch of its own. Every index comes exactly once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        size = max(1, budget // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


@torch.no_grad()
def score_pairs(
    lm: LanguageModel, pairs: Sequence[Pair], budget: int, advance: Callable[[int, int], None]
) -> list[list[float]]:
    """Per-token target log-probabilities of all pairs, in their order; `advance(items, tokens)` reports progress."""
    scores: list[list[float]] = [[] for _ in pairs]
    for batch in token_batches([len(pair) for pair in pairs], budget):
        for index, logprobs in zip(batch, lm.target_logprobs([pairs[i] for i in batch]), strict=True):
            scores[index] = logprobs.tolist()
        advance(len(batch), sum(len(pairs[i]) for i in batch))
    return scores


def span_of(decode: Callable[[Sequence[int]], str], target: Sequence[int], start: int, end: int) -> slice:
    """The tokens of `target` that cover the characters [start, end) of its decoded text, white space at its head
    not counted."""
    texts = [decode(target[: n + 1]).lstrip() for n in range(len(target))]
    first = next((i for i, text in enumerate(texts) if len(text) > start), len(target) - 1)
    last = next((i for i, text in enumerate(texts) if len(text) >= end), len(target) - 1)
    return slice(first, last + 1)


def device() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(directory: Path, dtype: str, adapter: Path | None = None) -> PreTrainedModel:
    """A model for teacher forcing: eval mode, eager attention where soft-capped scores need it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation=attention, trust_remote_code=False
    )
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).get_base_model()
    model = model.to(device()).eval()
    return cast("PreTrainedModel", model)


def load_language_model(directory: Path, dtype: str, adapter: Path | None = None) -> LanguageModel:
    """`load_model`, ready to score."""
    return LanguageModel(load_model(directory, dtype, adapter))
