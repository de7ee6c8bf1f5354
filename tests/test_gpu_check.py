"""`make gpu-check`: its JSON; and each step fails when what it checks is broken on purpose, here with stand-ins."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pipeline.gpu_check.__main__ as command
from data.config.load import load_config
from data.errors import UserError
from peers.engines.protocol import Completion, Request, Sampling
from peers.engines.transformers import TransformersEngine
from peers.logprob import attention, head
from peers.logprob.scoring import score_pairs
from peers.placement import here
from peers.prompts import load_prompts
from pipeline.gpu_check import engines, numbers, rounds, shapes
from pipeline.gpu_check.step import Failed, Setting, Skipped, Step, verdict
from tests.conftest import ROOT
from train.loop import train_adapter

PATCH = pytest.MonkeyPatch
STEPS = {step.name: step for step in command.all_steps()}


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: PATCH) -> Setting:
    """A small one on the CPU."""
    monkeypatch.chdir(ROOT)
    return Setting(gpu=False, folder=tmp_path, small=True)


def outcome(name: str, setting: Setting) -> tuple[str, str]:
    """Verdict and reason."""
    found = verdict(STEPS[name], setting)
    assert found["step"] == name and found["seconds"] >= 0
    return found["verdict"], found["reason"]


# --- the steps that no engine takes part in ---------------------------------------------------------------------------


def _no_compiler(monkeypatch: PATCH) -> None:
    def lacks() -> None:
        raise UserError("no C compiler")

    monkeypatch.setattr("peers.gpu.check_gpu", lacks)


def _head_without_its_last_token(monkeypatch: PATCH) -> None:
    whole = head.logsumexp
    monkeypatch.setattr(head, "logsumexp", lambda h, w, *rest: whole(h, w[:-200], *rest))


def _wrong_positions(monkeypatch: PATCH) -> None:
    whole = attention.Forest.__init__

    def wrong(self: Any, trees: Any, device: Any) -> None:
        whole(self, trees, device)
        self.depths_N = self.depths_N + (torch.arange(len(self.depths_N)) % 2)

    monkeypatch.setattr(attention.Forest, "__init__", wrong)
    monkeypatch.setattr("peers.logprob.model.LanguageModel._can_pack", lambda self: True)


def _other_scores(monkeypatch: PATCH) -> None:
    whole = score_pairs
    monkeypatch.setattr(shapes, "score_pairs", lambda *a: [[2 * x for x in row] for row in whole(*a)])


def _no_learning(monkeypatch: PATCH) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)


def _checkpointing_that_changes_losses(monkeypatch: PATCH) -> None:
    whole: Any = train_adapter

    def wrong(*arguments: Any, checkpointing: Any) -> Any:
        done = whole(*arguments, checkpointing=checkpointing)
        return done if checkpointing == "auto" else type(done)([2 * x for x in done.losses], done.tokens)

    monkeypatch.setattr(shapes, "train_adapter", wrong)


@pytest.mark.parametrize("name", ["environment", "head", "packed", "score", "train"])
def test_a_step_holds_here(name: str, setting: Setting) -> None:
    assert outcome(name, setting) == ("ok", "")


@pytest.mark.parametrize(
    ("name", "broken", "told"),
    [
        ("environment", _no_compiler, "no C compiler"),
        ("head", _head_without_its_last_token, "log-sum-exp"),
        ("packed", _wrong_positions, "packed scores"),
        ("score", _other_scores, "random weights have about"),
        ("train", _no_learning, "does not fall"),
        ("train", _checkpointing_that_changes_losses, "gradient checkpointing"),
    ],
)
def test_a_step_fails_when_what_it_checks_is_broken(
    name: str, broken: Callable[[PATCH], None], told: str, setting: Setting, monkeypatch: PATCH
) -> None:
    broken(monkeypatch)
    found, reason = outcome(name, setting)
    assert found == "failed" and told in reason


# --- engines ----------------------------------------------------------------------------------------------------------


class StandIn:
    """A live engine made of transformers' one: a request's samples follow from its seed."""

    def __init__(self, directory: Path) -> None:
        config = load_config(ROOT / "configs/nano.toml", [])
        self.prompts, self.runtime, self.ended = load_prompts(config, "gemma2"), here(config.runtime), False
        self.renew(directory, None)

    def renew(self, directory: Path, adapter: Path | None) -> bool:
        """Other weights."""
        self.engine = TransformersEngine(directory, self.prompts, self.runtime, "float32")
        return True

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Any) -> list[Completion]:
        """One by one, where they are drawn."""
        short = Sampling(sampling.temperature, sampling.top_p, min(12, sampling.max_new_tokens))
        if not sampling.temperature:
            return self.engine.generate(requests, short, advance)
        return [self.engine.generate([request], short, advance)[0] for request in requests]

    def sleep(self) -> bool:
        """It has nothing to give back."""
        return True

    def wake(self) -> None:
        """As it was."""

    def close(self) -> None:
        """Its end."""
        self.ended = True


class OffLogprobs(StandIn):
    """Its log-probabilities are off by 0.05 nats a token."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Any) -> list[Completion]:
        """As they would be in bf16 under a soft-cap."""
        found = super().generate(requests, sampling, advance)
        return [Completion(c.token_ids, c.text, c.logprob + 0.05 * len(c.token_ids), c.finish_reason) for c in found]


