"""What vLLM is told on a CPU and on a GPU, without an engine: here there is no GPU."""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from importlib import util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.config.base import MAX_TEMPERATURE, MIN_TEMPERATURE
from data.config.sections import GenerateSection, RuntimeSection
from peers.engines import vllm_internals
from peers.engines.vllm import COMPILING_PAYS, VllmEngine, compilation, engine_options

SECTION = GenerateSection(context_tokens=1024, max_new_tokens=200)
RUNTIME = RuntimeSection(kv_cache_gib=1.5, max_num_seqs=48)


@pytest.fixture
def nucleus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for peers/engines/nucleus.py, which imports vLLM."""
    fake = SimpleNamespace(Nucleus=object())
    monkeypatch.setitem(sys.modules, "peers.engines.nucleus", fake)
    return fake.Nucleus


def test_prefills_are_whole_on_a_cpu_alone(nucleus: Any) -> None:
    cpu, gpu = engine_options(False, SECTION, RUNTIME), engine_options(True, SECTION, RUNTIME)
    assert cpu["enable_chunked_prefill"] is False and cpu["max_num_batched_tokens"] == 8192
    assert cpu["enforce_eager"] is True and cpu["logits_processors"] == [nucleus]
    assert not {"enable_chunked_prefill", "max_num_batched_tokens", "enforce_eager", "logits_processors"} & set(gpu)


def test_a_gpu_has_float32_logits_sleep_and_nothing_of_flashinfer(nucleus: Any) -> None:
    extra = {"hf_overrides": {"head_dtype": "float32"}, "enable_sleep_mode": True, "enable_flashinfer_autotune": False}
    assert extra.items() <= engine_options(True, SECTION, RUNTIME).items()
    assert not set(extra) & set(engine_options(False, SECTION, RUNTIME))
    # how much memory it takes is planned, and not a share of what there is
    assert engine_options(True, SECTION, RUNTIME)["gpu_memory_utilization"] < 0.05


@pytest.mark.parametrize("on_gpu", [False, True])
def test_what_both_are_told(nucleus: Any, on_gpu: bool) -> None:
    options = engine_options(on_gpu, SECTION, RUNTIME, rank=9)
    assert options["kv_cache_memory_bytes"] == 3 * 2**29
    assert (options["max_model_len"], options["max_num_seqs"]) == (1024, 48)
    assert options["enable_lora"] and options["max_lora_rank"] == 16
    assert "enable_lora" not in engine_options(on_gpu, SECTION, RUNTIME)


def test_compiling_follows_the_work() -> None:
    assert compilation(None, 200, 48) is None
    assert compilation(COMPILING_PAYS // 200, 200, 48) is None
    few = compilation(COMPILING_PAYS // 200 - 1, 200, 48)
    assert few == {
        "mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 48],
    }  # fmt: skip
    sizes = [compilation(n, 200, 48)["cudagraph_capture_sizes"] for n in (0, 1, 2, 5, 32)]  # type: ignore[index]
    assert sizes == [[1], [1], [1, 2], [1, 2, 4, 5], [1, 2, 4, 8, 16, 32]]
    assert engine_options(True, SECTION, RUNTIME, requests=10)["compilation_config"] == compilation(10, 200, 48)
    assert "compilation_config" not in engine_options(True, SECTION, RUNTIME)


def test_flashinfers_sampler_is_off_before_vllm_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "VLLM_USE_FLASHINFER_SAMPLER"
    monkeypatch.setattr(os, "environ", {})
    vllm_internals.set_environment(on_gpu=True)
    assert os.environ[name] == "0"
    os.environ[name] = "1"  # the user's own
    vllm_internals.set_environment(on_gpu=True)
    assert os.environ[name] == "1"
    os.environ.clear()
    vllm_internals.set_environment(on_gpu=False)
    assert name not in os.environ


def test_close_on_a_gpu_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr("gc.collect", lambda: done.append("collect"))
    monkeypatch.setattr("gc.freeze", lambda: done.append("freeze"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("empty"))
    for on_gpu, expected in ((True, ["collect", "collect", "empty"]), (False, ["collect", "freeze"])):
        done.clear()
        engine = VllmEngine.__new__(VllmEngine)
        engine.on_gpu = on_gpu
        engine.llm = SimpleNamespace(llm_engine=SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: None)))
        engine.close()
        assert done == expected


@pytest.mark.slow  # it imports vLLM
@pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("temperature", [MIN_TEMPERATURE, MAX_TEMPERATURE])
@pytest.mark.parametrize("top_p", [1e-6, 1.0])
def test_vllm_samples_within_the_configs_bounds(temperature: float, top_p: float) -> None:
    from vllm import SamplingParams

    taken = SamplingParams(temperature=temperature, top_p=top_p, seed=2**31 - 1)
    assert (taken.temperature, taken.top_p) == (temperature, top_p)


@pytest.mark.slow  # it imports vLLM
@pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_knows_the_options() -> None:
    from vllm.config import CompilationConfig
    from vllm.config.model import _get_head_dtype
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in fields(EngineArgs)}
    for on_gpu in (False, True):
        assert set(engine_options(on_gpu, SECTION, RUNTIME, rank=16, requests=8)) <= known
    config = CompilationConfig(**compilation(8, 200, 48) or {})
    assert (config.mode, config.cudagraph_mode.name) == (0, "FULL_DECODE_ONLY")
    assert config.cudagraph_capture_sizes == [1, 2, 4, 8]
    overrides = engine_options(True, SECTION, RUNTIME)["hf_overrides"]
    model: Any = SimpleNamespace(**overrides)
    assert _get_head_dtype(model, torch.bfloat16, "generate") is torch.float32


@pytest.mark.parametrize("left", [True, False])
def test_an_engine_that_failed_in_a_step_is_made_anew(left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its present weights; an engine without unfinished requests is left alone."""
    engine, started, closed = object.__new__(VllmEngine), list[dict[str, Any]](), list[int]()
    engine.prompts = SimpleNamespace(peer=SimpleNamespace(name="a"))  # type: ignore[assignment]
    engine.llm = SimpleNamespace(llm_engine=SimpleNamespace(has_unfinished_requests=lambda: left))
    engine.options, engine.model, engine.on_gpu = {"dtype": "float32"}, "checkpoint-2", False
    monkeypatch.setattr(vllm_internals, "shutdown", lambda _: closed.append(1))
    monkeypatch.setattr(vllm_internals, "start", lambda name, **options: started.append({"name": name, **options}))
    engine._recover()
    expected = [{"name": "a", "model": "checkpoint-2", "dtype": "float32"}] if left else []
    assert started == expected and closed == [1] * left
