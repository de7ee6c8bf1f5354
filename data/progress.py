"""The state of each stage of a run, quickly and from its files alone, for `make status` and the report.

A finished stage has its manifest. For any other, `logs/<stage>.json` says what the last command that reached it did
(data/record.py writes it). The run's lock, which the system releases when a process is killed, says whether that
command still runs. No shard is read and no checksum is made: `make verify` does that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from data import shards
from data.errors import UserError
from data.inside import LAST_ROUND
from data.locks import holder
from data.run import OUTPUT, RUNS, check_run, load_frozen

State = Literal[
    "finished",  # its manifest is there, and so are the files that it lists
    "running",  # a command works on it
    "stopped",  # killed or interrupted: the same command goes on
    "failed",  # with an error, in `reason`
    "ended",  # the guard, the gate's patience or runtime.max_hours ended the run before it (`reason`)
    "missing",  # not begun
    "damaged",  # its manifest cannot be read, or a file in it is missing (`reason`)
]


@dataclass(frozen=True)
class PeerState:
    """A peer's progress in the current task of a stage. `left` is in seconds, None if unknown."""

    peer: str
    done: int
    total: int
    tokens: int
    tokens_per_second: float | None
    left: float | None
    working: bool  # False: it waits for another peer, or is done
    devices: tuple[str, ...]


@dataclass(frozen=True)
class StageState:
    """One stage of one round. Unknown values are None or empty."""

    round: int
    stage: str
    state: State
    rows: int | None = None  # of a finished stage
    seconds: float | None = None  # taken; of a running one, since this command began it
    changed: datetime | None = None  # UTC: when it ended; of a running or killed one, its last sign of life
    reason: str | None = None  # one line
    task: str | None = None  # the current or last one: "evaluate round 0, responses"
    unit: str | None = None  # of `done`, `total` and those of the peers: "responses"
    done: int | None = None
    total: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    left: float | None = None  # seconds, of `task`
    peers: tuple[PeerState, ...] = field(default=())
    quarantined: dict[str, int] = field(default_factory=dict)  # of a finished stage: lost questions by reason


def stages(run: str) -> list[StageState]:
    """The stages of a run in order, up to the last round that was begun or that the last command was to reach.

    Raises UserError for an unknown run.
    """
    root = RUNS / run
    records = _records(root)
    held, latest = holder(root), _latest(records)
    if not records and held is None:
        check_run(run)
    frozen = (root / "config.json").is_file()
    config = load_frozen(run).model_dump() if frozen else {}
    begun = {r for r in _rounds(root) if _begun(root / f"round={r}")} | {r for r, _ in records}
    goal = latest.get("last_round")
    last = max([*begun, goal if type(goal) is int and goal <= LAST_ROUND else 0], default=0)
    return [
        _state(root, round_, stage, records.get((round_, stage)), held)
        for round_ in range(last + 1)
        for stage in _stages_of(round_, config)
        if frozen or (round_, stage) in records
    ]


def going(run: str, states: list[StageState] | None = None) -> bool:
    """Whether a command works on a run, or is between two stages, and has something left to do."""
    root = RUNS / run
    if holder(root) is None or _latest(_records(root)).get("state") not in ("running", "finished"):
        return False
    return any(each.state != "finished" for each in (stages(run) if states is None else states))


def _stages_of(round_: int, config: dict[str, Any]) -> list[str]:
    """The stages of a round, in the order in which `make round` runs them."""
    gated = bool(config.get("gate", {}).get("questions", 0))
    measured = bool(config.get("benchmarks", True))
    order = ["generate", "score", "train", "gate", "evaluate"] if round_ else ["evaluate", "gate"]
    return [stage for stage in order if (stage != "gate" or gated) and (stage != "evaluate" or measured)]


def _rounds(root: Path) -> list[int]:
    names = [path.name.partition("=")[2] for path in root.glob("round=*")]
    return sorted(int(name) for name in names if name.isdecimal())


def _begun(round_dir: Path) -> bool:
    """Whether a round has more than logs, which refused commands leave, too."""
    return any(path.name != "logs" for path in round_dir.iterdir())


def record_path(round_dir: Path, stage: str) -> Path:
    """Where the last command that reached a stage keeps its record."""
    return round_dir / "logs" / f"{stage}.json"


def forget_failure(round_dir: Path, stage: str) -> None:
    """Delete the record of a command that failed at a finished stage, once a later command has got past that stage."""
    found = _record(round_dir, stage)
    if found is not None and found.get("state") != "finished":
        record_path(round_dir, stage).unlink(missing_ok=True)