class NotGreedy(StandIn):
    """It draws what should be the likeliest."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Any) -> list[Completion]:
        """At temperature 3."""
        return super().generate(requests, sampling if sampling.temperature else Sampling(3.0, 1.0, 12), advance)


class OrderMatters(StandIn):
    """Its samples depend on a request's place."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Any) -> list[Completion]:
        """Seeds by place."""
        return super().generate([Request(r.prompt, i) for i, r in enumerate(requests)], sampling, advance)


class NotRenewed(StandIn):
    """It says that it has taken the weights, and has not."""

    def renew(self, directory: Path, adapter: Path | None) -> bool:
        """Only at its start."""
        return hasattr(self, "engine") or super().renew(directory, adapter)


class NeverBack(StandIn):
    """It takes no weights a second time."""

    renewals = 0

    def renew(self, directory: Path, adapter: Path | None) -> bool:
        """At its start and once more."""
        self.renewals += 1
        return self.renewals > 2 or super().renew(directory, adapter)


class HalfRenewed(StandIn):
    """Of other weights it takes one tensor too few."""

    def renew(self, directory: Path, adapter: Path | None) -> bool:
        """The first layer's MLP stays."""
        old = getattr(self, "engine", None)
        super().renew(directory, adapter)
        if old is not None and directory.name == "other":
            self.engine.lm.decoder.layers[0].mlp.load_state_dict(old.lm.decoder.layers[0].mlp.state_dict())
        return True


@pytest.fixture
def live(monkeypatch: PATCH) -> Iterator[Callable[[type[StandIn]], None]]:
    """Have the steps take a kind of stand-in; a fresh engine is always a good one."""
    opened: list[StandIn] = []

    def use(kind: type[StandIn]) -> None:
        def open_engine(_: Setting, directory: Path) -> StandIn:
            opened.append((StandIn if opened else kind)(directory))
            return opened[-1]

        monkeypatch.setattr(engines, "open_engine", open_engine)

    yield use
    engines._engine.clear()
    engines._renewed.clear()


def test_the_engines_steps_hold(setting: Setting, live: Callable[[type[StandIn]], None]) -> None:
    live(StandIn)
    for name in ("engine", "renewed", "closed", "fresh"):
        assert outcome(name, setting) == ("ok", "")
    assert outcome("closed", setting) == ("skipped", "no engine was started")
    assert outcome("sleep", setting)[0] == "skipped"


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("engine", OffLogprobs, "log p is 0.05 nats"),
        ("engine", NotGreedy, "below the likeliest"),
        ("engine", OrderMatters, "order of the requests"),
        ("renewed", NotRenewed, "changed no answer"),
        ("renewed", NeverBack, "did not come back"),
        ("fresh", HalfRenewed, "other than a fresh one"),
    ],
)
def test_an_engine_that_is_wrong_is_found_out(
    name: str, kind: type[StandIn], told: str, setting: Setting, live: Callable[[type[StandIn]], None]
) -> None:
    live(kind)
    if name == "fresh":
        assert outcome("renewed", setting)[0] == "ok"
    found, reason = outcome(name, setting)
    assert found == "failed" and told in reason


