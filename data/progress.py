"""What has become of each stage of a run, from its files alone, in no time: for `make status` and the report.

A finished stage has its manifest. Of any other, `logs/<stage>.json` tells what the last command that came to it did
(data/record.py writes it). Whether that command is still there, the run's lock tells, which the system takes from a
process that is killed. No shard is read and no checksum is made: that is `make verify`.
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
    "running",  # a command is at it
    "stopped",  # killed or interrupted in the middle: the same command goes on
    "failed",  # an error, which `reason` tells
    "ended",  # not begun, in order: by the guard, the gate's patience or runtime.max_hours (`reason`)
    "missing",  # not begun
    "damaged",  # its manifest cannot be read, or a file that it lists is gone (`reason`)
]


@dataclass(frozen=True)
class PeerState:
    """What a peer has done of what its stage is at. `left` in seconds, where it can be told."""

    peer: str
    done: int
    total: int
    tokens: int
    tokens_per_second: float | None
    left: float | None
    working: bool  # False: it waits for another peer, or is through
    devices: tuple[str, ...]


@dataclass(frozen=True)
class StageState:
    """One stage of one round. What is not known is None, or empty."""

    round: int
    stage: str
    state: State
    rows: int | None = None  # of a finished stage
    seconds: float | None = None  # it took; of a running one, since this command began it
    changed: datetime | None = None  # UTC: when it ended, however; of a running or killed one, when it was last heard
    reason: str | None = None  # one line
    task: str | None = None  # what it is, or was, at: "evaluate round 0, responses"
    unit: str | None = None  # of which `done`, `total` and the peers' are: "responses"
    done: int | None = None
    total: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    left: float | None = None  # seconds, of `task`
    peers: tuple[PeerState, ...] = field(default=())
    quarantined: dict[str, int] = field(default_factory=dict)  # of a finished stage: questions lost, by reason


def stages(run: str) -> list[StageState]:
    """The stages of a run in their order: of all rounds in which anything was done, and up to the one that the last
    command was asked for. Raises UserError for an unknown run."""
    root = RUNS / run
    records = _records(root)
    held, latest = holder(root), _latest(records)
    if not records and held is None:
        check_run(run)
    frozen = (root / "config.json").is_file()
    config = load_frozen(run).model_dump() if frozen else {}
    begun = {r for r in _rounds(root) if _begun(root / f"round={r}")} | {r for r, _ in records}
    asked = latest.get("last_round")
    last = max([*begun, asked if type(asked) is int and asked <= LAST_ROUND else 0], default=0)
    return [
        _state(root, round_, stage, records.get((round_, stage)), held)
        for round_ in range(last + 1)
        for stage in _stages_of(round_, config)
        if frozen or (round_, stage) in records
    ]


def going(run: str, states: list[StageState] | None = None) -> bool:
    """Whether a command is at a run and has something left to do; between two stages, too."""
    root = RUNS / run
    if holder(root) is None or _latest(_records(root)).get("state") not in ("running", "finished"):
        return False
    return any(each.state != "finished" for each in (stages(run) if states is None else states))


def _stages_of(round_: int, config: dict[str, Any]) -> list[str]:
    """In the order in which `make round` does them."""
    gated = bool(config.get("gate", {}).get("questions", 0))
    measured = bool(config.get("benchmarks", True))
    order = ["generate", "score", "train", "gate", "evaluate"] if round_ else ["evaluate", "gate"]
    return [stage for stage in order if (stage != "gate" or gated) and (stage != "evaluate" or measured)]


def _rounds(root: Path) -> list[int]:
    names = [path.name.partition("=")[2] for path in root.glob("round=*")]
    return sorted(int(name) for name in names if name.isdecimal())


def _begun(round_dir: Path) -> bool:
    """Whether a round has more than logs, which calls that were refused leave, too."""
    return any(path.name != "logs" for path in round_dir.iterdir())


def record_path(round_dir: Path, stage: str) -> Path:
    """Where the last command that came to a stage keeps what it does."""
    return round_dir / "logs" / f"{stage}.json"


def forget_failure(round_dir: Path, stage: str) -> None:
    """Of a finished stage that a later command came to in vain, and one after that not."""
    found = _record(round_dir, stage)
    if found is not None and found.get("state") != "finished":
        record_path(round_dir, stage).unlink(missing_ok=True)


def _records(root: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """By round and stage."""
    found = {(round_, stage): _record(root / f"round={round_}", stage) for round_ in _rounds(root) for stage in OUTPUT}
    return {key: record for key, record in found.items() if record is not None}


def _latest(records: dict[tuple[int, str], dict[str, Any]]) -> dict[str, Any]:
    """The record of the last step that a command came to."""
    return max(records.values(), key=lambda record: str(record.get("started", "")), default={})


def _record(round_dir: Path, stage: str) -> dict[str, Any] | None:
    """None, too, for one that cannot be read: it is for people, and nothing rests on it."""
    try:
        found = shards.read_json(record_path(round_dir, stage))
    except (UserError, OSError):
        return None
    return found if isinstance(found, dict) and found.get("state") in get_args(State) else None


def _state(root: Path, round_: int, stage: str, record: dict[str, Any] | None, held: int | None) -> StageState:
    try:
        return _told(root, round_, stage, record, held)
    except (AttributeError, KeyError, TypeError, ValueError):  # a record that was edited
        return _told(root, round_, stage, None, held)


def _told(root: Path, round_: int, stage: str, record: dict[str, Any] | None, held: int | None) -> StageState:
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
    """Whether a record is of a command that came before."""
    updated = _time(record.get("updated"))
    return updated is None or when is None or updated < when


def _at_work(state: StageState, record: dict[str, Any]) -> StageState:
    """With what the record tells of time and progress."""
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
    """Seconds left now, of what was told a while ago."""
    left = found.get("seconds_left")
    return round(max(0.0, left - aged), 1) if running and left is not None else None


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
