"""A nano peer in vLLM: its answers, log-probabilities, other weights in the same engine, sleep."""

from __future__ import annotations

import gc
import shutil
import time
from importlib import util
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from data.config.load import load_config
from peers.engines.protocol import Completion, Request, Sampling
from peers.logprob.model import LanguageModel, Pair, load_language_model
from peers.logprob.scoring import score_pairs
from peers.placement import runtime_here
from peers.prompts import load_prompts
from pipeline.gpu_check.numbers import GIB, nano_questions
from pipeline.gpu_check.step import ROOT, Figures, Missed, Setting, Skipped, require

NAME = "gemma2"
NEAR_TIE = 0.1  # nats between the two likeliest tokens, within which engines may choose either
LOGPROB_OFF = 0.02  # most nats per token by which a response may differ
MIN_SAME = 0.95  # least share of sampled responses that are the same in another order of the requests
TOKENS = 48
GREEDY, DRAWN = Sampling(0.0, 1.0, TOKENS), Sampling(0.8, 0.9, TOKENS)

MAX_KEPT_GIB = 1.0  # most GiB still used after an engine has closed: CUDA context, kernels, libraries' workspaces

_engine: list[Any] = []  # the process's only engine, which the steps share
_before: list[int] = []  # bytes used before it started
_renewed: list[tuple[Path, list[Completion]]] = []  # other weights, and the engine's answers with them
starts: list[float] = []  # seconds that its start took


def gpu_bytes_used() -> int:
    """Bytes of GPU memory in use by any process."""
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


def need_vllm() -> None:
    """Raises Skipped without vLLM."""
    if util.find_spec("vllm") is None:
        raise Skipped("vLLM is not installed")


def open_engine(setting: Setting, directory: Path) -> Any:
    """An engine with few graphs and a small cache."""
    from peers.engines.vllm import VllmEngine

    config = load_config(ROOT / "configs/nano.toml", [])
    runtime = runtime_here(config.runtime).model_copy(update={"kv_cache_gib": 1.0, "max_num_seqs": 64})
    dtype = "bfloat16" if setting.gpu else "float32"
    return VllmEngine(directory, load_prompts(config, NAME), config.generate, runtime, dtype, seed=17, requests=256)


def engine_of(setting: Setting) -> Any:
    """The nano peer's engine, started by the first step that needs it."""
    if not _engine:
        need_vllm()
        _before[:] = [gpu_bytes_used() if setting.gpu else 0]
        begin = time.perf_counter()
        _engine.append(open_engine(setting, ROOT / "peers" / NAME))
        starts[:] = [time.perf_counter() - begin]
    return _engine[0]


def requests_for(engine: Any, n: int) -> list[Request]:
    """n requests, each with its own seed."""
    return [Request(engine.prompts.solve(question), 1000 + i) for i, question in enumerate(nano_questions(n))]


def answers(engine: Any, requests: list[Request], sampling: Sampling) -> list[Completion]:
    """Completions, without progress."""
    found: list[Completion] = engine.generate(requests, sampling, lambda *_: None)
    return found


def check_engine(setting: Setting, figures: Figures) -> None:
    """Greedy answers equal those of transformers except for near-ties; log-probabilities equal ours; samples follow
    seeds."""
    live = engine_of(setting)
    figures["start_seconds"] = starts[0]
    requests = requests_for(live, setting.size(64, 24, 6))
    greedy = answers(live, requests, GREEDY)
    lm = load_language_model(ROOT / "peers" / NAME, "bfloat16" if setting.gpu else "float32")
    figures |= _against_ours(lm, live, requests, greedy)
    once, again = answers(live, requests, DRAWN), answers(live, requests[::-1], DRAWN)[::-1]
    figures["same_in_any_order"] = sum(a.token_ids == b.token_ids for a, b in zip(once, again, strict=True)) / len(once)
    require(figures["worst_tie_nats"] <= NEAR_TIE, f"greedy: {figures['worst_tie_nats']:.2g} nats below the likeliest")
    require(figures["logprob_off_max"] <= LOGPROB_OFF, f"log p is {figures['logprob_off_max']:.2g} nats a token off")
    require(figures["same_in_any_order"] >= MIN_SAME, "samples depend on the order of the requests, not on their seeds")
    require(any(len(each.token_ids) > 1 for each in greedy), "no response has text")