def test_sleep_and_memory_on_a_gpu(tmp_path: Path, live: Callable[[type[StandIn]], None], monkeypatch: PATCH) -> None:
    monkeypatch.chdir(ROOT)
    gib, there = numbers.GIB, Setting(gpu=True, folder=tmp_path)

    def taken(*gibibytes: float) -> None:
        left = [int(each * gib) for each in gibibytes]
        monkeypatch.setattr(engines, "held", lambda: left.pop(0))

    monkeypatch.setattr(engines, "asked", lambda engine, n: [])
    monkeypatch.setattr(engines, "_share", lambda some, others: 1.0)
    monkeypatch.setattr(StandIn, "generate", lambda self, *_: [])
    live(StandIn)
    taken(1, 5, 2)
    assert outcome("sleep", there) == ("ok", "")
    taken(5, 4.5)
    assert "asleep" in outcome("sleep", there)[1]
    monkeypatch.setattr(engines, "_share", lambda some, others: 0.9)
    taken(5, 2)
    assert "awake" in outcome("sleep", there)[1]
    taken(2.2)
    assert "still holds 1.20 GiB" in outcome("closed", there)[1]
    engines._engine.append(StandIn(ROOT / "peers/gemma2"))
    taken(1.8)
    assert outcome("closed", there) == ("ok", "")


def test_an_engine_that_says_nothing_fails_the_shapes(setting: Setting, monkeypatch: PATCH) -> None:
    class Silent:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.generate, self.close = (lambda *_: None), (lambda: None)

    monkeypatch.setattr("peers.engines.vllm.VllmEngine", Silent)
    monkeypatch.setattr(shapes, "util", SimpleNamespace(find_spec=lambda name: name))
    assert outcome("generate", setting) == ("failed", "the engine generated nothing")
    monkeypatch.setattr(shapes, "util", SimpleNamespace(find_spec=lambda name: None))
    assert outcome("generate", setting) == ("skipped", "vLLM is not installed")


# --- the round --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "finished", "told"),
    [(0, True, None), (1, True, "status 1"), (0, False, "is not finished"), (None, True, "ended by itself")],
)
def test_the_round(status: int | None, finished: bool, told: str | None, tmp_path: Path, monkeypatch: PATCH) -> None:
    killed: list[int] = []
    processes = [
        SimpleNamespace(poll=lambda: 1 if status is None else None, pid=-1, returncode=1, wait=lambda: -9),
        SimpleNamespace(wait=lambda: status),
    ]

    def begin(folder: Path) -> Any:
        (folder / "log").touch()
        (folder / "runs/gpu-check/round=1/chains/.work/shard").mkdir(parents=True, exist_ok=True)
        return processes.pop(0)

    monkeypatch.setattr(rounds, "_start", begin)
    monkeypatch.setattr("os.killpg", lambda pid, _: killed.append(pid))
    monkeypatch.setattr(rounds, "read_manifest", lambda folder: {"rows": 72} if finished else None)
    found, reason = outcome("round", Setting(gpu=False, folder=tmp_path))
    assert (found, killed) == ("failed" if told else "ok", [] if status is None else [-1])
    assert (told or "") in reason
    assert outcome("round", Setting(gpu=False, folder=tmp_path, small=True))[0] == "skipped"


