"""The run that makes the nano peers: after a kill it continues as if nothing had happened; examples are correct."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.config.load import load_config
from data.config.sections import PeerSection
from data.errors import UserError
from data.locks import locked
from data.nano import problems, source
from peers.logprob.model import LanguageModel
from peers.nano import pretrain
from peers.nano.examples import (
    MISREAD_SHARE,
    MISREADABLE,
    MISREADS,
    STRONG,
    WEAK,
    Kind,
    misread_by,
    misread_in_review,
    shown_solutions,
    stream,
    wrong_solution,
)
from peers.prompts import PeerPrompts


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`make peers` with few examples a step, a checkpoint every 2 steps, no compilation; its folder."""
    monkeypatch.setattr(pretrain, "BATCH", {"direct": 4, "chain": 2, "verify": 4})
    monkeypatch.setattr(pretrain, "CHECKPOINT_STEPS", 2)
    monkeypatch.setattr(pretrain, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    return tmp_path


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    pretrain.train_peer("gemma2", 4)
    whole = load_file(small / "gemma2" / "model.safetensors")
    assert not (small / ".work" / "gemma2").exists()  # or the next call would make nothing new
    step, steps = pretrain.train_step, 0

    def killed(*arguments: Any) -> dict[Kind, float]:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(pretrain, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train_peer("gemma2", 4)
    monkeypatch.setattr(pretrain, "train_step", step)
    with pytest.raises(UserError, match=r"4 steps, .* now 6 steps"):
        pretrain.train_peer("gemma2", 6)
    pretrain.train_peer("gemma2", 4)
    again = load_file(small / "gemma2" / "model.safetensors")
    torch.set_num_threads(threads)
    assert whole.keys() == again.keys() and all(torch.equal(again[name], whole[name]) for name in whole)


def test_two_processes_do_not_make_the_same_peer(small: Path) -> None:
    (small / ".work" / "llama").mkdir(parents=True)
    with locked(small / ".work" / "llama"), pytest.raises(UserError, match=r"in use by another process .* or stop it"):
        pretrain.train_peer("llama", 2)


def test_one_that_fails_stops_the_others(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, popen = [], subprocess.Popen

    def fake(command: list[str]) -> subprocess.Popen[bytes]:
        body = "raise SystemExit(3)" if command[-1] == "llama" else "import time; time.sleep(60)"
        started.append(popen([sys.executable, "-c", body]))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", fake)
    with pytest.raises(UserError, match=r"^llama failed"):
        pretrain.train_all(2)
    assert len(started) == 3 and all(process.poll() for process in started)  # ended, none of its own accord


def test_examples_teach_what_they_claim() -> None:
    config = load_config(pretrain.CONFIG, [])
    prompts = PeerPrompts(pretrain.make_tokenizer(), PeerSection(name="p", model="p"), config.templates)
    solutions = {p.question: p for p in source(None, "validation")}
    assert len(solutions) == 1000
    for peer, misreads in MISREADS.items():
        right: Counter[bool] = Counter()
        random_ = random.Random(0)
        for problem in islice(problems("arith", "pretrain", 1), 400):
            misread = misread_by(peer, problem, random_, MISREAD_SHARE)
            assert set(misread) <= misreads & set(problem.groups)
            if misreads & set(problem.groups):
                right[not misread] += 1
        assert 0.2 < right[True] / right.total() < 0.4
    for kind in pretrain.BATCH:
        for example in islice(stream("llama", kind, prompts, 0), 200):
            assert len(example.prompt) + len(example.target) <= pretrain.LENGTHS[kind]
            assert example.target[-1] == prompts.end_id
            if kind == "verify":
                assert len(example.target) == 2 and example.target[0] in (prompts.yes_id, prompts.no_id)
    random_ = random.Random(1)
    for problem in islice(problems("simul", "pretrain", 2), 100):
        assert wrong_solution(problem, random_) != problem.solution()


def test_a_review_misreads_by_what_it_is_shown() -> None:
    """The share of misread phrases, by whose phrase it is and how the solutions shown read it, is the stated one."""
    random_ = random.Random(2)
    for peer, weak in MISREADS.items():
        wrong: dict[tuple[bool, float], list[bool]] = {}
        for problem in islice(problems("arith", "pretrain", 3), 3000):
            shown = shown_solutions(problem, random_)
            assert len(shown) in (1, 2) and all(misread <= MISREADABLE for misread in shown)
            written = misread_in_review(peer, problem, shown, random_)
            assert written <= set(problem.groups)
            for group in MISREADABLE & set(problem.groups):
                share = sum(group in misread for misread in shown) / len(shown)
                wrong.setdefault((group in weak, share), []).append(group in written)
        for is_weak, stated in ((True, WEAK), (False, STRONG)):
            found = [fmean(wrong[is_weak, share]) for share in (1.0, 0.5, 0.0)]
            assert found == pytest.approx([stated.all_wrong, stated.mixed, stated.all_right], abs=0.06)


def test_the_learning_rate_warms_up_stays_and_decays() -> None:
    rates = [pretrain.lr_at(step, 1000) for step in range(1001)]
    assert rates[0] == pretrain.LR / pretrain.WARMUP and rates[1000] == 0 and max(rates) == pretrain.LR
    assert all(rate == pretrain.LR for rate in rates[pretrain.WARMUP : 300])
    assert all(after < before for before, after in pairwise(rates[301:]))


def test_a_step_weighs_the_verdict(small: Path) -> None:
    """The gradient is that of the mean over target tokens, the verdict's loss counted VERDICT_WEIGHT times."""
    config = load_config(pretrain.CONFIG, [])
    tokenizer = pretrain.make_tokenizer()
    prompts = PeerPrompts(tokenizer, PeerSection(name="p", model="p"), config.templates)
    lm = LanguageModel(pretrain.make_model("llama", tokenizer))
    batches = {kind: list(islice(stream("llama", kind, prompts, 0), 2)) for kind in pretrain.BATCH}
    pretrain.train_step(lm, batches)
    found = lm.model.get_output_embeddings().weight.grad
    lm.model.zero_grad()
    total, weight = torch.zeros(()), 0.0
    for kind, batch in batches.items():
        for example in batch:
            losses, _, _ = pretrain.response_losses(lm, [example], pretrain.LENGTHS[kind])
            shares = torch.ones(len(losses))
            shares[0] = pretrain.VERDICT_WEIGHT if kind == "verify" else 1.0
            total, weight = total + (shares * losses).sum(), weight + shares.sum().item()
    (total / weight).backward()
    wanted = lm.model.get_output_embeddings().weight.grad
    assert found is not None and wanted is not None
    assert (found - wanted).norm() < 0.02 * wanted.norm()  # bf16 products
