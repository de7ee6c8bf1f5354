"""`python -m evaluate ablate`: the same experiment under several arms and seeds, side by side.

An arm is a small TOML that is laid over the experiment's config (configs/arms/). Each arm and seed is a run of its own,
`<run>.<arm>.<seed>`, that can be looked at and continued like any other. What two of them have in common, the same
chains of round 1 or the same evaluation of round 0, is made once: a finished stage with the same fingerprint in another
run of the ablation is linked, not repeated. Killed at any moment, the same command goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from data import shards
from data.config import load_config
from data.console import console
from data.errors import UserError
from data.round import plan
from data.run import OUTPUT, RUNS, Run, open_run, stage_is_finished
from data.stage import do_stage, guarded, quiet_environment
from data.workers import Processes, warm
from evaluate.intervals import Estimate, Matrix, estimate
from evaluate.items import ItemValues, item_values, matrices
from evaluate.labels import gold_answers, keep_right

ARMS = Path("configs/arms")
DEFAULT_ARMS = "pst uniform shuffled agreement entropy vote own self self-vote oracle"
AGAINST = ("pst", "uniform")  # the arms that all others are compared with


@dataclass(frozen=True)
class Arm:
    """A name, and what it changes in the config as `section.key=value`."""

    name: str
    overrides: list[str]
    oracle: bool = False  # gold answers choose the examples

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name} (reads gold)" if self.oracle else self.name


def load_arm(name: str) -> Arm:
    """The arm of configs/arms/NAME.toml, or of a TOML file given by its path. Raises UserError."""
    path = Path(name) if name.endswith(".toml") else ARMS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in ARMS.glob("*.toml")))
        raise UserError(f"there is no arm {name!r}: expected one of {known}, or the path of a TOML file")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    oracle = raw.pop("oracle", False)
    return Arm(path.stem, _flat(raw), oracle is True)


def _flat(table: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in table.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}={json.dumps(value)}"]
    return found


class Ablation:
    """Arms × seeds of one experiment up to a round."""

    def __init__(self, name: str, config: Path, overrides: list[str], arms: list[Arm], seeds: int, round_: int) -> None:
        self.name, self.path, self.overrides, self.arms, self.round = name, config, overrides, arms, round_
        self.config = load_config(config, overrides)
        first = self.config.run.seed
        self.seeds = list(range(first, first + seeds))
        for arm in arms:  # before any work
            resolved = load_config(config, self.overrides_of(arm, first))
            if arm.oracle:
                gold_answers(resolved)

    def overrides_of(self, arm: Arm, seed: int) -> list[str]:
        """All that a run of an arm changes in the config file."""
        return [*self.overrides, *arm.overrides, f"run.seed={seed}"]

    def run_name(self, arm: Arm, seed: int) -> str:
        """The name of an arm's run."""
        return f"{self.name}.{arm.name}.{seed}"

    def names(self, seed: int) -> list[str]:
        """The runs of all arms with a seed."""
        return [self.run_name(arm, seed) for arm in self.arms]

    def run(self) -> None:
        """All runs, one after the other."""
        for number, seed in enumerate(self.seeds):
            for arm in self.arms:
                name = self.run_name(arm, seed)
                console.print(f"[bold]{arm.title}[/bold], seed {seed} ({number + 1} of {len(self.seeds)}): run {name}")
                if stage_is_finished(name, "evaluate", self.round) and _metrics(name, self.round).is_file():
                    continue
                warm(engine=True)
                with open_run(name, self.path, self.overrides_of(arm, seed)) as run, Processes(run) as workers:
                    for stage, round_ in plan(self.round):
                        self.adopt(run, stage, round_, self.names(seed))
                        do_stage(stage, run, round_, workers)
                        if stage == "score" and arm.oracle:
                            left = keep_right(run, round_)
                            console.print(f"  oracle round {round_}: {left} examples whose aggregate is right, by gold")
                shutil.rmtree(run.root / ".checkpoints", ignore_errors=True)  # they come back bit for bit

    def adopt(self, run: Run, stage: str, round_: int, names: list[str]) -> None:
        """Link a stage's output from a run in which it was made under the same fingerprint."""
        if stage not in ("generate", "evaluate") or stage_is_finished(run.name, stage, round_):
            return
        mine = fingerprint(run, stage, round_)
        for other in names:
            source = RUNS / other / f"round={round_}" / OUTPUT[stage]
            manifest = shards.read_manifest(source)
            if other == run.name or manifest is None or manifest["fingerprint"] != mine:
                continue
            target = run.stage_dir(round_, OUTPUT[stage])
            if stage == "evaluate":
                if not _metrics(other, round_).is_file():
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                for made in (_metrics(other, round_), _metrics(other, round_).with_name("cross.parquet")):
                    (target.parent / made.name).unlink(missing_ok=True)
                    if made.is_file():
                        os.link(made, target.parent / made.name)
            half = target.with_name(target.name + ".tmp")
            for stale in (half, target):
                shutil.rmtree(stale, ignore_errors=True)
            shutil.copytree(source, half, copy_function=os.link)
            half.rename(target)
            console.print(f"  {stage} round {round_}: the same as in run {other}, linked")
            return

    # --- what came out ---

    def values(self, arm: Arm) -> list[ItemValues]:
        """Per seed, every item's values in the last round."""
        return [item_values(RUNS / self.run_name(arm, seed), self.round) for seed in self.seeds]

    def table(self) -> Table:
        """arm × peer: exact match and gap with intervals over seeds and items, and paired differences."""
        found = {arm.name: self.values(arm) for arm in self.arms}
        titles = {arm.name: arm.title for arm in self.arms}
        title = (
            f"ablation {self.name}, round {self.round}, seeds {', '.join(map(str, self.seeds))}: in %, means over "
            "seeds and benchmarks\nwith 95 % intervals over seeds and questions; =: the interval of the "
            "difference contains 0"
        )
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        against = [name for name in AGAINST if name in found]
        for column in ("arm", "peer"):
            table.add_column(column)
        for column in ("EM", *(f"EM − {name}" for name in against), "GV-Gap", *(f"Gap − {name}" for name in against)):
            table.add_column(column, justify="right", no_wrap=True)
        for name, values in found.items():
            for peer in (*self.config.peer_names, "mean"):
                cells = []
                for metric in ("em", "gap"):
                    mine = matrices(values, metric, peer)
                    cells.append(_shown(self.estimate(mine)))
                    for other in against:
                        theirs = matrices(found[other], metric, peer)
                        apart = [a - b for a, b in zip(mine, theirs, strict=True)]
                        cells.append("" if other == name else _difference(self.estimate(apart)))
                table.add_row(titles[name] if peer == self.config.peer_names[0] else "", peer, *cells)
            table.add_section()
        return table

    def estimate(self, benchmarks: list[Matrix]) -> Estimate:
        """With the config's resamples and seed."""
        return estimate(benchmarks, self.config.evaluate.bootstrap, self.config.run.seed)


