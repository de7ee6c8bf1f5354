"""The files of a run, their recorded checksums, and what differs: for `verify`, for `pack`, and for archives.

Manifests (`_SUCCESS.json`) and `sums.json` list the SHA-256 of files beside them; both are called lists here. All
names are relative to the run's folder, with `/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data import shards
from data.fork import FOLDER as FORKED
from data.run import OUTPUT
from data.stage import FORMAT
from data.sums import IN_ROUND, IN_RUN, SUMS

PACKED = "_PACKED.json"  # what `pack` writes about an archive; it stays in the unpacked run
REPORT, EXPORT, CARD = "report.html", "export", "README.md"
FIGURES = "lm_eval.json"  # figures of lm-evaluation-harness, beside a round's metrics
SUMMED = (*IN_ROUND, FIGURES)  # files of a round that sums.json lists
# rewritten by commands, or edited by people; tracked.json only records what was sent to a tracker
NO_SUM = (REPORT, "tracked.json", PACKED, CARD, ".lock", shards.STARTED)
NOT_OURS = (".checkpoints", ".work", "logs")  # folders that are skipped


@dataclass(frozen=True)
class KnownFiles:
    """The contents of lists: {name: (SHA-256, the list)}, and errors in the lists themselves."""

    files: dict[str, tuple[str, str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    # files and folders whose list is unreadable, so that nothing is known about them
    unreadable: list[str] = field(default_factory=list)


def all_files(root: Path) -> Iterator[str]:
    """The checked files of a run, in order; a link counts as a file."""
    for path in sorted(root.iterdir()):
        yield from _below(path, PurePosixPath(path.name))


def _below(path: Path, name: PurePosixPath) -> Iterator[str]:
    if path.is_dir() and not path.is_symlink():
        if path.name not in NOT_OURS:
            for inner in sorted(path.iterdir()):
                yield from _below(inner, name / inner.name)
    elif path.name not in NO_SUM:
        yield str(name)


def is_sums(name: str) -> bool:
    """Whether a file is called `sums.json`."""
    return PurePosixPath(name).name == SUMS


def is_list(name: str) -> bool:
    """Whether a file is a list. A manifest in a copy of a stage's folder, say, is none: no command reads it."""
    path = PurePosixPath(name)
    folder = path.parts[:-1]
    in_round = len(folder) > 0 and re.fullmatch(r"round=\d+", folder[0]) is not None
    if is_sums(name):
        return not folder or (in_round and len(folder) == 1)
    return path.name == shards.SUCCESS and (
        (len(folder) == 1 and folder[0] in ("prompts", "gate", FORKED, EXPORT))
        or (in_round and len(folder) == 2 and folder[1] in OUTPUT.values())
    )


def known_by(lists: Mapping[str, bytes]) -> KnownFiles:
    """The files that the lists name."""
    known = KnownFiles()
    for name, content in lists.items():
        folder = PurePosixPath(name).parent
        try:
            entries = parse_checksums(name, content)
        except ValueError as error:
            known.wrong.append(f"{name}: {error}")
            names = (SUMMED if folder.parts else IN_RUN) if is_sums(name) else ("",)
            known.unreadable.extend(str(folder / each) for each in names)
            continue
        known.files.update({str(folder / inner): (checksum, name) for inner, checksum in entries.items()})
    return known


def parse_checksums(name: str, content: bytes) -> dict[str, str]:
    """{file beside it: SHA-256} of one list. Raises ValueError if it is no list, or was changed."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is damaged ({error})") from error
    if PurePosixPath(name).name == shards.SUCCESS and isinstance(found, dict):
        if found.get("format") != FORMAT:
            raise ValueError(f"was made by another version (format {found.get('format')}; this one has {FORMAT})")
        if shards.SEAL in found and shards.seal(found) != found[shards.SEAL]:
            raise ValueError("was changed: its own checksum does not match")
    entries = found if name.endswith(SUMS) or not isinstance(found, dict) else found.get("files")
    if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
        raise ValueError("is damaged (it has no checksums of files)")
    if odd := [inner for inner in entries if not is_inside(inner)]:
        raise ValueError(f"is damaged (it names {odd[0]!r}, which is not beside it)")
    return entries


def is_inside(name: str) -> bool:
    """Whether a name is a plain path below a folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


@dataclass(frozen=True)
class Faults:
    """A line for each file that is not as recorded."""

    wrong: list[str] = field(default_factory=list)  # lists that cannot be read, files that are missing or changed
    unknown: list[str] = field(default_factory=list)  # in no list
    unsummed: list[str] = field(default_factory=list)  # missing in their list: from an earlier version, or after a kill

    @property
    def all(self) -> list[str]:
        """The lines of all files that are not as recorded."""
        return [*self.wrong, *self.unknown]


def compare_checksums(known: KnownFiles, found: Mapping[str, str], unfinished: tuple[str, ...] = ()) -> Faults:
    """Find files that are missing, changed, or in no list. `found`: {name: SHA-256} of all files but the lists."""
    faults = Faults(wrong=[*known.wrong])
    for name, (checksum, by) in sorted(known.files.items()):
        if name not in found:
            faults.wrong.append(f"{name}: is missing, and {by} lists it")
        elif found[name] != checksum:
            faults.wrong.append(f"{name}: its checksum is not the one in {by}")
    passed_over = {*unfinished, *known.unreadable}
    for name in sorted(found.keys() - known.files.keys()):
        if passed_over.intersection((name, *map(str, PurePosixPath(name).parents))):
            continue
        if wants_sum(name):
            faults.unsummed.append(f"{name}: cannot be checked, no list has its checksum")
        else:
            faults.unknown.append(f"{name}: no manifest lists it")
    return faults


def wants_sum(name: str) -> bool:
    """Whether a `sums.json` should list a file."""
    path = PurePosixPath(name)
    in_round = len(path.parts) == 2 and path.parts[0].startswith("round=")
    return path.name in SUMMED if in_round else name in IN_RUN


def unfinished_stages(root: Path) -> tuple[str, ...]:
    """Folders of stages that have begun and have no manifest yet."""
    folders = [path.parent for name in OUTPUT.values() for path in root.glob(f"round=*/{name}/{shards.STARTED}")]
    return tuple(sorted(str(f.relative_to(root)) for f in folders if not (f / shards.SUCCESS).is_file()))
