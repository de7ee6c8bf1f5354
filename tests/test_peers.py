"""A peer's model directory: weights of its dtype, converted once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from data.config.sections import GenerateSection, PeerSection
from peers import source
from peers.source import compute_dtype, model_directory

CONFIG: Any = SimpleNamespace(generate=GenerateSection(context_tokens=512, max_new_tokens=16))


def test_weights_of_another_type_are_converted_once(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(source, "CACHE", tmp_path / "models")
    stored = tiny_models["chatty"]
    assert model_directory(PeerSection(name="a", model=str(stored)), CONFIG) == stored
    wide = model_directory(PeerSection(name="a", model=str(stored), dtype="float32"), CONFIG)
    before, after = load_file(stored / "model.safetensors"), load_file(wide / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert before.keys() == after.keys() and all(torch.equal(after[name].bfloat16(), before[name]) for name in before)
    assert {path.name for path in stored.iterdir()} == {path.name for path in wide.iterdir()}
    assert capfd.readouterr().out.count("converting") == 1
    assert model_directory(PeerSection(name="a", model=str(stored), dtype="float32"), CONFIG) == wide
    back = model_directory(PeerSection(name="b", model=str(wide)), CONFIG)
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(back / "model.safetensors").items())
    assert capfd.readouterr().out.count("converting") == 1
    assert not list((tmp_path / "models").glob("*.tmp"))


def test_a_conversion_that_was_killed_begins_anew(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "CACHE", tmp_path / "models")
    peer = PeerSection(name="a", model=str(tiny_models["plain"]), dtype="float32")
    whole = model_directory(peer, CONFIG)
    left = whole.with_name(f"{whole.name}.tmp")
    whole.rename(left)
    (left / "model.safetensors").write_bytes(b"half")
    again = model_directory(peer, CONFIG)
    assert again == whole and not left.exists()
    assert {tensor.dtype for tensor in load_file(again / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("choice", ["auto", "weights", "float32"])
@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("avx512_bf16", [True, False])
@pytest.mark.parametrize("amx", [True, False])
def test_what_the_processor_has_decides_the_arithmetic(
    amx: bool,
    avx512_bf16: bool,
    gpu: bool,
    choice: Literal["auto", "weights", "float32"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    peer = PeerSection(name="a", model="m")
    fast = choice == "weights" or (choice == "auto" and (gpu or amx or avx512_bf16))
    assert compute_dtype(peer, choice) == ("bfloat16" if fast else "float32")
    assert compute_dtype(PeerSection(name="a", model="m", dtype="float32"), choice) == "float32"
