"""Which files a source names. All checks, readers and checksums use this one list.

An existing path is taken literally, whatever characters it has; any other is a pattern. A folder, named or matched,
stands for all files in it. Hidden files (.name) and work files of other programs (_name, as in _temporary/) count only
where the source names them.
"""

from __future__ import annotations

import fnmatch
import glob
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from data.errors import UserError

ENDINGS = (".jsonl", ".ndjson", ".csv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}  # of text formats; Parquet has its own
FORMATS = ".jsonl, .csv (also with .gz or .zst) or .parquet"
DOCUMENTS = ("readme*", "license*", "citation*", "*.md")  # they come with data and are not data
SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
SPELT = {"training": "train", "trainset": "train", "testing": "test", "testset": "test", "devset": "dev"}
MAX_NAMED_FILES = 3  # names listed in an error


@dataclass(frozen=True)
class SourceFile:
    """A file of a source; `inner` is its path below the named folder, or below the fixed part of the pattern."""

    name: str
    inner: PurePosixPath
    same: object  # equal for two names of one file
    open: Callable[[], io.BufferedIOBase]
    named: bool = False  # the source names this very file

    @property
    def format(self) -> tuple[str, str | None]:
        """Its ending in lower case, and its compression; ("", None) for a format that cannot be read."""
        stem, ending = os.path.splitext(self.inner.name.lower())
        compression = COMPRESSIONS.get(ending)
        if compression is not None:
            ending = os.path.splitext(stem)[1]
        known = ending in ENDINGS and not (compression and ending == ".parquet")
        return (ending, compression) if known else ("", None)

    @property
    def splits(self) -> set[str]:
        """The split names in its path: {"train"} for data/train-00000-of-00002.parquet."""
        words = (SPELT.get(word, word) for word in re.split(r"[^a-z]+", str(self.inner).lower()))
        return {word for word in words if word in SPLITS}

    @property
    def hive_keys(self) -> dict[str, str]:
        """The keys in its folders: {"level": "5"} for level=5/part.parquet."""
        pairs = [part.split("=", 1) for part in PurePosixPath(self.name).parts[:-1] if "=" in part]
        return {key: unquote(value) for key, value in pairs}


@dataclass(frozen=True)
class Listing:
    """The files of a source in reading order, and the names of those that were left out."""

    files: list[SourceFile]
    left_out: list[str]


def looks_like_files(source: str) -> bool:
    """Whether a source is meant as a path, a pattern or a URL, existing or not, and not as a name on the hub."""
    path = Path(source).expanduser()
    return (
        "://" in source
        or os.path.lexists(path)
        or source.startswith((".", "/", "~"))
        or source.count("/") > 1
        or glob.has_magic(source)
        or path.suffix.lower() in (*ENDINGS, *COMPRESSIONS)
    )


def list_files(source: str, split: str | None, where: str) -> Listing:
    """All files that a source names.

    Raises UserError if there are none, if one has an unknown format, or if `split` is given and one does not say to
    which split it belongs.
    """
    source = source.removeprefix("file://")
    try:
        found = list(_remote(source, where) if "://" in source else _local(source, where))
    except OSError as error:
        raise UserError(f"{where}: {source} cannot be read: {error}") from error
    beside = [file for file in found if _is_beside(file, source)]
    files = [file for file in found if not _is_beside(file, source)]
    unknown = [file for file in files if not file.format[0]]
    if unknown:
        raise UserError(
            f"{where}: {_names(unknown)}: unknown ending; expected {FORMATS}. Name the files to read with a pattern "
            "(folder/*.jsonl)"
        )
    if not files:
        but = f" but {_names(beside)}" if beside else ""
        raise UserError(f"{where}: {source} has no files{but}; expected {FORMATS}. Set {where}.source to others")
    files, again = _each_once(files)
    files, others = _of_split(files, split, source, where)
    return Listing(files, [file.name for file in beside] + again + others)


def _local(source: str, where: str) -> Iterator[SourceFile]:
    path = Path(source).expanduser()
    base, matches = path, [path]
    if not os.path.lexists(path):
        base, pattern = _pattern(path)
        matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
        if not matches:
            kind = "file " if path.suffix else ""
            lacks = f"no file matches {source}" if glob.has_magic(source) else f"{kind}{source} does not exist"
            raise UserError(f"{where}: {lacks}; set {where}.source to an existing {FORMATS} file or folder")
    seen: set[Path] = set()
    for match in matches:
        for file in _files_below(match):
            if file not in seen:  # a pattern that ends in ** matches a folder and what is in it
                seen.add(file)
                yield _local_file(file, base, where)


def _local_file(path: Path, base: Path, where: str) -> SourceFile:
    if not path.is_file():
        why = "is a link to nothing" if path.is_symlink() and not path.exists() else "is not an ordinary file"
        raise UserError(f"{where}: {path} {why}; remove it, or name the files to read with a pattern")
    if not str(path).isprintable():
        raise UserError(f"{where}: the name of {str(path)!r} has characters that cannot be printed; rename the file")
    named = path == base
    inner = PurePosixPath(path.name if named else path.relative_to(base))
    status = path.stat()
    return SourceFile(str(path), inner, (status.st_dev, status.st_ino), lambda: path.open("rb"), named)


def _pattern(path: Path) -> tuple[Path, str]:
    """The existing part of a path, and the pattern: that part escaped, the rest with its wildcards."""
    base = Path(path.anchor)
    parts = list(path.parts[1:] if path.anchor else path.parts)
    while parts and os.path.lexists(base / parts[0]):
        base /= parts.pop(0)
    return base, os.path.join(glob.escape(str(base)), *parts)


def _files_below(path: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The file itself, or all files below a folder except hidden ones."""
    if not path.is_dir():
        yield path
        return
    real = os.path.realpath(path)
    if real in above:  # a link to one of its parent folders
        return
    for inner in sorted(path.iterdir()):
        if not inner.name.startswith("."):
            yield from _files_below(inner, (*above, real))


def _remote(source: str, where: str) -> Iterator[SourceFile]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(source)
        names, base = [path], path
        if not system.isfile(path):
            base = path if system.isdir(path) else re.split(r"[*?\[]", path)[0].rpartition("/")[0]
            names = sorted(system.find(path)) if base == path else sorted(filter(system.isfile, system.glob(path)))
    except Exception as error:  # each protocol raises its own errors; all mean "no such data"
        raise UserError(f"{where}: {source} cannot be read: {str(error) or type(error).__name__}") from error

    def reader(name: str) -> Callable[[], io.BufferedIOBase]:
        def read() -> io.BufferedIOBase:
            try:
                return io.BytesIO(system.cat_file(name))
            except Exception as error:
                raise OSError(str(error) or type(error).__name__) from error

        return read

    for name in names:
        whole = PurePosixPath(name)
        inner = PurePosixPath(whole.name) if name == base else whole.relative_to(base)
        if not any(part.startswith(".") for part in inner.parts):
            yield SourceFile(system.unstrip_protocol(name), inner, name, reader(name), name == base)


def _is_beside(file: SourceFile, source: str) -> bool:
    """Whether a file that the source does not name itself is a document or another program's work file. In a work
    file's path a part begins with _, and no part of the source's pattern asks for that (folder/_*.jsonl).
    """
    if file.named:
        return False
    name = file.inner.name.lower()
    if not file.format[0] and any(fnmatch.fnmatch(name, pattern) for pattern in DOCUMENTS):
        return True
    parts = source.split("/")
    wild = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    wanted = any(part.startswith("_") for part in parts[wild:])
    return not wanted and any(part.startswith("_") for part in file.inner.parts)


def _each_once(files: list[SourceFile]) -> tuple[list[SourceFile], list[str]]:
    first: dict[object, SourceFile] = {}
    again = []
    for file in files:
        known = first.setdefault(file.same, file)
        if known is not file:
            again.append(f"{file.name} (the same file as {known.name})")
    return list(first.values()), again


def _of_split(
    files: list[SourceFile], split: str | None, source: str, where: str
) -> tuple[list[SourceFile], list[str]]:
    """The files of a split, and the names of the others. Without a split: all files.

    Raises UserError if a folder has several splits and none is given, or if a file does not say which it belongs to.
    """
    if split is None:
        found = sorted(set().union(*(file.splits for file in files)))
        if len(found) > 1 and Path(source).expanduser().is_dir():
            raise UserError(
                f"{where}: {source} has files of several splits ({', '.join(found)}: {_names(files)}); set "
                f"{where}.split to one of them, or name the files to read with a pattern ({source}/*{found[0]}*)"
            )
        return files, []
    unclear = [file for file in files if len(file.splits) != 1]
    if unclear:
        raise UserError(
            f"{where}: split is {split!r}, but {_names(unclear)} does not say which split it belongs to; leave "
            f"{where}.split out, and name the files to read in {where}.source"
        )
    chosen = [file for file in files if file.splits == {split}]
    if not chosen:
        found = sorted(set().union(*(file.splits for file in files)))
        raise UserError(f"{where}: {source} has no files of the split {split!r}; it has {', '.join(found)}")
    others = [f"{file.name} (another split)" for file in files if file.splits != {split}]
    return chosen, others


def _names(files: list[Any]) -> str:
    more = f" and {len(files) - MAX_NAMED_FILES} more" if len(files) > MAX_NAMED_FILES else ""
    return ", ".join(file.name for file in files[:MAX_NAMED_FILES]) + more
