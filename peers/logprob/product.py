"""Matrix products with float32 results, by device.

Products of 16-bit numbers are exact in float32, and the sums are float32. A GPU has an instruction for just that;
torch's function for it (`mm` and `bmm` with `out_dtype`) has no gradient and no CPU kernel. A GPU's float32 product is
about eight times slower.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

HALF_TYPES = (torch.bfloat16, torch.float16)


def narrow(operand: Tensor, dtype: torch.dtype) -> bool:
    """Whether numbers that came in `dtype` should be multiplied by `product`: on a GPU, for 16-bit types."""
    return operand.is_cuda and dtype in HALF_TYPES


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32, for [R, K] and [K, N], or batches of them; both of one 16-bit type. Not differentiable."""
    multiply = torch.mm if a.dim() == 2 else torch.bmm
    if a.is_cuda:
        return cast(Tensor, cast(Any, multiply)(a, b, out_dtype=torch.float32))
    return multiply(a.float(), b.float())


def halves(a: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two tensors of a 16-bit type whose sum is the float32 `a`; for bf16 with a relative error of up to 2^-17."""
    high = a.to(dtype)
    return high, (a - high).to(dtype)


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_S_N_D: Tensor, k_S_M_D: Tensor) -> Tensor:
        ctx.save_for_backward(q_S_N_D, k_S_M_D)
        return product(q_S_N_D, k_S_M_D.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        q_S_N_D, k_S_M_D = ctx.saved_tensors
        gradient_S_N_M = gradients[0].to(q_S_N_D.dtype)
        return gradient_S_N_M @ k_S_M_D, gradient_S_N_M.transpose(1, 2) @ q_S_N_D


def scores(q_S_N_D: Tensor, k_S_M_D: Tensor) -> Tensor:
    """Attention's q k^T, float32 [S, N, M], for queries and keys of one 16-bit type. Differentiable; gradients are
    rounded to that type before they are multiplied, as in any 16-bit backward."""
    return cast(Tensor, cast(Any, _Scores).apply(q_S_N_D, k_S_M_D))


def exact_sums() -> None:
    """Make CUDA's 16-bit products sum in float32 throughout: by default partial sums may be added in 16 bits."""
    settings: Any = torch.backends.cuda.matmul
    settings.allow_bf16_reduced_precision_reduction = False
    settings.allow_fp16_reduced_precision_reduction = False
