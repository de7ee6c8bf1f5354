"""`make pack` and `make unpack`: a run as one file, and back.

An archive has finished stages, the listed files beside them, and the report; no unlisted files and no models. Without
gold answers (`GOLD=no`) it leaves out the output of evaluate (its rows state gold answers, its metrics and warnings
count them), an oracle's list of examples (chosen by them), and the report.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path, PurePosixPath

from data import shards, sums
from data.config.load import parse_config
from data.console import console
from data.errors import UserError
from data.locks import locked
from data.run import OUTPUT, RUNS, Run, check_run, check_run_name, load_frozen
from data.stage import FORMAT
from data.sums import SUMS
from pipeline.share.archive import extract, read_archive, write_archive
from pipeline.share.files import EXPORT, PACKED, REPORT, SUMMED, unfinished_stages, wants_sum
from pipeline.share.needs import models_of, not_here
from pipeline.share.verify import examine, print_faults

WITH_GOLD = (OUTPUT["evaluate"],)  # folders of a round
GOLD_FILES = (*SUMMED, REPORT, "evaluate.log", "lm_eval.log")


def pack(run: str, target: Path | None, gold: bool = True, logs: bool = False) -> Path:
    """Write runs/<run>.tar.gz, or `target`. Raises UserError if a file of the run is damaged, or another process holds
    the run."""
    check_run(run)
    root, path = RUNS / run, target or RUNS / f"{run}.tar.gz"
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the archive's file, for example OUT={path / run}.tar.gz")
    with locked(root, "wait for it or stop it, then pack"):
        found, faults = examine(root)
        if faults.wrong:
            print_faults(f"run {run}", len(found), faults)
        for line in faults.unsummed:
            console.print(f"  {line}; the archive has the present file and its checksum", markup=False, soft_wrap=True)
        for line in faults.unknown:
            console.print(f"  left out: {line}", markup=False, soft_wrap=True)
        unfinished = unfinished_stages(root)
        for folder in unfinished:
            console.print(f"  left out: {folder} is not finished", markup=False)
        unknown = {line.partition(": ")[0] for line in faults.unknown}
        elsewhere = tuple(f"{folder}/" for folder in (EXPORT, *unfinished))
        names = [name for name in found if name not in unknown and not name.startswith(elsewhere)]
        beside = [root / REPORT, *(root.glob("round=*/logs/*.log") if logs else ())]
        names += [str(each.relative_to(root)) for each in beside if each.is_file()]
        entries = _entries(root, names, gold)
        about = {
            "run": run,
            "format": FORMAT,
            "gold": gold,
            "models": models_of(Run(run, load_frozen(run))),
            "files": {name: _checksum(content, found.get(name)) for name, content in sorted(entries.items())},
        }
        write_archive(path, run, {**entries, PACKED: _json(about)})
    size = path.stat().st_size / 2**20
    without = "" if gold else ", without gold answers"
    console.print(f"{path}: {len(entries)} files, {size:.1f} MiB{without}; models are not in it", markup=False)
    if not gold and any(PurePosixPath(name).name == "keep.parquet" for name in found):
        console.print("  the oracle's choice of examples is left out, too, so its rounds cannot be trained again")
    return path


def _entries(root: Path, names: list[str], gold: bool) -> dict[str, Path | bytes]:
    """{name: file or content} to pack."""
    entries: dict[str, Path | bytes] = {name: root / name for name in names if gold or not contains_gold(name)}
    for name in [] if gold else [name for name in entries if PurePosixPath(name).name == SUMS]:
        before = sums.read_sums((root / name).parent)
        folder = PurePosixPath(name).parent
        left = {each: value for each, value in before.items() if not contains_gold(str(folder / each))}
        if left:
            entries[name] = _json(left)
        else:
            del entries[name]
    return entries


def contains_gold(name: str) -> bool:
    """Whether a file of a run contains gold answers, or what follows from them."""
    path = PurePosixPath(name)
    return path.name in GOLD_FILES or (len(path.parts) > 2 and path.parts[1] in WITH_GOLD)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _checksum(content: Path | bytes, known: str | None) -> str:
    """SHA-256 of a file or content to pack; `known` is the file's, if it was computed already."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return known or shards.checksum(content)


def unpack(path: Path, name: str | None, places: list[str]) -> None:
    """Put an archive's run into runs/, under its own name or another, as a whole or not at all, and print what it needs
    that is missing here. `places` are OLD=NEW: a path in its config, and where that is on this machine.

    Raises UserError if the archive differs from its list, the run exists already, or its config is damaged.
    """
    moved = _parse_places(places)
    archive = read_archive(path)
    if archive.faults.all:
        print_faults(str(path), len(archive.checksums), archive.faults)
    run = name or archive.run
    check_run_name(run)
    root, work = RUNS / run, RUNS / ".unpacking" / run
    if root.exists():
        raise UserError(f"{root} exists already: give another name (RUN=NAME), or delete it first")
    shutil.rmtree(work, ignore_errors=True)  # left by a killed command
    try:
        extract(path, work)
        sums.note_missing(*(work / each for each in archive.checksums if wants_sum(each)))  # compared just now
        _set_places(work / "config.json", moved)
        work.rename(root)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if work.parent.is_dir() and not any(work.parent.iterdir()):
            work.parent.rmdir()
    gold = "" if archive.about.get("gold", True) else " (without gold answers)"
    console.print(f"{root}: {len(archive.checksums)} files{gold}", markup=False)
    for line in not_here(load_frozen(run), archive.about.get("models", [])):
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _parse_places(places: list[str]) -> dict[str, str]:
    found = {}
    for text in places:
        old, equals, new = text.partition("=")
        if not (old and equals and new):
            raise UserError(f"--place {text!r}: expected OLD=NEW, the path in the run's config and the one here")
        found[old] = new
    return found


def _set_places(path: Path, places: dict[str, str]) -> None:
    """Write `runtime.places` into a run's config, instead of those of the machine that packed it. Raises UserError."""
    raw = shards.read_json(path)
    config = parse_config(raw, str(path))
    if config.runtime.places != places:
        with sums.noted(path):
            shards.write_json({**raw, "runtime": {**raw["runtime"], "places": places}}, path)
