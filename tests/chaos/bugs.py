"""Bugs that a chaos run must find, and a clock that must not matter: each function plants one in the process that calls
it, the command's or a peer's."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from data import shards
from tests.chaos.faults import everywhere


def marker_before_shard() -> None:
    """A stage is marked as finished before its last shard is written: a kill between the two leaves it incomplete."""
    close = shards.write_manifest

    def write_manifest(folder: Path, manifest: dict[str, Any], files: list[Path]) -> None:
        close(folder, manifest, files)
        content = files[-1].read_bytes()
        files[-1].unlink()
        with shards.writing(files[-1]) as temporary:
            temporary.write_bytes(content)

    everywhere(close, write_manifest)


def resumed_unit_redraws() -> None:
    """Requests after a kill use another seed."""
    from data.stage import Stage
    from generate.stage import Generation

    begin, seed = Stage.begin, Generation.seed

    def begun(self: Any, also: Path | None = None) -> bool:
        if (self.folder / shards.STARTED).is_file():
            Path("runs/resumed").touch()
        return begin(self, also)

    def drawn(self: Any, unit: Any, question: Any, sample: int) -> int:
        return seed(self, unit, question, sample) + 1000 * Path("runs/resumed").exists()

    Stage.begin, Generation.seed = begun, drawn  # type: ignore[method-assign]


def lost_rename() -> None:
    """A stage is marked as finished while the name of its last shard is not on disk yet."""
    close = shards.write_manifest

    def write_manifest(folder: Path, manifest: dict[str, Any], files: list[Path]) -> None:
        close(folder, manifest, files)
        waiting = files[-1].with_name(files[-1].name + ".tmp")
        os.rename(files[-1], waiting)
        shards.replace(waiting, files[-1])

    everywhere(close, write_manifest)


def shifted_clock() -> None:
    """The clock is 500 days ahead, and jumps back an hour at each reading."""
    now, looks = time.time, [0]

    def shifted() -> float:
        looks[0] += 1
        return now() + 500 * 86_400 - 3600 * (looks[0] % 2)

    time.time = shifted
