"""log-sum-exp of a language model's head over its vocabulary, and its gradient, without the logits.

    lse_r = log sum_v exp z_rv,   z = cap(h W^T + b),   d lse_r / d h_r = sum_v softmax(z_r)_v cap'(z_rv) W_v

Both are accumulated over blocks of the vocabulary with a running maximum, as in FlashAttention (arXiv 2205.14135) with
W as keys and values: no [rows, vocabulary] matrix is ever in memory, and the gradient needs no second pass over the
logits. On a CPU with AMX peers/logprob/kernel.py does this in C for bf16 without a soft-cap (`kernel.takes`); the code
below does the rest.

Axes: R rows, H hidden size, V vocabulary, N one block of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from peers.logprob import kernel
from peers.logprob.product import halves, narrow, product

ROWS = 2048  # at a time: with a block of 1,024 tokens 8 MiB of float32 logits, which stay in a CPU's cache
BLOCK = {"cpu": 1024}  # tokens of the vocabulary at a time
OTHER_BLOCK = 16384  # elsewhere a few large kernels are faster


@contextmanager
def products_of(dtype: torch.dtype) -> Iterator[None]:
    """Matrix products of float32 tensors that hold numbers of `dtype`.

    For bf16 on a CPU (for a GPU see peers/logprob/product.py) oneDNN may then convert the operands back to bf16, which
    is exact, multiply them with AMX or AVX-512's bf16 instructions and sum in float32: the result is that of a float32
    product, several times faster. (Probabilities, in the gradient's product, are rounded, but relative to their size,
    so small ones survive.) A CPU with neither multiplies in float32.
    """
    setting = cast(Any, torch.backends.mkldnn).matmul
    before = setting.fp32_precision
    setting.fp32_precision = "bf16" if dtype is torch.bfloat16 else "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = before


def logsumexp(
    hidden_R_H: Tensor, head_V_H: Tensor, bias_V: Tensor | None, softcap: float | None, dtype: torch.dtype
) -> Tensor:
    """Natural-log normaliser of each row, float32 [R]; differentiable in `hidden_R_H`, not in the frozen head.

    `hidden_R_H` [R, H] is float32; `dtype` is the type from which its numbers were converted.
    """
    exact = dtype if dtype == head_V_H.dtype else torch.float32
    rows = ROWS
    if hidden_R_H.requires_grad and kernel.takes(hidden_R_H, head_V_H, softcap, exact):
        rows = min(rows, kernel.rows_at_once(hidden_R_H.shape[1]))
    parts = [_of_rows(part, head_V_H, bias_V, softcap, exact) for part in hidden_R_H.split(rows)]
    return torch.cat(parts)


def _of_rows(*arguments: Any) -> Tensor:
    return cast(Tensor, cast(Any, _LogSumExp).apply(*arguments))


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_R_H: Tensor, head_V_H: Tensor, bias_V: Tensor | None, softcap: float | None, dtype: torch.dtype
    ) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        if kernel.takes(hidden_R_H, head_V_H, softcap, dtype):
            lse_R, gradient_R_H = kernel.logsumexp(hidden_R_H, head_V_H, bias_V, wants_gradient)
        else:
            with products_of(dtype):
                lse_R, gradient_R_H = _accumulate(hidden_R_H, head_V_H, bias_V, softcap, dtype, wants_gradient)
        ctx.save_for_backward(gradient_R_H)
        return lse_R

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient_R_H,) = ctx.saved_tensors
        return gradients[0][:, None] * gradient_R_H, None, None, None, None


def _accumulate(
    hidden_R_H: Tensor,
    head_V_H: Tensor,
    bias_V: Tensor | None,
    softcap: float | None,
    dtype: torch.dtype,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor]:
    size = BLOCK.get(hidden_R_H.device.type, OTHER_BLOCK)
    rows = len(hidden_R_H)
    products = (_Narrow if narrow(hidden_R_H, dtype) else _Wide)(hidden_R_H, dtype, min(size, len(head_V_H)))
    top_R = hidden_R_H.new_full((rows,), -torch.inf)
    sum_R = hidden_R_H.new_zeros(rows)
    gradient_R_H = torch.zeros_like(hidden_R_H) if wants_gradient else hidden_R_H.new_empty(0)
    for first in range(0, len(head_V_H), size):
        block_N_H = products.block(head_V_H[first : first + size])
        z_R_N = products.logits(block_N_H)
        if bias_V is not None:
            z_R_N += bias_V[first : first + size]
        slope_R_N = None
        if softcap is not None:
            tanh_R_N = z_R_N.div_(softcap).tanh_()
            slope_R_N = 1 - tanh_R_N.square() if wants_gradient else None
            z_R_N = tanh_R_N.mul_(softcap)
        new_top_R = torch.maximum(top_R, z_R_N.amax(1))
        scale_R = (top_R - new_top_R).exp_()
        p_R_N = z_R_N.sub_(new_top_R[:, None]).exp_()
        sum_R = sum_R.mul_(scale_R).add_(p_R_N.sum(1))
        top_R = new_top_R
        if wants_gradient:
            gradient_R_H.mul_(scale_R[:, None])
            if slope_R_N is None:
                products.add(gradient_R_H, p_R_N, block_N_H)
            else:
                # the likeliest token's p is 1, which bf16 holds exactly; times a slope it is not, and the gradient
                # that it almost cancels is float32
                with products_of(torch.float32):
                    products.add(gradient_R_H, p_R_N.mul_(slope_R_N), block_N_H)
    if wants_gradient:
        gradient_R_H /= sum_R[:, None]
    return top_R.add_(sum_R.log_()), gradient_R_H


class _Wide:
    """Products in float32, into one buffer."""

    def __init__(self, hidden_R_H: Tensor, dtype: torch.dtype, size: int) -> None:
        self.hidden_R_H, self.buffer = hidden_R_H, hidden_R_H.new_empty(len(hidden_R_H) * size)

    def block(self, head_N_H: Tensor) -> Tensor:
        """A block of the head in the type that `logits` and `add` expect."""
        return head_N_H.float()

    def logits(self, block_N_H: Tensor) -> Tensor:
        """h W^T, float32 [R, N]; overwritten by the next."""
        shape = len(self.hidden_R_H), len(block_N_H)
        return torch.mm(self.hidden_R_H, block_N_H.T, out=self.buffer[: shape[0] * shape[1]].view(shape))

    def add(self, gradient_R_H: Tensor, p_R_N: Tensor, block_N_H: Tensor) -> None:
        """Add p W in place."""
        gradient_R_H.addmm_(p_R_N, block_N_H)


class _Narrow:
    """Products of 16-bit numbers on a GPU, with p as the sum of two of them."""

    def __init__(self, hidden_R_H: Tensor, dtype: torch.dtype, size: int) -> None:
        self.hidden_R_H = hidden_R_H.to(dtype)

    def block(self, head_N_H: Tensor) -> Tensor:
        """A block of the head, which has the right type already."""
        return head_N_H

    def logits(self, block_N_H: Tensor) -> Tensor:
        """h W^T, float32 [R, N]"""
        return product(self.hidden_R_H, block_N_H.T)

    def add(self, gradient_R_H: Tensor, p_R_N: Tensor, block_N_H: Tensor) -> None:
        """Add p W in place."""
        for part in halves(p_R_N, block_N_H.dtype):
            gradient_R_H += product(part, block_N_H)
