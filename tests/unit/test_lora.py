"""The fused LoRA layers: what PEFT's compute in float32; in bf16 a small adapter is not lost."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from train.lora import fuse, refresh


class Net(nn.Module):
    """Two layers, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[.., 48] → [.., 32]"""
        out: Tensor = self.down(torch.tanh(self.up(x)))
        return out


def adapted(dtype: torch.dtype = torch.float32, std: float = 0.05) -> Any:
    """The net with an adapter that does something."""
    torch.manual_seed(2)
    model: Any = get_peft_model(Net().to(dtype), LoraConfig(r=4, lora_alpha=8, target_modules=["up", "down"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=std)
    return model


def test_forward_and_gradients_are_those_of_peft() -> None:
    x = torch.randn(3, 7, 48, requires_grad=True)
    results: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
    for fused in (False, True):
        model = adapted()
        if fused:
            layers = fuse(model)
            assert len(layers) == 2
            refresh(layers)
        y = model(x)
        x.grad = None
        y.square().mean().backward()
        assert x.grad is not None
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        results.append((y.detach(), x.grad.clone(), gradients))
    (y, dx, gradients), (fused_y, fused_dx, fused_gradients) = results
    torch.testing.assert_close(fused_y, y)
    torch.testing.assert_close(fused_dx, dx)
    assert gradients.keys() == fused_gradients.keys() and len(gradients) == 4
    for name, gradient in gradients.items():
        torch.testing.assert_close(fused_gradients[name], gradient, msg=name)


def test_b_takes_effect_with_a_refresh_and_the_adapter_is_saved_as_pefts() -> None:
    model = adapted()
    names = set(model.state_dict())
    layers = fuse(model)
    assert set(model.state_dict()) == names
    refresh(layers)
    x = torch.randn(5, 48)
    before = model(x)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(2)
    refresh(layers)
    assert not torch.allclose(model(x), before)
    torch.manual_seed(2)
    torch.testing.assert_close(model.base_model.model.up.get_base_layer().weight.detach(), Net().up.weight.detach())


def test_a_small_adapter_is_not_lost_to_bf16() -> None:
    """The mean effect of an adapter far below the output's last place, as a share of what it should be."""
    torch.manual_seed(7)
    layer = nn.Linear(64, 64, bias=False).bfloat16()
    net: Any = nn.Sequential(layer)
    model: Any = get_peft_model(net, LoraConfig(r=4, lora_alpha=4, target_modules=["0"]))
    inner: Any = model.base_model.model[0]
    nn.init.normal_(inner.lora_B["default"].weight, std=2e-4)
    x = torch.randn(20000, 64).bfloat16()
    with torch.no_grad():
        a, b = inner.lora_A["default"].weight, inner.lora_B["default"].weight
        wanted = (x.float() @ a.T) @ b.T
        exact = x.float() @ layer.weight.float().T if hasattr(layer, "weight") else None
        assert exact is not None
        shares = []
        for fused in (False, True):
            if fused:
                refresh(fuse(model))
            effect = model(x).float() - exact
            shares.append(((effect * wanted).sum() / wanted.square().sum()).item())
    theirs, ours = shares
    assert abs(ours - 1) < 0.1, shares
    assert abs(theirs - 1) > 0.3, shares  # PEFT's own: else this test tests nothing
