"""`python -m tests.families [FAMILY …]`: what a tiny model of each family can do here, as the table of docs/models.md.

A cell says "runs" where the numbers are right: what an engine generates has the log-probabilities that plain
transformers compute in float32, one sequence at a time; so have scores; a trained adapter changes them, and merged they
are the same; an export gives them to plain transformers and to peft; vLLM has them with the adapter unmerged. Else it
has the line with which the family is refused. Anything but these two is a defect, and begins with DEFECT.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from data.config.sections import GenerateSection, PeerSection, RuntimeSection, TemplateSection, TrainSection
from data.errors import UserError
from peers import source
from peers.engines.protocol import Completion, Engine, Request, Sampling
from peers.logprob.model import Pair, load_language_model
from peers.logprob.scoring import score_pairs
from peers.merge import write_merged
from peers.policy import publish_adapter
from peers.prompts import PeerPrompts
from tests.conftest import _tokenizer
from tests.tiny_families import CONTEXT, FAMILIES, make

COLUMNS = ("vllm", "transformers", "score", "train", "export", "unmerged")
RUNS, DEFECT = "runs", "DEFECT"
NEW = 16
GENERATE = GenerateSection(context_tokens=CONTEXT - NEW, max_new_tokens=NEW)
RUNTIME = RuntimeSection(
    max_num_seqs=8, kv_cache_gib=0.05, score_tokens=512, train_tokens=512, gradient_checkpointing="off", compile="off"
)
TRAIN = TrainSection(rank=4, lr=1e-2, batch_size=2, epochs=2)
SUM_NATS, EACH_NATS = 0.02, 2e-4  # of a whole response of an engine; of each token of our own passes
QUESTIONS = [f"Tom has {n} pens. " + "He buys 4 and loses 3 of them. " * 5 + "How many?" for n in (7, 15, 400)]


class Subject:
    """A tiny model of a family, checked like a peer before loading. Raises UserError."""

    def __init__(self, family: str, folder: Path, tokenizer: Any) -> None:
        self.peer = PeerSection(name="p", model=str(make(folder / "model", family, tokenizer)), dtype="float32")
        self.work, self.family, self.tokenizer = folder, family, tokenizer
        config: Any = SimpleNamespace(peers=[self.peer], generate=GENERATE)
        self.config = config
        self.notes: list[str] = []
        self.unserved: UserError | None = None
        source.check_peers(self.config)
        self.base = source.model_directory(self.peer, self.config)
        self.prompts = PeerPrompts(source.load_tokenizer(self.base), self.peer, TemplateSection(instruction="Solve."))
        self.asked = self.prompts.all_of("solve", [(question, ()) for question in QUESTIONS])
        assert min(map(len, self.asked)) > CONTEXT // 4, "shorter than the windows"
        ends = self.prompts.end_id
        self.pairs = [Pair(ids, [*self.prompts.encode_response("It is 12."), ends]) for ids in self.asked]

    def vllm(self) -> None:
        """Generate with vLLM."""
        from peers.engines import vllm_internals
        from peers.engines.vllm import VllmEngine

        engine = VllmEngine(self.base, self.prompts, GENERATE, RUNTIME, "float32", 0)
        try:
            vllm_internals.check_serves_adapters(engine.llm, "p")
        except UserError as error:
            self.unserved = error
        self.generates(engine, self.base)
        other = self.other()
        if engine.renew(other, None):
            self.generates(engine, other)
        else:
            self.notes.append("a new engine for new weights")
        engine.close()

    def transformers(self) -> None:
        """Generate with transformers."""
        from peers.engines.transformers import TransformersEngine

        engine = TransformersEngine(self.base, self.prompts, RUNTIME, "float32")
        self.generates(engine, self.base)
        engine.close()

    def other(self) -> Path:
        """The same model with other weights."""
        made = make(self.work / "other", self.family, self.tokenizer, seed=8)
        return source.model_directory(self.peer.model_copy(update={"model": str(made)}), self.config)

    def generates(self, engine: Engine, directory: Path) -> None:
        """Responses, and their log-probabilities, are those of the model."""
        requests = [Request(ids, n) for n, ids in enumerate(self.asked)]
        for temperature in (0.0, 1.0):
            found = engine.generate(requests, Sampling(temperature, 1.0, NEW), lambda *_: None)
            for ids, each in zip(self.asked, found, strict=True):
                self.is_likely(directory, ids, each, greedy=not temperature)

    def is_likely(self, directory: Path, prompt: Sequence[int], found: Completion, greedy: bool) -> None:
        """A response is as likely as the model says."""
        if found.token_ids:
            (expected,) = plain(directory, [Pair(prompt, found.token_ids)])
            near(found.logprob, sum(expected), SUM_NATS)
        if greedy:
            best = plain_best(directory, prompt)
            assert found.token_ids[:1] in ([best], []), f"begins with {found.token_ids[:1]}, not with {best}"

    def score(self) -> None:
        """Score pairs, packed where they can be."""
        lm = load_language_model(self.base, "float32")
        agree(score_pairs(lm, self.pairs, 512, lambda *_: None), plain(self.base, self.pairs))

    def train(self) -> None:
        """Train an adapter: beside its base and merged it must answer the same, and unlike the base."""
        from train.examples import TrainingExample
        from train.loop import open_adapter, train_adapter

        model = open_adapter(self.base, "float32", TRAIN, None, seed=1)
        examples = [TrainingExample(pair, 1.0) for pair in self.pairs]
        done = train_adapter(model, examples, TRAIN, 1, 512, self.work, 100, lambda *_: None, "off")
        model.save_pretrained(str(self.adapter), save_embedding_layers=False)
        publish_adapter(self.peer, self.base, self.adapter, 1)
        assert done.losses[-1] < done.losses[0], f"losses {done.losses}"
        write_merged(self.base, self.adapter, self.work / "merged", "float32", 0)
        after = plain(self.work / "merged", self.pairs)
        apart = max(abs(a - b) for x, y in zip(after, plain(self.base, self.pairs), strict=True)
                    for a, b in zip(x, y, strict=True))  # fmt: skip
        assert apart > 0.1, f"an adapter that changes nothing ({apart})"
        lm = load_language_model(self.base, "float32", self.adapter)
        agree(score_pairs(lm, self.pairs, 512, lambda *_: None), after)
        lm = load_language_model(self.work / "merged", "float32")
        agree(score_pairs(lm, self.pairs, 512, lambda *_: None), after)

    @property
    def adapter(self) -> Path:
        """The trained adapter."""
        return self.work / "adapter"

    def export(self) -> None:
        """Export: transformers with peft must load the same model, and so must a peer that starts from it."""
        from pipeline.share.export import write_adapter, write_checkpoint

        policy: Any = SimpleNamespace(peer=self.peer, base=self.base, adapter=self.adapter, rounding_seed=0)
        write_adapter(policy, "local: p", self.work / "export")
        write_checkpoint(policy, self.work / "export" / "merged")
        after = plain(self.work / "merged", self.pairs)
        agree(plain(self.work / "export" / "merged", self.pairs), after)
        agree(plain(self.base, self.pairs, self.work / "export"), after)
        begins = self.peer.model_copy(update={"adapter": str(self.adapter)})
        agree(plain(source.model_directory(begins, self.config), self.pairs), after)

    def unmerged(self) -> None:
        """Generate with vLLM, the adapter beside the base."""
        from peers.engines.vllm import VllmEngine

        if self.unserved is not None:
            raise self.unserved
        engine = VllmEngine(self.base, self.prompts, GENERATE, RUNTIME, "float32", 0, self.adapter, TRAIN.rank)
        self.generates(engine, self.work / "merged")
        engine.close()


def plain_model(directory: Path, adapter: Path | None = None) -> Any:
    """A model as transformers loads it in float32, and peft; dynamic RoPE as plain RoPE of the scaled length."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(directory)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "dynamic":
        size, factor = config.head_dim, rope["factor"]
        theta = rope["rope_theta"] * (factor * factor - (factor - 1)) ** (size / (size - 2))
        config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    return (model if adapter is None else PeftModel.from_pretrained(model, str(adapter))).eval()