def fingerprint(run: Run, stage: str, round_: int) -> dict[str, Any]:
    """What a stage that can be shared will be known by."""
    if stage == "generate":
        from generate.stage import fingerprint as of_chains

        return of_chains(run, round_)
    from evaluate.benchmarks import load_benchmarks
    from evaluate.stage import fingerprint as of_evals

    return of_evals(run, round_, load_benchmarks(run.config))


def _metrics(run: str, round_: int) -> Path:
    return RUNS / run / f"round={round_}" / "metrics.parquet"


def _shown(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return f"{100 * found.mean:.1f}"
    return f"{100 * found.mean:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _difference(found: Estimate) -> str:
    sign = "= " if found.contains_zero else ""
    if found.low is None or found.high is None:
        return f"{sign}{100 * found.mean:+.1f}"
    return f"{sign}{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help="Run several arms of one experiment with several seeds, and print their differences with intervals.")
def command(
    config: Annotated[Path, typer.Option(help="TOML config of the experiment.")],
    round_: Annotated[int, typer.Option("--round", min=1, help="Up to which round.")] = 1,
    run: Annotated[str | None, typer.Option(help="Its name; the default is that of the config's file.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="run.seed and the ones after it.")] = 1,
    arms: Annotated[str, typer.Option(help="Names in configs/arms, or TOML files, with spaces.")] = DEFAULT_ARMS,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override for all arms; repeatable.")] = None,
) -> None:
    """`python -m evaluate ablate --config FILE --round R`."""
    quiet_environment()

    def body() -> None:
        chosen = [load_arm(name) for name in dict.fromkeys(arms.split())]
        ablation = Ablation(run or config.stem, config, set_ or [], chosen, seeds, round_)
        ablation.run()
        console.print(ablation.table())

    guarded(body)
