"""The training loss: by hand, against plain fine-tuning, and the same however the step is cut into pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.config.load import load_config
from data.config.sections import ScoreSection, TrainSection
from data.errors import UserError
from data.run import Run, open_run
from data.schema import SCORES
from data.shards import write_rows
from peers.logprob.model import LanguageModel, Pair, load_language_model, load_model
from peers.logprob.scoring import score_pairs
from peers.policy import resolve
from peers.source import load_tokenizer
from score.weights import weights
from tests.conftest import ROOT, questions
from train.examples import TrainingExample
from train.loop import lr_factor, open_adapter, train_adapter
from train.loss import clipped_advantage, optimiser_steps, weighted_nll
from train.stage import PeerTraining, training_examples

LORA = TrainSection(rank=4, alpha=8, lr=1e-3, batch_size=8, schedule="constant", warmup_ratio=0)


def test_weighted_nll_by_hand() -> None:
    logprobs = [torch.tensor([-1.0, -3.0]), torch.tensor([-0.5])]
    # (2 · 2 + ½ · ½) / 2
    assert weighted_nll(logprobs, [2.0, 0.5], 2).item() == 2.125
    # the same micro-batch in a step of 4 is half as much
    assert weighted_nll(logprobs, [2.0, 0.5], 4).item() == 1.0625
    with pytest.raises(ValueError, match="zip"):
        weighted_nll(logprobs, [1.0], 2)


def test_micro_batches_add_up_to_the_step() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs = [-torch.rand(n, generator=generator) for n in (3, 1, 7, 2, 5)]
    w = [0.3, 2.0, 1.0, 0.0, 1.7]
    whole = weighted_nll(logprobs, w, 5).item()
    pieces = [weighted_nll(logprobs[i:j], w[i:j], 5).item() for i, j in ((0, 1), (1, 4), (4, 5))]
    assert sum(pieces) == pytest.approx(whole)
    naive = fmean(weight * -logprob.mean().item() for weight, logprob in zip(w, logprobs, strict=True))
    assert whole == pytest.approx(naive)


@pytest.mark.parametrize(("n", "batch_size", "sizes"), [(10, 4, [4, 4, 2]), (8, 8, [8]), (3, 8, [3]), (0, 4, [])])
def test_steps_cover_every_example_once_an_epoch(n: int, batch_size: int, sizes: list[int]) -> None:
    steps = optimiser_steps(n, batch_size, 3, seed=5)
    assert [len(step) for step in steps] == sizes * 3
    epochs = [list(chain(*steps[i * len(sizes) : (i + 1) * len(sizes)])) for i in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert steps == optimiser_steps(n, batch_size, 3, seed=5)
    if n == 10:
        assert len({tuple(epoch) for epoch in epochs}) == 3
        assert steps != optimiser_steps(n, batch_size, 3, seed=6)
        assert steps[:3] == optimiser_steps(n, batch_size, 1, seed=5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 10 steps, 2 of them warm-up: 1/3, 2/3, then progress (step - 2) / 8
        ("linear", {0: 1 / 3, 1: 2 / 3, 2: 1.0, 6: 0.5, 9: 1 / 8}),
        ("cosine", {0: 1 / 3, 1: 2 / 3, 2: 1.0, 6: 0.5, 9: 0.5 * (1 + math.cos(math.pi * 7 / 8))}),
        ("constant", {0: 1 / 3, 1: 2 / 3, 2: 1.0, 6: 1.0, 9: 1.0}),
    ],
)
def test_the_learning_rate_warms_up_and_decays_by_its_schedule(schedule: Any, expected: dict[int, float]) -> None:
    section = TrainSection(schedule=schedule, warmup_ratio=0.2)
    assert {step: lr_factor(step, 10, section) for step in expected} == pytest.approx(expected)


def test_every_peer_and_round_begins_and_shuffles_by_itself() -> None:
    def seed(run_seed: int, round_: int, name: str) -> int:
        policy: Any = SimpleNamespace(name=name)
        config = load_config(ROOT / "configs" / "nano.toml", [f"run.seed={run_seed}"])
        return PeerTraining(Run("t", config), round_, policy).seed

    parts = [(run_seed, round_, name) for run_seed in (1, 2) for round_ in (1, 2) for name in ("a", "b")]
    assert len({seed(*part) for part in parts}) == 8 and seed(1, 1, "a") == seed(1, 1, "a")


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.99])
def test_learning_rate_of_short_runs_is_never_zero(steps: int, ratio: float) -> None:
    for schedule in ("linear", "cosine", "constant"):
        section = TrainSection(schedule=schedule, warmup_ratio=ratio)
        assert all(0 < lr_factor(step, steps, section) <= 1 for step in range(steps))
    assert lr_factor(0, 5, TrainSection(warmup_ratio=0)) == 1


def pairs(folder: Path, n: int) -> list[Pair]:
    """Prompts and targets of different lengths."""
    tokenizer: Any = load_tokenizer(folder)
    return [
        Pair(tokenizer.encode(q["question"]), tokenizer.encode(f"The answer is {q['answer']}." + " So." * (i % 3)))
        for i, q in enumerate(questions(95, n))
    ]


def examples_of(folder: Path, n: int = 8) -> list[TrainingExample]:
    """Examples with different weights."""
    return [TrainingExample(pair, 0.25 + i % 4) for i, pair in enumerate(pairs(folder, n))]


def trained(
    folder: Path, work: Path, examples: Sequence[TrainingExample], section: TrainSection, budget: int
) -> tuple[dict[str, Tensor], list[float]]:
    """Adapter tensors and losses after training from the same beginning."""
    from peft import get_peft_model_state_dict

    model = open_adapter(folder, "float32", section, None, seed=3)
    found = train_adapter(model, examples, section, 3, budget, work, 100, lambda *_: None)
    return {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}, found.losses


@pytest.mark.parametrize("name", ["chatty", "plain"])
def test_one_by_one_accumulated_equals_all_at_once(name: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = tiny_models[name]
    section = LORA.model_copy(update={"epochs": 3})
    runs = [trained(folder, tmp_path / str(b), examples_of(folder), section, b) for b in (1, 150, 10**6)]
    tensors, losses = runs[-1]
    lm = load_language_model(folder, "float32")
    scored = score_pairs(lm, [example.pair for example in examples_of(folder)], 10**6, lambda *_: None)
    naive = [e.weight * -fmean(logprobs) for e, logprobs in zip(examples_of(folder), scored, strict=True)]
    assert losses[0] == pytest.approx(fmean(naive), abs=1e-4)  # lora_B begins at zero: the base's own loss
    assert len(losses) == 3
    assert losses[2] < losses[0]
    assert sum(tensor.abs().sum().item() for key, tensor in tensors.items() if "lora_B" in key) > 0.1
    for others, other_losses in runs[:-1]:
        assert other_losses == pytest.approx(losses, abs=1e-5)
        assert others.keys() == tensors.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(others[key], tensor, rtol=0, atol=1e-5, msg=key)


def score_row(id_: str, weight: float | None, tokens: list[int]) -> dict[str, Any]:
    """A row of scores of the peer `plain`."""
    return {
        "prompt_id": id_, "peer": "plain", "number": 1, "label": "x", "label_share": None, "role": "chain",
        "position": 1, "sample": None, "target_peer": "chatty",
        "logp_given_response": -1.0, "logp_alone": -2.0, "n_target_tokens": len(tokens), "pmi": 1.0,
        "pmi_per_token": 0.1, "weight": weight,
        "drop_reason": None, "agrees": True, "answer_entropy": 0.0, "question": f"What is {id_}?", "target": "x",
        "target_token_ids": tokens,
    }  # fmt: skip


def test_weight_zero_equals_left_out(project: Path, tiny_models: dict[str, Path]) -> None:
    agreement = ScoreSection(weighting="agreement")
    pmi, agrees = [0.1, 0.4, 0.2, 0.3], [True, False, True, True]
    with_zero = weights(pmi, agrees, [0.0] * 4, agreement, seed=0)
    without = weights([pmi[i] for i in (0, 2, 3)], [True] * 3, [0.0] * 3, agreement, seed=0)
    targets = [[9, 10], [11, 12, 13], [14], [15, 16, 17, 18]]
    table = [score_row(f"q{i}", w, targets[i]) for i, w in enumerate(with_zero)]
    dropped = [score_row(f"q{i}", w, targets[i]) for i, w in zip((0, 2, 3), without, strict=True)]
    dropped.insert(1, score_row("q1", None, targets[1]))
    found = []
    for name, rows in (("zero", table), ("dropped", dropped)):
        with open_run(name, project / "tiny.toml", []) as run:
            write_rows(rows, run.stage_dir(1, "scores") / "part-00000.parquet", SCORES)
            examples = training_examples(run, 1, resolve(run, 0, "plain"))
        assert len(examples) == 3
        found.append(trained(tiny_models["plain"], project / name, examples, LORA, 10**6))
    (tensors, losses), (others, other_losses) = found
    assert losses == other_losses
    assert all(torch.equal(tensors[key], others[key]) for key in tensors)


def test_whether_compiling_pays_counts_the_tokens_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, bool]] = []

    def asked(lm: LanguageModel, tokens_left: int) -> None:
        seen.append((lm.compile, tokens_left, torch.is_grad_enabled()))

    monkeypatch.setattr(LanguageModel, "compile_if_asked", asked)
    model = open_adapter(Path(__file__).parents[2] / "peers" / "llama", "float32", LORA, None, seed=3)
    examples = [TrainingExample(Pair([5, 6, 7], [8, 9]), 1.0)] * 3
    train_adapter(model, examples, LORA, 3, 1024, tmp_path, 100, lambda *_: None, "off")
    assert seen == [("off", LORA.epochs * 3 * 5, True)]  # once, before the first step


def test_uniform_weights_equal_plain_fine_tuning(tiny_models: dict[str, Path]) -> None:
    model: Any = open_adapter(tiny_models["plain"], "float32", LORA, None, seed=3)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # they begin at zero, where lora_A has no gradient
            torch.nn.init.normal_(parameter, std=0.02)
    batch = pairs(tiny_models["plain"], 5)

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    lm = LanguageModel(model.get_base_model())
    ours = weighted_nll(lm.target_logprobs(batch), [1.0] * len(batch), len(batch))
    our_gradients = gradients(ours)
    # transformers' own loss: the mean over the labels that are not -100, one example at a time
    each = []
    for pair in batch:
        ids = torch.tensor([[*pair.prompt, *pair.target]])
        labels = torch.tensor([[*[-100] * len(pair.prompt), *pair.target]])
        each.append(model(input_ids=ids, labels=labels).loss)
    theirs = torch.stack(each).mean()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    for name, gradient in gradients(theirs).items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_training_that_leaves_the_range_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that is not finite under a loss that is, and what only the last step has spoilt."""
    import train.loop

    example = TrainingExample(Pair([5, 6, 7], [8, 9]), 1.0)
    backward = train.loop._backward

    def train_one(spoil_adapter: bool) -> None:
        model = open_adapter(Path(__file__).parents[2] / "peers" / "llama", "float32", LORA, None, seed=3)

        def advance(_: int, tokens: int) -> None:
            if spoil_adapter and tokens:  # after the step
                next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))

        train_adapter(model, [example], LORA, 3, 1024, tmp_path, 100, advance, "off")

    told = r"the adapter has numbers that are not finite after the last step: .*train\.lr"
    with pytest.raises(UserError, match=told):
        train_one(spoil_adapter=True)

    def spoilt(lm: Any, *arguments: Any) -> Any:
        found = backward(lm, *arguments)
        for parameter in lm.model.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(float("inf"))
        return found

    monkeypatch.setattr(train.loop, "_backward", spoilt)
    with pytest.raises(UserError, match=r"the gradient's norm is (inf|nan) at step 1 of 1: .*train\.lr"):
        train_one(spoil_adapter=False)


