"""A live vLLM engine with renewed weights answers like a fresh engine with them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib import util
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_module

# family: configuration class, and what is not the default of the tiny models here
FAMILIES = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama, untied head": ("LlamaConfig", {"tie_word_embeddings": False}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", {"query_pre_attn_scalar": 32, "sliding_window": 64, "initializer_range": 0.05}),
    "gemma3": ("Gemma3TextConfig", {"query_pre_attn_scalar": 32, "sliding_window": 64, "initializer_range": 0.05}),
    "mistral": ("MistralConfig", {"tie_word_embeddings": False, "sliding_window": None}),
}
SCRIPT = """
import json, sys, tempfile
from pathlib import Path
import torch, transformers
from data.config.load import load_config
from peers.engines.protocol import Request, Sampling
from peers.engines.vllm import VllmEngine
from peers.prompts import PeerPrompts

def model(folder, kind, extra, seed, tokenizer):
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, pad_token_id=0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **{"initializer_range": 0.3, **extra},
    )
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, tensor in made.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(tensor, 1.0, 0.3)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

def answers(engine, prompts):
    # with a common beginning that is longer than a block of the prefix cache
    asked = ["Tom has 1 pen. He " * 24 + f"He buys {2 * n}." for n in range(12)]
    requests = [Request(prompts.solve(each), n) for n, each in enumerate(asked)]
    assert len(requests[0].prompt) > 2 * 128
    found = []
    for temperature in (0.0, 0.8):
        for each in engine.generate(requests, Sampling(temperature, 0.9, 24), lambda *_: None):
            found.append([each.token_ids, each.logprob])
    return found

if __name__ == "__main__":
    config = load_config(Path("tiny.toml"), [])
    config = config.model_copy(update={"runtime": config.runtime.model_copy(update={
        "kv_cache_gib": 0.1, "max_num_seqs": 32})})
    found = {}
    for family, (kind, extra) in json.loads(sys.argv[1]).items():
        tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[2])
        prompts = PeerPrompts(tokenizer, config.peers[0], config.templates)
        with tempfile.TemporaryDirectory() as root:
            # vLLM takes the brackets for a pattern
            first, second = (model(Path(root) / f"[{n}]", kind, extra, n, tokenizer) for n in (1, 2))
            torch.set_num_threads(2)
            engine = VllmEngine(first, prompts, config.generate, config.runtime, "float32", 0)
            before = answers(engine, prompts)
            torch.set_num_threads(1)  # another share of the cores, as beside busy peers
            renewed = engine.renew(second, None)
            torch.set_num_threads(2)
            after = answers(engine, prompts)
            back = engine.renew(first, None)
            again = answers(engine, prompts)
            engine.close()
            fresh = VllmEngine(second, prompts, config.generate, config.runtime, "float32", 0)
            expected = answers(fresh, prompts)
            fresh.close()
        found[family] = [renewed and back, after == expected, again == before, before != after]
    print(json.dumps(found))
"""

THREADS = """
import sys
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
    config, set_threads, found, engine = load_config(Path("configs/nano.toml"), []), torch.set_num_threads, [], None
    prompts = load_prompts(config, "gemma2")
    asked = [Request(prompts.solve(p.question), 0) for p in islice(problems("arith", "test", 0), 20)]
    for threads in map(int, sys.argv[1:]):
        set_threads(threads)
        if engine is None:
            runtime = runtime_here(config.runtime)
            engine = VllmEngine(Path("peers/gemma2"), prompts, config.generate, runtime, "float32", 1)
        else:
            assert engine.renew(Path("peers/gemma2"), None)
        found.append([c.token_ids for c in engine.generate(asked, Sampling(0.0, 1.0, 48), lambda *_: None)])
    print("differ:", [sum(a != b for a, b in zip(found[0], other)) for other in found[1:]])
"""


@pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("families", [("llama",), pytest.param(tuple(FAMILIES), marks=pytest.mark.slow)])
def test_a_renewed_engine_answers_as_a_fresh_one(
    families: tuple[str, ...], project: Path, tiny_models: dict[str, Path]
) -> None:
    (project / "renew.py").write_text(SCRIPT, encoding="utf-8")
    asked = json.dumps({name: FAMILIES[name] for name in families})
    done = subprocess.run(
        [sys.executable, "renew.py", asked, str(tiny_models["chatty"])], cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found == dict.fromkeys(families, [True] * 4)


@pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_weights_that_come_under_another_number_of_threads_are_the_same(tmp_path: Path) -> None:
    """A peer's share of the cores changes with how many are at work: all greedy answers were garbage."""
    (tmp_path / "threads.py").write_text(THREADS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "threads.py"), "1", "2", "1"], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip().splitlines()[-1:] == ["differ: [0, 0]"], done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_run_starts_each_peers_process_and_engine_once(project: Path, tiny_models: dict[str, Path]) -> None:
    # vLLM has no attention of the other model's head size on every CPU
    other, config = shutil.copytree(tiny_models["chatty"], project / "other"), project / "tiny.toml"
    config.write_text(config.read_text("utf-8").replace(str(tiny_models["plain"]), str(other)), "utf-8")
    sets = [word for pair in ("generate.engine=vllm", "runtime.kv_cache_gib=0.2") for word in ("--set", pair)]
    done = run_module(
        "pipeline.round", "--run", "t", "--round", "2", "--config", "tiny.toml", *sets, cwd=project, timeout=600
    )
    assert done.returncode == 0, done.stderr
    logs = [path.read_text(encoding="utf-8") for path in (project / "runs/t").glob("round=*/logs/*.log")]
    lines = r"^(engine of \w+ (?:started|renewed) with round \d)"
    text = "\n".join(logs)
    told = Counter(re.findall(lines, text, re.MULTILINE))
    assert len(set(re.findall(r"process (\d+)", text))) == 2
    expected: dict[str, int] = {}
    for peer in ("chatty", "plain"):
        expected |= {f"engine of {peer} started with round 0": 1, f"engine of {peer} renewed with round 1": 1}
        expected[f"engine of {peer} renewed with round 2"] = 1
    assert told == expected
