"""Many pairs or prompts through a language model, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from peers.logprob.head import ROWS
from peers.logprob.model import LanguageModel, Pair, Read, inputs_of


@torch.no_grad()
def score_pairs(
    lm: LanguageModel, pairs: Sequence[Pair], budget: int, advance: Callable[[int, int], None], parts: int = 1
) -> list[list[float]]:
    """Per-token target log-probabilities of all pairs, in their order; `advance(items, tokens)` reports progress.

    `parts` is how many calls like this one are left, including this one: whether compiling pays depends on it.
    """
    scores: list[list[float]] = [[] for _ in pairs]
    lm.compile_if_asked(parts * sum(map(len, pairs)))
    waiting: list[Read] = []  # the head is cheapest for many rows at a time
    for tree_batch in lm.batches(inputs_of(pairs), budget):
        read = lm.read(tree_batch, pairs)
        waiting.append(read)
        if sum(len(batch.tokens) for batch in waiting) >= ROWS:
            _write(lm.logprobs(waiting, pairs), scores)
            waiting = []
        advance(len(read.owners), sum(len(pairs[i]) for i in read.owners))
    if waiting:
        _write(lm.logprobs(waiting, pairs), scores)
    return scores


def _write(found: dict[int, Tensor], scores: list[list[float]]) -> None:
    together = torch.cat([*found.values()]).cpu()  # wait for the GPU only once
    for i, logprobs in zip(found, together.split([len(each) for each in found.values()]), strict=True):
        scores[i] = logprobs.tolist()


@torch.no_grad()
def score_next(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    tokens: Sequence[int],
    budget: int,
    advance: Callable[[int, int], None],
    parts: int = 1,
) -> list[list[float]]:
    """Logits of `tokens` right after each prompt, [prompts][tokens]; `advance` and `parts` as in `score_pairs`."""
    logits: list[list[float]] = [[] for _ in prompts]
    lm.compile_if_asked(parts * sum(map(len, prompts)))
    for tree_batch in lm.batches(prompts, budget):
        ends = torch.tensor([path[-1] for path in tree_batch.paths.values()], device=lm.device)
        columns = torch.tensor([list(tokens)] * len(ends), device=lm.device)
        for i, found in zip(
            tree_batch.paths, lm.token_logits(lm.hidden(tree_batch)[ends], columns).tolist(), strict=True
        ):
            logits[i] = found
        advance(len(ends), sum(len(prompts[i]) for i in tree_batch.paths))
    return logits


def span_of(decode: Callable[[Sequence[int]], str], target: Sequence[int], start: int, end: int) -> slice:
    """The tokens of `target` that cover the characters [start, end) of its decoded text without leading white space."""
    texts = [decode(target[: n + 1]).lstrip() for n in range(len(target))]
    first = next((i for i, text in enumerate(texts) if len(text) > start), len(target) - 1)
    last = next((i for i, text in enumerate(texts) if len(text) >= end), len(target) - 1)
    return slice(first, last + 1)
