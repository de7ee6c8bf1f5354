"""Gradient checkpointing: the same gradients, of packed and of padded batches, with less kept; and when it is on."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor

from data.config.sections import TrainSection
from peers.logprob import recompute
from peers.logprob.model import LanguageModel, Pair
from peers.logprob.recompute import activation_bytes, checkpoint_layers, should_checkpoint
from tests.unit.test_packing import ARCHITECTURES, SHAPE, families
from train.examples import TrainingExample
from train.loop import train_adapter
from train.lora import fuse, refresh


def adapted(architecture: str) -> tuple[Any, LanguageModel]:
    """A model with adapters that have an effect."""
    torch.manual_seed(3)
    config = getattr(transformers, architecture)(**SHAPE, **ARCHITECTURES[architecture])
    base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model: Any = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    refresh(fuse(model))
    return model, LanguageModel(model.get_base_model())


def pairs(seed: int = 1) -> list[Pair]:
    """Prompts that share beginnings."""
    draw = random.Random(seed)
    return [Pair(sequence[:-1], sequence[-2:]) for sequence in families(draw, 8) if len(sequence) > 2]


def gradients(architecture: str, packed: bool, checkpointing: bool) -> tuple[dict[str, Tensor], int]:
    """The adapter's gradients, and bytes that were kept for the backward."""
    model, lm = adapted(architecture)
    assert lm.packed
    lm.packed = packed
    if checkpointing:
        checkpoint_layers(lm)
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.update({t.data_ptr(): t.nbytes}), t)[1], lambda t: t):
        loss = -torch.cat(lm.target_logprobs(pairs())).sum()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_the_same_and_less_is_kept(architecture: str, packed: bool) -> None:
    plain, all_bytes = gradients(architecture, packed, checkpointing=False)
    again, few_bytes = gradients(architecture, packed, checkpointing=True)
    assert len(plain) == 2 * 7 * SHAPE["num_hidden_layers"] and plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=1e-6, msg=name)
    assert few_bytes < all_bytes / 2


def test_without_gradients_nothing_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    _, lm = adapted("Gemma2Config")
    with torch.no_grad():
        expected = lm.target_logprobs(pairs())
        checkpoint_layers(lm)
        monkeypatch.setattr(recompute, "checkpoint", never)
        found = lm.target_logprobs(pairs())
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("choice", ["on", "off", "auto"])
def test_training_takes_the_choice(choice: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("train.loop.checkpoint_layers", lambda lm: asked.append(True))
    torch.manual_seed(3)
    config = transformers.Qwen2Config(**SHAPE)
    base: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model: Any = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    examples = [TrainingExample(pair, 1.0) for pair in pairs()[:2]]
    section = TrainSection(batch_size=2, epochs=1)
    train_adapter(model, examples, section, 1, 512, tmp_path, 100, lambda *_: None, checkpointing=choice)
    assert asked == ([True] if choice == "on" else [])


def test_auto_counts_what_a_micro_batch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    gemma = transformers.Gemma2Config()  # its defaults are the 2B model's shape, but for the number of layers
    gemma.num_hidden_layers = 26
    whole = activation_bytes(gemma, 4096, 4096, 2)
    assert 40e9 < whole < 90e9  # seen nowhere; an estimate by hand was 70 GB
    assert activation_bytes(gemma, 4096, 512, 2) < whole / 2  # scores grow with the context
    gpu: Any = SimpleNamespace(
        device=torch.device("cuda"), head_V_H=torch.zeros(1, dtype=torch.bfloat16),
        decoder=SimpleNamespace(config=gemma),
    )  # fmt: skip
    for free, expected in ((2.1 * whole, False), (1.9 * whole, True)):
        monkeypatch.setattr(recompute, "_free", lambda free=free: free)
        assert should_checkpoint("auto", gpu, 4096, 4096) is expected
    assert not should_checkpoint("off", gpu, 4096, 4096)
    gpu.device = torch.device("cpu")
    assert not should_checkpoint("auto", gpu, 4096, 4096) and should_checkpoint("on", gpu, 1, 1)
