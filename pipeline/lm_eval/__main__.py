"""`python -m pipeline.lm_eval --run RUN --round R`: lm-evaluation-harness on every peer, untouched and after a round.

It evaluates what the run itself uses: the merged checkpoint, unless `run.adapters` or --unmerged keeps the adapter
beside the base. It prints the figures beside ours, and writes them to runs/<run>/round=<R>/lm_eval.json.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from data import shards, sums
from data.cli import guarded, quiet_environment, start
from data.config.sections import BenchmarkSection
from data.console import console
from data.errors import UserError
from data.run import Run, check_run, open_run
from data.stage import versions
from evaluate.benchmarks import Item, load_benchmark
from peers.policy import Policy, resolve_all
from peers.source import check_peers
from pipeline.lm_eval.figures import TaskRow, figures_table, ours_of, task_rows
from pipeline.lm_eval.tasks import EVERYDAY, HERE, task_name, write_everyday, write_questions

GRADED = ("math", "numbers")  # kinds of answers that grading.py knows
QUESTIONS = "questions"  # the run's benchmarks, or the file of --questions
OURS = (QUESTIONS, EVERYDAY)


@dataclass(frozen=True)
class HarnessOptions:
    """What the harness runs."""

    benchmarks: dict[str, tuple[BenchmarkSection, list[Item]]]
    everyday: bool
    hub: list[str]
    limit: int | None
    batch_size: int
    unmerged: bool


def confirm(run: Run, round_: int, options: HarnessOptions, peers: list[str]) -> list[TaskRow]:
    """Run the harness on base and adapter of each peer, and write lm_eval.json. Raises UserError if it fails."""
    check_peers(run.config)
    untouched, trained = resolve_all(run, 0), resolve_all(run, round_)
    ours = ours_of(run, round_) if run.config.benchmarks else {}
    rows: list[TaskRow] = []
    for peer in peers:
        if trained[peer].adapter is None:
            console.print(f"  {peer}: the gate let no adapter through, so there is nothing to compare")
            continue
        begun = time.monotonic()
        found, items = run_peer(run, round_, untouched[peer], trained[peer], options)
        rows += task_rows(run, peer, found, items, ours)
        console.print(f"  {peer}: base and adapter of round {trained[peer].round}, {time.monotonic() - begun:.0f} s")
    path = run.round_dir(round_) / "lm_eval.json"
    about = {
        "run": run.name,
        "round": round_,
        "limit": options.limit,
        "versions": {"lm-eval": metadata.version("lm-eval"), **versions()},
        "policies": {peer: [untouched[peer].identity, trained[peer].identity] for peer in peers},
        "rows": [asdict(row) for row in rows],
    }
    with sums.noted(path):
        shards.write_json(about, path)
    title = f"run {run.name}, round {round_}: lm-evaluation-harness, in %, beside our exact match"
    console.print(figures_table(title, rows))
    console.print(f"as JSON: {path}")
    return rows


def run_peer(
    run: Run, round_: int, base: Policy, trained: Policy, options: HarnessOptions
) -> tuple[dict[str, Any], dict[str, tuple[str, list[str]]]]:
    """The figures of harness.py for a peer, and {task: (benchmark, its items)}."""
    directory, beside = (trained.base, trained.adapter) if options.unmerged else trained.weights()
    with tempfile.TemporaryDirectory(prefix="lm-eval-") as temporary:
        folder = Path(temporary)
        items: dict[str, tuple[str, list[str]]] = {}
        for name, (section, questions) in options.benchmarks.items():
            apart = write_questions(folder, name, section.answers, questions, base.prompts, run.config.generate)
            if apart:
                console.print(f"  {base.name}: the harness encodes {apart} prompts of {name} differently from us")
            items[task_name(name)] = (name, [item.id for item in questions])
        if options.everyday:
            write_everyday(folder)
        models = {"base": (base.base, None), "adapter": (directory, beside)}
        job = {
            "folder": str(folder),
            "prompts": list(items),
            "everyday": [EVERYDAY] if options.everyday else [],
            "hub": options.hub,
            "chat": base.prompts.is_chat,
            "limit": options.limit,
            "dtype": base.dtype,
            "batch_size": options.batch_size,
            "context_tokens": run.config.generate.context_tokens,
            "models": {
                name: {"directory": str(path.resolve()), "adapter": None if lora is None else str(lora.resolve())}
                for name, (path, lora) in models.items()
            },
        }
        log = run.round_dir(round_) / "logs" / "lm_eval.log"
        return call_harness(job, folder, log, base.name), items


def call_harness(job: dict[str, Any], folder: Path, log: Path, peer: str) -> dict[str, Any]:
    """The result of harness.py, in a process that cannot import our packages. Raises UserError if it fails."""
    job_path, result = folder / "job.json", folder / "result.json"
    shards.write_json(job, job_path)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not job["hub"]:
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", str(HERE / "harness.py"), str(job_path), str(result)]
    with log.open("ab") as out:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode or not result.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1][:300] if lines else f"status {done.returncode}"
        raise UserError(f"lm-evaluation-harness failed on peer {peer}: {last} (its output is in {log})")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def check_harness_installed() -> None:
    """Raises UserError without the harness, or without its dependency `evaluate`."""
    try:
        metadata.version("evaluate")
        there = util.find_spec("lm_eval") is not None
    except metadata.PackageNotFoundError:
        there = False
    if not there:
        raise UserError("lm-evaluation-harness is not installed here: it comes with `make setup EXTRA=bench`")


def benchmarks_of(
    run: Run, path: Path | None, answers: Literal["math", "numbers"]
) -> dict[str, tuple[BenchmarkSection, list[Item]]]:
    """The run's benchmarks, or the questions of a file. Raises UserError for sources that evaluate refuses, too."""
    sections = list(run.config.benchmarks)
    if path is not None:
        sections = [BenchmarkSection(name=QUESTIONS, source=str(path), answers=answers)]
    for section in sections:
        if section.answers not in GRADED:
            console.print(
                f"  benchmark {section.name}: left out, since answers = {section.answers!r}; the harness grades only "
                f"{' and '.join(GRADED)}",
                markup=False,
            )
    known = [section for section in sections if section.answers in GRADED]
    return {section.name: (section, load_benchmark(section, section.name)) for section in known}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help="Run lm-evaluation-harness on every peer, untouched and after a round; print its figures and ours.")
