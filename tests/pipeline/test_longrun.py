"""What a long run survives, through the real command lines: a poisoned question, too little memory, a peer's process
that is killed, a disk that is full."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import pytest

from data import shards
from data.schema import CHAINS, EVALS, QUARANTINE, SCORES
from data.shards import Row
from tests.conftest import ROOT, read_stage
from tests.pipeline.test_resume import assert_same, environment

# Python imports it in every process of a command: what goes wrong is put where the module is loaded
HOOK = """
import importlib.util, os, pathlib, signal, sys

def patch_engine(module):
    batch = module.TransformersEngine._batch
    def poisoned(self, requests, sampling):
        for request in requests:
            if self.prompts.peer.name == "plain" and "Tom has 3 pens" in self.prompts.decode(request.prompt):
                raise IndexError("index out of range in self")
        return batch(self, requests, sampling)
    module.TransformersEngine._batch = poisoned

def patch_model(module):
    import torch
    hidden = module.LanguageModel.hidden
    def short(self, tree_batch):
        if len(tree_batch.tokens_N) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return hidden(self, tree_batch)
    module.LanguageModel.hidden = short

def patch_verifier(module):
    verify = module.verify_all
    def killed(*arguments):
        mark = pathlib.Path("killed")
        if not mark.exists() or os.environ["FAULT"] == "die always":
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return verify(*arguments)
    killed.__module__, killed.__qualname__ = verify.__module__, verify.__qualname__
    module.verify_all = killed

PATCHES = {
    "poison": ("peers.engines.transformers", patch_engine), "memory": ("peers.logprob.model", patch_model),
    "die once": ("evaluate.verifier", patch_verifier), "die always": ("evaluate.verifier", patch_verifier),
}

class Hook:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        module, patch = PATCHES[os.environ["FAULT"]]
        if name != module:
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def patched(found):
            execute(found)
            patch(found)
        spec.loader.exec_module = patched
        return spec

if os.environ.get("FAULT"):
    sys.meta_path.insert(0, Hook)
"""
VLLM = """
import sys
from pathlib import Path
from data.config.load import load_config
from peers.engines.protocol import Sampling, complete
from peers.engines.vllm import VllmEngine
from peers.prompts import load_prompts

if __name__ == "__main__":
    config = load_config(Path("tiny.toml"), [])
    runtime = config.runtime.model_copy(update={"kv_cache_gib": 0.1, "max_num_seqs": 8})
    prompts = load_prompts(config, "chatty")
    engine = VllmEngine(Path(sys.argv[1]), prompts, config.generate, runtime, "float32", 0)
    asked = [prompts.solve(f"Tom has {n} pens.") for n in range(6)]
    ask = lambda asked, **options: complete(lambda: engine, asked, list(range(6)), Sampling(0.8, 0.9, 8), 400,
                                            lambda *_: None, **options)
    clean = ask(asked)
    poison = [*asked[:2], [10**6], *asked[3:]]  # no such token: vLLM refuses it before it begins
    found = ask(poison, max_faults=3)
    assert [each.finish_reason == "error" for each in found] == [n == 2 for n in range(6)], found
    ids = lambda some: [each.token_ids for each in some]
    assert ids(found[:2] + found[3:]) == ids(clean[:2] + clean[3:])
    first, step, fails = engine.llm, engine.llm.llm_engine.step, []

    def failing():
        fails.append(1)
        if len(fails) == 3:
            raise RuntimeError("in the middle of a step")
        return step()

    engine.llm.llm_engine.step = failing
    found = ask(asked, max_faults=3)
    assert ids(found) == ids(clean) and any(ids(clean)) and engine.llm is not first and len(fails) == 3
    print("as it was")
"""
SET = ("--set", "generate.temperature=0", "--set", "runtime.train_tokens=1024", "--set", "run.shard_questions=12")


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """As in test_resume.py: what is compared must not differ by the number of threads."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