def _against_ours(lm: LanguageModel, live: Any, requests: list[Request], greedy: list[Completion]) -> Figures:
    """How far the engine's log-probabilities are from ours, and how far its tokens are below the likeliest ones, which
    transformers would have chosen after the same tokens."""
    done = [(request, each) for request, each in zip(requests, greedy, strict=True) if each.token_ids]
    pairs = [Pair(request.prompt, each.token_ids) for request, each in done]
    scores = score_pairs(lm, pairs, 2048, lambda *_: None)
    off = [abs(sum(s) - each.logprob) / len(s) for s, (_, each) in zip(scores, done, strict=True)]
    below, differ = [], 0
    for pair in pairs:
        ids = torch.tensor([[*pair.prompt, *pair.target]], device=lm.device)
        with torch.no_grad():
            logits = lm.model(input_ids=ids, use_cache=False).logits[0, len(pair.prompt) - 1 : -1].float()
        taken = logits.gather(1, torch.tensor(pair.target, device=lm.device)[:, None])[:, 0]
        gap = logits.amax(1) - taken
        below.append(gap.max().item())
        differ += int((gap > 0).any())
    return {
        "responses": len(done),
        "not_the_likeliest": differ,
        "worst_tie_nats": max(below),
        "logprob_off_mean": sum(off) / len(off),
        "logprob_off_max": max(off),
    }


def check_renewed(setting: Setting, figures: Figures) -> None:
    """Other weights in a live engine change its answers, and its own weights restore them. `fresh` compares the answers
    in between."""
    live, other = engine_of(setting), perturbed(setting.folder / "other")
    requests = requests_for(live, setting.size(64, 24, 6))
    before = answers(live, requests, GREEDY)
    require(live.renew(other, None), "the engine refused the new weights")
    found = answers(live, requests, GREEDY)
    require(live.renew(ROOT / "peers" / NAME, None), "the engine refused its own weights")
    back = answers(live, requests, GREEDY)
    figures |= {"changed": 1 - _share(found, before), "as_before": _share(back, before)}
    require(figures["changed"] > 0, "the new weights changed no answer")
    require(figures["as_before"] >= _least(setting), "the engine's own weights did not come back")
    _renewed[:] = [(other, found)]


def check_fresh(setting: Setting, figures: Figures) -> None:
    """A second engine of this process, with the other weights, answers like the renewed one. vLLM allows only one
    engine with sleep at a time, so the first one must be closed."""
    need_vllm()
    if not _renewed:
        raise Missed("no engine was renewed")
    other, found = _renewed[0]
    begin = time.perf_counter()
    live = open_engine(setting, other)
    figures["start_seconds"] = time.perf_counter() - begin
    expected = answers(live, requests_for(live, len(found)), GREEDY)
    live.close()
    figures["as_fresh"] = sum(map(_alike, found, expected)) / len(found)
    require(figures["as_fresh"] >= _least(setting), "a renewed engine answers differently from a fresh one")


def _least(setting: Setting) -> float:
    """Least share of answers that are the same in two batches: in bf16 the batch size matters."""
    return MIN_SAME if setting.gpu else 1.0


def perturbed(folder: Path) -> Path:
    """The nano peer with noise added to its weights."""
    shutil.copytree(ROOT / "peers" / NAME, folder, dirs_exist_ok=True)
    draw = torch.Generator().manual_seed(5)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        noise = torch.randn(weight.shape, generator=draw) * weight.float().std() * 0.4
        weights[name] = (weight.float() + noise).to(weight.dtype) if weight.dim() == 2 else weight
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _alike(one: Completion, two: Completion) -> bool:
    return one.token_ids == two.token_ids and abs(one.logprob - two.logprob) <= LOGPROB_OFF * max(1, len(one.token_ids))


def _share(some: list[Completion], others: list[Completion]) -> float:
    return sum(a.token_ids == b.token_ids for a, b in zip(some, others, strict=True)) / len(some)


def check_sleep(setting: Setting, figures: Figures) -> None:
    """A sleeping engine frees memory, and after waking it answers as before."""
    if not setting.gpu:
        raise Skipped("vLLM sleeps only on a GPU")
    live = engine_of(setting)
    requests = requests_for(live, 64)
    before, awake = answers(live, requests, GREEDY), gpu_bytes_used()
    require(live.sleep(), "the engine does not sleep")
    asleep = gpu_bytes_used()
    live.wake()
    figures |= {"freed_gib": (awake - asleep) / GIB, "same": _share(answers(live, requests, GREEDY), before)}
    require(figures["freed_gib"] >= 0.9, "the sleeping engine keeps its key-value cache of 1 GiB")
    require(figures["same"] >= MIN_SAME, "after waking it answers differently")


def check_closed(setting: Setting, figures: Figures) -> None:
    """Closing the engine frees its memory."""
    need_vllm()
    if not _engine:
        raise Missed("no engine was started")
    _engine.pop().close()
    if setting.gpu:
        figures["held_gib"] = (gpu_bytes_used() - _before[0]) / GIB
        require(
            figures["held_gib"] <= MAX_KEPT_GIB,
            f"after closing it holds {figures['held_gib']:.2f} GiB; expected at most {MAX_KEPT_GIB}",
        )
