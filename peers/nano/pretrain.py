"""`make peers`: train the nano peers from scratch, and save them as bf16 safetensors.

One process and one thread per peer; a killed run resumes from its last checkpoint. Weights are float32 while training,
the matrix products bf16 (autocast) where the processor has instructions for them. The loss is the mean negative
log-probability of the response tokens, in which the verdict's one token counts `VERDICT_WEIGHT` times: it is one among
many, and without the weight the verifier stays at chance.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.functional import cross_entropy

import data.nano
from data.cli import guarded, start
from data.config.load import load_config
from data.config.sections import PeerSection
from data.errors import UserError
from data.hashing import digest
from data.locks import locked
from data.nano import SUBSETS, Problem, problems
from data.shards import checksum
from peers.logprob.model import LanguageModel
from peers.nano.card import card
from peers.nano.examples import MISREADS, Kind, PretrainingExample, finished, shown_solutions, stream, wrong_solution
from peers.prompts import PeerPrompts
from peers.source import cpu_multiplies_bf16

CONFIG = Path("configs/nano.toml")
FOLDER = Path("peers")
STEPS = 2400
BATCH: dict[Kind, int] = {"direct": 26, "chain": 16, "verify": 22}  # examples per step
LENGTHS: dict[Kind, int] = {"direct": 80, "chain": 192, "verify": 96}  # tokens to which examples are padded
LR = 2e-3
WARMUP, DECAY_FROM = 100, 0.3
VERDICT_WEIGHT = 12.0
CHECKPOINT_STEPS = 200
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|pad|>", "<|start|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2Config", {"query_pre_attn_scalar": 32, "sliding_window": 1024, "attn_logit_softcapping": 50.0}),
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
}


def make_tokenizer() -> Any:
    """A byte-level BPE tokenizer with one token per digit, trained on texts of the pre-training split."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    wording = load_config(CONFIG, []).templates
    texts = [
        f"Question: {p.question}\nSolution 1: {p.solution()}\nSolution 2: {p.solution()}\n{wording.verify}YesNo"
        for subset in SUBSETS
        for p in islice(problems(subset, "pretrain", "tokenizer"), 3000)
    ]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=768,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(name: str, tokenizer: Any) -> Any:
    """An untrained model of a peer's architecture."""
    import transformers

    kind, more = ARCHITECTURES[name]
    config = getattr(transformers, kind)(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
        **more,
    )
    torch.manual_seed(sum(map(ord, name)))
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def lr_at(step: int, steps: int) -> float:
    """Warm-up, plateau, linear decay to 0."""
    start = DECAY_FROM * steps
    return LR * min(1.0, (step + 1) / WARMUP, max(0.0, (steps - step) / (steps - start)))


