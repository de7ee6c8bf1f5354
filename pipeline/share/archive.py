"""Archives of runs: plain gzipped tar, the same bytes for the same files, and read with care.

All members are files `<run>/…`, sorted, without owner and time. `_PACKED.json` comes first and names all others with
their checksums. An archive may come from anyone: what is not a plain file below its one folder, or not listed, is
refused, and the standard library's filter for data has the last word. A small one may unpack to any size, so that is
bounded by its own, and nothing is read into memory but its list.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn, cast

from data import shards
from data.errors import UserError, trouble
from pipeline.share.files import PACKED, Faults, compare_checksums, is_inside, known_by

LARGEST = (
    100  # times its own size, which an archive may unpack to; runs are Parquet and safetensors, which hardly shrink
)
SLACK = 2**26  # bytes more
LIST = 2**26  # bytes of its list
DEEPEST, LONGEST = 20, 200  # folders in a member's name, bytes of each: runs have 4, and short ones
DAMAGED = (tarfile.TarError, EOFError, OSError, ValueError, RecursionError, zlib.error)


@dataclass(frozen=True)
class Archive:
    """What was read of an archive."""

    run: str  # its one folder
    about: dict[str, Any]  # `_PACKED.json`
    checksums: dict[str, str]  # of all other files
    faults: Faults


def write_archive(path: Path, run: str, entries: Mapping[str, Path | bytes]) -> None:
    """Write files {name below the run's folder: where it is, or its content} as one archive, atomically."""
    with (
        shards.writing(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", 6, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, content in sorted(entries.items()):
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source:
                tar.addfile(_header(f"{run}/{name}", source), source)


def _header(name: str, source: IO[bytes]) -> tarfile.TarInfo:
    """Nobody's file of no time: what is packed twice is the same."""
    header = tarfile.TarInfo(name)
    header.size = source.seek(0, io.SEEK_END)
    source.seek(0)
    return header


def read_archive(path: Path) -> Archive:
    """Read all of an archive and compare it with its list. Raises UserError if it is none, is cut off, or has a member
    that is no plain file below its one folder."""
    runs, checksums, about = set[str](), dict[str, str](), b""
    with _opened(path) as tar:
        for member in tar:
            run, name = _place(member, path)
            _check_size(member, tar)
            runs.add(run)
            source = tar.extractfile(member)
            assert source is not None, "it is a file"
            if name in checksums or (name == PACKED and about):
                raise UserError(f"{path} has {name} twice; pack the run again")
            if name == PACKED:
                if member.size > LIST:
                    raise UserError(f"{path}: its list has {member.size:,} bytes; expected {LIST:,} at most")
                about = source.read()
            else:
                checksums[name] = file_digest(cast(io.BufferedReader, source), "sha256").hexdigest()
    if len(runs) != 1 or not about:
        raise UserError(f"{path} is no archive of a run: it has no {PACKED}; expected one that `make pack` has written")
    faults = compare_checksums(known_by({PACKED: about}), checksums)
    return Archive(runs.pop(), {} if faults.wrong else json.loads(about), checksums, faults)


def extract(path: Path, folder: Path) -> None:
    """Write the files of an archive that was read without faults into an empty folder. Raises UserError."""
    if not hasattr(tarfile, "data_filter"):
        raise UserError("this Python cannot unpack archives safely (no tarfile.data_filter): take 3.11.4 or newer")
    with _opened(path) as tar:
        for member in tar:
            _check_size(member, tar)
            member.name = _place(member, path)[1]
            tar.extract(member, folder, filter="data")


def _check_size(member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    """Before tarfile passes over a member, which takes as long as reading it."""
    packed = cast(_Bounded, tar.fileobj)
    if member.offset_data + member.size > packed.largest:
        packed.refuse()


def _place(member: tarfile.TarInfo, path: Path) -> tuple[str, str]:
    """(the folder, the name in it) of a member. Raises UserError if it is anything else than a file in a folder."""
    parts = PurePosixPath(member.name).parts
    hidden = any(part.startswith(".") for part in parts)  # what `pack` leaves out, such as merged checkpoints
    odd = len(parts) > DEEPEST or any(len(part.encode(errors="replace")) > LONGEST for part in parts)
    if not member.isreg() or not is_inside(member.name) or len(parts) < 2 or hidden or odd:
        raise UserError(
            f"{path} has {member.name[:300]!r}, which is no plain file below one folder: nothing of it is unpacked"
        )
    return parts[0], str(PurePosixPath(*parts[1:]))


class _Bounded(gzip.GzipFile):
    """An archive unpacked, as far as its own size makes that likely. `read` raises UserError beyond."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.path, self.largest = path, path.stat().st_size * LARGEST + SLACK

    def read(self, size: int | None = -1) -> bytes:
        left = self.largest - self.tell()
        if size is None or size < 0 or size > left:
            self.refuse()
        return super().read(size)

    def refuse(self) -> NoReturn:
        raise UserError(
            f"{self.path} would unpack to more than {LARGEST} times its size; no run does: nothing of it is unpacked"
        )


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    if not path.is_file():
        raise UserError(f"there is no file {path}; expected an archive that `make pack` has written")
    try:
        with _Bounded(path) as packed, tarfile.open(fileobj=packed, mode="r:") as tar:
            yield tar
    except DAMAGED as error:
        if trouble(error):
            raise
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read as a gzipped tar archive ({reason}): copy it again") from error


def hidden_sibling(target: Path, what: str) -> Path:
    """A hidden folder beside another, by a name that nobody else has: what is in it is removed."""
    return target.with_name(f".{target.name}.{what}")


def put(folder: Path, target: Path) -> None:
    """Give a folder that is whole its final name, in place of one that is there.

    Raises OSError. Between its two renames there is neither, and `undo_partial_put` brings the old one back.
    """
    old = hidden_sibling(target, "replaced")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def undo_partial_put(target: Path) -> None:
    """Undo what a kill within `put` has left."""
    old = hidden_sibling(target, "replaced")
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
