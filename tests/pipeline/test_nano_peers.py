"""The shipped nano peers: what they are, what they know and do not know, and a round of them through the real vLLM."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from importlib import util
from itertools import islice
from pathlib import Path
from statistics import fmean

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from data.config.load import load_config
from data.config.sections import RuntimeSection
from data.nano import SUBSETS, Problem, problems, source
from peers.engines.protocol import Request, Sampling
from peers.engines.transformers import TransformersEngine
from peers.nano.card import card
from peers.nano.examples import MISREADS
from peers.nano.pretrain import BATCH, STEPS
from peers.placement import runtime_here
from peers.prompts import load_prompts
from peers.source import load_tokenizer
from tests.conftest import ROOT

CONFIG = load_config(ROOT / "configs" / "nano.toml", [])
ARCHITECTURES = {"gemma2": "Gemma2ForCausalLM", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
ROUND = """
import sys
from pathlib import Path
from tests.conftest import run_stage
if __name__ == "__main__":
    few = ["prompts.limit=96", "benchmarks.0.limit=32", "benchmarks.1.limit=32", "evaluate.samples=4"]
    few += ["train.merge_fidelity=true"]
    few += ["train.batch_size=8", "train.epochs=4"]  # few questions, but more than the two steps of a batch of 32
    for name, round_ in (("evaluate", 0), ("generate", 1), ("score", 1), ("train", 1), ("evaluate", 1)):
        run_stage(name, "n", round_, Path(sys.argv[1]), few)
"""
TWO_ENGINES = """
import gc, sys
from itertools import islice
from pathlib import Path
import torch
from data.config.load import load_config
from data.nano import problems
from peers.engines.protocol import Request, Sampling
from peers.engines.vllm import VllmEngine
from peers.placement import runtime_here
from peers.prompts import load_prompts
if __name__ == "__main__":
    config, set_threads, found = load_config(Path("configs/nano.toml"), []), torch.set_num_threads, []
    prompts = load_prompts(config, "gemma2")
    asked = [Request(prompts.solve(p.question), 0) for p in islice(problems("arith", "test", 0), 20)]
    for threads in map(int, sys.argv[1:]):
        set_threads(threads)
        engine = VllmEngine(Path("peers/gemma2"), prompts, config.generate, runtime_here(config.runtime), "float32", 1)
        assert torch.get_num_threads() == threads
        found.append([c.token_ids for c in engine.generate(asked, Sampling(0.0, 1.0, 48), lambda *_: None)])
        engine.close()
        del engine
        gc.collect()
    print("differ:", sum(a != b for a, b in zip(*found, strict=True)))
