"""Texts from outside, made safe to show: control characters become visible signs and never reach a terminal.

Models, data files and file names may hold anything: escapes that clear or retitle a terminal, marks that change the
writing direction, characters without a width. Readers see that they are there; a terminal never gets them.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

JOINERS = "\u200c\u200d"  # Persian and composed emoji need them
MAX_ERROR = 8000  # characters of an error at most; it may quote a line of a file, or the names of its columns
SUSPECT = re.compile(r"[^\n\x20-\x7e\u00a0-\u00ac\u00ae-\u05ff]")  # most texts have none, so one search does
# the same in UTF-8, except tab, line feed and carriage return, which a progress bar in a log needs
CONTROLS = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]|\xd8\x9c"
    rb"|\xe2\x80[\x8b\x8e\x8f\xa8-\xae]|\xe2\x81[\xa0-\xaf]|\xef\xbb\xbf"
)
BLOCK_BYTES = 1 << 20  # bytes of a log that are searched at once
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats, surrogates, line and paragraph separators


def visible(text: str) -> str:
    """The text with a sign for each control character except the line feed: ESC becomes ␛, U+202E <U+202E>."""
    return SUSPECT.sub(lambda found: _sign(found[0]), text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """An error as it is printed: visible, in one line, at most MAX_ERROR characters."""
    text = visible(text.strip()).replace("\n", "␊")
    return text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]}… ({len(text) - MAX_ERROR:,} characters more)"


def _sign(character: str) -> str:
    code = ord(character)
    if character in JOINERS:
        return character
    if character == "\t":
        return "    "
    if code < 0x20 or code == 0x7F:
        return "␡" if code == 0x7F else chr(0x2400 + code)
    return f"<U+{code:04X}>" if unicodedata.category(character) in HIDDEN else character


def mask_controls(log: Path) -> None:
    """Overwrite control characters in a log that libraries write to, in place and byte for byte, so that others may
    append to it meanwhile."""
    if not log.is_file():  # /dev/null, for example, by a link
        return
    with log.open("r+b") as file:
        first = 0
        while block := file.read(BLOCK_BYTES):
            for found in CONTROLS.finditer(block):
                file.seek(first + found.start())
                file.write("�".encode() if found.end() - found.start() == 3 else b"?" * len(found[0]))
            first += len(block) if len(block) < BLOCK_BYTES else BLOCK_BYTES - 2  # a control may lie across two blocks
            file.seek(first)
