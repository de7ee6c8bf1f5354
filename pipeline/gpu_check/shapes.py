"""Random weights in the shape of Gemma 2 2B (on a CPU: a tiny one): starts, rates, memory."""

from __future__ import annotations

import gc
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import torch

from data.config.load import load_config
from data.config.sections import TrainSection
from peers.engines.protocol import Request, Sampling
from peers.logprob.model import LanguageModel, Pair, load_language_model
from peers.logprob.scoring import score_pairs
from peers.placement import runtime_here
from peers.prompts import load_prompts
from pipeline.gpu_check.engines import MAX_KEPT_GIB, NAME, gpu_bytes_used, need_vllm
from pipeline.gpu_check.numbers import GIB, bf16_rate, synchronise
from pipeline.gpu_check.step import ROOT, Figures, Setting, require
from train.examples import TrainingExample
from train.loop import open_adapter, train_adapter

# least share of the card's own bf16 rate; anything below is badly wrong
MIN_SHARE = 0.1
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 4096,
}
PROMPT, RESPONSE = 200, 128  # tokens


def model(setting: Setting) -> Path:
    """A directory of random weights with the nano peer's tokenizer; made at the first call."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    folder = setting.folder / "shape"
    if (folder / "model.safetensors").is_file():
        return folder
    shutil.copytree(ROOT / "peers" / NAME, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    stops = json.loads((folder / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    config = Gemma2Config(dtype="bfloat16", eos_token_id=stops, **({} if setting.gpu else TINY))
    with torch.device("cuda" if setting.gpu else "cpu"):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    made.save_pretrained(folder)
    return folder


def random_pairs(setting: Setting, tokens: int) -> list[Pair]:
    """Random pairs of 512 tokens, `tokens` in all."""
    draw = random.Random(0)
    rows = [[draw.randrange(300, 4000) for _ in range(512)] for _ in range(max(1, tokens // 512))]
    return [Pair(row[:384], row[384:]) for row in rows]


def check_generate(setting: Setting, figures: Figures) -> None:
    """Start an engine, generate 256 responses of 128 tokens at once, close it; its memory is freed."""
    need_vllm()
    from peers.engines.vllm import VllmEngine

    directory, config = model(setting), load_config(ROOT / "configs/nano.toml", [])
    n, before = setting.size(256, 8, 4), gpu_bytes_used() if setting.gpu else 0
    section = config.generate.model_copy(update={"context_tokens": 1024, "max_new_tokens": RESPONSE})
    runtime = runtime_here(config.runtime).model_copy(
        update={"kv_cache_gib": 10.0 if setting.gpu else 1.0, "max_num_seqs": n}
    )
    begin = time.perf_counter()
    dtype = "bfloat16" if setting.gpu else "float32"
    engine = VllmEngine(directory, load_prompts(config, NAME), section, runtime, dtype, seed=1, requests=n)
    figures["start_seconds"] = time.perf_counter() - begin
    requests = [Request(pair.prompt[:PROMPT], i) for i, pair in enumerate(random_pairs(setting, 512 * n))]
    begin, made = time.perf_counter(), []
    # count tokens here: most have no text in the nano peer's tokenizer, so responses are cut to nothing
    engine.generate(requests, Sampling(1.0, 1.0, RESPONSE), lambda _, tokens: made.append(tokens))
    figures |= {"tokens_per_second": sum(made) / (time.perf_counter() - begin), "tokens": sum(made)}
    engine.close()
    require(sum(made) > n, "the engine generated nothing")
    if setting.gpu:
        figures["held_gib"] = (gpu_bytes_used() - before) / GIB
        require(
            figures["held_gib"] <= MAX_KEPT_GIB,
            f"after closing it holds {figures['held_gib']:.2f} GiB; expected at most {MAX_KEPT_GIB}",
        )


def check_score(setting: Setting, figures: Figures) -> None:
    """Score 16k tokens; measure the rate as a share of the card's bf16 rate."""
    lm = load_language_model(model(setting), "bfloat16" if setting.gpu else "float32")
    lm.compile = "off"
    budget = setting.size(16384, 2048, 512)
    pairs = random_pairs(setting, budget)
    score_pairs(lm, pairs, budget, lambda *_: None)
    _reset_peak(setting)
    begin = time.perf_counter()
    scores = score_pairs(lm, pairs, budget, lambda *_: None)
    took = time.perf_counter() - begin
    figures |= _rates(setting, lm, pairs, took, 2.0) | _peak(setting)
    # with random weights, all V tokens are equally likely except for noise
    mean = -sum(map(sum, scores)) / sum(map(len, scores))
    figures["nats_per_token"] = mean
    uniform = float(torch.tensor(float(len(lm.head_V_H))).log())
    require(abs(mean - uniform) < 0.2 * uniform, f"{mean:.2f} nats a token; random weights have about {uniform:.2f}")
    _expect_share(setting, figures)


