"""Standard output and error in any state: closed, full, without a reader, or with a narrow encoding."""

from __future__ import annotations

import codecs
import os
import sys
from contextlib import suppress
from typing import IO

ERROR_HANDLER = "pst-narrow"  # name of the error handler
ASCII = {"–": "-", "−": "-", "→": "->", "×": "x", "…": "...", "“": '"', "”": '"', "’": "'", "·": ".", "½": "1/2"}
BOX = range(0x2500, 0x2580)  # lines of tables and bars


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks; not by `?`, which has a meaning in tables."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_stand_in, error.object[error.start : error.end])), error.end


def _stand_in(character: str) -> str:
    if ord(character) in BOX:
        return "-" if character in "─━┄┅┈┉╌╍═╴╶╸╺╼╾" else "|" if character in "│┃┆┇┊┋╎╏║╵╷╹╻╽╿" else "+"
    return ASCII.get(character) or character.encode("ascii", "backslashreplace").decode()


codecs.register_error(ERROR_HANDLER, _replaced)


def open_streams() -> None:
    """Open /dev/null for each closed standard stream, and replace characters that standard output cannot encode.

    Without that, the next file that is opened (the run's lock, a shard) would get the stream's number, and its output.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number, this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # a stand-in in tests may have none
    if reconfigure is not None:
        reconfigure(errors=ERROR_HANDLER)


def flush_or_drop(stream: IO[str], number: int) -> None:
    """Flush a stream. If that fails (a full disk, a pipe without a reader), drop its contents and all later output, so
    that the interpreter does not fail on them at exit."""
    try:
        stream.flush()
    except (OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
        with suppress(OSError, ValueError):
            stream.flush()
