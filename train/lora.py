"""LoRA layers whose branch joins the base's matrix product: both are summed in float32 and rounded once.

    y = x W^T + s (x A^T) B^T = [x, x A^T] [W, s B]^T

PEFT keeps the adapter in float32 and adds its branch to a base output already rounded to the weights' type. On a CPU
these products are slow, and in bf16 a branch smaller than half a unit in the last place is lost, as a small adapter's
usually is. Here the branch is more columns of a single product, which sums in float32 and rounds once; A, x A^T and
s B are rounded to the weights' type before it. `W` is kept inside [W, s B], so the weights are stored once. PEFT still
initialises, saves and loads the adapter.

Axes: N rows (all but the last axis of x), I inputs, O outputs, r rank.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

ADAPTER = "default"  # PEFT's name for the only adapter


class FusedLinear(LoraLinear):
    """PEFT's LoRA layer with another forward; `fuse` turns PEFT's layers into these."""

    whole_O_IR: Tensor

    def widen(self) -> None:
        """Put the base weight into [W, s B], with zeros for B."""
        base: Any = self.get_base_layer()
        weight_O_I = base.weight.data.T if self.fan_in_fan_out else base.weight.data  # GPT-2's are transposed
        zeros_O_R = weight_O_I.new_zeros(len(weight_O_I), self.r[ADAPTER])
        self.register_buffer("whole_O_IR", torch.cat([weight_O_I, zeros_O_R], 1), persistent=False)
        weight_O_I = self.whole_O_IR[:, : weight_O_I.shape[1]]
        base.weight.data = weight_O_I.T if self.fan_in_fan_out else weight_O_I

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """[.., I] → [.., O]"""
        a, b, base = self.lora_A[ADAPTER], self.lora_B[ADAPTER], cast(Any, self.get_base_layer())
        product: Any = _Product
        y: Tensor = product.apply(x, a.weight, b.weight, self.whole_O_IR, self.scaling[ADAPTER])
        return y if base.bias is None else y + base.bias


def fuse(model: nn.Module) -> list[FusedLinear]:
    """Replace the forward of every LoRA layer of a PEFT model. The layers need a `refresh` after each change of B."""
    layers: Any = [module for module in model.modules() if isinstance(module, LoraLinear)]
    for layer in layers:
        layer.__class__ = FusedLinear
        layer.widen()
    return cast(list[FusedLinear], layers)


@torch.no_grad()
def refresh(layers: list[FusedLinear]) -> None:
    """Write s B beside the base weights."""
    for layer in layers:
        b_O_R = cast(Tensor, layer.lora_B[ADAPTER].weight)
        layer.whole_O_IR[:, -b_O_R.shape[1] :] = layer.scaling[ADAPTER] * b_O_R


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a_R_I: Tensor, b_O_R: Tensor, whole_O_IR: Tensor, scale: float) -> Tensor:
        a_R_I = a_R_I.to(x.dtype)
        down = x @ a_R_I.T
        ctx.save_for_backward(x, down, a_R_I, whole_O_IR)
        ctx.scale = scale
        return torch.cat([x, down], -1) @ whole_O_IR.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, down, a_R_I, whole_O_IR = ctx.saved_tensors
        inputs = x.shape[-1]
        dy_N_O = gradients[0].reshape(-1, len(whole_O_IR))
        both_N_IR = dy_N_O @ whole_O_IR
        ddown_N_R = both_N_IR[:, inputs:]
        dx_N_I = torch.addmm(both_N_IR[:, :inputs], ddown_N_R, a_R_I)
        da_R_I = ddown_N_R.T @ x.reshape(-1, inputs)
        db_O_R = ctx.scale * (dy_N_O.T @ down.reshape(-1, len(a_R_I)))
        return dx_N_I.view(x.shape), da_R_I.float(), db_O_R.float(), None, None
