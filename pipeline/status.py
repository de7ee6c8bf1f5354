"""`python -m pipeline.status --run NAME`: the state of every stage of a run (docs/running.md).

It only reads files, also while a command is running. It reads no shard: `make verify` checks these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from data import quarantine
from data.cli import guarded, start
from data.console import console
from data.inside import check_inside
from data.locks import Holder, lock_state
from data.meter import duration_text
from data.progress import PeerState, StageState, going, stages
from data.run import RUNS, check_run_name
from data.versions import version_changes as version_changes

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
STATE_WORDS = {"missing": "-"}


def status_table(states: Sequence[StageState]) -> Table:
    """One row per stage, with a row per peer below an unfinished one; all rounds that have not begun are one row."""
    table = Table("round", "stage", "state", "rows", "seconds", "progress")
    begun = max((each.round for each in states if each.state != "missing"), default=0)
    for each in states:
        if each.round > begun + 1:
            table.add_row(f"{each.round} to {states[-1].round}", "all", STATE_WORDS["missing"], "", "", "")
            break
        seconds = "" if each.seconds is None else f"{each.seconds:g}"
        rows = "" if each.rows is None else str(each.rows)
        table.add_row(
            str(each.round), each.stage, STATE_WORDS.get(each.state, each.state), rows, seconds, escape(_progress(each))
        )
        for peer in each.peers if len(each.peers) > 1 else ():
            table.add_row("", f"  {escape(peer.peer)}", "", "", "", escape(_of_peer(peer, each.state == "running")))
    return table


def _progress(state: StageState) -> str:
    if state.task is None or state.total is None:
        return "starting" if state.state == "running" else ""
    what = f"{_short(state)} {state.done}/{state.total}"
    return ", ".join([what, *_speed(state.tokens_per_second, state.left)])


def _short(state: StageState) -> str:
    """A task's name without its stage: "evaluate round 0, responses" becomes "responses"."""
    _, comma, what = str(state.task).partition(", ")
    return what if comma else str(state.unit)


def _speed(tokens_per_second: float | None, left: float | None) -> list[str]:
    speed = [] if tokens_per_second is None else [f"{tokens_per_second:,.0f} tokens/s"]
    return speed + ([f"about {duration_text(left)} left"] if left else [])


def _of_peer(peer: PeerState, running: bool) -> str:
    parts = [f"{peer.done}/{peer.total}"]
    if running and peer.done < peer.total:
        speed = _speed(peer.tokens_per_second, peer.left)
        parts += (speed if peer.done or speed else ["starting"]) if peer.working else ["waits"]
    return ", ".join(parts) + (f" on {', '.join(peer.devices)}" if peer.devices else "")


def status_lines(
    run: str, states: Sequence[StageState], holder: Holder | None, killed: Holder | None = None
) -> list[str]:
    """Lines above and below the table: which command is running or was killed, and what went wrong."""
    lines = []
    at = next((f"{each.stage} round {each.round}" for each in states if each.state == "running"), None)
    last_one = f"; the last one ({killed}) was killed, or its machine stopped" if killed else ""
    if holder is not None:
        at = at or "between two stages, starting or ending"
        lines.append(f"run {run}: a command is running ({holder}), {at}")
        left, last = outlook(states), max((each.round for each in states), default=0)
        if left is not None and left > 0:
            lines[0] += (
                f"; about {duration_text(left)} left to the end of round {last}, if stages take as long as before"
            )
    elif any(each.state != "finished" for each in states):
        lines.append(
            f"run {run}: no command is running{last_one}; the same command continues with what is not finished"
        )
    else:
        lines.append(f"run {run}: no command is running{last_one}")
    for each in states:
        if each.state == "stopped":
            why = f" ({each.reason})" if each.reason else ""
            lines.append(f"{each.stage} round {each.round} was stopped in the middle{_when(each.changed)}{why}")
        elif each.reason:
            lines.append(f"{each.stage} round {each.round} {each.state}{_when(each.changed)}: {each.reason}")
        if each.quarantined:
            lines.append(f"{each.stage} round {each.round}: quarantined {quarantine.summary(each.quarantined)}")
    return lines


def outlook(states: Sequence[StageState]) -> float | None:
    """Seconds until all is finished, if each stage takes as long as last time; None if one never finished."""
    took = {each.stage: each.seconds for each in states if each.state == "finished" and each.seconds is not None}
    total = 0.0
    for each in states:
        if each.state == "finished":
            continue
        if each.stage not in took:
            return None
        passed = each.seconds if each.state == "running" and each.seconds is not None else 0.0
        total += max(took[each.stage] - passed, each.left or 0.0)
    return total


def _when(time: datetime | None) -> str:
    return "" if time is None else f" at {time.astimezone():%Y-%m-%d %H:%M:%S}"


def as_json(run: str, states: Sequence[StageState], pid: int | None) -> dict[str, Any]:
    """For programs: the fields of `data.progress.StageState`, with the names and formats of events."""
    found = [asdict(each) for each in states]
    for each in found:
        when = each["changed"]
        each["changed"] = None if when is None else when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for part in (each, *each["peers"]):
            part["seconds_left"] = part.pop("left")
    return {"run": run, "pid": pid, "going": going(run, list(states)), "stages": found}


@app.command(help="Print the state of every stage of a run. Checksums are not compared: `make verify` does that.")
def command(
    run: Annotated[str, typer.Option(help="Name of the run.")],
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """`python -m pipeline.status --run NAME`."""

    def body() -> None:
        check_run_name(run)
        check_inside(RUNS / run)
        states, (held, who) = stages(run), lock_state(RUNS / run)
        who = who or (Holder() if held else None)
        if json_:
            pid = who.pid if held and who else None
            console.file.write(json.dumps(as_json(run, states, pid)) + "\n")
            return
        first, *others = status_lines(run, states, *((who, None) if held else (None, who)))
        console.print(first, markup=False, soft_wrap=True)
        if states:
            console.print(status_table(states))
        for line in (*others, *version_changes(RUNS / run)):
            console.print(line, markup=False, soft_wrap=True)

    guarded(body)


if __name__ == "__main__":
    start(app, "pipeline.status")
