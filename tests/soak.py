"""`python -m tests.soak`: many rounds of a tiny run in one process tree, and the tree's resources after each round.

`make round` is started once, for all rounds; its events (`--log-json`) tell when a round has ended. Then memory, file
handles, threads and processes of the command and all below it are counted. Afterwards: what is left behind of temporary
files, shared memory, sockets and processes. Two models of two layers, made here; minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path("/dev/shm")
CONFIG = """
{peers}
[run]
shard_questions = 4
[prompts]
source = "train.jsonl"
[[benchmarks]]
name = "sums"
source = "test.jsonl"
answers = "numbers"
[templates]
instruction = "Solve."
review = "Solve."
[generate]
max_new_tokens = 12
context_tokens = 256
engine = "transformers"
[train]
batch_size = 8
lr = 1e-4
[evaluate]
samples = 2
bootstrap = 100
[guard]
action = "ignore"
"""


@dataclass(frozen=True)
class Sample:
    """Resources of a process tree; memory in MiB. `pss` counts shared memory once, `rss` once per process."""

    round: int
    seconds: float
    processes: int
    threads: int
    handles: int
    pss: float
    rss: float
    largest: float  # pss of the command itself


def sample(command: psutil.Process, round_: int, begun: float) -> Sample:
    """The sample of a command and all its descendants."""
    tree = [command, *command.children(recursive=True)]
    found, own = [0.0] * 5, 0.0
    for each in tree:
        try:
            memory = each.memory_full_info()
            counts = (1, each.num_threads(), each.num_fds(), memory.pss / 2**20, memory.rss / 2**20)
        except psutil.NoSuchProcess:
            continue
        found = [a + b for a, b in zip(found, counts, strict=True)]
        own = own or memory.pss / 2**20
    processes, threads, handles = map(int, found[:3])
    return Sample(round_, time.monotonic() - begun, processes, threads, handles, found[3], found[4], own)


def prepare(folder: Path) -> None:
    """Models, questions and the config."""
    from tests.conftest import _make_model, questions, write_jsonl

    for name, architecture, chat in (("chatty", "llama", True), ("plain", "qwen", False)):
        _make_model(folder / name, architecture, chat, seed=1)
    write_jsonl(folder / "train.jsonl", questions(0, 8))
    write_jsonl(folder / "test.jsonl", questions(100, 4))
    peers = "".join(f'[[peers]]\nname = "{name}"\nmodel = "./{name}"\n' for name in ("chatty", "plain"))
    (folder / "tiny.toml").write_text(CONFIG.format(peers=peers), encoding="utf-8")


def soak(folder: Path, rounds: int) -> tuple[list[Sample], list[str]]:
    """(a sample after each round, what the command left behind). Raises RuntimeError if it fails."""
    prepare(folder)
    temporary = folder / "tmp"
    temporary.mkdir()
    before = set(SHARED.iterdir()) if SHARED.is_dir() else set()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1",
                   "PST_CACHE": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    command = [sys.executable, "-m", "pipeline.round", "--config", "tiny.toml", "--run", "soak", "--round", str(rounds),
               "--log-json"]  # fmt: skip
    begun, found, seen, events = time.monotonic(), list[Sample](), set[int](), list[dict[str, Any]]()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        tree = psutil.Process(process.pid)
        for line in process.stdout:
            event = json.loads(line)
            seen |= {each.pid for each in tree.children(recursive=True)}
            if event["event"] == "finished" and event["stage"] == "evaluate":
                found.append(sample(tree, event["round"], begun))
                print(f"round {event['round']}: {found[-1]}", flush=True)
            elif event["event"] != "progress":
                events.append(event)
    if process.returncode:
        raise RuntimeError(f"status {process.returncode}: {events[-3:]}")
    return found, left_behind(folder, temporary, before, seen)


def left_behind(folder: Path, temporary: Path, before: set[Path], seen: set[int]) -> list[str]:
    """A line for each thing that should not remain after the command has ended."""
    found = [f"temporary file {path.relative_to(folder)}" for path in sorted(temporary.rglob("*"))]
    run = folder / "runs" / "soak"
    odd = {path for pattern in ("*.tmp", ".work", ".workers", "_STARTED.json") for path in run.rglob(pattern)}
    found += [f"work file {path.relative_to(folder)}" for path in sorted(odd)]
    lock = run / ".lock"
    found += [f"a lock that still says {lock.read_text()!r}"] if lock.is_file() and lock.stat().st_size else []
    deadline = time.monotonic() + 10  # the server of the forks ends a moment after its parent
    while (alive := [pid for pid in seen if _is_ours(pid, folder)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    found += [f"process {pid}" for pid in alive]
    new = set(SHARED.iterdir()) - before if SHARED.is_dir() else set()
    names = {f"{pid}" for pid in seen}
    found += [
        f"shared memory {path}" for path in sorted(new) if names.intersection(path.name.replace("-", "_").split("_"))
    ]
    return found


def _is_ours(pid: int, folder: Path) -> bool:
    """Whether a process is alive and works in the soak's folder, since process numbers are reused."""
    try:
        return Path(psutil.Process(pid).cwd()) == folder.resolve()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def trend(samples: Sequence[Sample], field: str) -> tuple[float, float, float]:
    """(mean of the first quarter, mean of the last quarter, slope per round) of what was counted, the first two rounds
    left out, in which libraries are loaded."""
    settled = [each for each in samples if each.round >= 2]
    values = [float(getattr(each, field)) for each in settled]
    quarter = max(1, len(values) // 4)
    slope = linear_regression([each.round for each in settled], values).slope if len(values) > 1 else 0.0
    return fmean(values[:quarter]), fmean(values[-quarter:]), slope


def table(samples: Sequence[Sample]) -> str:
    """Markdown: what was counted, its first and last quarter, and its slope."""
    lines = ["| per round | first quarter | last quarter | slope per round |", "|---|---|---|---|"]
    for field in fields(Sample)[2:]:
        first, last, slope = trend(samples, field.name)
        lines.append(f"| {field.name} | {first:.1f} | {last:.1f} | {slope:+.3f} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--rounds", type=int, default=50, help="default: 50")
    parser.add_argument("--out", type=Path, help="write all samples there, as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pst-soak-") as name:
        found, left = soak(Path(name), given.rounds)
    print(table(found))
    print(f"{len(found) - 1} rounds in {found[-1].seconds:.0f} s; left behind: {', '.join(left) or 'nothing'}")
    if given.out:
        given.out.write_text(json.dumps({"samples": [asdict(each) for each in found], "left": left}, indent=1))
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
