"""`make verify`: compares the files of a run, or of an archive, with their recorded checksums."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from pathlib import Path

from data import shards
from data.console import console
from data.errors import UserError
from data.locks import locked
from data.run import RUNS, check_begun
from pipeline.share.archive import read_archive
from pipeline.share.files import (
    PACKED,
    Faults,
    all_files,
    compare_checksums,
    is_list,
    known_by,
    parse_checksums,
    unfinished_stages,
    wants_sum,
)

BUSY = "wait for it or stop it: its files are changing"


def verify_run(run: str) -> None:
    """Check that no file of a run has changed. Prints a line for each that has, then raises UserError; also raises it
    if another process holds the run."""
    check_begun(run)
    root = RUNS / run
    with locked(root, BUSY) if os.access(root, os.W_OK) else nullcontext():
        found, faults = examine(root)
        unfinished = unfinished_stages(root)
    for folder in unfinished:
        console.print(f"  {root / folder}: not finished, so there is nothing to compare yet", markup=False)
    print_faults(f"run {run}", len(found), faults)


def verify_archive(path: Path) -> None:
    """Check an archive in the same way. Raises UserError."""
    archive = read_archive(path)
    print_faults(str(path), len(archive.checksums), archive.faults)


def examine(root: Path) -> tuple[dict[str, str], Faults]:
    """{name: SHA-256} of the files of a run, including the lists, and the faults found."""
    found = {name: _checksum(root / name) for name in all_files(root)}
    lists = {name: (root / name).read_bytes() for name in found if is_list(name)}
    files = {name: checksum for name, checksum in found.items() if name not in lists}
    known = known_by(lists)
    packed = root / PACKED
    if packed.is_file() and not any(known.unreadable):  # an unpacked run: its list has checksums for files without one
        with suppress(ValueError):
            there = parse_checksums(PACKED, packed.read_bytes()).items()
            known.files.update(
                {n: (c, PACKED) for n, c in there if wants_sum(n) and n not in known.files and n in found}
            )
    return found, compare_checksums(known, files, unfinished_stages(root))


def _checksum(path: Path) -> str:
    """A file's SHA-256; "" for a dangling link, say, which equals no checksum."""
    return shards.checksum(path) if path.is_file() else ""


def print_faults(what: str, files: int, faults: Faults) -> None:
    """Print the result. Raises UserError if a file is not as recorded."""
    for line in (*faults.all, *faults.unsummed):
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if faults.all:
        raise UserError(f"{what}: {len(faults.all)} of its files are not as they were written (the lines above)")
    line, left = f"{what}: {files} files read", len(faults.unsummed)
    if left:
        line += f"; {files - left} are as they were written, {left} could not be checked (the lines above)"
        line += ": an earlier version made them, a command was killed, or their sums.json is missing"
    else:
        line += ", all as they were written"
    console.print(line, markup=False, soft_wrap=True)