def command(
    run: Annotated[str, typer.Option(help="Name of the run.")],
    round_: Annotated[int, typer.Option("--round", min=1, help="Number of the round.")],
    tasks: Annotated[
        str,
        typer.Option(
            help="Tasks, with commas or spaces between: `questions` (the run's benchmarks), `everyday` (our file of "
            "questions with choices), and names of the harness, whose data come from the hub (gsm8k,arc_easy)."
        ),
    ] = ",".join(OURS),
    questions: Annotated[
        Path | None, typer.Option(help="File of questions and answers, instead of the run's benchmarks.")
    ] = None,
    answers: Annotated[Literal["math", "numbers"], typer.Option(help="Kind of its answers.")] = "math",
    peer: Annotated[list[str] | None, typer.Option(help="Name of a peer; repeatable; default: all.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most questions of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="The harness's batch size.")] = 16,
    unmerged: Annotated[
        bool, typer.Option("--unmerged", help="Evaluate the adapter beside its base, not the merged checkpoint.")
    ] = False,
) -> None:
    """`python -m pipeline.lm_eval --run RUN --round R`."""
    quiet_environment()

    def body() -> None:
        check_run(run)
        check_harness_installed()
        names = [name for name in re.split(r"[,\s]+", tasks) if name]
        with open_run(run, None, []) as opened:
            known = opened.config.peer_names
            for name in peer or []:
                if name not in known:
                    raise UserError(f"--peer {name!r}: expected one of {', '.join(known)}")
            given = benchmarks_of(opened, questions, answers) if QUESTIONS in names else {}
            if QUESTIONS in names and not given:
                console.print("  the run has no such benchmarks: give questions and answers with --questions FILE")
            hub = [name for name in names if name not in OURS]
            options = HarnessOptions(given, EVERYDAY in names, hub, limit, batch_size, unmerged)
            if not (given or options.everyday or hub):
                raise UserError(f"--tasks {tasks!r}: no task is left to run")
            confirm(opened, round_, options, peer or known)

    guarded(body)


if __name__ == "__main__":
    start(app, "pipeline.lm_eval")
