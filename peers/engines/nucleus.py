"""Top-p sampling for vLLM without sorting the vocabulary.

    nucleus = the likeliest tokens until their mass reaches p      (the token that crosses p is included)

vLLM sorts all V logits of every row for this, which on a CPU took two fifths (49 k tokens) to two thirds (262 k) of the
time (docs/log.md). The nucleus almost always lies among the `WIDTH` likeliest tokens: a partial selection finds those,
one log-sum-exp over the row gives their probabilities, and only rows with a wider nucleus are sorted. The result is the
same set of tokens except for ties: all tokens tied with the last one are kept, where vLLM keeps as many of them as p
needs, in no particular order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from peers.engines.vllm import NUCLEUS

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate

WIDTH = 128


def nucleus_threshold(logits_R_V: Tensor, p_R: Tensor, width: int = WIDTH) -> Tensor:
    """Smallest logit in the nucleus of each row of [R, V], as [R, 1]; -inf for rows with p = 1."""
    whole = width >= logits_R_V.shape[1]
    top_R_W = logits_R_V.sort(1, descending=True).values if whole else logits_R_V.topk(width, dim=1).values
    mass_R_W = (top_R_W - logits_R_V.logsumexp(1, keepdim=True)).exp().cumsum(1)
    inside_R = 1 + (mass_R_W[:, :-1] < p_R[:, None]).sum(1)
    threshold_R_1 = top_R_W.gather(1, inside_R[:, None] - 1)
    wider_R = (mass_R_W[:, -1] < p_R) & (p_R < 1)
    if not whole and wider_R.any():
        rows = wider_R.nonzero()[:, 0]
        threshold_R_1[rows] = nucleus_threshold(logits_R_V[rows], p_R[rows], logits_R_V.shape[1])
    return threshold_R_1.masked_fill(p_R[:, None] >= 1, -torch.inf)


class Nucleus(LogitsProcessor):
    """Masks tokens outside the nucleus of requests with `extra_args = {"nucleus": p}`, after the temperature."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.device = device
        self.p: dict[int, float] = {}

    def is_argmax_invariant(self) -> bool:
        """The likeliest token is always in the nucleus."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that come, go or change their row."""

        def of(params: SamplingParams, *_: object) -> float | None:
            return (params.extra_args or {}).get(NUCLEUS)

        process_dict_updates(self.p, batch_update, of)

    def apply(self, logits: Tensor) -> Tensor:
        """Mask logits [R, V] in place."""
        if not self.p:
            return logits
        p_R = torch.tensor([self.p.get(row, 1.0) for row in range(len(logits))], device=self.device)
        return logits.masked_fill_(logits < nucleus_threshold(logits, p_R), -torch.inf)
