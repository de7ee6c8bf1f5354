"""Archives of runs: plain gzipped tar, the same bytes for the same files. Reading them is defensive.

All members are files `<run>/…`, sorted, without owner or time. `_PACKED.json` comes first and lists all others with
their checksums. An archive may come from anyone. Members that are not plain files below its one folder, or not listed,
are refused; the standard library's data filter then checks again. A small archive may unpack to any size, so the
unpacked size is limited by the archive's own, and only its list is read into memory.
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

# most unpacked size, as a multiple of the archive's: runs are Parquet and safetensors, which hardly shrink
MAX_RATIO = 100
SLACK = 2**26  # bytes added to that limit
MAX_LIST_BYTES = 2**26  # most bytes of its list
MAX_DEPTH, MAX_NAME_BYTES = 20, 200  # most folders in a member's name, and bytes of each: runs have 4 short ones
DAMAGED = (tarfile.TarError, EOFError, OSError, ValueError, RecursionError, zlib.error)


@dataclass(frozen=True)
class Archive:
    """A read archive."""

    run: str  # its one folder
    about: dict[str, Any]  # `_PACKED.json`
    checksums: dict[str, str]  # of all other files
    faults: Faults


def write_archive(path: Path, run: str, entries: Mapping[str, Path | bytes]) -> None:
    """Write files {name below the run's folder: its path or content} as one archive, atomically."""
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
    """A tar header without owner or time, so that packing twice gives the same bytes."""
    header = tarfile.TarInfo(name)
    header.size = source.seek(0, io.SEEK_END)
    source.seek(0)
    return header


def read_archive(path: Path) -> Archive:
    """Read a whole archive and compare it with its list. Raises UserError if it is no archive, is cut off, or has a
    member that is no plain file below its one folder."""
    runs, checksums, about = set[str](), dict[str, str](), b""
    with _opened(path) as tar:
        for member in tar:
            run, name = _place(member, path)
            _check_size(member, tar)
            runs.add(run)
            source = tar.extractfile(member)
            assert source is not None, "it is a file"
            if name in checksums or (name == PACKED and about):
                raise UserError(f"{path} contains {name} twice: pack the run again")
            if name == PACKED:
                if member.size > MAX_LIST_BYTES:
                    raise UserError(f"{path}: its list has {member.size:,} bytes; expected {MAX_LIST_BYTES:,} at most")
                about = source.read()
            else:
                checksums[name] = file_digest(cast(io.BufferedReader, source), "sha256").hexdigest()
    if len(runs) != 1 or not about:
        raise UserError(f"{path} is no archive of a run: it has no {PACKED}; expected one that `make pack` has written")
    faults = compare_checksums(known_by({PACKED: about}), checksums)
    return Archive(runs.pop(), {} if faults.wrong else json.loads(about), checksums, faults)


def extract(path: Path, folder: Path) -> None:
    """Write the files of an archive, read without faults before, into an empty folder. Raises UserError."""
    if not hasattr(tarfile, "data_filter"):
        raise UserError("this Python cannot unpack archives safely (no tarfile.data_filter): use 3.11.4 or newer")
    with _opened(path) as tar:
        for member in tar:
            _check_size(member, tar)
            member.name = _place(member, path)[1]
            tar.extract(member, folder, filter="data")


def _check_size(member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    """Raises UserError for a member that is too large, before tarfile skips it, which takes as long as reading it."""
    packed = cast(_Bounded, tar.fileobj)
    if member.offset_data + member.size > packed.largest:
        packed.refuse()


def _place(member: tarfile.TarInfo, path: Path) -> tuple[str, str]:
    """(the folder, the name in it) of a member. Raises UserError unless it is a plain file in a folder."""
    parts = PurePosixPath(member.name).parts
    hidden = any(part.startswith(".") for part in parts)  # `pack` leaves these out, such as merged checkpoints
    odd = len(parts) > MAX_DEPTH or any(len(part.encode(errors="replace")) > MAX_NAME_BYTES for part in parts)
    if not member.isreg() or not is_inside(member.name) or len(parts) < 2 or hidden or odd:
        raise UserError(
            f"{path} contains {member.name[:300]!r}, which is no plain file below one folder: nothing was unpacked"
        )
    return parts[0], str(PurePosixPath(*parts[1:]))


class _Bounded(gzip.GzipFile):
    """An archive's unpacked bytes. `read` raises UserError beyond the limit that follows from the archive's size."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.path, self.largest = path, path.stat().st_size * MAX_RATIO + SLACK

    def read(self, size: int | None = -1) -> bytes:
        left = self.largest - self.tell()
        if size is None or size < 0 or size > left:
            self.refuse()
        return super().read(size)

    def refuse(self) -> NoReturn:
        raise UserError(
            f"{self.path} would unpack to more than {MAX_RATIO} times its size, as no run does: nothing was unpacked"
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
    """A hidden folder beside another, with a name of its own: its contents may be removed."""
    return target.with_name(f".{target.name}.{what}")


def put(folder: Path, target: Path) -> None:
    """Give a complete folder its final name; replaces an existing one.

    Raises OSError. Between its two renames neither exists, and `undo_partial_put` restores the old one.
    """
    old = hidden_sibling(target, "replaced")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def undo_partial_put(target: Path) -> None:
    """Restore the old folder after a kill within `put`."""
    old = hidden_sibling(target, "replaced")
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
