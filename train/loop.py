"""Weighted LoRA training of one peer: accelerate for the steps, peft for the adapter, our log-probabilities for the
loss."""

from __future__ import annotations

import ctypes
import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from data.config.sections import TrainSection
from data.errors import UserError, trouble
from data.shards import is_whole, write_sum, writing
from peers import budget
from peers.architecture import is_turned
from peers.logprob.model import LanguageModel, inputs_of, load_model
from peers.logprob.recompute import checkpoint_layers, should_checkpoint
from train.examples import Logprobs, TrainingExample, write_logprobs
from train.lora import FusedLinear, fuse, refresh
from train.loss import clipped_advantage, optimiser_steps, weighted_nll

if TYPE_CHECKING:
    from peft import PeftModel

CHECKPOINT = "checkpoint.pt"
DIGEST = hashlib.sha256().digest_size
SCORED = 512  # examples scored at a time before a signed training begins
TRIM_STEPS = 4  # steps between returns of freed memory, which is fragmented: without this the peak grows


@dataclass(frozen=True)
class TrainingResult:
    """What a training run did: the loss of each optimiser step (weighted, nats per token; with signed weights the
    clipped surrogate, which is no number of nats), the examples' tokens."""

    losses: list[float]
    tokens: int


def open_adapter(base: Path, dtype: str, section: TrainSection, previous: Path | None, seed: int) -> PeftModel:
    """The unmerged base model with a new LoRA adapter, or with the one in use (`previous`) to continue.

    All linear layers of the blocks are adapted, never embeddings or the head. The adapter is float32 over base
    weights of any type. Raises UserError for a layer of another kind.
    """
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers.pytorch_utils import Conv1D

    model: Any = load_model(base, dtype)
    if previous is not None:
        return PeftModel.from_pretrained(model, str(previous), is_trainable=True)
    torch.manual_seed(seed)  # for lora_A; lora_B begins at zero
    lora = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        target_modules="all-linear",
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=is_turned(model.config.to_dict()),
    )
    adapted = get_peft_model(model, lora)
    for name, module in adapted.named_modules():
        layer = getattr(module, "base_layer", None)
        if layer is not None and not isinstance(layer, torch.nn.Linear | Conv1D):
            raise UserError(f"{name} of {base} is a {type(layer).__name__}; only linear layers can be adapted")
    return adapted