def response_losses(
    lm: LanguageModel, batch: Sequence[PretrainingExample], length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of all R target tokens: negative log-probability [R], whether it was the likeliest [R], its example [R].

    The batch is padded to `length` tokens, so that a compiled model sees few shapes.
    """
    ids_B_T = torch.zeros(len(batch), length, dtype=torch.long)
    rows, owner = [], []
    for i, e in enumerate(batch):
        ids_B_T[i, : len(e.prompt) + len(e.target)] = torch.tensor([*e.prompt, *e.target])
        rows += [i * length + len(e.prompt) - 1 + j for j in range(len(e.target))]
        owner += [i] * len(e.target)
    targets_R = torch.tensor([token for e in batch for token in e.target])
    with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_bf16()):
        hidden_B_T_H = lm.padded_hidden(ids_B_T)
    logits_R_V = lm.logits(hidden_B_T_H.reshape(-1, hidden_B_T_H.shape[-1])[torch.tensor(rows)])
    losses_R = cross_entropy(logits_R_V, targets_R, reduction="none")
    return losses_R, logits_R_V.argmax(-1) == targets_R, torch.tensor(owner)


def train_step(lm: LanguageModel, batches: dict[Kind, list[PretrainingExample]]) -> dict[Kind, float]:
    """Gradients of one step, format by format; the mean loss of each in nats per token."""
    found: dict[Kind, float] = {}
    # a verify target is the verdict and the end token
    weight = {
        kind: sum(VERDICT_WEIGHT + 1 if kind == "verify" else len(e.target) for e in batch)
        for kind, batch in batches.items()
    }
    for kind, batch in batches.items():
        losses_R, _, owner_R = response_losses(lm, batch, LENGTHS[kind])
        found[kind] = losses_R.mean().item()
        if kind == "verify":
            first_R = torch.cat([torch.tensor([True]), owner_R[1:] != owner_R[:-1]])
            losses_R = losses_R * torch.where(first_R, VERDICT_WEIGHT, 1.0)
        (losses_R.sum() / sum(weight.values())).backward()
    return found


def train_peer(name: str, steps: int) -> None:
    """Make one peer, or resume where an earlier call stopped. Raises UserError if another process is making it."""
    torch.set_num_threads(1)
    work = FOLDER / ".work" / name
    with locked(work, "wait for it, or stop it"):
        _train_peer(name, steps, work)


def _train_peer(name: str, steps: int, work: Path) -> None:
    tokenizer = make_tokenizer()
    prompts = PeerPrompts(tokenizer, PeerSection(name=name, model=name), load_config(CONFIG, []).templates)
    model = make_model(name, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    done = 0
    if (work / "checkpoint.pt").is_file():
        state = torch.load(work / "checkpoint.pt", weights_only=True)
        if state["recipe"] != recipe(steps):
            raise UserError(
                f"{work} is an unfinished run of other code or another number of steps ({state['recipe']}, now "
                f"{recipe(steps)}); delete it to start over"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    lm = LanguageModel(model)
    lm.decoder.compile(dynamic=False)
    model.train()
    start, sums = time.monotonic(), dict.fromkeys(BATCH, 0.0)
    for step in range(done, steps):
        if step % CHECKPOINT_STEPS == 0:  # a stream per interval: a resumed run sees the same examples
            streams = {kind: stream(name, kind, prompts, step) for kind in BATCH}
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, steps)
        losses = train_step(lm, {kind: list(islice(streams[kind], size)) for kind, size in BATCH.items()})
        sums = {kind: sums[kind] + loss for kind, loss in losses.items()}
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % CHECKPOINT_STEPS == 0:
            shown = ", ".join(f"{kind} {total / CHECKPOINT_STEPS:.3f}" for kind, total in sums.items())
            print(
                f"{name} {step + 1}/{steps}: nats per token: {shown}; {check(lm, prompts)}; "
                f"{time.monotonic() - start:.0f} s",
                flush=True,
            )
            sums = dict.fromkeys(BATCH, 0.0)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            state["recipe"] = recipe(steps)
            torch.save(state, work / "checkpoint.tmp")
            os.replace(work / "checkpoint.tmp", work / "checkpoint.pt")
    save(name, model, tokenizer, steps)
    shutil.rmtree(work)  # the next call starts over


def recipe(steps: int) -> str:
    """Identity of the code and the number of steps, which must be the same to resume from a checkpoint."""
    sources = [Path(__file__), Path(__file__).with_name("examples.py"), Path(data.nano.__file__)]
    return f"{steps} steps, {digest([checksum(source) for source in sources])}"


@torch.no_grad()
def check(lm: LanguageModel, prompts: PeerPrompts) -> str:
    """Results on validation problems, in %: right greedy solutions (direct, chain) and right verdicts."""
    random_ = random.Random(0)
    parts = []
    lm.model.eval()
    for kind, size in BATCH.items():
        right: list[Tensor] = []
        chosen = [p for subset in SUBSETS for p in islice(problems(subset, "validation", kind), 2 * size)]
        for first in range(0, len(chosen), size):
            batch = [validation_example(kind, p, prompts, random_) for p in chosen[first : first + size]]
            _, likeliest_R, owner_R = response_losses(lm, batch, LENGTHS[kind])
            right.append(torch.zeros(len(batch)).index_add_(0, owner_R, (~likeliest_R).float()) == 0)
        parts.append(f"{kind} {100 * torch.cat(right).float().mean().item():.0f}")
    lm.model.train()
    return "right in %: " + ", ".join(parts)


def validation_example(kind: Kind, p: Problem, prompts: PeerPrompts, random_: random.Random) -> PretrainingExample:
    """A problem in a format, with the right target: teacher forcing shows whether greedy decoding would be right."""
    if kind == "direct":
        return finished(kind, prompts.solve(p.question), p.solution(), prompts)
    if kind == "chain":
        shown = [p.solution(misread) for misread in shown_solutions(p, random_)]
        return finished(kind, prompts.review(p.question, shown), p.solution(), prompts)
    right = random_.random() < 0.5
    proposed = p.solution() if right else wrong_solution(p, random_)
    return finished(kind, prompts.verify(p.question, proposed), "Yes" if right else "No", prompts)


def save(name: str, model: Any, tokenizer: Any, steps: int) -> None:
    """Write the finished peer in bf16 under a temporary name, then rename it."""
    import transformers

    target, temporary = FOLDER / name, FOLDER / ".work" / f"{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    transformers.utils.logging.disable_progress_bar()
    model.config._attn_implementation = None
    model.to(torch.bfloat16).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    (temporary / "README.md").write_text(
        card(name, type(model).__name__, parameters, steps, sum(BATCH.values())), encoding="utf-8"
    )
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)


def train_all(steps: int) -> None:
    """Make all peers side by side, each in its own process. Raises UserError if one of them failed."""
    command = [sys.executable, "-m", "peers.nano.pretrain", "--steps", str(steps), "--peer"]
    running = {name: subprocess.Popen([*command, name]) for name in MISREADS}
    try:
        while any(process.poll() is None for process in running.values()):
            if any(process.poll() for process in running.values()):
                break  # one has failed: stop the others
            time.sleep(1)
        failed = [name for name, process in running.items() if process.poll()]
    finally:
        for process in running.values():
            process.terminate()
            process.wait()  # until then it holds its peer's lock
    if failed:
        raise UserError(f"{', '.join(failed)} failed (the message is above); run the same command again")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help="Train the three nano peers from scratch.")
def main(
    peer: Annotated[str | None, typer.Option(help="Make only this peer, in this process.")] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = STEPS,
) -> None:
    """`python -m peers.nano.pretrain [--peer NAME] [--steps N]`."""
    if steps < 1 or steps % CHECKPOINT_STEPS:
        raise typer.BadParameter(f"--steps {steps}: expected a multiple of {CHECKPOINT_STEPS}")
    if peer is not None:
        if peer not in MISREADS:
            raise typer.BadParameter(f"--peer {peer}: expected one of {', '.join(MISREADS)}")
        guarded(lambda: train_peer(peer, steps))
    else:
        guarded(lambda: train_all(steps))


if __name__ == "__main__":
    start(app, "peers.nano.pretrain")
