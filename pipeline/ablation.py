"""`python -m pipeline.ablation`: the same experiment under several arms and seeds, side by side.

An arm is a small TOML that overrides keys of the experiment's config (configs/arms/). Each arm and seed is its own run,
`<run>.<arm>.<seed>`, which can be inspected and continued like any other. What two runs have in common, such as the
chains of round 1 or the evaluation of round 0, is made once: a finished stage with the same fingerprint in another run
of the ablation is linked, not repeated. After a kill, the same command continues.
"""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from data import shards
from data.cli import guarded, quiet_environment, start
from data.config.load import load_config
from data.console import console
from data.errors import UserError
from data.guard import Ended
from data.hours import hours_of
from data.inside import LAST_ROUND
from data.keep import keep_path
from data.run import RUNS, Run, check_run_name, metrics_path, open_run, stage_is_finished
from data.schema import ABLATION
from data.shards import Row
from evaluate.intervals import estimate
from evaluate.items import ItemValues, item_values, matrices
from evaluate.labels import gold_by_id, keep_right
from evaluate.report import has_results, write_report
from evaluate.tables import points
from peers.command import do_step
from peers.engines.protocol import engine_kind
from peers.local import warm
from peers.workers import Pool
from pipeline.arms import BASE, Arm, load_arm
from pipeline.reuse import adopt
from pipeline.round import plan

DEFAULT_ARMS = "pst uniform shuffled agreement entropy vote own self self-vote oracle"
DEFAULT_AGAINST = "pst uniform"  # the arms that all others are compared with
AGAIN = "again"  # the only arm that may equal another
METRICS_SHOWN = {"em": "EM", "gap": "GV-Gap"}