def test_signed_weights_push_up_and_down_and_stop_at_the_clip() -> None:
    """By hand: ratio 1 has the gradient of w log p; one beyond the clip has none in the direction it went."""
    before = [[-1.0, -1.0], [-2.0, -2.0]]
    at_start = [torch.tensor(each, requires_grad=True) for each in before]
    loss = clipped_advantage(at_start, before, [1.0, -0.5], batch_size=2, clip=0.2)
    assert loss.item() == pytest.approx(-(1.0 - 0.5) / 2)
    loss.backward()
    assert at_start[0].grad is not None and at_start[1].grad is not None
    assert at_start[0].grad.tolist() == pytest.approx([-0.25, -0.25])  # - w / (n B)
    assert at_start[1].grad.tolist() == pytest.approx([0.125, 0.125])
    # the ratio e^0.3 is above 1.2: no further up; e^-0.3 is below 0.8: no further down; but back either may go
    moved = [torch.tensor([-0.7, -1.3], requires_grad=True), torch.tensor([-1.7, -2.3], requires_grad=True)]
    clipped_advantage(moved, before, [1.0, -0.5], batch_size=2, clip=0.2).backward()
    assert moved[0].grad is not None and moved[1].grad is not None
    assert moved[0].grad.tolist() == pytest.approx([0.0, -0.25 * math.exp(-0.3)])
    assert moved[1].grad.tolist() == pytest.approx([0.125 * math.exp(0.3), 0.0])
    with pytest.raises(ValueError, match="weights"):
        clipped_advantage(moved, before, [1.0, math.nan], 2, 0.2)


