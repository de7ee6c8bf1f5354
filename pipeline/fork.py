"""`python -m pipeline.fork --run RUN --round R --new NEW`: begin a run after round R of another run.

Up to round R, its policies are the other run's adapters, unchanged; its own config applies from round R + 1 on. The
stages that led to those adapters are linked. So are evaluations, and the chains and scores of round R + 1, if they have
the same fingerprint under the new config. Round R + 1 is always trained: that is what a fork is for.

The other run is only read. Links are safe, because no file of a run is overwritten in place except its logs, which are
not linked. The new run is built in a hidden folder, and gets its name when it is complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from data import gate, shards
from data.cli import guarded, quiet_environment, start
from data.config.engine import settled
from data.config.load import differences, flat, load_config, parse_config
from data.config.sections import Config
from data.console import console
from data.errors import UserError
from data.fork import FOLDER, origin_of
from data.inside import LAST_ROUND
from data.keep import keep_path
from data.locks import locked
from data.run import OUTPUT, RUNS, Run, check_run, check_run_name, load_frozen
from data.schema import PROMPTS
from data.selection import write_prompts
from pipeline.reuse import fingerprint, link, link_file, link_stage, offers, reads

HISTORY = ("generate", "score", "train", "gate")  # stages that led to the adapters
ASKED = ("template", "templates", "stop", "wording")  # keys of a peer that say how it is asked, not who it is
RULE = ("gate.margin", "gate.level", "gate.harm_below")  # keys of the gate that its votes do not depend on
VOTED_UNDER = ("templates.", "wordings.", "generate.max_new_tokens", "generate.context_tokens", "generate.engine")
OTHERWISE = {  # why a part of the fingerprint differs when the configs do not
    "config": "another version of this project made it",
    "policies": "the models have changed",
    "benchmarks": "the questions of a benchmark have changed",
    "prompts": "the files of the questions have changed",
    "chains": "its chains have changed",
    "answers": "the function that compares answers has changed",
}
StageFate = str | None  # why a stage must be made again; None: it is linked


def fork(name: str, round_: int, new: str, path: Path | None, overrides: list[str]) -> None:
    """Begin run `new` after a round of run `name`. Raises UserError, and leaves no files, if that is impossible."""
    check_run_name(new, "--new")
    check_run(name)
    if (RUNS / new).exists():
        raise UserError(f"{RUNS / new} exists already: give the new run another name (--new, or NEW= with make)")
    source = Run(name, load_frozen(name))
    console.print(f"reading run {name}, to find what can be linked", markup=False)
    config = forked_config(source, path, overrides)
    check_still_true(source, config, round_)
    check_trained(source, round_)
    with building(new, config) as run:
        linked = link_history(source, run, round_)
        take_questions(source, run)
        check(run, round_)
        fates = reuse(source, run, round_)
        linked += [folder_of(stage, n) for (stage, n), why in fates.items() if why is None]
        write_origin(source, run, round_, linked)
    print_fates(name, round_, new, config, fates)


def forked_config(source: Run, path: Path | None, overrides: list[str]) -> Config:
    """The new run's config: the file's, or else the other run's, with overrides."""
    if path is not None:
        return settled(load_config(path, overrides), source.config)
    given = parse_config(source.config.model_dump(mode="json"), str(source.root / "config.json"), overrides)
    return settled(given, source.config)


def check_still_true(source: Run, config: Config, round_: int) -> None:
    """Raises UserError for a change that contradicts the rounds before the fork."""
    gated = gate.is_on(source.config) or gate.is_on(config)
    changed = [line for line in differences(source.config, config) if _is_untrue(line.split(":")[0], round_, gated)]
    if changed:
        adapters = f"{source.root}/round={round_}/adapters/"
        way_out = f' whose peers start from these adapters (peers[].adapter = "{adapters}…")'
        raise UserError(
            f"{'; '.join(changed)}: round {round_} of run {source.name!r} was made under the first value, so the new "
            f"config cannot continue it. Undo the change, or begin another run{way_out if round_ else ''}"
        )


