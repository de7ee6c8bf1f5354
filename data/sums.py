"""Checksums of the files that no stage's manifest lists: `sums.json` beside them.

config.json is frozen before any stage; metrics.parquet, cross.parquet, guard.json, keep.parquet and lm_eval.json may be
made again while the shards behind them stay; several stages write to quarantine.parquet. `make verify` and `make pack`
read the checksums noted here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data import shards

SUMS = "sums.json"
# files that a round may have
IN_ROUND = ("metrics.parquet", "cross.parquet", "guard.json", "keep.parquet", "quarantine.parquet")
IN_RUN = ("config.json",)


def read_sums(folder: Path) -> dict[str, str]:
    """{file name: SHA-256} as noted in a folder. Raises UserError if sums.json is damaged."""
    path = folder / SUMS
    found: dict[str, str] = shards.read_json(path) if path.is_file() else {}
    return found


@contextmanager
def noted(path: Path) -> Iterator[None]:
    """For a block that writes a file: remove the file's checksum before and note the new one after, so that a kill
    leaves no checksum rather than a wrong one."""
    _set(path, None)
    yield
    note(path)


def note(path: Path) -> None:
    """Note the checksum of a file."""
    _set(path, shards.checksum(path))


def note_missing(*paths: Path) -> None:
    """Note the checksums of those files that exist without one: from an earlier version, or after a kill."""
    for path in paths:
        if path.is_file() and path.name not in read_sums(path.parent):
            note(path)


def _set(path: Path, checksum: str | None) -> None:
    before = read_sums(path.parent)
    after = {name: value for name, value in before.items() if name != path.name}
    if checksum is not None:
        after[path.name] = checksum
    if after != before:
        shards.write_json(dict(sorted(after.items())), path.parent / SUMS)
