"""Products of 16-bit numbers with float32 sums: by formula, since here there is no GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from peers.logprob import attention, head, kernel, product
from peers.logprob.head import logsumexp
from peers.logprob.product import exact_sums, halves, narrow, scores


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale).to(dtype)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    apart: float = ((found.detach().double() - exact.detach()).norm() / exact.detach().norm()).item()
    return apart


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_product_is_exact_but_for_its_float32_sum(dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    a, b = draw(*batch, 5, 70, dtype=dtype), draw(*batch, 70, 6, dtype=dtype)
    found = product.product(a, b)
    assert found.dtype is torch.float32 and error(found, a.double() @ b.double()) < 1e-6


def test_a_gpu_is_asked_for_a_float32_result(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    for name in ("mm", "bmm"):
        monkeypatch.setattr(torch, name, lambda a, b, name=name, **options: asked.append((name, options)))
    for dimensions in (2, 3):
        on_gpu: Any = SimpleNamespace(is_cuda=True, dim=lambda n=dimensions: n)
        product.product(on_gpu, on_gpu)
    assert asked == [("mm", {"out_dtype": torch.float32}), ("bmm", {"out_dtype": torch.float32})]
    kinds = (torch.bfloat16, torch.float16, torch.float32)
    assert [narrow(on_gpu, kind) for kind in kinds] == [True, True, False]
    assert not narrow(torch.zeros(1), torch.bfloat16)


def test_two_halves_add_up_to_the_float32_number() -> None:
    a = draw(1000, dtype=torch.float32).exp()
    high, low = halves(a, torch.bfloat16)
    assert high.dtype is low.dtype is torch.bfloat16
    assert ((high.double() + low.double() - a.double()).abs() / a.double()).max() < 2**-16


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_head_as_a_gpu_computes_it(softcap: float | None, with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "library", lambda: None)
    monkeypatch.setattr(head, "BLOCK", {"cpu": 96})
    monkeypatch.setattr(head, "narrow", lambda operand, held: held is torch.bfloat16)
    hidden, weight = draw(37, 32).float().requires_grad_(), draw(1000, 32, scale=3.0)
    bias = draw(1000, dtype=torch.float32) if with_bias else None
    found = logsumexp(hidden, weight, bias, softcap, torch.bfloat16)
    factor = draw(37, dtype=torch.float32)
    (found * factor).sum().backward()
    exact = hidden.detach().double().requires_grad_()
    z = exact @ weight.double().T + (0 if bias is None else bias.double())
    expected = (z if softcap is None else softcap * torch.tanh(z / softcap)).logsumexp(1)
    (expected * factor.double()).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-5)
    assert hidden.grad is not None and exact.grad is not None
    assert error(hidden.grad, exact.grad) < 3e-5  # one bf16 number for each probability would make it 2e-3


def test_scores_and_their_gradient() -> None:
    q, k = draw(2, 5, 16).requires_grad_(), draw(2, 7, 16).requires_grad_()
    found = scores(q, k)
    factor = draw(2, 5, 7, dtype=torch.float32)
    (found * factor).sum().backward()
    exact_q, exact_k = (t.detach().double().requires_grad_() for t in (q, k))
    expected = exact_q @ exact_k.transpose(1, 2)
    (expected * factor.double()).sum().backward()
    assert found.dtype is torch.float32 and error(found, expected) < 1e-6
    for one, other in ((q, exact_q), (k, exact_k)):
        assert one.grad is not None and other.grad is not None and one.grad.dtype is torch.bfloat16
        assert error(one.grad, other.grad) < 5e-3


def test_scores_under_a_soft_cap_are_float32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = draw(1, 4, 12, 64), draw(1, 2, 12, 64, scale=4.0), draw(1, 2, 12, 64)
    q64, k64, v64 = (t.double().repeat_interleave(4 // t.shape[1], 1) for t in (q, k, v))
    z = 50 * torch.tanh(q64 @ k64.transpose(2, 3) * 64**-0.5 / 50)
    exact = (z + torch.full((12, 12), -torch.inf).triu(1)).softmax(-1) @ v64
    apart = []
    for on_gpu in (True, False):
        monkeypatch.setattr(attention, "narrow", lambda *_, on_gpu=on_gpu: on_gpu)
        apart.append(error(attention._attention(q, k, v, None, 64**-0.5, 50.0), exact))
    assert apart[0] < 3e-3 and apart[0] < apart[1] / 2


def test_sums_of_16_bit_products_stay_float32_on_a_gpu() -> None:
    settings: Any = torch.backends.cuda.matmul
    settings.allow_bf16_reduced_precision_reduction = True
    exact_sums()
    assert settings.allow_bf16_reduced_precision_reduction is False
    assert settings.allow_fp16_reduced_precision_reduction is False
