"""A peer's model directory: weights of its dtype, converted once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from data.config.sections import GenerateSection, PeerSection, TemplateSection
from peers import policy_cache, source
from peers.policy import Policy
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


@pytest.mark.parametrize("resident", ["all", "one"])
def test_what_is_loaded_is_of_the_policy_asked_for(
    resident: Literal["all", "one"], monkeypatch: pytest.MonkeyPatch
) -> None:
    config: Any = SimpleNamespace(runtime=SimpleNamespace(resident=resident))
    base = Policy(
        peer=PeerSection(name="a", model="m"), wording=TemplateSection(), round=0, base=Path("m"), adapter=None,
        checkpoint=None, rounding_seed=1, compute="auto", identity="m",
    )  # fmt: skip
    trained = replace(base, round=1, adapter=Path("adapter"), identity="m+1")
    closed: list[str] = []

    class Engine:
        """One that takes the weights of a round below 2, and of no other."""

        sleeps = False

        def __init__(self, policy: Policy) -> None:
            self.of = policy

        def renew(self, directory: Path, adapter: Path | None) -> bool:
            self.of = replace(trained, adapter=adapter)
            return adapter != Path("other")

        def sleep(self) -> bool:
            return self.sleeps

        def wake(self) -> None:
            pass

        def close(self) -> None:
            closed.append(self.of.identity)

    def load(policy: Policy, _: Any) -> Any:
        return SimpleNamespace(of=policy, close=lambda: closed.append(f"model {policy.identity}"))

    monkeypatch.setattr(policy_cache, "_held", {})
    monkeypatch.setattr(policy_cache, "_load_engine", lambda policy, _: Engine(policy))
    monkeypatch.setattr(policy_cache, "_load_language_model", load)
    first: Any = policy_cache.engine(base, config)
    assert first.of == base and policy_cache.engine(base, config) is first and not closed
    second: Any = policy_cache.engine(trained, config)
    assert second.of == trained and second is first and not closed
    model: Any = policy_cache.language_model(trained, config)
    assert model.of == trained and closed == (["m+1"] if resident == "one" else [])
    again: Any = policy_cache.engine(trained, config)
    assert (again is first) == (resident == "all")
    assert closed == (["m+1", "model m+1"] if resident == "one" else [])
    again.sleeps = True  # as on a GPU, where the two are not awake at once
    policy_cache.language_model(trained, config)
    kept = closed.copy()
    assert policy_cache.engine(trained, config) is again and closed == [*kept, "model m+1"]
    third: Any = policy_cache.engine(replace(trained, round=2, adapter=Path("other"), identity="m+2"), config)
    assert third is not again and closed[-1] == "m+1" and third.of.identity == "m+2"
    policy_cache.drop_all()
    assert closed[-1] == "m+2"


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
