"""`python -m tests.chaos`: kill, starve and damage runs, resume them, compare (docs/reliability.md)."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from data.cli import quiet_environment
from data.shards import checksum
from tests.conftest import ROOT

PACKAGES = ("data", "peers", "generate", "score", "train", "evaluate", "pipeline", "tests/chaos")
FIRST = 28_000  # the seed of the first case


def prepare(engine: str) -> None:
    """Let the server that forks the runs import what they need. On one core, where trained numbers are the same bit for
    bit."""
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    quiet_environment()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    more = {"vllm": ["peers.preload_vllm"], "ray": ["ray"]}.get(engine, [])
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.chaos.preload", *more])


def code() -> str:
    """A short hash of the project's modules, which the results belong to."""
    paths = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    return checksum(*paths)[:12]


def cluster() -> str:
    """The address of a Ray cluster that ends with this process."""
    import atexit

    from ray.cluster_utils import Cluster

    size = {"num_cpus": 2, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **size})
    made.add_node(**size)
    atexit.register(made.shutdown)
    return str(made.address)


def main(
    cases: Annotated[int, typer.Option(min=1, help="How many cases are to be done in all.")] = 90,
    seed: Annotated[int, typer.Option(help="The first case's; each has the next one.")] = FIRST,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="With vllm: the nano peers.")
    ] = "transformers",
    executor: Annotated[Literal["local", "ray"], typer.Option(help="Where the peers run.")] = "local",
    case: Annotated[int | None, typer.Option(help="This case alone, by its seed; nothing is kept of it.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where runs and results are; else in .cache/chaos, by the code's version.")
    ] = None,
    bug: Annotated[str | None, typer.Option(help="Plant a bug of tests/chaos/bugs.py.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=2, help="1: short runs, without a benchmark.")] = 2,
    models: Annotated[Path | None, typer.Option(help="Models that are there; else they are made.")] = None,
) -> None:
    """Run cases. Finished ones are kept in the folder's JSONL file, so the same command continues where it stopped."""
    prepare("ray" if executor == "ray" else engine)
    from tests.chaos.driver import MISMATCH, Chaos, kept, series, summary
    from tests.chaos.project import Kind

    where = (folder or ROOT / ".cache" / "chaos" / code()).resolve()
    where.mkdir(parents=True, exist_ok=True)
    chaos = Chaos(where, Kind(engine, executor, rounds=rounds), bug, models)
    if executor == "ray":
        chaos.address = cluster()
    if case is not None:
        outcome = chaos.do(chaos.case(case))
        print(f"case {case}: {outcome.result}", *outcome.details, sep="\n  ")
        sys.exit(outcome.result == MISMATCH)
    path = where / f"{engine}-{executor}-{seed}{'-' + bug if bug else ''}.jsonl"
    for row in series(chaos, cases, seed, path):
        print(f"case {row['case']}: {row['result']}, {row['seconds']} s", *row["details"], sep="\n  ", flush=True)
    last = kept(path)
    print(f"chaos, {engine}, {executor}: {summary(last)}")
    sys.exit(any(row["result"] == MISMATCH for row in last))


if __name__ == "__main__":
    typer.run(main)