def test_what_stays_on_the_gpu_fails_the_round(tmp_path: Path, monkeypatch: PATCH) -> None:
    mebibytes = [500, 1500]
    processes = [SimpleNamespace(poll=lambda: None, pid=-1, returncode=None, wait=lambda: -9)]
    processes.append(SimpleNamespace(wait=lambda: 0))

    def begin(folder: Path) -> Any:
        (folder / "log").touch()
        (folder / "runs/gpu-check/round=1/chains/.work/shard").mkdir(parents=True, exist_ok=True)
        return processes.pop(0)

    monkeypatch.setattr(rounds, "taken", lambda: mebibytes.pop(0))
    monkeypatch.setattr(rounds, "_start", begin)
    monkeypatch.setattr("os.killpg", lambda *_: None)
    monkeypatch.setattr(rounds, "read_manifest", lambda folder: {"rows": 72})
    assert "still taken" in outcome("round", Setting(gpu=True, folder=tmp_path))[1]


# --- verdicts, processes, the JSON ------------------------------------------------------------------------------------


def test_a_step_has_its_own_verdict_and_limit(setting: Setting) -> None:
    def fails(_: Setting, figures: dict[str, Any]) -> None:
        figures["seen"] = 0.123456
        raise Failed("no")

    def hangs(_: Setting, __: dict[str, Any]) -> None:
        while True:
            pass

    def skips(_: Setting, __: dict[str, Any]) -> None:
        raise Skipped("not here")

    def breaks(_: Setting, __: dict[str, Any]) -> None:
        raise KeyError("a\nb")

    hurried = Setting(gpu=True, folder=setting.folder)  # a CPU has three times as long
    found = [verdict(Step(body.__name__, "g", 1, body), hurried) for body in (fails, hangs, skips, breaks)]
    assert [each["verdict"] for each in found] == ["failed", "failed", "skipped", "failed"]
    assert [each["reason"] for each in found] == ["no", "out of time", "not here", "KeyError: 'a\\nb'"]
    assert found[0]["figures"] == {"seen": 0.1235}


@pytest.mark.parametrize("ends", ["dies", "hangs"])
def test_a_process_that_ends_costs_what_it_had_not_finished(ends: str, setting: Setting, monkeypatch: PATCH) -> None:
    said = json.dumps({"step": "a", "verdict": "ok", "reason": "", "seconds": 1, "figures": {}})
    body = f"import sys, time; print('gpu-check-step: ' + {said!r}, flush=True); print('noise'); "
    body += "time.sleep(60)" if ends == "hangs" else "sys.stderr.write('segfault'); sys.exit(3)"
    whole = subprocess.Popen

    def popen(_: list[str], **options: Any) -> Any:
        return whole([sys.executable, "-c", body], **options)

    monkeypatch.setattr("subprocess.Popen", popen)
    steps = [Step(name, "g", 1, lambda *_: None) for name in "abc"]
    found = command.run_group(steps, setting, 1.0 if ends == "hangs" else 30.0)
    assert [each["verdict"] for each in found] == ["ok", "failed", "skipped"]
    assert ("was ended after" if ends == "hangs" else "died (3): segfault") in found[1]["reason"]


def test_there_is_no_time_left(monkeypatch: PATCH) -> None:
    monkeypatch.setattr(command, "run_group", lambda *_: pytest.fail("started"))
    found = command.check([], small=True, limit=1)
    assert found["ok"] and {each["verdict"] for each in found["steps"]} == {"skipped"}
    assert [each["step"] for each in found["steps"]] == [*STEPS]


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(UserError, match="'heat': expected some of environment, head"):
        command.chosen(["heat"])


def call(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.gpu_check", *arguments], cwd=ROOT, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_all_of_it_in_small(tmp_path: Path) -> None:
    status, found = call("--small", "--out", str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == found
    assert [each["step"] for each in found["steps"]] == [*STEPS]
    failed = [each for each in found["steps"] if each["verdict"] == "failed"]
    assert status == 0 and found["ok"] and not failed, failed


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    status, found = call()
    assert status == 0 and found["gpu"] and found["seconds"] <= command.LIMIT + 10, found
