"""Texts from outside as they may be shown: control characters as signs, never as orders to a terminal.

Models, data files and names of files may hold anything: escapes that clear or retitle a terminal, marks that turn the
direction of writing, characters without a width. A reader sees that they are there; a terminal never gets them.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

JOINERS = "\u200c\u200d"  # letters of Persian and pictures of several parts need them
LONGEST = 8000  # characters of an error; a line of a file, or the names of its columns, may be in it
SUSPECT = re.compile(r"[^\n\x20-\x7e\u00a0-\u00ac\u00ae-\u05ff]")  # most texts have none, and are looked at once
# the same in UTF-8, but for tab, line feed and carriage return: a progress bar in a log needs that one
ORDERS = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]|\xd8\x9c"
    rb"|\xe2\x80[\x8b\x8e\x8f\xa8-\xae]|\xe2\x81[\xa0-\xaf]|\xef\xbb\xbf"
)
BLOCK = 1 << 20  # bytes of a log that are looked at together
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats, surrogates, separators of lines and paragraphs


def visible(text: str) -> str:
    """The text with a sign for each control character but the line feed: ESC is ␛, U+202E is <U+202E>."""
    return SUSPECT.sub(lambda found: _sign(found[0]), text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """An error as it is printed: visible, in one line, and not without end."""
    text = visible(text.strip()).replace("\n", "␊")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text) - LONGEST:,} characters more)"


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
    """Take the orders out of a log to which libraries write what they like. Each is overwritten in its place by signs
    of as many bytes, so that whoever writes at the end meanwhile is not disturbed."""
    if not log.is_file():  # /dev/null, say, by a link
        return
    with log.open("r+b") as file:
        first = 0
        while block := file.read(BLOCK):
            for found in ORDERS.finditer(block):
                file.seek(first + found.start())
                file.write("�".encode() if found.end() - found.start() == 3 else b"?" * len(found[0]))
            first += len(block) if len(block) < BLOCK else BLOCK - 2  # an order may lie across two blocks
            file.seek(first)
