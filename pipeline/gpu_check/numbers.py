"""Checks of the machine, of the head against float64, and of packed against padded batches."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from importlib import util
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from data.nano import problems
from peers import gpu
from peers.logprob import head
from peers.logprob.model import LanguageModel, Pair, load_language_model
from peers.logprob.scoring import score_pairs
from pipeline.gpu_check.step import ROOT, Figures, Setting, require

GIB = 2**30
FREE = 0.9  # least free share of the GPU's memory: no other process uses it
HEAD_OFF, CPU_HEAD_OFF = 1e-4, 1e-2  # on a CPU with bf16 instructions, probabilities are rounded to bf16
PACKED_OFF = 1e-4  # nats per token, and share of the gradient's norm, in float32


def seconds(body: Callable[[], Any]) -> float:
    """Seconds of one call, after a first one for compilation."""
    body()
    synchronise()
    begin = time.perf_counter()
    body()
    synchronise()
    return time.perf_counter() - begin


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bf16_rate(setting: Setting) -> float:
    """FLOP/s of one large matrix product, in the models' type: bf16 on a GPU, float32 on a CPU."""
    n = setting.size(8192, 1024, 512)
    kind, device = (torch.bfloat16, "cuda") if setting.gpu else (torch.float32, "cpu")
    a = torch.randn(n, n, device=device, dtype=kind)
    return 2 * n**3 / seconds(lambda: a @ a)


def check_environment(setting: Setting, figures: Figures) -> None:
    """Driver, compiler and header are present, and torch sees a GPU that no other process uses."""
    figures |= {"torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0]}
    figures |= {"vllm": util.find_spec("vllm") is not None, "gpu": None}
    gpu.check_gpu()
    if not setting.gpu:
        return
    free, total = torch.cuda.mem_get_info()
    capability = torch.cuda.get_device_capability()
    figures |= {"gpu": torch.cuda.get_device_name(), "driver": gpu.driver(), "gpus": torch.cuda.device_count()}
    figures |= {"capability": list(capability), "free_gib": free / GIB, "total_gib": total / GIB}
    require(capability >= (8, 0), f"compute capability {capability}; bf16 and vLLM's attention need 8.0")
    require(free >= FREE * total, f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free: another process holds the rest")


def check_head(setting: Setting, figures: Figures) -> None:
    """log-sum-exp and its gradient with a large vocabulary, with and without a soft-cap, against float64."""
    rows, size, tokens = setting.size(2048, 256, 64), setting.size(2304, 512, 128), setting.size(256_000, 20_000, 3000)
    device = "cuda" if setting.gpu else "cpu"
    torch.manual_seed(0)
    weight = (torch.randn(tokens, size, device=device) * size**-0.5).bfloat16()
    hidden = (3 * torch.randn(rows, size, device=device)).bfloat16()
    limit = HEAD_OFF if setting.gpu else CPU_HEAD_OFF
    for softcap in (None, 30.0):
        value, gradient = _value_and_gradient(hidden, weight, softcap)
        few = slice(0, 32)
        exact_value, exact_gradient = _in_float64(hidden[few], weight, softcap)
        name = "softcap" if softcap else "plain"
        off = (value[few].double() - exact_value).abs().max().item()
        off_gradient = ((gradient[few] - exact_gradient).norm(dim=1) / exact_gradient.norm(dim=1)).max().item()
        figures |= {f"{name}_off_nats": off, f"{name}_gradient_off": off_gradient}
        require(off <= HEAD_OFF, f"the head's log-sum-exp ({name}) is {off:.2g} nats off; expected {HEAD_OFF}")
        require(off_gradient <= limit, f"the head's gradient ({name}) is {off_gradient:.2g} off; expected {limit}")
    ours = seconds(lambda: _value_and_gradient(hidden, weight, None))
    figures |= {"seconds": ours, "of_product_rate": 6 * rows * size * tokens / ours / bf16_rate(setting)}


def _value_and_gradient(hidden: Tensor, weight: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    h = hidden.float().requires_grad_()
    value = head.logsumexp(h, weight, None, softcap, hidden.dtype)
    value.sum().backward()
    assert h.grad is not None
    return value.detach(), h.grad


def _in_float64(hidden: Tensor, weight: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    h = hidden.double().requires_grad_()
    z = torch.cat([h @ part.double().T for part in weight.split(16384)], 1)
    value = (z if softcap is None else softcap * torch.tanh(z / softcap)).logsumexp(1)
    value.sum().backward()
    assert h.grad is not None
    return value.detach(), h.grad


def prefix_pairs(n: int) -> list[Pair]:
    """Prompts of the nano peers' tokens with targets; groups of three prompts share a beginning."""
    draw = random.Random(0)
    pairs = []
    for i in range(n):
        if i % 3 == 0:
            stem = [draw.randrange(40, 200) for _ in range(draw.randrange(20, 60))]
        end = [draw.randrange(40, 200) for _ in range(draw.randrange(4, 40))]
        pairs.append(Pair(stem + end[: len(end) // 2], end[len(end) // 2 :]))
    return pairs


def nano_questions(n: int) -> list[str]:
    """n of the project's own questions."""
    return [problem.question for problem in islice(problems("arith", "test", 0), n)]


def check_packed(setting: Setting, figures: Figures) -> None:
    """Packed batches give the scores and gradients of padded ones, for all three nano peers, in float32."""
    pairs = prefix_pairs(setting.size(48, 24, 9))
    for name in ("gemma2", "llama", "qwen2"):
        lm = load_language_model(ROOT / "peers" / name, "float32")
        lm.compile = "off"
        require(lm.packed, f"{name} cannot be packed here")
        together = _scores_and_gradient(lm, pairs)
        lm.packed = False
        alone = _scores_and_gradient(lm, pairs)
        off = max(abs(sum(a) - sum(b)) / len(a) for a, b in zip(together[0], alone[0], strict=True))
        off_gradient = ((together[1] - alone[1]).norm() / alone[1].norm()).item()
        figures |= {f"{name}_off_nats": off, f"{name}_gradient_off": off_gradient}
        require(off <= PACKED_OFF, f"{name}: packed scores are {off:.2g} nats a token off; expected {PACKED_OFF}")
        require(
            off_gradient <= PACKED_OFF, f"{name}: packed gradients are {off_gradient:.2g} off; expected {PACKED_OFF}"
        )


def _scores_and_gradient(lm: LanguageModel, pairs: list[Pair]) -> tuple[list[list[float]], Tensor]:
    scores = score_pairs(lm, pairs, 512, lambda *_: None)
    weight: Any = lm.decoder.layers[0].mlp.gate_proj.weight
    weight.requires_grad_(True)
    torch.cat(lm.target_logprobs(pairs)).sum().backward()
    gradient: Tensor = weight.grad
    weight.grad = None
    weight.requires_grad_(False)
    return scores, gradient