def check_train(setting: Setting, figures: Figures) -> None:
    """The loss falls over some optimiser steps, and gradient checkpointing gives the same losses."""
    directory, budget = model(setting), setting.size(4096, 1024, 512)
    dtype = "bfloat16" if setting.gpu else "float32"
    pairs = random_pairs(setting, 2 * budget)  # no pair twice: packing would compute it once
    section = TrainSection(batch_size=len(pairs), epochs=5, lr=5e-4, warmup_ratio=0.0)
    losses = {}
    choices: tuple[Literal["auto", "on"], ...] = ("auto", "on")
    for choice in choices:  # auto keeps all activations if there is room
        adapted = open_adapter(directory, dtype, section, None, seed=1)
        _reset_peak(setting)
        begin = time.perf_counter()
        done = train_adapter(
            adapted,
            [TrainingExample(pair, 1.0) for pair in pairs],
            section,
            1,
            budget,
            setting.folder / f"work-{choice}",
            1000,
            lambda *_: None,
            "off",
            checkpointing=choice,
        )
        synchronise()
        took = time.perf_counter() - begin
        losses[choice] = done.losses
        base: Any = adapted.get_base_model()
        rates = _rates(setting, LanguageModel(base), pairs * section.epochs, took, 4.0)
        figures |= {f"{name}_{choice}": figure for name, figure in (rates | _peak(setting)).items()}
        del adapted, base
        gc.collect()
    figures |= {"first_loss": losses["auto"][0], "last_loss": losses["auto"][-1]}
    apart = max(abs(a - b) for a, b in zip(losses["auto"], losses["on"], strict=True))
    figures["checkpointing_apart"] = apart
    require(losses["auto"][-1] < losses["auto"][0], "the loss does not fall")
    require(apart <= (0.05 if setting.gpu else 1e-4), f"with gradient checkpointing, losses differ by {apart:.2g}")
    figures["of_bf16_rate"] = figures["of_bf16_rate_auto"]
    _expect_share(setting, figures)


def _rates(setting: Setting, lm: LanguageModel, pairs: list[Pair], took: float, flops: float) -> Figures:
    """Tokens per second, and FLOP/s as a share of a matrix product's; `flops` per layer weight and token."""
    tokens, targets = sum(map(len, pairs)), sum(len(pair.target) for pair in pairs)
    work = flops * tokens * lm.layer_weights + (flops / 2 + 1) * targets * lm.head_V_H.numel()
    return {"tokens_per_second": tokens / took, "of_bf16_rate": work / took / bf16_rate(setting)}


def _expect_share(setting: Setting, figures: Figures) -> None:
    if setting.gpu:  # a tiny model on a CPU is limited by other things
        require(figures["of_bf16_rate"] >= MIN_SHARE, f"{figures['of_bf16_rate']:.2f} of the card's bf16 rate")


def _reset_peak(setting: Setting) -> None:
    if setting.gpu:
        torch.cuda.reset_peak_memory_stats()


def _peak(setting: Setting) -> dict[str, Any]:
    return {"peak_gib": torch.cuda.max_memory_allocated() / GIB} if setting.gpu else {}
