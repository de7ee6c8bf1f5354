"""Links a finished stage of one run into another: the runs of an ablation share work, and a fork gets every stage that
its config allows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from data import gate, quarantine, shards, sums
from data.config.sections import Config
from data.console import console
from data.errors import UserError
from data.run import OUTPUT, RUNS, Run, load_frozen, metrics_path, stage_is_finished
from data.schema import CHAINS, EVALS, GATE, METRICS, SCORES
from peers.policy import resolve_all

# stages before training only: two equal arms must show how much training varies
TABLES = {"generate": CHAINS, "score": SCORES, "gate": GATE, "evaluate": EVALS}
SHARED = (("generate", 1), ("gate", 0), ("evaluate", 0))


def adopt(run: Run, stage: str, round_: int, names: list[str]) -> None:
    """Link a stage's output from a run that has it with the same fingerprint."""
    if (stage, round_) not in SHARED or stage_is_finished(run.name, stage, round_):
        return
    if stage == "gate" and not gate.is_on(run.config):
        return
    mine = fingerprint(run, stage, round_)
    for other in names:
        if other == run.name or not offers(other, stage, round_, mine, run.config):
            continue
        link_stage(other, run, stage, round_)
        console.print(f"  {stage} round {round_}: the same as in run {other}, linked")
        return


def link_stage(other: str, run: Run, stage: str, round_: int) -> None:
    """Link a finished stage of another run into a run; replaces an existing stage."""
    source, target = RUNS / other / f"round={round_}" / OUTPUT[stage], run.stage_dir(round_, OUTPUT[stage])
    if stage == "evaluate":
        for made in (metrics_path(other, round_), metrics_path(other, round_).with_name("cross.parquet")):
            link_file(made, target.parent / made.name)
    half = target.with_name(target.name + ".tmp")
    for stale in (half, target):
        shutil.rmtree(stale, ignore_errors=True)
    unfinished = shutil.ignore_patterns(".work", shards.STARTED)  # left by a call that was killed after its manifest
    shutil.copytree(source, half, copy_function=link, ignore=unfinished)
    lost = [row for row in quarantine.entries(source.parent) if row["stage"] == stage]
    quarantine.set_rows(target.parent, stage, lost)
    half.rename(target)


def link_file(source: Path, target: Path) -> None:
    """Replace a file by a link to another; only remove it if the other is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if source.is_file():
        with sums.noted(target):
            link(str(source), str(target))


def reads(config: Config, stage: str) -> dict[str, Any]:
    """The part of a config that a stage's output depends on, as JSON types."""
    import evaluate.stage
    import generate.stage
    import score.stage

    of: dict[str, Any] = {
        "generate": generate.stage.SECTIONS,
        "score": score.stage.SECTIONS,
        "evaluate": {**evaluate.stage.SECTIONS, "benchmarks": True},
    }
    return config.model_dump(mode="json", include=of[stage])


def fingerprint(run: Run, stage: str, round_: int) -> dict[str, Any]:
    """The fingerprint that a stage will have in a run."""
    if stage == "generate":
        from generate.stage import fingerprint as of_chains

        return of_chains(run, resolve_all(run, round_ - 1))
    if stage == "gate":
        from train.gate.stage import fingerprint as of_votes

        return of_votes(run, resolve_all(run, round_))
    if stage == "score":
        from score.stage import fingerprint as of_scores

        return of_scores(run, resolve_all(run, round_ - 1), shards.manifest_alone(run.stage_dir(round_, "chains")))
    from evaluate.benchmarks import load_benchmarks
    from evaluate.stage import fingerprint as of_evals

    return of_evals(run, resolve_all(run, round_), load_benchmarks(run.config))


def offers(other: str, stage: str, round_: int, mine: dict[str, Any], config: Config) -> bool:
    """Whether another run has a stage's output: complete, by this version, with this fingerprint and grading rules."""
    folder = RUNS / other / f"round={round_}" / OUTPUT[stage]
    if not (folder / shards.SUCCESS).is_file():
        return False
    try:
        if shards.read_json(folder / shards.SUCCESS)["fingerprint"] != mine:
            return False
        theirs = load_frozen(other).benchmarks
        shards.read_manifest(folder)
        for path in shards.shard_paths(folder):
            shards.read_table(path, TABLES[stage], [])
        if stage == "evaluate":
            shards.read_table(metrics_path(other, round_), METRICS, [])
    except UserError:  # damaged there, so make it here
        return False
    return stage != "evaluate" or theirs == config.benchmarks


def link(source: str, target: str) -> None:
    """Make a hard link, or a copy if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