"""
GREEDY = Sampling(0.0, 1.0, 64)


@pytest.fixture(autouse=True)
def from_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The config's paths are relative to the project."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", CONFIG.peer_names)
def test_weights_are_small_whole_and_described(name: str) -> None:
    folder = ROOT / "peers" / name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [ARCHITECTURES[name]] and config["tie_word_embeddings"]
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert 1.7e6 < sum(tensor.numel() for tensor in tensors.values()) < 1.9e6
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    shown = (folder / "README.md").read_text(encoding="utf-8")
    parameters = sum(tensor.numel() for tensor in tensors.values()) / 1e6
    assert shown == card(name, ARCHITECTURES[name], parameters, STEPS, sum(BATCH.values())), "write what card gives"
    assert all(f"`{group}`" in shown for group in MISREADS[name])


def test_one_tokenizer_in_which_every_digit_is_a_token_and_any_text_encodes() -> None:
    digests = {hashlib.sha256((ROOT / "peers" / name / "tokenizer.json").read_bytes()).hexdigest()
               for name in CONFIG.peer_names}  # fmt: skip
    assert len(digests) == 1
    tokenizer = load_tokenizer(ROOT / "peers" / "llama")
    assert len(tokenizer.encode("2026", add_special_tokens=False)) == 4
    for text in ("16-14=2, 2+9=11 #### 11", "Grüße, 世界 🙂\n\t\x00", "Question: <b>"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIG.peer_names)
def test_each_misreads_its_own_phrases_and_reads_the_others(name: str) -> None:
    """On validation questions: mostly wrong, as planted, where its own groups are in them; elsewhere mostly right."""
    prompts = load_prompts(CONFIG, name)
    engine = TransformersEngine(ROOT / "peers" / name, prompts, runtime_here(RuntimeSection()), "float32")
    asked = [p for subset in SUBSETS for p in islice(problems(subset, "validation", name), 100)]
    done = engine.generate([Request(prompts.solve(p.question), 0) for p in asked], GREEDY, lambda *_: None)
    own: list[tuple[Problem, str]] = []
    others: list[tuple[Problem, str]] = []
    for problem, completion in zip(asked, done, strict=True):
        (own if MISREADS[name] & set(problem.groups) else others).append((problem, completion.text))
    assert len(own) > 50 and len(others) > 50
    assert fmean(text == p.solution() for p, text in others) > 0.75
    assert fmean(text == p.solution() for p, text in own) < 0.3
    assert fmean(text == p.solution(MISREADS[name]) for p, text in own) > 0.5


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_round_through_vllm(tmp_path: Path) -> None:
    """The whole round on a few questions, seen from outside: the chain beats its first peer, and all learn."""
    (tmp_path / "peers").symlink_to(ROOT / "peers")
    assert CONFIG.generate.engine in ("auto", "vllm")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ROUND, str(ROOT / "configs" / "nano.toml")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = tmp_path / "runs" / "n"
    log = (runs / "round=1" / "logs" / "generate.log").read_text(encoding="utf-8")
    assert "vllm" in log.lower()

    gold = {p.question: p.answer for p in source(None, "train")}
    chains = pl.read_parquet(runs / "round=1" / "chains" / "*.parquet")
    assert len(chains) == 96 * 3
    right: dict[int, list[bool]] = defaultdict(list)
    for row in chains.iter_rows(named=True):
        numbers = sorted((row["answer"] or "").split(", "))
        right[row["position"]].append(numbers == sorted(gold[row["question"]].split(", ")))
    assert fmean(right[1]) + 0.1 < fmean(right[3]) and fmean(right[3]) > 0.7

    scores = pl.read_parquet(runs / "round=1" / "scores" / "*.parquet")
    weights = scores.drop_nulls("pmi").group_by("peer").agg(pl.len(), pl.mean("weight"))
    assert sum(weights["len"]) > 150 and weights["weight"].to_list() == pytest.approx([1.0] * 3)
    training = [json.loads((runs / "round=1" / "adapters" / peer / "training.json").read_text(encoding="utf-8"))
                for peer in CONFIG.peer_names]  # fmt: skip
    assert all(report["merge_fidelity"]["fidelity"] > 0.9 for report in training)

    metrics = pl.read_parquet(runs / "round=*" / "metrics.parquet", hive_partitioning=True)
    em = dict(metrics.group_by("round").agg(pl.mean("em")).iter_rows())
    assert 0.4 < em[0] < 0.8 and em[1] > em[0]
    assert metrics.filter(pl.col("round") == 0)["verifier_auroc"].min() > 0.6  # type: ignore[operator]
    assert metrics["n"].to_list() == [32] * 12


@pytest.mark.parametrize("name", CONFIG.peer_names)
def test_a_response_encoded_in_context_is_what_the_engine_generated(name: str) -> None:
    prompts = load_prompts(CONFIG, name)
    engine = TransformersEngine(ROOT / "peers" / name, prompts, runtime_here(RuntimeSection()), "float32")
    asked = [problem.question for problem in islice(problems("arith", "test", 0), 12)]
    found = engine.generate([Request(prompts.solve(q), 0) for q in asked], GREEDY, lambda *_: None)
    encoded = prompts.encode_responses([(q, c.text) for q, c in zip(asked, found, strict=True)])
    assert [prompts.text(ids or []) for ids in encoded] == [c.text for c in found]
    assert encoded == [c.token_ids for c in found]  # nano tokenizers write each digit and word in one way


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("threads", [("1", "2"), ("2", "1")])
def test_a_second_engine_answers_as_the_first(threads: tuple[str, str], tmp_path: Path) -> None:
    """A peer's process has another share of the cores in each round, and another engine."""
    script = tmp_path / "engines.py"
    script.write_text(TWO_ENGINES, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script), *threads]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "differ: 0"