def _is_untrue(key: str, round_: int, gated: bool) -> bool:
    section, *inner = key.split(".")
    if section == "peers":
        return gated or inner[1] not in ASKED
    if gated and (key.startswith(VOTED_UNDER) or (section == "gate" and key not in RULE)):
        return True
    goes_on = round_ > 0 and key in ("train.rank", "train.alpha")  # an adapter that is trained further keeps its own
    return section in ("run", "prompts") or goes_on


def check_trained(source: Run, round_: int) -> None:
    """Raises UserError if a round up to the fork is missing or damaged."""
    for number in range(1, round_ + 1):
        for stage in ("train", "gate") if gate.is_on(source.config) else ("train",):
            if shards.read_manifest(source.stage_dir(number, OUTPUT[stage])) is None:
                raise UserError(
                    f"round {number} of run {source.name!r} is not finished, so no run can begin after round {round_}: "
                    f"run `make {stage} RUN={source.name} ROUND={number}` first, or fork from round {number - 1}"
                )


@contextmanager
def building(new: str, config: Config) -> Iterator[Run]:
    """A run in a hidden folder, which gets its name after the block; if the block fails, no files are left."""
    folder = RUNS / f".{new}.forking"
    with locked(folder, f"run {new!r} is being forked there: wait for it"):
        run = Run(f"{folder.name}/run", config)
        try:
            shutil.rmtree(run.root, ignore_errors=True)  # left by a killed command
            yield run
            os.rename(run.root, RUNS / new)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def link_history(source: Run, run: Run, round_: int) -> list[str]:
    """Link the stages that led to the adapters; returns their folders."""
    linked = []
    for number in range(round_ + 1):
        for stage in HISTORY:
            if shards.read_manifest(source.stage_dir(number, OUTPUT[stage])) is not None:
                link_stage(source.name, run, stage, number)
                linked.append(folder_of(stage, number))
        link_file(keep_path(source.name, number), keep_path(run.name, number))  # gold answers chose the examples
    return linked


def folder_of(stage: str, round_: int) -> str:
    """A stage's folder, relative to the run's."""
    return f"round={round_}/{OUTPUT[stage]}"


def take_questions(source: Run, run: Run) -> None:
    """Link the questions. If the benchmarks differ, draw them again, as a benchmark may contain some of them: raises
    UserError unless that gives the same questions."""
    if run.config.benchmarks == source.config.benchmarks:
        for mine, theirs in ((run.prompts_dir, source.prompts_dir), (run.gate_dir, source.gate_dir)):
            if shards.read_manifest(theirs) is not None:
                shutil.copytree(theirs, mine, copy_function=link)
        return
    write_prompts(run.config, run.prompts_dir, run.gate_dir)
    for mine, theirs in ((run.prompts_dir, source.prompts_dir), (run.gate_dir, source.gate_dir)):
        if _ids(mine) != _ids(theirs):
            raise UserError(
                f"under these [[benchmarks]] the questions of {theirs} would differ: their source has changed, or "
                "a benchmark contains some of them (prompts.overlap). Use other benchmarks, or begin another run"
            )


def _ids(folder: Path) -> list[str]:
    return [row["id"] for path in shards.shard_paths(folder) for row in shards.read_rows(path, PROMPTS, ["id"])]


def check(run: Run, round_: int) -> None:
    """Freeze the config, with the checks of a run's first command. Raises UserError."""
    from evaluate.checks import check_before_freezing
    from peers.policy import resolve_all
    from peers.source import check_peers

    check_peers(run.config)
    policies = resolve_all(run, round_)
    run.freeze(lambda: check_before_freezing(run, policies))


def reuse(source: Run, run: Run, round_: int) -> dict[tuple[str, int], StageFate]:
    """Link what the new config allows; returns the fate of each stage and round that could be linked."""
    fates: dict[tuple[str, int], StageFate] = {}
    wanted = [("evaluate", number) for number in range(round_ + 1)] if run.config.benchmarks else []
    for stage, number in [*wanted, ("generate", round_ + 1), ("score", round_ + 1)]:
        why = why_anew(source, run, stage, number)
        if why is None:
            link_stage(source.name, run, stage, number)
        if stage == "evaluate" and why is None:
            link_file(source.round_dir(number) / "guard.json", run.round_dir(number) / "guard.json")
        fates[stage, number] = why
    return fates


