"""Merged checkpoints: stochastic rounding, and base + adapter against the formula and peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.config.sections import TrainSection
from data.errors import UserError
from peers.merge import stochastic_round, write_merged
from peers.policy import merge_into
from train.loop import open_adapter

NAME = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


def rounded(values: Tensor, seed: int) -> Tensor:
    """Stochastic rounding under a seed."""
    return stochastic_round(values, torch.Generator().manual_seed(seed))


def test_exact_bf16_numbers_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.cat([torch.randn(5000, generator=generator) * 10.0**e for e in (-38, -3, 0, 20)]).bfloat16()
    edge = torch.tensor([0.0, -0.0, 1.0, -1.0, 256.0, float("inf"), -float("inf"), 3.3895e38, 1e-40]).bfloat16()
    for values in (exact, edge):
        found = rounded(values.float(), 1)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found.view(torch.int16), values.view(torch.int16))


def test_rounding_goes_to_the_two_neighbours_only_and_keeps_the_shape() -> None:
    # between 1 and 2 bf16 numbers are 1/128 apart, between 8 and 16 they are 1/16 apart
    for value, below, above in [(1 + 0.3 / 128, 1.0, 1 + 1 / 128), (-(8 + 0.9 / 16), -8 - 1 / 16, -8.0)]:
        found = rounded(torch.full((100, 50), value), 2)
        assert found.shape == (100, 50)
        assert set(found.unique().tolist()) == {below, above}


@pytest.mark.parametrize("value", [1 + 0.25 / 128, -(1 + 0.25 / 128), 1 + 0.75 / 128, 1 + 0.01 / 128, 3e-20 * 1.0009])
def test_rounding_is_unbiased(value: float) -> None:
    exact = torch.tensor(value)
    n = 200_000
    found = rounded(exact.expand(n), 3).double()
    spacing = (found.max() - found.min()).item()
    assert spacing > 0
    up = (exact.double().abs() - found.abs().min()).item() / spacing  # probability of the neighbour away from zero
    error = found.mean().item() - exact.item()
    assert abs(error) < 5 * spacing * (up * (1 - up) / n) ** 0.5  # five standard errors
    # to nearest, all of them fall on one side
    assert exact.bfloat16().double().item() != exact.item()


def test_rounding_is_seeded() -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(values, 1), rounded(values, 1))
    assert not torch.equal(rounded(values, 1), rounded(values, 2))


def write_base(folder: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    """A model directory of two tensors, one to be adapted: W is [2, 3]."""
    folder.mkdir()
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    tensors = {NAME: weight.to(dtype), NORM: torch.tensor([0.5, 1.001, 1.0]).to(dtype)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    return weight


def write_adapter(folder: Path, a: Tensor, b: Tensor, module: str = MODULE, **config: Any) -> Path:
    """A PEFT adapter of one module, rank 2 and alpha 6 unless told otherwise."""
    folder.mkdir()
    factors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6, **config}), encoding="utf-8")
    return folder


A = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])  # [r, 3]
B = torch.tensor([[0.5, 0.0], [1.0, -1.0]])  # [2, r]
BA = torch.tensor([[0.5, 0.0, 1.0], [1.0, -1.0, 1.0]])


@pytest.mark.parametrize(("config", "scale"), [({}, 3.0), ({"lora_alpha": 1}, 0.5)])
def test_merge_by_hand(config: dict[str, Any], scale: float, tmp_path: Path) -> None:
    weight = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", A, B, **config)
    write_merged(tmp_path / "base", adapter, tmp_path / "merged", "float32", seed=1, stochastic=False)
    found = load_file(tmp_path / "merged" / "model.safetensors")
    torch.testing.assert_close(found[NAME], weight + scale * BA, rtol=1e-6, atol=0)
    assert found[NORM].tolist() == load_file(tmp_path / "base" / "model.safetensors")[NORM].tolist()
    assert (tmp_path / "merged" / "config.json").is_file()


def test_float32_is_not_rounded(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", A / 1000, B)
    for name, stochastic in (("plain", False), ("stochastic", True)):
        write_merged(tmp_path / "base", adapter, tmp_path / name, "float32", 1, stochastic)
    plain, stochastic_ = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "stochastic"))
    assert torch.equal(plain[NAME], stochastic_[NAME])
    assert not torch.equal(plain[NAME], plain[NAME].bfloat16().float())


def test_bf16_merge_is_seeded_and_keeps_on_average_what_nearest_loses(tmp_path: Path) -> None:
    weight = write_base(tmp_path / "base", torch.bfloat16)
    small = 1e-3 / 3  # every change is below half a unit in the last place (1/256 at 1)
    adapter = write_adapter(tmp_path / "adapter", A * small, B)
    merged: list[dict[str, Tensor]] = []
    for seed in [*range(400), 0]:
        target = tmp_path / f"seed-{len(merged)}"
        write_merged(tmp_path / "base", adapter, target, "bfloat16", seed)
        merged.append(load_file(target / "model.safetensors"))
    assert all(found[NAME].dtype == found[NORM].dtype == torch.bfloat16 for found in merged)
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert all(torch.equal(found[NORM], base[NORM]) for found in merged)
    assert torch.equal(merged[0][NAME], merged[-1][NAME])
    assert any(not torch.equal(merged[0][NAME], found[NAME]) for found in merged[1:-1])
    change = (torch.stack([found[NAME].double() for found in merged[:-1]]) - weight).mean(0)
    # per draw at most 1/32 (the spacing at 4 to 8), with probability 1e-3 · 32: standard error 1/32 · sqrt(.032 / 400)
    torch.testing.assert_close(change, (1e-3 * BA).double(), rtol=0, atol=5 * (1 / 32) * (0.032 / 400) ** 0.5)
    assert change.abs().sum() > 3e-3
    write_merged(tmp_path / "base", adapter, tmp_path / "nearest", "bfloat16", 0, stochastic=False)
    assert torch.equal(load_file(tmp_path / "nearest" / "model.safetensors")[NAME].float(), weight)


def test_each_tensor_is_rounded_by_itself(tmp_path: Path) -> None:
    names = [NAME, NAME.replace("layers.0", "layers.1")]
    (tmp_path / "base").mkdir()
    save_file({name: torch.ones(64, 64).bfloat16() for name in names}, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text("{}", encoding="utf-8")
    adapter = write_adapter(tmp_path / "adapter", torch.full((2, 64), 1e-3), torch.ones(64, 2))
    factors = load_file(adapter / "adapter_model.safetensors")
    factors |= {name.replace("layers.0", "layers.1"): factor.clone() for name, factor in factors.items()}
    save_file(factors, adapter / "adapter_model.safetensors")
    write_merged(tmp_path / "base", adapter, tmp_path / "merged", "bfloat16", 1)
    first, second = (load_file(tmp_path / "merged" / "model.safetensors")[name] for name in names)
    assert len(first.unique()) == len(second.unique()) == 2  # both neighbours of 1.006
    assert not torch.equal(first, second)


def test_a_checkpoint_of_another_adapter_or_round_does_not_stay(tmp_path: Path) -> None:
    weight = write_base(tmp_path / "base")
    first = write_adapter(tmp_path / "first", A, B)
    second = write_adapter(tmp_path / "second", A, 2 * B)
    rounds = [tmp_path / "checkpoints" / f"round={n}" / "a" for n in (1, 2)]

    def merged(checkpoint: Path, adapter: Path) -> Tensor:
        merge_into(checkpoint, tmp_path / "base", adapter, "float32", seed=1)
        return load_file(checkpoint / "model.safetensors")[NAME]

    torch.testing.assert_close(merged(rounds[0], first), weight + 3 * BA)
    made = (rounds[0] / "model.safetensors").stat().st_mtime_ns
    merged(rounds[0], first)
    assert (rounds[0] / "model.safetensors").stat().st_mtime_ns == made
    torch.testing.assert_close(merged(rounds[0], second), weight + 6 * BA)
    torch.testing.assert_close(merged(rounds[1], first), weight + 3 * BA)
    assert not rounds[0].exists()


def test_an_adapter_that_does_not_fit(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    wide = write_adapter(tmp_path / "wide", torch.ones(2, 4), B)
    with pytest.raises(UserError, match=r"wide: .*q_proj does not fit the base's .*q_proj\.weight \(2, 3\)"):
        write_merged(tmp_path / "base", wide, tmp_path / "one", "float32", 1)
    deep = write_adapter(tmp_path / "deep", A, B, module=MODULE.replace("layers.0", "layers.7"))
    with pytest.raises(UserError, match=r"deep: .*base has no tensor for .*layers\.7.* and 0 others"):
        write_merged(tmp_path / "base", deep, tmp_path / "two", "float32", 1)


@pytest.mark.parametrize("name", ["chatty", "plain"])
def test_merge_equals_that_of_peft(name: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    model: Any = open_adapter(tiny_models[name], "float32", TrainSection(rank=4, alpha=12), None, seed=1)
    torch.manual_seed(0)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(str(tmp_path / "adapter"))
    write_merged(tiny_models[name], tmp_path / "adapter", tmp_path / "merged", "float32", 1)
    found = load_file(tmp_path / "merged" / "model.safetensors")
    base = load_file(tiny_models[name] / "model.safetensors")
    expected = model.merge_and_unload().state_dict()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-6, msg=key)
    changed = [key for key in found if not torch.equal(found[key], base[key].float())]
    assert len(changed) == 2 * 7  # q, k, v, o, gate, up, down in two layers
