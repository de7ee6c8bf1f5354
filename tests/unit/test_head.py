"""The head's log-sum-exp over blocks of the vocabulary: value, gradient, exactness of bf16 products."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from peers.logprob import head, kernel
from peers.logprob.head import logsumexp, products_of

ROWS, HIDDEN, VOCABULARY = 37, 32, 1000


def reference(hidden: Any, weight: Any, bias: Any, softcap: float | None) -> Any:
    """The plain formula in float64."""
    z = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    return (z if softcap is None else softcap * torch.tanh(z / softcap)).logsumexp(1)


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_those_of_the_plain_formula(
    dtype: torch.dtype, with_bias: bool, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "library", lambda: None)
    monkeypatch.setattr(head, "BLOCK", {"cpu": 96})  # eleven blocks, the last of 40
    monkeypatch.setattr(head, "ROWS", 16)
    torch.manual_seed(1)
    hidden = torch.randn(ROWS, HIDDEN).to(dtype).float().requires_grad_()
    weight = (3 * torch.randn(VOCABULARY, HIDDEN)).to(dtype)
    bias = torch.randn(VOCABULARY) if with_bias else None
    found = logsumexp(hidden, weight, bias, softcap, dtype)
    scale = torch.randn(ROWS)
    (found * scale).sum().backward()
    exact = hidden.detach().double().requires_grad_()
    expected = reference(exact, weight, bias, softcap)
    (expected * scale.double()).sum().backward()
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-5)  # bf16 operands, float32 sums
    assert hidden.grad is not None and exact.grad is not None
    error = (hidden.grad.double() - exact.grad).abs().max() / exact.grad.abs().max()
    assert error < (1e-5 if dtype is torch.float32 else 4e-3)  # probabilities become bf16 in the gradient's product


@pytest.mark.skipif(kernel.library() is None, reason="no AMX, or no C compiler for it")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("rows", "hidden", "vocabulary", "with_bias"),
    [(1, 32, 5, True), (2, 32, 5, False), (37, 64, 1000, True), (100, 96, 5001, False)],
)
def test_the_kernel_gives_what_the_plain_formula_gives(
    rows: int, hidden: int, vocabulary: int, with_bias: bool, threads: int
) -> None:
    torch.manual_seed(1)
    h = torch.randn(rows, hidden).bfloat16().float() / 32  # logits near 0, which padding would have, too
    h[0] *= 2048  # logits in the hundreds, and a likeliest token that comes late
    weight = torch.randn(vocabulary, hidden).bfloat16()
    bias = torch.randn(vocabulary) if with_bias else None
    assert kernel.takes(h, weight, None, torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, gradient = kernel.logsumexp(h, weight, bias, wants_gradient=True)
        alone, nothing = kernel.logsumexp(h, weight, bias, wants_gradient=False)
    finally:
        torch.set_num_threads(before)
    assert not len(nothing)
    exact = h.double().requires_grad_()
    expected = reference(exact, weight, bias, None)
    expected.sum().backward()
    for value in found, alone:
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-5)
    assert exact.grad is not None
    apart = (gradient.double() - exact.grad).norm(dim=1) / exact.grad.norm(dim=1)
    assert apart.max() < 4e-3  # probabilities become bf16 in the gradient's product


@pytest.mark.skipif(kernel.library() is None, reason="no AMX, or no C compiler for it")
def test_what_is_not_a_number_stays_so() -> None:
    h, weight = torch.randn(3, HIDDEN), torch.randn(VOCABULARY, HIDDEN).bfloat16()
    weight[7] = torch.nan
    assert kernel.logsumexp(h, weight, None, False)[0].isnan().all()


@pytest.mark.parametrize("problem", ["compiler", "folder"])
def test_without_a_compiler_or_a_folder_there_is_no_kernel(
    problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PST_CACHE", str(tmp_path / ("file" if problem == "folder" else "cache")))
    monkeypatch.setenv("CC", "no-such-compiler -O" if problem == "compiler" else "cc")
    assert kernel.library.__wrapped__() is None


def test_the_kernel_refuses_what_it_cannot_compute() -> None:
    h, weight = torch.randn(3, HIDDEN), torch.randn(VOCABULARY, HIDDEN).bfloat16()
    assert not kernel.takes(h, weight, 4.0, torch.bfloat16)
    assert not kernel.takes(h, weight, None, torch.float32)
    assert not kernel.takes(h, weight.float(), None, torch.bfloat16)
    assert not kernel.takes(h[:, :24], weight[:, :24].contiguous(), None, torch.bfloat16)


def test_without_a_gradient_none_is_made() -> None:
    hidden = torch.randn(3, HIDDEN)
    with torch.no_grad():
        found = logsumexp(hidden, torch.randn(VOCABULARY, HIDDEN), None, None, torch.float32)
    assert not found.requires_grad


def test_large_logits_neither_overflow_nor_vanish() -> None:
    weight = torch.tensor([[1.0], [2.0], [-1.0]])
    hidden = torch.tensor([[1000.0], [-1000.0], [0.0]])
    found = logsumexp(hidden, weight, None, None, torch.float32)
    assert found.tolist() == pytest.approx([2000.0, 1000.0, 1.0986123])


def test_the_setting_for_products_is_put_back() -> None:
    setting = cast(Any, torch.backends.mkldnn).matmul
    before = setting.fp32_precision
    with pytest.raises(KeyError), products_of(torch.bfloat16):
        assert setting.fp32_precision == "bf16"
        raise KeyError
    assert setting.fp32_precision == before