@torch.no_grad()
def plain(directory: Path, pairs: Sequence[Pair], adapter: Path | None = None) -> list[list[float]]:
    """Log-probabilities of the targets' tokens, pair by pair, without our code."""
    model, found = plain_model(directory, adapter), []
    for pair in pairs:
        logits = model(torch.tensor([[*pair.prompt, *pair.target]]), use_cache=False).logits[0].double()
        rows = logits.log_softmax(-1)[len(pair.prompt) - 1 : -1]
        found.append(rows.gather(1, torch.tensor(pair.target)[:, None])[:, 0].tolist())
    return found


@torch.no_grad()
def plain_best(directory: Path, prompt: Sequence[int]) -> int:
    """The likeliest token after a prompt."""
    return int(plain_model(directory)(torch.tensor([list(prompt)]), use_cache=False).logits[0, -1].argmax())


def near(found: float, expected: float, nats: float) -> None:
    """Raises AssertionError for numbers that differ."""
    assert abs(found - expected) <= nats, f"{found:.5f}, not {expected:.5f}"


def agree(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    """The same per-token log-probabilities."""
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            near(a, b, EACH_NATS)


def cell(step: Callable[[], Any]) -> str:
    """The outcome of a step: "runs", its error line, or DEFECT."""
    try:
        step()
    except UserError as error:
        return str(error)
    except BaseException as error:
        traceback.print_exc()
        return f"{DEFECT} {type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    return RUNS


def row(family: str, columns: Sequence[str] = COLUMNS) -> dict[str, str]:
    """What a tiny model of a family can do."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        source.CACHE = folder / "cache" / "models"
        subject: Any = None

        def check() -> None:
            nonlocal subject
            subject = Subject(family, folder, _tokenizer(chat=True))

        refused = cell(check)
        if subject is None:
            return dict.fromkeys(columns, refused.replace(str(folder), "…"))
        found = {}
        for column in columns:
            subject.notes.clear()
            found[column] = cell(getattr(subject, column)).replace(str(folder), "…")
            found[column] += "".join(f" ({note})" for note in subject.notes)
        return found


def table(rows: dict[str, dict[str, str]]) -> str:
    """Rows as Markdown; the lines of refusal are below it, each once, by their numbers."""
    lines = ["| family | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    told: list[str] = []
    for family, cells in rows.items():
        told += [line for line in dict.fromkeys(cells.values()) if not line.startswith(RUNS) and line not in told]
        shown = [cells[name] if cells[name] not in told else f"({told.index(cells[name]) + 1})" for name in COLUMNS]
        lines.append(f"| {family} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", *(f"{number}. `{line}`" for number, line in enumerate(told, start=1))]).strip()


if __name__ == "__main__":
    found = {}
    for each in sys.argv[1:] or FAMILIES:
        found[each] = row(each)
        print(each, found[each], flush=True)
    print(table(found))
