"""The project of the chaos runs: two tiny peers, eight questions, two rounds; or the nano peers under vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT, _make_model, questions, write_jsonl

PEERS = {"transformers": ("chatty", "plain"), "vllm": ("gemma2", "llama")}
TINY = """
[prompts]
source = "train.jsonl"
[templates]
instruction = "Solve."
review = "Solve."
"""
NANO = """
[prompts]
source = "nano"
split = "train"
limit = 8
[[benchmarks]]
name = "nano-arith"
source = "nano"
subset = "arith"
split = "test"
limit = 4
answers = "numbers"
[templates]
instruction = ""
review = ""
verify = "Is the solution correct? Answer Yes or No."
"""
BENCHMARK = """
[[benchmarks]]
name = "sums"
source = "test.jsonl"
answers = "{answers}"
"""
CONFIG = """
[run]
shard_questions = 4
[generate]
max_new_tokens = {tokens}
context_tokens = 384
engine = "{engine}"
temperature = 0.9
[train]
batch_size = 2
lr = 1e-3
[evaluate]
samples = 2
bootstrap = 100
[runtime]
checkpoint_steps = 1
grader_workers = 1
kv_cache_gib = 0.25
"""


@dataclass(frozen=True)
class Kind:
    """A kind of run: its engine, where its peers run, and how its benchmark is graded."""

    engine: str = "transformers"
    executor: str = "local"
    answers: str = "numbers"  # "math": by grader processes
    rounds: int = 2  # 1: a short run, without a benchmark

    @property
    def arguments(self) -> list[str]:
        """Of `python -m pipeline.round`."""
        more = [] if self.executor == "local" else ["--set", f"executor.kind={self.executor}"]
        return ["--config", "tiny.toml", "--run", "t", "--round", str(self.rounds), *more]


def make_models(folder: Path) -> Path:
    """The tiny peers' models, made once."""
    if not (folder / "whole").exists():
        _make_model(folder / "chatty", "llama", chat=True, seed=1)
        _make_model(folder / "plain", "qwen", chat=False, seed=2)
        (folder / "whole").touch()
    return folder


def make_project(folder: Path, models: Path, kind: Kind) -> Path:
    """A working folder with questions and `tiny.toml`."""
    folder.mkdir(parents=True)
    write_jsonl(folder / "train.jsonl", questions(0, 8))
    items = questions(100, 4)
    if kind.answers == "math":
        items = [{**item, "answer": rf"\frac{{x+{item['answer']}}}{{3}}"} for item in items]
    write_jsonl(folder / "test.jsonl", items)
    on_vllm = kind.engine == "vllm"
    where = ROOT / "peers" if on_vllm else models
    parts = [f'[[peers]]\nname = "{name}"\nmodel = "{where / name}"\n' for name in PEERS[kind.engine]]
    parts.append(CONFIG.format(engine=kind.engine, tokens=48 if on_vllm else 12))
    parts.append(NANO if on_vllm else TINY)
    if kind.rounds > 1 and not on_vllm:
        parts.append(BENCHMARK.format(answers=kind.answers))
    (folder / "tiny.toml").write_text("".join(parts), encoding="utf-8")
    return folder
