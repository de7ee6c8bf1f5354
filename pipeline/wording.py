"""`python -m pipeline.wording --config FILE`: find the best wording for each peer.

Every peer answers a small dev set under every wording of [wordings] and its present one. The command prints a table of
the results and writes the choice into the TOML.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from data.answers.grader import Grader
from data.cli import guarded, quiet_environment, start
from data.config.edit import set_wordings
from data.config.load import load_config
from data.config.sections import Config, PeerSection, TemplateSection
from data.console import console
from data.errors import UserError
from data.task import task
from evaluate.intervals import Estimate
from evaluate.tables import points
from evaluate.wording import DevSet, WordingChoice, WordingTrial, ask, choose, load_dev_set, mean, trial_of
from pipeline.unrecorded import untouched_peers

HELP = """Try every wording of [wordings] with every peer on the questions of [wording], and write the choice.

With wording.answer_column, compare wordings by the accuracy of greedy answers, else by the self-consistency of
wording.samples samples. A peer keeps its present wording unless another one is better by more than chance: the 95 %
interval of their paired difference must lie above 0."""


def candidate_wordings(config: Config, peer: PeerSection) -> dict[str, TemplateSection]:
    """{name: wording} to try with a peer, its present one first."""
    return {config.wording_name(peer): config.templates_of(peer), **config.wordings}


def try_wordings(config: Config, dev: DevSet) -> dict[str, list[WordingTrial]]:
    """Each peer's trials, one per wording."""
    tried = {peer.name: candidate_wordings(config, peer) for peer in config.peers}
    section = config.wording
    assert section is not None
    k = section.samples if dev.golds is None else 0
    total = {name: max(1, k) * len(dev.questions) * len(wordings) for name, wordings in tried.items()}
    found: dict[str, list[WordingTrial]] = {}
    with untouched_peers(config, "wording") as (workers, policies):
        for name, wordings in tried.items():
            workers.submit(name, ask, policies[name], wordings, dev.questions, k)
        with (
            Grader(config.evaluate.answer_timeout_seconds, config.runtime.grader_workers) as grader,
            task("wording", total, "responses") as line,
        ):
            for job, responses in workers.results(line):
                found[job.peer] = [
                    trial_of(name, each, dev, section.answers, grader) for name, each in responses.items()
                ]
    return {name: found[name] for name in tried}


def trials_table(
    config: Config, dev: DevSet, trials: Mapping[str, list[WordingTrial]], choices: Mapping[str, WordingChoice]
) -> Table:
    """A row per peer and wording; ● marks the best one, → the one to use."""
    value = "accuracy" if dev.golds is not None else "self-consistency"
    title = (
        f"wordings on {len(dev.questions)} questions of {config.wording.source if config.wording else ''}, in % with "
        "95 % bootstrap intervals\n→: used; ●: the best measured (the best of several looks better than it is)"
    )
    if dev.golds is None:
        title += "\nno gold answers: a model can be consistent and wrong, so also look at its responses (make try)"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("", "peer", "wording"):
        table.add_column(name, no_wrap=True)
    for name in (value, "unfinished", "no answer", "mean tokens"):
        table.add_column(name, justify="right")
    for peer, mine in trials.items():
        choice = choices[peer]
        for number, trial in enumerate(mine):
            mark = ("→" if trial.wording == choice.chosen else " ") + ("●" if trial.wording == choice.best else " ")
            table.add_row(
                mark,
                "" if number else peer,
                escape(trial.wording),
                _interval(mean(trial, config)),
                points(trial.unfinished),
                points(trial.unanswered),
                f"{trial.tokens:.0f}",
            )
        table.add_section()
    return table


def _interval(found: Estimate, sign: str = "") -> str:
    if found.low is None or found.high is None:
        return points(found.mean, sign)
    return f"{points(found.mean, sign)} ({points(found.low, sign)} to {points(found.high, sign)})"


def verdict_line(peer: str, choice: WordingChoice) -> str:
    """One line: the wording that a peer uses, and why."""
    if choice.gain is None:
        return f"{peer} keeps {choice.present}: no other measured better"
    gain = f"{choice.best} differs from {choice.present} by {_interval(choice.gain, '+')} points"
    if choice.chosen == choice.present:
        return f"{peer} keeps {choice.present}: {gain}, which may be chance"
    return f"{peer} takes {choice.chosen}: {gain}"


def check_wordings(config: Config) -> None:
    """Raises UserError if there is nothing to choose from."""
    if not any(len(candidate_wordings(config, peer)) > 1 for peer in config.peers):
        raise UserError(
            "there is no wording to choose from: add tables [wordings.NAME] with the keys of [templates] "
            "(docs/config.md)"
        )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=HELP)
def command(
    config: Annotated[Path, typer.Option(help="TOML config; the choice is written into it.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override, which is not written; repeatable.")] = None,
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="Set `wording` of the peers in the TOML, or only print it.")
    ] = True,
) -> None:
    """`python -m pipeline.wording --config FILE`."""
    quiet_environment()

    def body() -> None:
        resolved = load_config(config, set_ or [])
        check_wordings(resolved)
        dev = load_dev_set(resolved)
        trials = try_wordings(resolved, dev)
        choices = {
            peer.name: choose(trials[peer.name], resolved.wording_name(peer), resolved) for peer in resolved.peers
        }
        console.print(trials_table(resolved, dev, trials, choices))
        for name, choice in choices.items():
            console.print(verdict_line(name, choice), markup=False, soft_wrap=True)
        changed = {name: choice.chosen for name, choice in choices.items() if choice.chosen != choice.present}
        _write(resolved, config, changed, write)

    guarded(body)


def _write(config: Config, path: Path, changed: dict[str, str], write: bool) -> None:
    own = [name for name in changed if config.peer(name).templates is not None]
    for name in own:
        console.print(
            f"peer {name} has its own templates in {path}: replace them by wording = {changed[name]!r} by hand",
            markup=False,
            soft_wrap=True,
        )
    changed = {name: wording for name, wording in changed.items() if name not in own}
    choices = ", ".join(f'wording = "{wording}" for {name}' for name, wording in changed.items())
    if changed and write:
        set_wordings(path, changed)
    if not changed:
        line = f"{path} is unchanged"
    else:
        line = f"written to {path}: {choices}" if write else f"not written to {path}: {choices}"
    console.print(line, markup=False, soft_wrap=True)


if __name__ == "__main__":
    start(app, "pipeline.wording")