def why_anew(source: Run, run: Run, stage: str, round_: int) -> StageFate:
    """Why the other run's stage cannot be linked; None if it can."""
    folder = source.stage_dir(round_, OUTPUT[stage])
    if not (folder / shards.SUCCESS).is_file():
        return f"run {source.name} has none"
    theirs = shards.manifest_alone(folder)["fingerprint"]
    if stage == "score" and not run.stage_dir(round_, OUTPUT["generate"]).is_dir():
        return "its chains are made again"
    mine = fingerprint(run, stage, round_)
    apart = [key for key in theirs.keys() | mine.keys() if theirs.get(key) != mine.get(key)]
    if not apart and offers(source.name, stage, round_, mine, run.config):
        return None
    if changed := changed_keys(source.config, run.config, stage):  # benchmarks: also how they are graded
        return f"{', '.join(changed)} changed"
    return " and ".join(OTHERWISE[key] for key in sorted(apart)) or "its files are damaged"


def changed_keys(before: Config, now: Config, stage: str) -> list[str]:
    """The keys a stage depends on that differ between two configs."""
    old, new = (flat(reads(config, stage)) for config in (before, now))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if stage == "generate" and not changed:  # label, text and weighting decide which responses are generated
        changed = [line.split(":")[0] for line in differences(before, now) if line.startswith("score.")]
    return changed


def write_origin(source: Run, run: Run, round_: int, linked: list[str]) -> None:
    """Write where the run comes from (data/fork.py)."""
    proof = source.stage_dir(round_, OUTPUT["train"]) if round_ else source.prompts_dir
    earlier = origin_of(source.name)
    found: dict[str, Any] = {
        "run": source.name,
        "round": round_,
        "checksum": shards.checksum(proof / shards.SUCCESS),
        "forked_from": None,
    }
    if earlier is not None:
        found["forked_from"] = shards.manifest_alone(source.root / FOLDER)["forked_from"]
    folder = run.root / FOLDER
    shards.write_json(source.config.model_dump(mode="json"), folder / "config.json")
    changed = differences(source.config, run.config)
    manifest = {"stage": "fork", "forked_from": found, "changed": changed, "linked": sorted(linked)}
    shards.write_manifest(folder, manifest, [folder / "config.json"])


def print_fates(name: str, round_: int, new: str, config: Config, fates: dict[tuple[str, int], StageFate]) -> None:
    """Print a line per stage and fate, and the next command."""
    if round_:
        rounds = "round 1" if round_ == 1 else f"rounds 1 to {round_}"
        _say(f"  adapters of {rounds} and the stages behind them: linked from run {name}")
    for (stage, why), group in groupby(fates, key=lambda key: (key[0], fates[key])):
        numbers = [number for _, number in group]
        which = f"round {numbers[0]}" if len(numbers) == 1 else f"rounds {numbers[0]} to {numbers[-1]}"
        _say(f"  {stage} {which}: " + (f"made again: {why}" if why else f"linked from run {name}"))
    if not config.benchmarks:
        _say("  evaluate: there are no benchmarks")
    _say(
        f"run {new} begins after round {round_} of run {name}; its config applies from round {round_ + 1} on: "
        f"make round RUN={new} ROUND={round_ + 1}"
    )


def _say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help="Begin a run after a round of another run, under another config; link what still holds.")
def command(
    run: Annotated[str, typer.Option(help="Name of the existing run, which is only read.")],
    round_: Annotated[
        int,
        typer.Option("--round", min=0, max=LAST_ROUND, help="Number of its round after which the new run begins."),
    ],
    new: Annotated[str, typer.Option(help="Name of the new run.")],
    config: Annotated[Path | None, typer.Option(help="TOML config of the new run; default: that of --run.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override; repeatable.")] = None,
) -> None:
    """`python -m pipeline.fork --run RUN --round R --new NEW`."""
    quiet_environment()
    guarded(lambda: fork(run, round_, new, config, set_ or []))


if __name__ == "__main__":
    start(app, "pipeline.fork")
