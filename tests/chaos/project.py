"""What the chaos runs are made of: two tiny peers, eight questions, two rounds; or the nano peers under vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT, _make_model, questions, write_jsonl

PEERS = {"transformers": ("chatty", "plain"), "vllm": ("gemma2", "llama")}
CONFIG = """
[run]
shard_questions = 4
[prompts]
source = "train.jsonl"
[templates]
instruction = "Solve."
review = "Solve."
[generate]
max_new_tokens = 12
context_tokens = 512
engine = "{engine}"
[train]
batch_size = 2
lr = 1e-3
[evaluate]
samples = 2
bootstrap = 100
[runtime]
checkpoint_steps = 1
grader_workers = 1
"""
BENCHMARK = """
[[benchmarks]]
name = "sums"
source = "test.jsonl"
answers = "{answers}"
"""


@dataclass(frozen=True)
class Kind:
    """Of a run: its engine, where its peers run, and how its benchmark is graded."""

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
    where = ROOT / "peers" if kind.engine == "vllm" else models
    peers = "".join(f'[[peers]]\nname = "{name}"\nmodel = "{where / name}"\n' for name in PEERS[kind.engine])
    config = CONFIG.format(engine=kind.engine) + (BENCHMARK.format(answers=kind.answers) if kind.rounds > 1 else "")
    (folder / "tiny.toml").write_text(peers + config, encoding="utf-8")
    return folder
