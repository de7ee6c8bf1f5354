"""What may go wrong outside this program: bad input, and a machine without disk space, permissions or locks."""

from __future__ import annotations

import errno
import os
import re


class UserError(Exception):
    """Bad input. The message says what was found, what was expected, where, and what to do.

    The command line prints it without a traceback and exits with status 2, as it does for errors that `trouble` knows.
    Any other exception is a defect of the program and keeps its traceback.
    """


FREE_SPACE = "make room (runs/*/.checkpoints is safe to delete) or raise the quota"
RIGHTS = "give this user permission to read and write there, or work in another folder (PST_CACHE sets the cache's)"
DRIVE = "the disk or the network drive does not respond properly: check it"
NAME = "something else has the name of that file or folder: move it away"
ADVICE = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EFBIG: FREE_SPACE,
    errno.EROFS: RIGHTS,
    errno.EACCES: RIGHTS,
    errno.EPERM: RIGHTS,
    errno.EIO: DRIVE,
    errno.ESTALE: DRIVE,
    errno.ENXIO: DRIVE,
    errno.ENODEV: DRIVE,
    errno.EREMOTEIO: DRIVE,
    errno.ENOTCONN: DRIVE,
    errno.ESHUTDOWN: DRIVE,
    errno.EHOSTDOWN: DRIVE,
    errno.ETIMEDOUT: DRIVE,
    errno.ENOTDIR: NAME,
    errno.EISDIR: NAME,
    errno.EEXIST: NAME,
    errno.ENOTEMPTY: NAME,
    errno.ELOOP: NAME,
    errno.ENAMETOOLONG: "use a shorter name or a folder with a shorter path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOMEM: "free some memory, or try runtime.resident='one'",
    errno.ENOLCK: "file locks do not work there: work in a folder on a local disk",
    errno.EOPNOTSUPP: "this file system cannot do that: work in a folder on a local disk",
}
# libraries that write files themselves (safetensors, polars, torch) put the errno, or its text, in their own errors
TOLD = re.compile(r"\b(?:os error|errno) (\d+)", re.IGNORECASE)
ERRNO_OF = {os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)}


KEPT = "then run the same command again: finished work is kept"


def trouble(error: BaseException) -> str | None:
    """One line that says what failed on the machine and what to do; None if an error has another cause."""
    known = set(ADVICE)
    each: BaseException | None = error
    while each is not None and not isinstance(each, UserError):  # a UserError speaks for itself
        number = _number(each)
        if number in known:
            return f"{_where(each)}{os.strerror(number)}: {ADVICE[number]}; {KEPT}"
        if isinstance(each, FileNotFoundError) and "No usable temporary directory" in str(each):
            return f"no space for temporary files: {FREE_SPACE}, or set TMPDIR to another folder; {KEPT}"
        if each.__cause__ is None:
            known = set(ERRNO_OF.values())  # the error handled meanwhile may be unrelated, except for these
        each = each.__cause__ or each.__context__
    return None


def _number(error: BaseException) -> int | None:
    """The errno that an error has, or names in its message."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    found = [int(number) for number in TOLD.findall(text)]
    found += [number for words, number in ERRNO_OF.items() if words in text]
    return found[0] if found else None


def _where(error: BaseException) -> str:
    name = error.filename if isinstance(error, OSError) else None
    return f"{os.fsdecode(name)}: " if isinstance(name, (str, bytes)) else ""
