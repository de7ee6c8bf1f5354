"""Out of memory: smaller batches for the rest of the stage, and the results of those."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import UserError
from data.run import Run, open_run
from peers import budget
from peers.faults import Fault
from peers.logprob.model import LanguageModel, Pair, load_language_model
from peers.logprob.scoring import score_pairs
from tests.unit.test_loss import LORA, examples_of, pairs, trained
from train.loss import weighted_nll

NONE_LEFT = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Each test is a process of its own to the budgets."""
    budget._lowered.clear()
    yield
    budget._lowered.clear()


def test_a_cpu_without_memory_is_known_as_such() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    assert budget.out_of_memory(error.value)
    for yes in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
                RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x")):  # fmt: skip
        assert budget.out_of_memory(yes)
    for no in (RuntimeError("shapes differ"), ValueError("out of memory"), OSError(12, "Cannot allocate memory")):
        assert not budget.out_of_memory(no)


def lacking(most: int, calls: list[int]) -> Callable[[int], int]:
    """Work that has memory for so many tokens."""

    def work(tokens: int) -> int:
        calls.append(tokens)
        if tokens > most:
            raise RuntimeError(NONE_LEFT + "allocate 1 bytes")
        return tokens

    return work


def test_the_budget_is_halved_for_the_rest_of_the_stage(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []
    undone: list[int] = []
    within = partial(
        budget.with_halved_budget, peer="a", setting="runtime.score_tokens", tokens=2048, longest=lambda: 100,
        work=lacking(600, calls), failed=lambda: undone.append(1),
    )  # fmt: skip
    assert [within("score round 1"), within("score round 1"), within("score round 2")] == [512] * 3
    assert calls == [2048, 1024, 512, 512, 2048, 1024, 512] and len(undone) == 4
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("  a: out of memory with runtime.score_tokens = 2,048 ([enforce fail at alloc_cpu.cpp")
    assert first.endswith("); 1,024 for the rest of the stage") and len(others) == 3


def test_never_below_one_example() -> None:
    calls: list[int] = []
    told = (
        r"^peer a: one example of 300 tokens does not fit into memory \(RuntimeError|^peer a: one example of 300 tokens"
    )
    with pytest.raises(UserError, match=told):
        budget.with_halved_budget("s", "a", "runtime.train_tokens", 1024, lambda: 300, lacking(0, calls))
    assert calls == [1024, 512, 256]


def test_other_errors_are_raised() -> None:
    def work(_: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        budget.with_halved_budget("s", "a", "x", 1024, lambda: 300, work)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """No forward over more than so many tokens; returns the sizes of those that were tried."""
    hidden, sizes = LanguageModel.hidden, []

    def limited(self: LanguageModel, tree_batch: Any) -> Any:
        sizes.append(len(tree_batch.tokens_N))
        if len(tree_batch.tokens_N) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return hidden(self, tree_batch)

    monkeypatch.setattr(LanguageModel, "hidden", limited)
    return sizes


@pytest.fixture
def run(project: Path) -> Iterator[Run]:
    """A run with a budget of 512 tokens."""
    with open_run("t", Path("tiny.toml"), ["runtime.score_tokens=512"]) as opened:
        yield opened


def scored(run: Run, lm: LanguageModel, some: list[Pair], told: list[int]) -> list[list[float] | Fault]:
    """As the score stage does it."""
    return budget.one_by_one(
        run, "score round 1", "plain", some, lambda: max(map(len, some)),
        lambda part, tokens, advance: score_pairs(lm, part, tokens, advance), lambda items, _: told.append(items),
    )  # fmt: skip


def test_scores_are_those_of_the_smaller_budget(
    run: Run, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lm, some = load_language_model(tiny_models["plain"], "float32"), pairs(tiny_models["plain"], 12)
    expected = score_pairs(lm, some, 128, lambda *_: None)
    whole = score_pairs(lm, some, 512, lambda *_: None)
    sizes, told = short_of_memory(monkeypatch, 150), list[int]()
    assert scored(run, lm, some, told) == expected
    assert max(sizes) > 150 and sum(told) == 12
    assert [line.rpartition("; ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "256 for the rest of the stage", "128 for the rest of the stage",
    ]  # fmt: skip
    for a, b in zip(expected, whole, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_progress_is_taken_back_where_a_part_was_done(run: Run) -> None:
    """One of four fails, so halves are tried, of which the second finds no memory: all four are done again."""
    told: list[int] = []

    def work(some: Sequence[int], tokens: int, advance: Callable[[int, int], None]) -> list[int]:
        advance(len(some), 0)
        if 1 in some and len(some) > 1:
            raise ValueError("no")
        if tokens > 256 and 3 in some:
            raise MemoryError
        return list(some)

    found = budget.one_by_one(run, "s", "a", range(4), lambda: 1, work, lambda items, _: told.append(items))
    assert found == [0, 1, 2, 3] and sum(told) == 4 and budget._lowered == {"s": 256}


def test_a_pair_that_fails_has_no_score(run: Run, tiny_models: dict[str, Path]) -> None:
    lm, some = load_language_model(tiny_models["plain"], "float32"), pairs(tiny_models["plain"], 12)
    expected = score_pairs(lm, some, 512, lambda *_: None)
    some[5] = Pair([10**6], some[5].target)  # no such token
    told: list[int] = []
    found = scored(run, lm, some, told)
    bad = found.pop(5)
    assert isinstance(bad, Fault) and bad.reason.startswith("IndexError") and sum(told) == 12
    expected.pop(5)
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("at", [1, 2])
def test_the_step_is_the_same_in_smaller_batches(
    at: int, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the first micro-batch, or in the second, when there are gradients already."""
    folder = tiny_models["plain"]
    section = LORA.model_copy(update={"batch_size": 8})
    expected = trained(folder, tmp_path / "a", examples_of(folder), section, 64)
    calls = [0]

    def limited(logprobs: Sequence[Any], *rest: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return weighted_nll(list(logprobs), *rest)

    monkeypatch.setattr("train.loop.weighted_nll", limited)
    tensors, losses = trained(folder, tmp_path / "b", examples_of(folder), section, 128)
    assert calls[0] > at and losses == expected[1]
    assert all(torch.equal(tensor, expected[0][name]) for name, tensor in tensors.items())