def test_signed_training_raises_what_agrees_and_lowers_what_does_not(
    project: Path, tiny_models: dict[str, Path]
) -> None:
    """One real adapter; killed after its checkpoint it comes to the same end, from the same log-probabilities."""
    pairs = [Pair([9, 10, 30 + i], [40 + 2 * i, 41 + 2 * i]) for i in range(8)]
    examples = [TrainingExample(pair, 1.0 if i % 2 else -1.0) for i, pair in enumerate(pairs)]
    section = LORA.model_copy(update={"lr": 5e-3, "batch_size": 4, "epochs": 3})
    ends = []
    for name, stop in (("whole", None), ("killed", 3)):
        work = project / name
        work.mkdir()
        model = open_adapter(tiny_models["plain"], "float32", section, None, seed=1)
        start = score_pairs(LanguageModel(load_model(tiny_models["plain"], "float32")), pairs, 512, lambda *_: None)
        if stop:
            seen: list[int] = []

            def kill(n: int, _: int, seen: list[int] = seen) -> None:
                seen.append(n)
                if len(seen) > 3:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                train_adapter(model, examples, section, 1, 512, work, 1, kill, "off", signed=True)
            assert (work / "before.arrow").is_file() and (work / "checkpoint.pt").is_file()
            model = open_adapter(tiny_models["plain"], "float32", section, None, seed=1)
        train_adapter(model, examples, section, 1, 512, work, 1, lambda *_: None, "off", signed=True)
        merged = model.merge_and_unload()
        ends.append(score_pairs(LanguageModel(merged), pairs, 512, lambda *_: None))
    changes = [sum(after) - sum(before) for before, after in zip(start, ends[0], strict=True)]
    assert fmean(changes[1::2]) - fmean(changes[::2]) > 0.2, changes
    for again, end in zip(ends[1], ends[0], strict=True):
        assert again == pytest.approx(end, abs=1e-3)