def _records(root: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """The records of a run by round and stage."""
    found = {(round_, stage): _record(root / f"round={round_}", stage) for round_ in _rounds(root) for stage in OUTPUT}
    return {key: record for key, record in found.items() if record is not None}


def _latest(records: dict[tuple[int, str], dict[str, Any]]) -> dict[str, Any]:
    """The record of the stage that a command began last."""
    return max(records.values(), key=lambda record: str(record.get("started", "")), default={})


def _record(round_dir: Path, stage: str) -> dict[str, Any] | None:
    """A stage's record; None if it is missing or cannot be read: it is for people, and nothing depends on it."""
    try:
        found = shards.read_json(record_path(round_dir, stage))
    except (UserError, OSError):
        return None
    return found if isinstance(found, dict) and found.get("state") in get_args(State) else None


def _state(root: Path, round_: int, stage: str, record: dict[str, Any] | None, held: int | None) -> StageState:
    try:
        return _state_from(root, round_, stage, record, held)
    except (AttributeError, KeyError, TypeError, ValueError):  # someone edited the record
        return _state_from(root, round_, stage, None, held)


def _state_from(root: Path, round_: int, stage: str, record: dict[str, Any] | None, held: int | None) -> StageState:
    folder = root / f"round={round_}" / OUTPUT[stage]
    if (folder / shards.SUCCESS).is_file():
        found = _finished(folder, round_, stage)
        if record is None or record.get("state") != "failed" or _older(record, found.changed):
            return found
        return replace(found, state="failed", reason=record.get("reason"), changed=_time(record.get("updated")))
    if record is None:
        begun = (folder / shards.STARTED).is_file()
        return StageState(round_, stage, "stopped" if begun else "missing")
    state: State = record.get("state", "stopped")
    if state == "running" and held != record.get("pid"):
        state = "stopped"
    if state == "finished":
        state = "missing"  # its output was deleted since
        return StageState(round_, stage, state)
    return _at_work(StageState(round_, stage, state, reason=record.get("reason")), record)


def _finished(folder: Path, round_: int, stage: str) -> StageState:
    path = folder / shards.SUCCESS
    try:
        manifest = shards.manifest_alone(folder)
        gone = next((name for name in manifest["files"] if not (folder / name).is_file()), None)
        if gone is not None:
            reason = f"{folder / gone} is missing but {path} lists it; delete {folder} and run its stage again"
            return StageState(round_, stage, "damaged", reason=reason)
        changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        lost = manifest.get("quarantined", {})
        return StageState(round_, stage, "finished", manifest["rows"], manifest["seconds"], changed, quarantined=lost)
    except UserError as error:
        return StageState(round_, stage, "damaged", reason=str(error))
    except KeyError as error:
        reason = f"{path} is damaged: it has no {error}; delete {folder} and run its stage again"
        return StageState(round_, stage, "damaged", reason=reason)


def _older(record: dict[str, Any], when: datetime | None) -> bool:
    """Whether a record was last written before `when`."""
    updated = _time(record.get("updated"))
    return updated is None or when is None or updated < when


def _at_work(state: StageState, record: dict[str, Any]) -> StageState:
    """The state with the times and the progress that its record has."""
    started, changed = _time(record.get("started")), _time(record.get("updated"))
    now = datetime.now(UTC)
    running = state.state == "running"
    until = now if running else changed
    seconds = (until - started).total_seconds() if until and started else None
    aged = (now - changed).total_seconds() if running and changed else 0.0
    found = record.get("progress") or {}
    peers = tuple(_peer(name, each, aged, running) for name, each in found.get("peers", {}).items())
    return StageState(
        state.round,
        state.stage,
        state.state,
        None,
        None if seconds is None else round(seconds, 1),
        changed,
        state.reason,
        found.get("task"),
        found.get("unit"),
        found.get("done"),
        found.get("total"),
        found.get("tokens"),
        found.get("tokens_per_second") if running else None,
        _left(found, aged, running),
        peers,
    )


def _peer(name: str, found: dict[str, Any], aged: float, running: bool) -> PeerState:
    return PeerState(
        name,
        found["done"],
        found["total"],
        found["tokens"],
        found.get("tokens_per_second") if running else None,
        _left(found, aged, running),
        running and found["working"],
        tuple(found.get("devices", ())),
    )


def _left(found: dict[str, Any], aged: float, running: bool) -> float | None:
    """Seconds left now, from what the record said `aged` seconds ago."""
    left = found.get("seconds_left")
    return round(max(0.0, left - aged), 1) if running and left is not None else None


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
