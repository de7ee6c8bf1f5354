"""Standard output and error as a command finds them: closed, full, without a reader, or of a narrow encoding."""

from __future__ import annotations

import codecs
import os
import sys
from contextlib import suppress
from typing import IO

NARROW = "pst-narrow"  # name of the error handler
PLAIN = {"–": "-", "−": "-", "→": "->", "×": "x", "…": "...", "“": '"', "”": '"', "’": "'", "·": ".", "½": "1/2"}
BOX = range(0x2500, 0x2580)  # lines of tables and bars


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding lacks. A `?` would not do: in tables it has a meaning."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_stand_in, error.object[error.start : error.end])), error.end


def _stand_in(character: str) -> str:
    if ord(character) in BOX:
        return "-" if character in "─━┄┅┈┉╌╍═╴╶╸╺╼╾" else "|" if character in "│┃┆┇┊┋╎╏║╵╷╹╻╽╿" else "+"
    return PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode()


codecs.register_error(NARROW, _plain)


def open_streams() -> None:
    """Put /dev/null where a standard stream is closed, or the next file that is opened (the run's lock, a shard) would
    get its number, and what is printed; and have characters that an encoding lacks printed as others."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # what stands in its place in tests may have none
    if reconfigure is not None:
        reconfigure(errors=NARROW)


def flush_or_drop(stream: IO[str], number: int) -> None:
    """Write out what a stream still holds; where that fails (a full disk, a pipe without a reader) it is lost, and so
    is what follows, but the interpreter does not stumble over it at its end."""
    try:
        stream.flush()
    except (OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
        with suppress(OSError, ValueError):
            stream.flush()
