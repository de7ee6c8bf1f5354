"""`make verify`: reads a run, or an archive of one, again and names what does not fit."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from data import shards
from data.console import console
from data.errors import UserError
from data.locks import locked
from data.run import RUNS, check_begun
from pipeline.share.archive import read_archive
from pipeline.share.files import Faults, all_files, compare, is_list, known_by, unfinished_stages

BUSY = "wait for it or stop it: its files are changing"


def verify_run(run: str) -> None:
    """Say that all files of a run are as they were written. Raises UserError, after a line for each that is not, or if
    another process holds the run."""
    check_begun(run)
    root = RUNS / run
    with locked(root, BUSY) if os.access(root, os.W_OK) else nullcontext():
        found, faults = examine(root)
        unfinished = unfinished_stages(root)
    for folder in unfinished:
        console.print(f"  {root / folder}: begun and not finished, so there is nothing to compare yet", markup=False)
    tell(f"run {run}", len(found), faults)


def verify_archive(path: Path) -> None:
    """The same of an archive. Raises UserError."""
    archive = read_archive(path)
    tell(str(path), len(archive.checksums), archive.faults)


def examine(root: Path) -> tuple[dict[str, str], Faults]:
    """{name: SHA-256} of the files of a run, the lists among them, and what does not fit."""
    found = {name: _checksum(root / name) for name in all_files(root)}
    lists = {name: (root / name).read_bytes() for name in found if is_list(name)}
    files = {name: checksum for name, checksum in found.items() if name not in lists}
    return found, compare(known_by(lists), files, unfinished_stages(root))


def _checksum(path: Path) -> str:
    """Of a link to nothing, say, nothing: no file has that."""
    return shards.checksum(path) if path.is_file() else ""


def tell(what: str, files: int, faults: Faults) -> None:
    """Say how it stands. Raises UserError if anything does not fit."""
    for line in faults.all:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if faults.unsummed:
        console.print("  the next `make round` or `make evaluate` of a round notes missing checksums", markup=False)
    if faults.all:
        raise UserError(f"{what}: {len(faults.all)} of its files do not fit what was written (the lines above)")
    console.print(f"{what}: {files} files read, all as they were written", markup=False, soft_wrap=True)
