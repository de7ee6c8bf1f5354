"""`make gpu-check`: its JSON; and each step fails if its subject is broken on purpose, here with stand-ins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import pipeline.gpu_check.__main__ as command
from data.config.load import load_config
from data.errors import UserError
from peers import gpu
from peers.engines.protocol import Completion, Request, Sampling
from peers.engines.transformers import TransformersEngine
from peers.logprob import attention, head
from peers.logprob.scoring import score_pairs
from peers.placement import runtime_here
from peers.prompts import load_prompts
from pipeline.gpu_check import engines, numbers, rounds, shapes
from pipeline.gpu_check import step as step_module
from pipeline.gpu_check.step import CheckStep, Failed, Missed, Setting, Skipped, child, kill_tree, run_step
from tests.conftest import ROOT
from train.loop import train_adapter

PATCH = pytest.MonkeyPatch
STEPS = {step.name: step for step in step_module.STEPS}


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: PATCH) -> Setting:
    """A small one on the CPU."""
    monkeypatch.chdir(ROOT)
    return Setting(gpu=False, folder=tmp_path, small=True)


def outcome(name: str, setting: Setting) -> tuple[str, str]:
    """Verdict and reason."""
    found = run_step(name, STEPS[name].check, setting, 300)
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
    whole = attention.PrefixTreeBatch.__init__

    def wrong(self: Any, trees: Any, device: Any) -> None:
        whole(self, trees, device)
        self.depths_N = self.depths_N + (torch.arange(len(self.depths_N)) % 2)

    monkeypatch.setattr(attention.PrefixTreeBatch, "__init__", wrong)
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


def test_a_gpu_that_another_process_holds_fails_the_environment(tmp_path: Path, monkeypatch: PATCH) -> None:
    monkeypatch.setattr("peers.gpu.check_gpu", lambda: None)
    monkeypatch.setattr("peers.gpu.driver", lambda: "580.1")
    for name, value in {"get_device_name": "a GPU", "get_device_capability": (9, 0), "device_count": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for free, told in ((76, ("ok", "")), (70, ("failed", "70.0 of 80.0 GiB are free: another process holds the rest"))):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free * numbers.GIB, 80 * numbers.GIB))
        assert outcome("environment", Setting(gpu=True, folder=tmp_path)) == told
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "compute capability (7, 5)" in outcome("environment", Setting(gpu=True, folder=tmp_path))[1]


@pytest.mark.parametrize("name", ["score", "train"])
def test_a_step_that_is_far_below_the_cards_rate_fails(name: str, setting: Setting, monkeypatch: PATCH) -> None:
    rates = iter([0.2, 0.2, 0.05, 0.05])
    monkeypatch.setattr(shapes, "_rates", lambda *_: {"of_bf16_rate": next(rates)})
    whole = shapes._expect_share
    monkeypatch.setattr(shapes, "_expect_share", lambda setting, figures: whole(Setting(True, setting.folder), figures))
    assert outcome(name, setting) == ("ok", "")
    if name == "score":
        next(rates)  # train asks twice
    assert outcome(name, setting) == ("failed", "0.05 of the card's bf16 rate")


# --- engines ----------------------------------------------------------------------------------------------------------


class StandIn:
    """A live engine made of transformers' one: a request's samples follow from its seed."""

    def __init__(self, directory: Path) -> None:
        config = load_config(ROOT / "configs/nano.toml", [])
        self.prompts, self.runtime, self.ended = load_prompts(config, "gemma2"), runtime_here(config.runtime), False
        self.renew(directory, None)

    def renew(self, directory: Path, adapter: Path | None) -> bool:
        """Other weights."""
        self.engine = TransformersEngine(directory, self.prompts, self.runtime, "float32")
        return True

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Any) -> list[Completion]:
        """One by one, if they are sampled."""
        short = Sampling(sampling.temperature, sampling.top_p, min(12, sampling.max_new_tokens))
        if not sampling.temperature:
            return self.engine.generate(requests, short, advance)
        return [self.engine.generate([request], short, advance)[0] for request in requests]

    def sleep(self) -> bool:
        """Nothing to release."""
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
    assert outcome("sleep", setting)[0] == "skipped"


def test_a_step_without_the_ones_before_it_is_not_done(setting: Setting, monkeypatch: PATCH) -> None:
    monkeypatch.setattr(engines, "util", SimpleNamespace(find_spec=lambda name: name))
    assert outcome("closed", setting) == ("not done", "no engine was started")
    assert outcome("fresh", setting) == ("not done", "no engine was renewed")
    monkeypatch.setattr(engines, "util", SimpleNamespace(find_spec=lambda name: None))
    for name in ("engine", "renewed", "closed", "fresh"):
        assert outcome(name, setting) == ("skipped", "vLLM is not installed")


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("engine", OffLogprobs, "log p is 0.05 nats"),
        ("engine", NotGreedy, "below the likeliest"),
        ("engine", OrderMatters, "order of the requests"),
        ("renewed", NotRenewed, "changed no answer"),
        ("renewed", NeverBack, "did not come back"),
        ("fresh", HalfRenewed, "differently from a fresh one"),
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


def test_memory_that_an_engine_keeps_asleep_or_closed_fails_the_check(
    tmp_path: Path, live: Callable[[type[StandIn]], None], monkeypatch: PATCH
) -> None:
    monkeypatch.chdir(ROOT)
    gib, there = numbers.GIB, Setting(gpu=True, folder=tmp_path)

    def taken(*gibibytes: float) -> None:
        left = [int(each * gib) for each in gibibytes]
        monkeypatch.setattr(engines, "gpu_bytes_used", lambda: left.pop(0))

    monkeypatch.setattr(engines, "requests_for", lambda engine, n: [])
    monkeypatch.setattr(engines, "_share", lambda some, others: 1.0)
    monkeypatch.setattr(StandIn, "generate", lambda self, *_: [])
    live(StandIn)
    taken(1, 5, 2)
    assert outcome("sleep", there) == ("ok", "")
    taken(5, 4.5)
    assert "sleeping" in outcome("sleep", there)[1]
    monkeypatch.setattr(engines, "_share", lambda some, others: 0.9)
    taken(5, 2)
    assert "after waking" in outcome("sleep", there)[1]
    taken(2.2)
    assert "it holds 1.20 GiB" in outcome("closed", there)[1]
    engines._engine.append(StandIn(ROOT / "peers/gemma2"))
    taken(1.8)
    assert outcome("closed", there) == ("ok", "")


def test_an_engine_that_says_nothing_fails_the_shapes(setting: Setting, monkeypatch: PATCH) -> None:
    class Silent:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.generate, self.close = (lambda *_: None), (lambda: None)

    monkeypatch.setattr("peers.engines.vllm.VllmEngine", Silent)
    monkeypatch.setattr(engines, "util", SimpleNamespace(find_spec=lambda name: name))
    assert outcome("generate", setting) == ("failed", "the engine generated nothing")
    monkeypatch.setattr(engines, "util", SimpleNamespace(find_spec=lambda name: None))
    assert outcome("generate", setting) == ("skipped", "vLLM is not installed")


def test_memory_that_a_closed_engine_keeps_fails_the_shapes(tmp_path: Path, monkeypatch: PATCH) -> None:
    class Greedy:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.close = lambda: None

        def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Any) -> None:
            """Ten tokens for each."""
            for _ in requests:
                advance(1, 10)

    monkeypatch.setattr("peers.engines.vllm.VllmEngine", Greedy)
    monkeypatch.setattr(engines, "util", SimpleNamespace(find_spec=lambda name: name))
    monkeypatch.setattr(shapes, "model", lambda _: ROOT / "peers/gemma2")
    for after, told in ((1.9, ("ok", "")), (3.5, ("failed", "after closing it holds 2.50 GiB; expected at most 1.0"))):
        taken = [1.0, after]
        monkeypatch.setattr(shapes, "gpu_bytes_used", lambda taken=taken: int(taken.pop(0) * numbers.GIB))
        assert outcome("generate", Setting(gpu=True, folder=tmp_path)) == told


# --- the round --------------------------------------------------------------------------------------------------------


ROUND_FILE = "runs/gpu-check/round=1/chains/.work/shard"


@pytest.fixture
def begun(monkeypatch: PATCH) -> tuple[list[str], list[Any]]:
    """What happens to the two commands of the step; the second list has the commands."""
    events: list[str] = []
    processes: list[Any] = []

    @contextmanager
    def started(folder: Path) -> Iterator[Any]:
        (folder / "log").touch()
        (folder / ROUND_FILE).mkdir(parents=True, exist_ok=True)
        events.append("started")
        yield processes.pop(0)
        events.append("killed")

    monkeypatch.setattr(rounds, "_started", started)
    return events, processes


@pytest.mark.parametrize(
    ("status", "finished", "told"),
    [(0, True, None), (1, True, "status 1"), (0, False, "is not finished"), (None, True, "ended by itself")],
)
def test_a_round_that_fails_or_does_not_finish_fails_the_check(
    status: int | None, finished: bool, told: str | None, tmp_path: Path, begun: Any, monkeypatch: PATCH
) -> None:
    events, processes = begun
    processes.append(SimpleNamespace(poll=lambda: 1 if status is None else None, returncode=1))
    processes.append(SimpleNamespace(wait=lambda: status))
    monkeypatch.setattr(rounds, "read_manifest", lambda folder: {"rows": 72} if finished else None)
    found, reason = outcome("round", Setting(gpu=False, folder=tmp_path))
    assert found == ("failed" if told else "ok") and (told or "") in reason
    assert events == (["started"] if status is None else ["started", "killed"] * 2)
    assert outcome("round", Setting(gpu=False, folder=tmp_path, small=True))[0] == "skipped"


def test_what_stays_on_the_gpu_fails_the_round(tmp_path: Path, begun: Any, monkeypatch: PATCH) -> None:
    mebibytes = [500, 1500]
    begun[1].extend([SimpleNamespace(poll=lambda: None, returncode=None), SimpleNamespace(wait=lambda: 0)])
    monkeypatch.setattr(rounds, "gpu_mib_used", lambda: mebibytes.pop(0))
    monkeypatch.setattr(rounds, "read_manifest", lambda folder: {"rows": 72})
    assert "still in use" in outcome("round", Setting(gpu=True, folder=tmp_path))[1]


# starts one that starts another in a session of its own, and says both ids
TREE = """
import subprocess, sys, time
inner = "import time; time.sleep(60)"
outer = f"import subprocess, sys; command = [sys.executable, '-S', '-c', {inner!r}]; "
outer += "p = subprocess.Popen(command, start_new_session=True); print(p.pid, flush=True); p.wait()"
middle = subprocess.Popen([sys.executable, "-S", "-c", outer], stdout=subprocess.PIPE, text=True)
open(sys.argv[1], "w").write(f"{middle.pid} {middle.stdout.readline()}")
time.sleep(60)
"""


def _tree(file: Path) -> list[int]:
    """The ids of the two that TREE has started."""
    end = time.monotonic() + 20
    while not file.is_file() or len(file.read_text(encoding="utf-8").split()) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    return [int(each) for each in file.read_text(encoding="utf-8").split()]


def _runs(number: int) -> bool:
    """A zombie waits for somebody to take its status."""
    try:
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_tree_is_killed_whole(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", TREE, str(tmp_path / "ids")])
    started = _tree(tmp_path / "ids")
    assert all(map(_runs, started))
    kill_tree(process)
    assert process.returncode == -9 and not any(map(_runs, started))


def test_a_round_that_is_out_of_time_is_killed_whole(tmp_path: Path, monkeypatch: PATCH) -> None:
    whole, ids = subprocess.Popen, tmp_path / "ids"

    def popen(_: list[str], **options: Any) -> Any:
        return whole([sys.executable, "-S", "-c", TREE, str(ids)], **options)

    monkeypatch.setattr("subprocess.Popen", popen)
    found = run_step("round", rounds.check_round, Setting(gpu=False, folder=tmp_path), 1.5)
    assert (found["verdict"], found["reason"]) == ("failed", "out of time")
    assert not any(map(_runs, _tree(ids)))


# --- verdicts, processes, the JSON ------------------------------------------------------------------------------------


def test_a_step_has_its_own_verdict_and_limit(setting: Setting) -> None:
    def fails(_: Setting, figures: dict[str, Any]) -> None:
        figures |= {"seen": 0.123456, "none": float("nan")}
        raise Failed("no")

    def hangs(_: Setting, __: dict[str, Any]) -> None:
        while True:
            pass

    def skips(_: Setting, __: dict[str, Any]) -> None:
        raise Skipped("not here")

    def breaks(_: Setting, __: dict[str, Any]) -> None:
        raise KeyError("a\nb")

    def misses(_: Setting, __: dict[str, Any]) -> None:
        raise Missed("too late")

    found = [run_step("a", body, setting, 0.3) for body in (fails, hangs, skips, breaks, misses)]
    assert [each["verdict"] for each in found] == ["failed", "failed", "skipped", "failed", "not done"]
    assert [each["reason"] for each in found] == ["no", "out of time", "not here", "KeyError: 'a\\nb'", "too late"]
    assert found[0]["figures"] == {"seen": 0.1235, "none": "nan"}


def test_the_limits_of_all_steps_add_up_to_that_of_the_command(monkeypatch: PATCH) -> None:
    ends = [*command.deadlines(step_module.STEPS, command.LIMIT).values()]
    needed = [step.seconds for step in step_module.STEPS]
    assert ends[-1] == command.LIMIT == sum(needed) + 4 * step_module.START
    assert all(end - before >= step for end, before, step in zip(ends, [0, *ends], needed, strict=False))
    assert command.deadlines([STEPS["head"], STEPS["score"]], 60) == {"head": 30, "score": 60}


# says a verdict on its first step, as `child` would
SAYS = """
import json, sys, time
told = json.loads(sys.argv[-1])["told"]
found = {"step": "a", "verdict": "ok", "reason": "", "seconds": 1, "figures": {}}
open(told, "a").write(json.dumps(found) + "\\n")
"""


def _in_a_process(body: str, monkeypatch: PATCH) -> None:
    """Have processes of steps run this."""
    whole = subprocess.Popen

    def popen(given: list[str], **options: Any) -> Any:
        return whole([sys.executable, "-S", "-c", SAYS + body, given[-1]], **options)

    monkeypatch.setattr("subprocess.Popen", popen)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("time.sleep(60)", "out of time, its process was killed"),
        ("sys.stderr.write('segfault'); sys.exit(3)", "died (3): segfault"),
    ],
)
def test_a_process_that_ends_costs_what_it_had_not_finished(
    body: str, told: str, setting: Setting, monkeypatch: PATCH
) -> None:
    _in_a_process(body, monkeypatch)
    monkeypatch.setattr(command, "GRACE", 0.2)
    found: list[dict[str, Any]] = []
    until = dict.fromkeys("abc", time.monotonic() + (0.5 if "sleep" in body else 20))
    command.run_group([CheckStep(name, "g", 1) for name in "abc"], setting, until, found)
    assert [each["verdict"] for each in found] == ["ok", "failed", "not done"]
    assert told in found[1]["reason"] and found[2]["reason"].startswith("b: ")


def test_what_there_was_no_time_for_is_not_ok(monkeypatch: PATCH) -> None:
    _in_a_process("time.sleep(60)", monkeypatch)
    monkeypatch.setattr(command, "GRACE", 0.1)
    steps = [CheckStep(name, "g", 1) for name in "abc"]
    found = command.check(steps, small=True, limit=0.5)
    assert not found["ok"] and [each["verdict"] for each in found["steps"]][1:] == ["failed", "not done"]


@pytest.mark.parametrize(("verdicts", "ok"), [(["ok", "skipped"], True), (["ok", "not done"], False)])
def test_what_is_skipped_is_ok_and_what_is_not_done_is_not(verdicts: list[str], ok: bool, monkeypatch: PATCH) -> None:
    def run_group(steps: Any, setting: Any, until: Any, found: list[dict[str, Any]]) -> None:
        found.extend({"verdict": each} for each in verdicts)

    monkeypatch.setattr(command, "run_group", run_group)
    assert command.check([CheckStep("a", "g", 1)], small=True, limit=9)["ok"] is ok
    with pytest.raises(SystemExit) as ended:
        command.report(None, "head", True, None)
    assert ended.value.code == (0 if ok else 1)


@pytest.mark.parametrize(("cuda", "told"), [(None, "is built for the CPU alone"), ("13.0", "sees none")])
def test_a_gpu_that_torch_does_not_see_fails_every_step(
    cuda: str | None, told: str, tmp_path: Path, monkeypatch: PATCH
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "gpu_is_there", lambda: True)
    monkeypatch.setattr(gpu, "driver", lambda: "580.1")
    gpu.check_gpu.cache_clear()
    until = dict.fromkeys(("environment", "head"), time.monotonic() + 60)
    child(Setting(gpu=True, folder=tmp_path), until, tmp_path / "told")
    gpu.check_gpu.cache_clear()
    found = [json.loads(line) for line in (tmp_path / "told").read_text(encoding="utf-8").splitlines()]
    assert [(each["step"], each["verdict"]) for each in found] == [("environment", "failed"), ("head", "failed")]
    assert all(told in each["reason"] for each in found)


def test_a_gpu_counts_whatever_torch_is_built_for(tmp_path: Path, monkeypatch: PATCH) -> None:
    seen: list[bool] = []
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr("peers.devices.DEV", tmp_path)
    monkeypatch.setattr("peers.devices.torch_is_for_cpus", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(command, "run_group", lambda steps, setting, *_: seen.append(setting.gpu))
    assert command.check([CheckStep("a", "g", 1)], small=True, limit=None)["gpu"] and seen == [True]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not command.check([CheckStep("a", "g", 1)], small=True, limit=None)["gpu"]


# Ctrl-C comes while a step's process has others running
INTERRUPTED = f"""
import subprocess, sys
import pipeline.gpu_check.__main__ as command
whole, (folder, out, tree) = subprocess.Popen, sys.argv[1:]
def popen(given, **options):
    return whole([sys.executable, "-S", "-c", {SAYS!r} + tree, folder + "/ids", given[-1]], **options)
