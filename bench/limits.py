"""The machine's limit: a workload's matrix products, and the time that bare GEMMs of its shapes take.

    score: 2 P T                       + head 2 H V R     + attention 4 L A sum t
    train: 4 P T (no gradient of P)    + head 4 H V R     + attention 12 L A sum t

P weights of the linear layers, T input tokens, H hidden size, V vocabulary, R target tokens, L layers, A heads times
head size, t the tokens that a token sees. A prefix that sequences share within a batch counts once, as it is computed
once. Not counted: LoRA's own products, norms, softmax, and what is computed twice to save memory.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.inputs import Tokens
from peers.logprob.packing import pack

HEAD_TOKENS = 1024  # of the vocabulary at a time: a block of logits that stays in the cache
SECONDS_PER_SHAPE = 0.5


@dataclass(frozen=True)
class Shapes:
    """Sizes of a decoder: {(inputs, outputs): how many such layers} and what attention and head need."""

    linears: dict[tuple[int, int], int]
    hidden: int
    vocabulary: int
    layers: int
    attention: int  # heads times head size


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a workload."""

    linear: float
    head: float
    attention: float


def flops(shapes: Shapes, pairs: Sequence[Tokens], budget: int, steps: Sequence[Sequence[int]] = ()) -> Flops:
    """Operations that are necessary to score the pairs, or, with `steps`, to train on them once, step by step."""
    fed = [[*prompt, *target[:-1]] for prompt, target in pairs]
    trees = [tree for step in steps or [range(len(fed))] for tree in pack([fed[i] for i in step], budget)]
    rows = sum(len(target) for _, target in pairs)
    weights = sum(inputs * outputs * count for (inputs, outputs), count in shapes.linears.items())
    seen = sum(
        n * len(segment.ancestors) + n * (n + 1) / 2
        for tree in trees
        for segment in tree.segments
        for n in [segment.end - segment.first]
    )
    twice, thrice = (2, 3) if steps else (1, 1)  # attention has two inputs, so its backward is twice its forward
    return Flops(
        linear=2.0 * weights * sum(map(len, trees)) * twice,
        head=2.0 * shapes.hidden * shapes.vocabulary * rows * twice,
        attention=4.0 * shapes.layers * shapes.attention * seen * thrice,
    )


def seconds(work: Flops, linear_rate: float, head_rate: float) -> float:
    """Seconds of a workload at these rates (FLOP/s), attention at the rate of the linear layers."""
    return (work.linear + work.attention) / linear_rate + work.head / head_rate


def shapes_of(directory: str) -> Shapes:
    """Sizes of a model from its config, without allocating weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(directory)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shapes(
        dict(Counter((m.in_features, m.out_features) for m in linears)),
        config.hidden_size,
        config.vocab_size,
        config.num_hidden_layers,
        config.num_attention_heads * width,
    )


def gemm_rate(rows: int, inputs: int, outputs: int, dtype: str) -> float:
    """FLOP/s of [rows, inputs] × [inputs, outputs] in torch: the best of many."""
    import torch

    kind = getattr(torch, dtype)
    x, w = torch.randn(rows, inputs).to(kind), torch.randn(outputs, inputs).to(kind)
    y = torch.empty(rows, outputs, dtype=kind)  # allocated once, or its pages would be zeroed each time
    best, end = float("inf"), time.perf_counter() + SECONDS_PER_SHAPE
    with torch.no_grad():
        while time.perf_counter() < end:
            begin = time.perf_counter()
            torch.mm(x, w.T, out=y)
            best = min(best, time.perf_counter() - begin)
    return 2.0 * rows * inputs * outputs / best


def rates(shapes: Shapes, rows: int, dtype: str) -> tuple[float, float]:
    """FLOP/s over all linear layers (each shape with its share of the time), and of the head."""
    work = {size: 2.0 * rows * size[0] * size[1] * count for size, count in shapes.linears.items()}
    taken = sum(amount / gemm_rate(rows, *size, dtype) for size, amount in work.items())
    return sum(work.values()) / taken, gemm_rate(rows, shapes.hidden, min(shapes.vocabulary, HEAD_TOKENS), dtype)
