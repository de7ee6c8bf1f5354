"""Do time per question and memory stay the same from a thousand questions to a hundred thousand?

    python -m bench.data_plane [--sizes 1000 10000 100000]

The questions are synthetic, and only the tokenizers of the shipped peers are loaded: a fake engine answers, and instead
of a forward pass each pair gets made-up log-probabilities. Everything else is what a round does. Every step runs in a
process of its own, first on a few questions in another run, so that its time excludes imports and cold caches; its
memory is the process's largest resident set, imports included. On a busy machine compare the CPU seconds, which exclude
other work and waiting for the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from data.config.sections import Config
from data.run import Run, open_run
from data.task import Advance
from peers.engines.protocol import Completion, Request, Sampling
from peers.logprob.model import Pair
from peers.policy import Policy, resolve
from peers.prompts import PeerPrompts, load_all_prompts
from tests.fake_engine import Inline

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 64
STEPS = ("prompts", "generate", "score", "examples")
NAMES = ("Leo", "Mia", "Tom", "Eva", "Sam", "Zoe")
THINGS = ("tickets", "pens", "apples", "shells", "cards")


def questions(n: int) -> Iterator[dict[str, str]]:
    """Distinct questions about as long as those of the default run, equally long for each n."""
    draw = random.Random(n)
    for number in range(100_000, 100_000 + n):
        name, thing = draw.choice(NAMES), draw.choice(THINGS)
        yield {
            "question": f"{name} has {number} {thing}. {name} shares them equally with friends, {draw.randrange(2, 9)} "
            f"people in all. {name} swaps each for {draw.randrange(2, 9)} others. How many {thing} does {name} have?"
        }


class BankEngine:
    """Answers with one of a few responses encoded beforehand; one in sixteen is cut off."""

    def __init__(self, prompts: PeerPrompts) -> None:
        texts = [f"{n}+{n}={2 * n}, {2 * n}*3={6 * n}, {6 * n}-{n}={5 * n} #### {5 * n % 7}" for n in range(10, 64)]
        self.bank = [(prompts.encode_response(text), text) for text in texts]

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Advance) -> list[Completion]:
        """See `Engine.generate`."""
        found = []
        for request in requests:
            ids, text = self.bank[request.seed % len(self.bank)]
            found.append(Completion(list(ids), text, -0.1 * len(ids), "stop" if request.seed % 16 else "length"))
        advance(len(requests), sum(len(completion.token_ids) for completion in found))
        return found

    def close(self) -> None:
        """Nothing to free."""


def bank_engine(policy: Policy, config: Config) -> BankEngine:
    """Replaces `policy_cache.engine`."""
    return BankEngine(policy.prompts)


def score_pairs(_: Any, pairs: Sequence[Pair], budget: int, advance: Advance, parts: int = 1) -> list[list[float]]:
    """Replaces the function of that name: log-probabilities that differ from pair to pair."""
    advance(len(pairs), sum(map(len, pairs)))
    return [[-0.5 - len(pair.prompt) % 13 / 100] * len(pair.target) for pair in pairs]


@contextmanager
def opened(n: int) -> Iterator[Run]:
    """The run of n questions under the default config, with dummy benchmarks, which nothing here reads."""
    source = Path(f"questions-{n}.jsonl")
    if not source.is_file():
        with source.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in questions(n))
    overrides = [f"prompts.source={source}", "prompts.limit=null", "prompts.split=null"]
    overrides += [
        f"benchmarks.{i}.{key}"
        for i in (0, 1)
        for key in ("source=held-out.jsonl", "rows=[0, 1]", "split=null", "subset=null")
    ]
    with open_run(f"n{n}", Path("configs/nano.toml"), overrides) as run:
        yield run


def do_step(step: str, n: int) -> None:
    """One step of a round of n questions; the steps before it must be done."""
    import generate.stage
    import peers.logprob.scoring
    import peers.policy_cache
    import score.stage
    from train.stage import training_examples

    with opened(n) as run:
        if step == "prompts":
            run.freeze(lambda: load_all_prompts(run.config))  # else the next process would write the prompts again
        elif step == "generate":
            with mock.patch.object(peers.policy_cache, "engine", bank_engine):
                generate.stage.main(run, 1, Inline(run))
        elif step == "score":
            with (
                mock.patch.object(peers.policy_cache, "language_model", lambda *_: None),
                mock.patch.object(peers.logprob.scoring, "score_pairs", score_pairs),
            ):
                score.stage.main(run, 1, Inline(run))
        elif step == "examples":
            for name in run.config.peer_names:
                examples = training_examples(run, 1, resolve(run, 0, name))
                assert sum(len(examples[i].pair) for i in range(len(examples)))


def measure(step: str, n: int) -> None:
    """In a process of its own: print the step's seconds, its CPU seconds, and the largest resident set in MiB."""
    shutil.rmtree(f"runs/n{WARM_UP}", ignore_errors=True)
    for each in STEPS:
        do_step(each, WARM_UP)
    start, cpu = time.perf_counter(), time.process_time()
    do_step(step, n)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "mib": mib}))


def run_measure(step: str, n: int, folder: Path) -> dict[str, float]:
    """`measure` in a new process that works in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", f"from bench.data_plane import measure; measure({step!r}, {n})"]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(sizes: Sequence[int]) -> None:
    """Print time per question and peak memory of each step at each size, and their ratios to the first size."""
    columns = ("step", "questions", "seconds", "ms/question", "ratio", "CPU ms/question", "ratio", "peak MiB", "ratio")
    print("{:>9} {:>10} {:>8} {:>12} {:>6} {:>16} {:>6} {:>9} {:>6}".format(*columns))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "configs").symlink_to(ROOT / "configs")
        (folder / "peers").symlink_to(ROOT / "peers")
        (folder / "held-out.jsonl").write_text('{"question": "What is 6 times 7?", "answer": "42"}\n', encoding="utf-8")
        first: dict[str, tuple[float, float, float]] = {}
        for n in sizes:
            for step in STEPS:
                found = run_measure(step, n, folder)
                each, cpu, mib = 1000 * found["seconds"] / n, 1000 * found["cpu_seconds"] / n, found["mib"]
                each_1, cpu_1, mib_1 = first.setdefault(step, (each, cpu, mib))
                print(
                    f"{step:>9} {n:>10,} {found['seconds']:>8.1f} {each:>12.3f} {each / each_1:>6.2f} {cpu:>16.3f} "
                    f"{cpu / cpu_1:>6.2f} {mib:>9.0f} {mib / mib_1:>6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="numbers of questions")
    main(parser.parse_args().sizes)