subprocess.Popen = popen
sys.argv[1:] = ["--out", out, "--steps", "environment,head,round"]
command.start(command.app, "pipeline.gpu_check")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_at_once(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path), str(out), TREE], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    started = _tree(tmp_path / "ids")
    time.sleep(0.3)  # so that the first verdict is read
    process.send_signal(number)
    said, _ = process.communicate(timeout=5)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert process.returncode == 130 and json.loads(said.splitlines()[-1]) == found
    assert not found["ok"] and found["interrupted"] and not any(map(_runs, started))
    assert [each["verdict"] for each in found["steps"]] == ["ok", "not done", "not done"]


def test_help_is_plain_and_says_how_long_it_takes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.gpu_check", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "╭" not in done.stdout and "4 minutes on a GPU" in " ".join(done.stdout.split())


def test_what_is_asked_wrongly_is_refused_first(tmp_path: Path, monkeypatch: PATCH) -> None:
    monkeypatch.setattr(command, "check", lambda *_: pytest.fail("started"))
    with pytest.raises(UserError, match="'heat': expected some of environment, head"):
        command.report(None, "heat", True, None)
    with pytest.raises(UserError, match=r"the folder .* is missing"):
        command.report(tmp_path / "none" / "out.json", "", True, None)


def call(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.gpu_check", *arguments], cwd=ROOT, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_whole_check_passes_here_in_small(tmp_path: Path) -> None:
    status, found = call("--small", "--out", str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == found
    assert [each["step"] for each in found["steps"]] == [*STEPS]
    failed = [each for each in found["steps"] if each["verdict"] == "failed"]
    assert status == 0 and found["ok"] and not failed, failed


@pytest.mark.gpu
def test_the_whole_check_passes_on_a_gpu_in_time() -> None:
    status, found = call()
    assert status == 0 and found["gpu"] and found["seconds"] <= command.LIMIT + 10, found


def test_the_round_finds_packages_on_the_callers_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setenv("PYTHONPATH", "/where/packages/lie")
    monkeypatch.setattr("subprocess.Popen", lambda *_, env, **__: given.append(env["PYTHONPATH"]))
    monkeypatch.setattr(rounds, "kill_tree", lambda process: None)
    with rounds._started(tmp_path):
        pass
    assert given == [f"{ROOT}{os.pathsep}/where/packages/lie"]