class Ablation:
    """Arms × seeds of one experiment up to a round."""

    def __init__(
        self,
        name: str,
        config: Path,
        overrides: list[str],
        arms: list[Arm],
        seeds: int,
        round_: int,
        against: str | None = None,
    ) -> None:
        self.name, self.path, self.overrides, self.arms, self.round = name, config, overrides, arms, round_
        self.config = load_config(config, overrides)
        first = self.config.run.seed
        self.seeds = list(range(first, first + seeds))
        if not self.config.benchmarks:
            raise UserError(f"{config}: arms are compared by exact match and GV-Gap, which need a [[benchmarks]] table")
        if not arms:
            raise UserError("--arms is empty: name some of configs/arms (ARMS= with make)")
        twice = [name for name, count in Counter(arm.name for arm in arms).items() if count > 1]
        if twice:
            raise UserError(f"two arms are called {twice[0]!r}: rename one of the TOML files")
        known = [arm.name for arm in arms]
        wanted = list(dict.fromkeys((DEFAULT_AGAINST if against is None else against).split()))
        missing = [other for other in wanted if other not in known]
        if missing and against is not None:
            raise UserError(
                f"--against {missing[0]!r} is not an arm of this command; expected some of: {' '.join(known)}"
            )
        self.compared = [arms[known.index(other)] for other in wanted if other in known]
        same: dict[str, str] = {}
        for arm in arms:  # before any work
            try:
                resolved = load_config(config, self.overrides_of(arm, first))
                load_config(config, self.overrides_of(arm, self.seeds[-1]))
            except UserError as error:
                raise UserError(f"arm {arm.name}: {error}") from error
            if arm.oracle:
                gold_by_id(resolved)
            other = same.setdefault(f"{arm.oracle} {resolved.model_dump_json()}", arm.name)
            if other != arm.name and AGAIN not in (other, arm.name):
                raise UserError(
                    f"the arms {other!r} and {arm.name!r} are the same under {config}: leave one out (the arm "
                    f"{AGAIN!r} runs the same thing twice)"
                )

    def overrides_of(self, arm: Arm, seed: int) -> list[str]:
        """All overrides of the config file for a run of an arm."""
        return [*self.overrides, *arm.overrides, f"run.seed={seed}"]

    def run_name(self, arm: Arm, seed: int) -> str:
        """The name of an arm's run."""
        return f"{self.name}.{arm.name}.{seed}"

    def names(self, seed: int) -> list[str]:
        """The runs of all arms with a seed, including those of earlier commands."""
        mine = [self.run_name(arm, seed) for arm in self.arms]
        others = sorted(path.parent.name for path in RUNS.glob("*/config.json"))
        return mine + [
            name
            for name in others
            if name.startswith(f"{self.name}.") and name.endswith(f".{seed}") and name not in mine
        ]

    def run(self) -> None:
        """Run all arms, one after the other. Comparisons leave out an arm whose run ended early."""
        for arm in self.arms:  # before any work
            check_run_name(self.run_name(arm, self.seeds[-1]))  # the longest name
        ended_early: dict[Arm, int] = {}
        for number, seed in enumerate(self.seeds):
            for arm in self.arms:
                if arm in ended_early:
                    continue
                name = self.run_name(arm, seed)
                console.print(f"[bold]{arm.title}[/bold], seed {seed} ({number + 1} of {len(self.seeds)}): run {name}")
                with open_run(name, self.path, self.overrides_of(arm, seed)) as run:
                    if not (
                        stage_is_finished(name, "evaluate", self.round) and metrics_path(name, self.round).is_file()
                    ):
                        try:
                            self.go_on(run, arm, seed)
                        except Ended as error:
                            console.print(f"[bold]ended early[/bold]: {escape(str(error))}")
                            ended_early.setdefault(arm, seed)
        self.arms = [arm for arm in self.arms if arm not in ended_early]
        self.compared = [arm for arm in self.compared if arm not in ended_early]
        for arm, seed in ended_early.items():
            console.print(f"[bold]{arm.title}[/bold] ended early (seed {seed}) and is left out of the tables")
        if not self.arms:
            raise UserError("all arms ended early, so there is nothing to compare")

    def go_on(self, run: Run, arm: Arm, seed: int) -> None:
        """Run the missing stages of one run."""
        warm(run.config, engine=engine_kind(run.config.generate) == "vllm")
        try:
            hours = hours_of(run)
            with Pool(run) as workers:
                for step in plan(self.round):
                    adopt(run, step.stage, step.round, self.names(seed))
                    if step.stage == "train" and arm.oracle:  # train needs the list, even after a kill
                        left = keep_right(run, step.round)
                        console.print(f"  oracle round {step.round}: {left} examples that are right by gold")
                    do_step(step, run, workers, hours, self.round)
        except Ended:
            if has_results(run.name):
                write_report(run.name, run.config.guard)
            raise
        finally:
            shutil.rmtree(run.root / ".checkpoints", ignore_errors=True)  # can be merged again, bit for bit

    # --- results ---

    def results(self) -> list[Row]:
        """Rows of ABLATION, for round 0 and each arm, per peer and for the peers' mean: exact match and gap, and their
        paired differences from the arms `compared`, with intervals over seeds and questions. Raises UserError if runs
        cannot be compared."""
        found = {BASE.name: [item_values(RUNS / self.run_name(self.arms[0], seed), 0) for seed in self.seeds]}
        found |= {arm.name: self.values(arm) for arm in self.arms}
        everything = [each for values in found.values() for each in values]
        matrices(everything, "em", "mean")  # raises unless all have the same questions
        rows: list[Row] = []
        for arm in (BASE, *self.arms):
            others = [None, *(other for other in self.compared if other.name != arm.name)]
            for peer, metric, other in product((*self.config.peer_names, "mean"), METRICS_SHOWN, others):
                values = matrices(found[arm.name], metric, peer, everything)
                if other is not None:
                    theirs = matrices(found[other.name], metric, peer, everything)
                    values = [a - b for a, b in zip(values, theirs, strict=True)]
                got = estimate(values, self.config.evaluate.bootstrap, self.config.run.seed)
                rows.append(
                    {
                        "arm": arm.name,
                        "reads_gold": arm.oracle or (other is not None and other.oracle),
                        "peer": peer,
                        "metric": metric,
                        "minus": None if other is None else other.name,
                        "mean": got.mean,
                        "low": got.low,
                        "high": got.high,
                        "seeds": self.seeds,
                    }
                )
        return rows

    def values(self, arm: Arm) -> list[ItemValues]:
        """Per seed, every item's values in the last round. Raises UserError if gold answers did not choose an oracle's
        examples in every round, because someone continued its run with another command."""
        for run, round_ in product([self.run_name(arm, seed) for seed in self.seeds], range(1, self.round + 1)):
            if arm.oracle and not (path := keep_path(run, round_)).is_file():
                raise UserError(
                    f"{path} is missing, so gold answers did not choose this oracle's examples: delete runs/{run}"
                )
        return [item_values(RUNS / self.run_name(arm, seed), self.round) for seed in self.seeds]

    def tables(self, rows: list[Row]) -> list[Table]:
        """One per metric, arm × peer."""
        seeds = ", ".join(map(str, self.seeds))
        over = "questions" if len(self.seeds) == 1 else "seeds and questions"
        tables: list[Table] = []
        for metric, name in METRICS_SHOWN.items():
            title = (
                f"ablation {self.name}, round {self.round}, seeds {seeds}: {name} in %, means over seeds and benchmarks"
            )
            if not tables:
                title += (
                    f"\nwith 95 % intervals over {over}, not corrected for the number of comparisons"
                    "\n?: the interval of a difference contains 0, so its sign is not known"
                )
            table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
            for column in ("arm", "peer"):
                table.add_column(column, no_wrap=True)
            for column in (name, *(f"− {other.title}" for other in self.compared)):
                table.add_column(column, justify="right", no_wrap=True)
            for arm in (BASE, *self.arms):
                for number, peer in enumerate((*self.config.peer_names, "mean")):
                    mine = [r for r in rows if (r["arm"], r["peer"], r["metric"]) == (arm.name, peer, metric)]
                    cells = {row["minus"]: _shown(row) for row in mine}
                    shown = (cells.get(other, "") for other in (None, *(other.name for other in self.compared)))
                    table.add_row("" if number else arm.title, peer, *shown)
                table.add_section()
            tables.append(table)
        return tables


