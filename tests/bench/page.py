"""`python -m tests.bench.page`: time and memory that the page of a large run takes, on made-up chains and scores.

Three peers, responses of 300 to 500 characters, answers that are numbers, gold answers in a file. The page is made in a
process of its own, whose peak of memory is told.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from data import shards
from data.run import Run
from data.schema import CHAINS, SCORES
from data.shards import Row
from data.stage import FORMAT
from tests.chain_run import chain, write_run

SHARD = 512
MAKE = """
import resource, sys, time
{imports}
if __name__ == "__main__":
    start = time.monotonic()
    {call}
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(time.monotonic() - start, time.process_time(), used.ru_maxrss / 1024**2)
"""
CHAINS_ALONE = MAKE.format(imports="from evaluate.page.chains import chains", call="chains(sys.argv[1])")
WHOLE = MAKE.format(imports="from evaluate.page.write import write_page", call="write_page(sys.argv[1])")


def made_up(n: int, draw: random.Random) -> tuple[str, str, tuple[list[Row], list[Row]]]:
    """Question number n, its gold answer, and its rows: one label in four is wrong."""
    question = f"Question {n}: " + " ".join(str(draw.randrange(1000)) for _ in range(30)) + "?"
    gold = str(draw.randrange(100))
    label = gold if draw.random() < 0.75 else str(draw.randrange(100))
    rows, scores = chain(question, [label if draw.random() < 0.8 else "7", label, label], draw.random() * 2)
    for row in rows:
        words = (str(draw.randrange(10**6)) for _ in range(draw.randrange(45, 70)))
        row |= {"response": " + ".join(words) + f" #### {row['answer']}", "token_ids": list(range(150))}
    for row in scores:
        row |= {"target": rows[-1]["response"], "target_token_ids": list(range(150))}
    return question, gold, (rows, scores)


def write_large(name: str, questions: int, rounds: int) -> Run:
    """A run in ./runs, a shard at a time."""
    draw, gold = random.Random(1), dict[str, str]()
    run = write_run(name, {}, {"What?": "1"})
    for shard, start in enumerate(range(0, questions, SHARD)):
        told = [made_up(n, draw) for n in range(start, min(start + SHARD, questions))]
        gold |= {question: answer for question, answer, _ in told}
        for round_ in range(1, rounds + 1):
            for place, (kind, schema) in enumerate((("chains", CHAINS), ("scores", SCORES))):
                rows = [row for *_, both in told for row in both[place]]
                shards.write_rows(rows, run.stage_dir(round_, kind) / f"part-{shard:05d}.parquet", schema)
    for folder in run.root.glob("round=*/*"):
        shards.write_manifest(folder, {"format": FORMAT}, shards.shard_paths(folder))
    lines = (json.dumps({"question": question, "answer": answer}) for question, answer in gold.items())
    Path(f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return run


def command(
    questions: Annotated[int, typer.Option(help="How many.")] = 100_000,
    rounds: Annotated[int, typer.Option(help="How many.")] = 3,
    whole: Annotated[bool, typer.Option(help="The whole page, not the chains alone.")] = False,
) -> None:
    """Print seconds and GiB."""
    root = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        start = time.monotonic()
        run = write_large("large", questions, rounds)
        size = sum(path.stat().st_size for path in run.root.rglob("*.parquet"))
        seconds = time.monotonic() - start
        print(f"{questions:,} questions, {rounds} rounds: {size / 1e6:.0f} MB of Parquet, made up in {seconds:.0f} s")
        Path("make.py").write_text(WHOLE if whole else CHAINS_ALONE, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run([sys.executable, "make.py", "large"], env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        seconds, busy, memory = map(float, done.stdout.split())
        what = "the page" if whole else "its chains"
        print(f"{what}: {seconds:.1f} s ({busy:.1f} s of CPU), {memory:.2f} GiB at most")
        page = run.root / "report.html"
        if page.is_file():
            print(f"{page.stat().st_size / 1e6:.1f} MB")
        os.chdir(root)


if __name__ == "__main__":
    typer.run(command)
