"""Answers in rows: formulas on separate lines, lists with an item per line."""

from __future__ import annotations

import re

from data.answers.last_number import UNSIGNED
from data.answers.pieces import Piece, concluded, piece
from data.answers.spelling import MAX_ANSWER_CHARS

_ITEM = re.compile(r"\s*(?:[-*\u2022\u2013+]\s+|\(?(?:\d{1,2}|[a-hA-H]|[ivx]{1,4})[.):]\s+)")
_DISPLAY = re.compile(r"\\\[|\$\$|\\begin\{(\w{1,12}\*?)\}|```\w{0,10}\n?")
_JOIN_DISPLAY = re.compile(r"[\s,;.]{0,8}(?:and|or|und|et|y|\\text\{\s?(?:and|or)\s?\})?[\s,;]{0,8}")
_NAMED = re.compile(r"\s*(?:\*\*)?[A-Za-z][\w ()'-]{0,40}(?:\*\*)?\s?[:\uff1a](?:\*\*)?\s*(?=\S)")
_EQUATION = re.compile(
    r"\W{0,3}[A-Za-z](?:_?\{?\w{1,3}\}?)?(?:\([a-z]\))?\W{0,3}\s*(?:=|<|>|\\[lg]eq?|\u2264|\u2265)\s*\S.{0,120}"
)
_VALUE = re.compile(
    rf"[*_$(\\\s]{{0,4}}[-\u2212]?\W?{UNSIGNED}[*_$)\\\s.,;]{{0,4}}(?:\s?[A-Za-z%]{{1,12}}){{0,2}}\W{{0,3}}"
)
_STEP = re.compile(r"[\d)]\s*(?:[-+*/\u00d7]|\\times|\\cdot)\s*[\d(]")  # of a calculation


def displayed(text: str, at: int) -> Piece | None:
    """Displayed formulas, or a block of code, from `at` on."""
    found: list[Piece] = []
    while display := _DISPLAY.match(text, at):
        sign = display[0]
        start = display.end()
        if display[1]:
            closing = f"\\end{{{display[1]}}}"
            start = display.start()
        else:
            closing = {"\\[": "\\]", "$$": "$$"}.get(sign, "```")
        end = text.find(closing, display.end(), display.end() + 2 * MAX_ANSWER_CHARS)
        if end < 0:
            break
        after = end + len(closing)
        each = piece(text, start, after if display[1] else end)
        if each is None:
            break
        found.append(each._replace(answer=concluded(each.answer)))
        join = _JOIN_DISPLAY.match(text, after)
        at = join.end() if join else after
    if not found:
        return None
    return Piece(", ".join(each.answer for each in found), found[0].start, found[-1].end)


def list_of_rows(text: str, first: Piece, end: int) -> Piece | None:
    """A list with an item per line: Markdown items, equations or values."""
    start = text.rfind("\n", 0, first.start) + 1
    if re.search(r"\w[^\w]*\s|:", text[start : first.start]) and not _ITEM.match(text, start):
        return None  # the first item is in the line of its phrase
    lines: list[tuple[int, int]] = []
    at = start
    while len(lines) < 12 and at < len(text):
        stop = text.find("\n", at)
        stop = len(text) if stop < 0 else stop
        if stop - at > 200:
            break
        if text[at:stop].strip():
            lines.append((at, stop))
        elif lines and not _goes_on(text, stop + 1):
            break
        at = stop + 1
    first_line = text[first.start : lines[0][1]].strip() if lines else ""
    for items, alike in ((True, _ITEM.match), (False, _EQUATION.fullmatch), (False, _VALUE.fullmatch)):
        texts = [text[a:b].strip() for a, b in lines]
        like = [bool(alike(part)) for part in (texts if items else [first_line, *texts[1:]])]
        count = like.index(False) if False in like else len(like)
        rows = [_row(text, a, b, items) for a, b in lines[:count]]
        if count > 1 and None not in rows:
            found = [row for row in rows if row]
            names = {row.answer.partition("=")[0].strip() for row in found}
            if len(names) == 1 and any(_STEP.search(row.answer) for row in found):
                return found[-1]
            return Piece(", ".join(row.answer for row in found), found[0].start, found[-1].end)
    return None


def is_row(line: str) -> bool:
    """Whether a line may be an item of a list."""
    return bool(_ITEM.match(line) or _EQUATION.fullmatch(line) or _VALUE.fullmatch(line))


def _goes_on(text: str, at: int) -> bool:
    """Whether a list continues after a blank line."""
    line = text[at : at + 120].strip().partition("\n")[0]
    return bool(_ITEM.match(text, at) or _EQUATION.fullmatch(line))


def _row(text: str, start: int, end: int, items: bool) -> Piece | None:
    """The answer in a line of a list, without its bullet and its name; None for a sentence."""
    if items and (bullet := _ITEM.match(text, start, end)):
        start = bullet.end()
    if named := _NAMED.match(text, start, end):
        start = named.end()
    found = piece(text, start, end)
    if found is None or not (re.search(r"[\d\\$=]", found.answer) or len(found.answer.split()) <= 3):
        return None
    return found._replace(answer=concluded(found.answer))