def train_adapter(
    model: PeftModel,
    examples: Sequence[TrainingExample],
    section: TrainSection,
    seed: int,
    token_budget: int,
    work: Path,
    checkpoint_steps: int,
    advance: Callable[[int, int], None],
    compiling: Literal["auto", "on", "off"] = "auto",
    signed: bool = False,
    checkpointing: Literal["auto", "on", "off"] = "auto",
    peer: str = "",
    key: str = "train",
) -> TrainingResult:
    """Train in place, from `work/checkpoint.pt` if there is one. `signed`: the weights are advantages. `compiling` and
    `checkpointing` are `runtime.compile` and `runtime.gradient_checkpointing`. Once memory has run out, micro-batches
    have fewer tokens (peers/budget.py, which takes `key` and `peer`). Raises UserError if training diverges.

    A resumed run does the same steps: the order of examples follows from the seed, and there is no dropout.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    parameters = [p for p in model.parameters() if p.requires_grad]
    steps = optimiser_steps(len(examples), section.batch_size, section.epochs, seed)
    optimizer = torch.optim.AdamW(parameters, lr=section.lr, weight_decay=section.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, len(steps), section))
    done, losses, tokens = _resume(work, model, optimizer, schedule)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    longest = longest_of(examples)
    lm, layers = _language_model(model, compiling, checkpointing, max(token_budget, longest), longest)
    model.eval()  # no dropout, whatever the base's config says: a resumed run must do the same steps
    advance(sum(map(len, steps[:done])), 0)
    lm.compile_if_asked(sum(len(examples[i].pair) for step in steps[done:] for i in step))
    within = partial(budget.with_halved_budget, key, peer, "runtime.train_tokens", token_budget)
    before = None
    if signed:
        refresh(layers)
        before = within(lambda: longest, partial(_logprobs_before, lm, examples, work / "before.arrow"))
    for number in range(done, len(steps)):
        batch = [examples[i] for i in steps[number]]
        refresh(layers)
        of_step = None if before is None else [before[i] for i in steps[number]]
        once = partial(_backward, lm, batch, accelerator, of_step, section.clip_ratio)
        loss, passed = within(partial(longest_of, batch), once, optimizer.zero_grad)
        norm = float(accelerator.clip_grad_norm_(parameters, section.max_grad_norm))
        _check_finite(loss, norm, f"at step {number + 1} of {len(steps)}", section)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (number + 1) % TRIM_STEPS == 0:
            _trim_memory()
        losses.append(loss)
        tokens += passed
        advance(len(batch), passed)
        if (number + 1) % checkpoint_steps == 0 and number + 1 < len(steps):
            _checkpoint(work, model, optimizer, schedule, number + 1, losses, tokens)
    _check_adapter(parameters, section)  # no loss is computed after the last step
    return TrainingResult(losses, tokens)


def _check_adapter(parameters: Sequence[Any], section: TrainSection) -> None:
    if not all(bool(p.isfinite().all()) for p in parameters):
        raise diverged("the adapter has numbers that are not finite", "after the last step", section)


def _check_finite(loss: float, norm: float, where: str, section: TrainSection) -> None:
    for what, value in (("loss", loss), ("gradient's norm", norm)):
        if not math.isfinite(value):
            raise diverged(f"the {what} is {value}", where, section)


def _language_model(
    model: PeftModel,
    compiling: Literal["auto", "on", "off"],
    checkpointing: Literal["auto", "on", "off"],
    tokens: int,
    longest: int,
) -> tuple[LanguageModel, list[FusedLinear]]:
    """The model and its LoRA layers, for micro-batches of at most `tokens` and sequences of at most `longest`."""
    base: Any = model.get_base_model()
    layers = fuse(model)
    lm = LanguageModel(base)
    lm.compile = compiling
    if should_checkpoint(checkpointing, lm, tokens, longest):
        checkpoint_layers(lm)
    return lm, layers


def diverged(what: str, when: str, section: TrainSection) -> UserError:
    """The error that ends a training run whose numbers are no longer finite."""
    return UserError(f"{what} {when}: training has diverged; lower train.lr ({section.lr}) in a new run")


def longest_of(examples: Sequence[TrainingExample]) -> int:
    """Tokens of the longest example; 0 if there is none."""
    return max((len(example.pair) for example in examples), default=0)


def _logprobs_before(lm: LanguageModel, examples: Sequence[TrainingExample], path: Path, tokens: int) -> Logprobs:
    """The examples' log-probabilities under the policy that the round began with. They are written once, before the
    first step, so a resumed run compares with the same ones. Raises UserError if the file is damaged later."""
    from peers.logprob.scoring import score_pairs

    if not is_whole(path):
        if (path.parent / CHECKPOINT).is_file():  # the policy has changed since, so they cannot be measured again
            raise UserError(f"{path} is damaged: delete {path.parent} and run the same command again")
        parts = (examples[first : first + SCORED] for first in range(0, len(examples), SCORED))
        pairs = ([example.pair for example in part] for part in parts)
        write_logprobs((score_pairs(lm, part, tokens, lambda *_: None) for part in pairs), path)
        write_sum(path)
    return Logprobs(path)


def _backward(
    lm: LanguageModel,
    batch: list[TrainingExample],
    accelerator: Any,
    before: list[list[float]] | None,
    clip: float,
    tokens: int,
) -> tuple[float, int]:
    """Compute the gradients of one optimiser step, in micro-batches of `tokens`; returns its loss and its examples'
    tokens."""
    losses, pairs = [], [example.pair for example in batch]
    for tree_batch in lm.batches(inputs_of(pairs), tokens):
        found = lm.logprobs([lm.read(tree_batch, pairs)], pairs)
        logprobs, weights = list(found.values()), [batch[i].weight for i in found]
        if before is None:
            loss = weighted_nll(logprobs, weights, len(batch))
        else:
            loss = clipped_advantage(logprobs, [before[i] for i in found], weights, len(batch), clip)
        accelerator.backward(loss)
        losses.append(loss.detach())
    # read at the end, so that the GPU is waited for once per step, not once per micro-batch
    return sum(torch.stack(losses).tolist()), sum(len(example.pair) for example in batch)


def _trim_memory() -> None:
    """Return freed memory that the C library has kept to the system, where it is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def lr_factor(step: int, steps: int, section: TrainSection) -> float:
    """Learning rate of a step (0-based) as a share of the peak: linear warm-up, then the schedule down to 0."""
    warmup = math.ceil(section.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if section.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    return 1.0 - progress if section.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def _checkpoint(
    work: Path, model: Any, optimizer: Any, schedule: Any, step: int, losses: list[float], tokens: int
) -> None:
    from peft import get_peft_model_state_dict

    state = {
        "adapter": get_peft_model_state_dict(model),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "step": step,
        "losses": losses,
        "tokens": tokens,
    }
    content = io.BytesIO()
    torch.save(state, content)
    # the checksum is in the file itself: two files cannot be replaced at once
    with writing(work / CHECKPOINT) as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())


def _resume(work: Path, model: Any, optimizer: Any, schedule: Any) -> tuple[int, list[float], int]:
    path = work / CHECKPOINT
    if not path.is_file():
        return 0, [], 0
    from peft import set_peft_model_state_dict

    state = _read_checkpoint(path)
    set_peft_model_state_dict(model, state["adapter"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return state["step"], state["losses"], state["tokens"]


def _read_checkpoint(path: Path) -> Any:
    """Read what `_checkpoint` wrote: a SHA-256, then torch's file. Raises UserError if it is cut off or changed.

    torch's file has a checksum of each record, but none of its directory: after one byte changed there, a tensor was
    loaded with other memory of the process in it.
    """
    try:
        content = memoryview(path.read_bytes())
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            raise ValueError("its checksum does not match")
        return torch.load(io.BytesIO(content[DIGEST:]), weights_only=True)
    except Exception as error:  # pickle's and torch's own, for a file of another version
        if trouble(error):
            raise  # deleting it would not help
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} is damaged ({why}); delete it and run its stage again: this peer's training starts over"
        ) from error
