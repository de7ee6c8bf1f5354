"""Two tiny real models, questions, and a config for the tests of the pipeline.

The models have two layers and learn for a few seconds to answer "The answer is N." and to stop; what they answer is
mostly wrong, which is what a peer-prediction pipeline needs to have something to do.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import settings
from rich.console import Console

from data import shards
from data.shards import Row
from peers.devices import gpu_is_there
from tests import properties  # noqa: F401  registers the profiles

settings.load_profile("quick")  # before pytest's --hypothesis-profile is heard

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = Path(os.environ.get("PST_BENCHMARKS", ROOT.parent / "shared" / "benchmarks"))
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# `make test EXTRA=pocket` passes these to the commands that it starts; a `make` within a test sets its own.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", *re.findall(r"^(\w+) *\?=", (ROOT / "Makefile").read_text(), re.M)):
    os.environ.pop(name, None)

# The peers' processes are forks of a server that imports peers.preload. It finds that by PYTHONPATH, not by pytest's
# `pythonpath`, and starts but once, with the first test that needs it, which may not be one of a stage. Without the
# preload each peer's process of each stage imports torch and transformers anew: six seconds.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
multiprocessing.get_context("forkserver").set_forkserver_preload(["peers.preload"])

# Each process of pytest-xdist gets its own share of the cores, for all processes that it starts: engines and torch use
# as many threads as they find cores, and two times two threads on two cores wait for each other.
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER:
    cores, number = sorted(os.sched_getaffinity(0)), int(WORKER.removeprefix("gw"))
    os.sched_setaffinity(0, set(cores[number :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]) or cores)

ARCHITECTURES = {"llama": "LlamaConfig", "qwen": "Qwen2Config"}


def questions(first: int, n: int) -> list[dict[str, str]]:
    """Sums with their answers, all different."""
    return [
        {"question": f"Tom has {i} pens and buys {i % 7 + 1}. How many?", "answer": str(i + i % 7 + 1)}
        for i in range(first, first + n)
    ]


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_stage(folder: Path, schema: pa.Schema) -> list[Row]:
    """All rows of a stage."""
    return [row for path in shards.shard_paths(folder) for row in shards.read_rows(path, schema)]


def printed(shown: Any, width: int = 120) -> str:
    """The text that a terminal of this width shows, without colours."""
    file = StringIO()
    Console(file=file, width=width, highlight=False).print(shown)
    return file.getvalue()


def _tokenizer(chat: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|end|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    text = [f"{q['question']} The answer is {q['answer']}. Question: Answer: Solution Yes No" for q in questions(0, 50)]
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(text, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<|end|>" if chat else "<eos>"
    )
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


def _make_model(folder: Path, architecture: str, chat: bool, seed: int) -> None:
    """A tiny model that has learnt the form of an answer."""
    import torch
    import transformers

    from data.config.sections import PeerSection, TemplateSection
    from peers.prompts import PeerPrompts

    torch.manual_seed(seed)
    tokenizer = _tokenizer(chat)
    config = getattr(transformers, ARCHITECTURES[architecture])(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    prompts = PeerPrompts(tokenizer, PeerSection(name="tiny", model="tiny"), TemplateSection(instruction="Solve."))
    teach(model, prompts, seed)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def teach(model: Any, prompts: Any, seed: int, form: str = "The answer is {}.", steps: int = 150) -> None:
    """Train a model for a few seconds to answer sums in a form, and to stop."""
    import torch

    from peers.logprob.model import LanguageModel, Pair

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors; on a busy machine threads would mostly wait for each other
    lm = LanguageModel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    draw = random.Random(seed)
    for _ in range(steps):
        batch = []
        for row in draw.sample(questions(1000, 400), 16):
            response = form.format(int(row["answer"]) + draw.choice([0, 0, 1]))
            target: list[Any] = [*prompts.encode_response(response), prompts.end_id]
            solutions = [form.format(draw.randrange(3000))] * draw.choice([0, 0, 1, 2])
            batch.append(Pair(prompts.solve(row["question"], solutions), target))
        loss = -torch.stack([logprobs.mean() for logprobs in lm.target_logprobs(batch)]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{"chatty": a Llama with a chat template, "plain": a Qwen 2 without}; pytest-xdist's processes make them once."""
    common = tmp_path_factory.getbasetemp()
    root = (common.parent if WORKER else common) / "models"
    with open(f"{root}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "whole").exists():
            _make_model(root / "chatty", "llama", chat=True, seed=1)
            _make_model(root / "plain", "qwen", chat=False, seed=2)
            (root / "whole").touch()
    return {"chatty": root / "chatty", "plain": root / "plain"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with slow tests first, so that no process of pytest-xdist runs one alone at the end.
    Tests that need a GPU are skipped without one."""
    if not gpu_is_there():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no NVIDIA GPU"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def fresh_tokenizers() -> None:
    """Tokenizers are cached; a test that changes one must not change it for the next."""
    from peers.source import load_tokenizer

    load_tokenizer.cache_clear()


@pytest.fixture
def project(tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with questions and `tiny.toml`; the current directory for the test."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", questions(0, 24))
    write_jsonl(tmp_path / "test.jsonl", questions(100, 8))
    peers = "".join(f'[[peers]]\nname = "{name}"\nmodel = "{path}"\n' for name, path in tiny_models.items())
    (tmp_path / "tiny.toml").write_text(
        f"""
{peers}
[run]
shard_questions = 8
[prompts]
source = "train.jsonl"
[[benchmarks]]
name = "sums"
source = "test.jsonl"
answers = "numbers"
[templates]
instruction = "Solve."
review = "Solve."
[generate]
max_new_tokens = 16
context_tokens = 512
engine = "transformers"
[train]
batch_size = 4
lr = 1e-3
[evaluate]
samples = 2
bootstrap = 100
[runtime]
checkpoint_steps = 1
""",
        encoding="utf-8",
    )
    return tmp_path


def run_module(
    module: str, *arguments: str, cwd: Path, timeout: float = 300, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments` as a user would run it, with the project's packages on the path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PST_CACHE": str(ROOT / ".cache")}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=cwd, env=environment, capture_output=True, text=True,
        timeout=timeout, check=check,
    )  # fmt: skip


def run_stage(name: str, run: str, round_: int, config: Path | None, overrides: list[str]) -> None:
    """One stage, called from this process; its peers' processes are forks of a server that all tests share."""
    from peers.command import StageStep, run_steps

    main: Any = importlib.import_module(name).main
    run_steps([StageStep(name, round_, main)], run, config, overrides)


def stage(name: str, round_: int, cwd: Path, *arguments: str, run: str = "t") -> subprocess.CompletedProcess[str]:
    """One stage of run `t` under tiny.toml."""
    return run_module(name, "--config", "tiny.toml", "--run", run, "--round", str(round_), *arguments, cwd=cwd)
