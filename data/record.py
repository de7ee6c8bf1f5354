"""What a command does at a stage, for other processes to see: `logs/<stage>.json`, and events.

The small file is rewritten at most once a second. Nothing depends on it: a stage goes on from its own files.
data/progress.py reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from data import events, shards
from data.errors import UserError, trouble
from data.guard import Ended
from data.progress import State, forget_failure, record_path
from data.run import OUTPUT, Run, stage_is_finished

MAX_REASON = 1000  # characters of a reason


class Record:
    """The record of one stage of one round."""

    def __init__(self, run: Run, round_: int, stage: str, last_round: int) -> None:
        self.path = record_path(run.round_dir(round_), stage)
        self.found: dict[str, Any] = {
            "run": run.name,
            "round": round_,
            "stage": stage,
            "state": "running",
            "pid": os.getpid(),
            "started": events.now_utc(),
            "last_round": last_round,
        }
        self.write()

    def progress(self, numbers: dict[str, Any]) -> None:
        """Set the progress of the stage's task: `data.task.Task.numbers`."""
        self.found["progress"] = numbers
        self.write()

    def close(self, state: State, reason: str | None = None) -> None:
        """Set the final state."""
        self.found |= {"state": state, "reason": reason}
        self.write()

    def write(self) -> None:
        """Write the file; never fail a stage for it. On a full disk overwrite it in place, where it has a block
        already: it has to report the full disk."""
        text = json.dumps({**self.found, "updated": events.now_utc()}, indent=1) + "\n"
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.path)  # not flushed to disk: a power cut may lose it
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            with suppress(OSError), self.path.open("r+", encoding="utf-8") as file:
                file.write(text)
                file.truncate()


current: Record | None = None  # of this process's current stage


@contextmanager
def recorded(run: Run, round_: int, stage: str, last_round: int) -> Iterator[None]:
    """Keep a record of the block, which does a stage, and emit its start and end as events. For a stage that was
    finished before, record failures only."""
    global current
    already = stage_is_finished(run.name, stage, round_)
    with events.with_fields(run=run.name, round=round_, stage=stage):
        current = None if already else Record(run, round_, stage, last_round)
        if not already:
            events.emit("started")
        try:
            yield
        except BaseException as error:
            state, reason = state_of(error), reason_of(error)
            if state == "failed" or not already:
                (current or Record(run, round_, stage, last_round)).close(state, reason)
            events.emit(state, reason=reason)
            raise
        else:
            _finished(run, round_, stage, already)
        finally:
            current = None


def _finished(run: Run, round_: int, stage: str, already: bool) -> None:
    path = run.stage_dir(round_, OUTPUT[stage]) / shards.SUCCESS
    if not path.is_file():  # evaluate without benchmarks has no output
        record_path(run.round_dir(round_), stage).unlink(missing_ok=True)
        events.emit("finished", rows=0, seconds=0.0, already=already)
        return
    if current is not None:
        current.close("finished")
    else:
        forget_failure(run.round_dir(round_), stage)
    if events.log.on:
        manifest = shards.read_json(path)
        events.emit("finished", rows=manifest["rows"], seconds=manifest["seconds"], already=already)


def state_of(error: BaseException) -> State:
    """The state of a stage that raised an error."""
    if isinstance(error, (KeyboardInterrupt, BrokenPipeError)):
        return "stopped"
    return "ended" if isinstance(error, Ended) else "failed"


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, BrokenPipeError):
        return "nobody read the output any more"
    reason = str(error) if isinstance(error, UserError) else trouble(error)
    if reason is None:  # a defect; if it quotes a peer's traceback, take its first and last line
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {' '.join(dict.fromkeys([*lines[:1], *lines[-1:]]))}"
    return " ".join(reason.split())[:MAX_REASON]