def _shown(row: Row) -> str:
    """A mean; or a difference with its sign, and ? if its interval contains 0."""
    sign = "" if row["minus"] is None else "+"
    known = row["minus"] is None or (row["low"] is not None and not row["low"] <= 0 <= row["high"])
    mean = ("" if known else "? ") + points(row["mean"], sign)
    if row["low"] is None:
        return mean
    if sign and row["low"] == row["high"]:  # no interval: how much they vary is unknown
        return f"{mean} (no spread)"
    low, high = row["low"], row["high"]
    if row["metric"] == "em" and not sign:  # a share cannot exceed these, an estimated interval can
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{mean} ({points(low, sign)} to {points(high, sign)})"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help="Run several arms of one experiment with several seeds, and print their differences with intervals.")
def command(
    config: Annotated[Path, typer.Option(help="TOML config of the experiment.")],
    round_: Annotated[int, typer.Option("--round", min=1, max=LAST_ROUND, help="Number of the last round.")] = 1,
    run: Annotated[str | None, typer.Option(help="Name of the ablation; default: that of the config's file.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: run.seed and the numbers after it.")] = 1,
    arms: Annotated[
        str, typer.Option(help="Names in configs/arms, or TOML files, with spaces between.")
    ] = DEFAULT_ARMS,
    against: Annotated[
        str | None,
        typer.Option(
            help=f"Arms to compare the others with; default: those of `{DEFAULT_AGAINST}` that are in --arms."
        ),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override for all arms; repeatable.")] = None,
) -> None:
    """`python -m pipeline.ablation --config FILE --round R`."""
    from evaluate.page.side_by_side import write_ablation

    quiet_environment()

    def body() -> None:
        chosen = [load_arm(name) for name in dict.fromkeys(arms.split())]
        ablation = Ablation(run or config.stem, config, set_ or [], chosen, seeds, round_, against)
        ablation.run()
        rows = ablation.results()
        path = RUNS / f"{ablation.name}.ablation.round={round_}.parquet"
        shards.write_rows(rows, path, ABLATION)
        for table in ablation.tables(rows):
            console.print(table)
        page = write_ablation(ablation.name, round_, rows, path.with_suffix(".html"))
        console.print(f"rows: {path}; page: {page}")

    guarded(body)


if __name__ == "__main__":
    start(app, "pipeline.ablation")