def stage(name: str, round_: int, run: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    """One stage, in which something goes wrong."""
    hooks = Path("hooks")
    hooks.mkdir(exist_ok=True)
    (hooks / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    variables = {**environment(), "FAULT": fault, "PYTHONPATH": f"{hooks.resolve()}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", name, "--config", "tiny.toml", "--run", run, "--round", str(round_), *SET]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)


def done(name: str, round_: int, run: str, fault: str = "") -> str:
    """`stage`, which must end well: what it printed."""
    found = stage(name, round_, run, fault)
    assert found.returncode == 0 and not found.stderr, found.stderr
    return found.stdout


@pytest.mark.slow
def test_a_round_in_which_everything_goes_wrong(project: Path) -> None:
    assert "quarantined engine_error 1" in done("generate", 1, "t", "poison")
    (lost,) = shards.read_rows(Path("runs/t/round=1/quarantine.parquet"), QUARANTINE)
    assert (lost["peer"], lost["reason"]) == ("plain", "engine_error")
    assert lost["detail"] == "IndexError: index out of range in self"
    done("generate", 1, "u")
    left, right = (rows_of("chains", run, lost["question_id"]) for run in "tu")
    assert_same(left, right, 1e-5)

    out = done("score", 1, "t", "memory")
    assert "out of memory with runtime.score_tokens = 2,048" in out and "for the rest of the stage" in out, out
    out = done("train", 1, "t", "memory")
    assert "out of memory with runtime.train_tokens = 1,024" in out, out
    done("score", 1, "u")
    left, right = (rows_of("scores", run, lost["question_id"]) for run in "tu")
    for row in (*left, *right):
        del row["weight"]  # it is of the whole round
    assert_same(left, right, 1e-4)

    out = done("evaluate", 0, "t", "die once")
    assert "its process died (exit code -9); starting another one" in out
    done("evaluate", 0, "u")
    left, right = (read_stage(Path(f"runs/{run}/round=0/evals"), EVALS) for run in "tu")
    assert_same(left, right, 1e-5)
    found = stage("evaluate", 1, "t", "die always")
    (line,) = found.stderr.splitlines()
    assert found.returncode == 2 and "was killed 2 times at the same work (exit code -9" in line
    assert "evaluate round 1" in done("evaluate", 1, "t")

    variables = {**environment(), "PYTHONPATH": str(ROOT)}
    for module in ("pipeline.status", "evaluate.report"):
        command = [sys.executable, "-m", module, "--run", "t"]
        told = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
        assert "generate round 1: quarantined engine_error 1" in told, module


def rows_of(kind: str, run: str, without: str) -> list[Row]:
    """All rows but those of a question."""
    schema = {"chains": CHAINS, "scores": SCORES}[kind]
    rows = read_stage(Path(f"runs/{run}/round=1/{kind}"), schema)
    return [row for row in rows if row["prompt_id"] != without]


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_goes_on_after_an_error(project: Path, tiny_models: dict[str, Path]) -> None:
    """A request that it refuses costs itself; after an error in a step it is made anew, and draws what it would."""
    command = [sys.executable, "-c", VLLM, str(tiny_models["chatty"])]  # heads of a size that vLLM takes
    variables = {**environment(), "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=400, check=False)
    assert found.returncode == 0 and "as it was" in found.stdout, found.stderr[-3000:]


@pytest.fixture
def small_disk(project: Path) -> Iterator[Path]:
    """runs/ on a file system of its own."""
    runs = project / "runs"
    runs.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "x", runs], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield runs
    subprocess.run(["umount", "-l", runs], check=True)


def leave(disk: Path, size: int) -> None:
    """Fill a disk but for so many bytes."""
    (disk / "filler").unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(b"x" * (free - size))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on(project: Path, small_disk: Path) -> None:
    done("generate", 1, "u")
    pages = sum(-(-path.stat().st_size // 4096) for path in Path("runs/u").rglob("*") if path.is_file())
    for more in range(2, 12, 2):  # in the middle there are more, smaller ones: until one unit of work has room
        leave(small_disk, 4096 * (pages + more))
        found = stage("generate", 1, "t")
        assert found.returncode == 2 and len(found.stderr.splitlines()) == 1
        assert "No space left on device: make room" in found.stderr and "run the same command again" in found.stderr
        if list(Path("runs/t/round=1/chains/.work").glob("*.parquet")):
            break
    assert Path("runs/t/round=1/chains/_STARTED.json").is_file(), found.stderr
    assert list(Path("runs/t/round=1/chains/.work").glob("*.parquet"))
    (small_disk / "filler").unlink()
    done("generate", 1, "t")
    left, right = (read_stage(Path(f"runs/{run}/round=1/chains"), CHAINS) for run in "tu")
    assert_same(left, right, 1e-6)

    done("score", 1, "t")
    leave(small_disk, 2**19)
    found = stage("train", 1, "t")
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 1
    assert "train round 1 does not begin: the disk of runs/t has 5" in found.stderr and "kB free" in found.stderr
    assert not Path("runs/t/round=1/adapters").exists()
    (small_disk / "filler").unlink()
    done("train", 1, "t")
