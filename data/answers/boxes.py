r"""Answers in `\boxed{}`: the last one, and those before it that the text joins to it (`\boxed{2}` and `\boxed{-7}`),
but not a box that a later one corrects."""

from __future__ import annotations

import re
from collections import deque

from data.answers.numbers import read_number
from data.answers.pieces import Piece, independent, joined, piece

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,4}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_PERCENT = re.compile(r"\s{0,2}\$?\s?(\\?%|(?:percent|per cent|pct)\b)")

_FILLING = re.compile(
    r"\\(?:text|mbox|mathrm|textbf|textnormal)\s?\{([^{}]*)\}|\\[()\[\],;:! ]|\\q?quad(?![A-Za-z])|\\\\|[$&*~]|"
    r"_(?![\w{])"
)
_LABEL = re.compile(
    r"(?<![\w\\])[A-Za-z](?:_?\d|_\{?\w{1,3}\}?)?'{0,2}(?:\([A-Za-z0-9]{1,3}\))?\s*(?:=|:|\\in(?![A-Za-z]))"
)
_JOINING = re.compile(r"[,;\u3001\uff0c&]|\b(?:and|or|und|oder|et|ou|y|o|e)\b|[和与及或とи]|или")
_ITEM = re.compile(
    r"(?:^|[.;]\s)\s*(?:[-\u2022\u2013]|\(?(?:[a-h]|[ivx]{1,4}|\d{1,2})[.):]|(?:for )?part\s?\(?[a-h1-9]\)?:?)\s*",
    re.I | re.M,
)
_CORRECTION = re.compile(
    r"\b(?:correct\w*|actually|wait|no|not|instead|rather|so|thus|hence|therefore|then|which|gives?|giving|becomes?|"
    r"means|impl\w+|wrong|mistake\w*|should|re-?check|check\w*|simplif\w*|equals?|equivalent\w*|finally|first|but|"
    r"since|because|we|rounded|rounds?|approximately|about|after|now|i\.e|or rather|that|it|if|when|where|using|from|"
    r"hence|verify|final)\b",
    re.I,
)


def boxed(text: str) -> Piece | None:
    """The last box, with those that are joined to it."""
    boxes = deque(BOX.finditer(text), maxlen=32)
    if not boxes:
        return None
    found = _content(text, boxes[-1], len(text))
    if found is None:
        return None
    last, end = found
    if percent := _PERCENT.match(text, end):
        last = Piece(f"{last.answer}%", last.start, percent.end())
    joined, start = [last], boxes[-1].start()
    for box in list(boxes)[-2::-1]:
        before = _content(text, box, start)
        if before is None or not _joins(text[before[1] : start], before[0].answer, joined[-1].answer):
            break
        joined.append(before[0])
        start = box.start()
    return _together(text, joined[::-1], start, end) if len(joined) > 1 else last


def _content(text: str, box: re.Match[str], limit: int) -> tuple[Piece, int] | None:
    """The content of a box, and where the box ends; None if it is empty or not closed before `limit`."""
    if not text.startswith("{", box.end()):
        token = re.compile(r"[^\s{}$]{1,100}").match(text, box.end(), limit)  # "\boxed 5"
        held = piece(text, *token.span()) if token else None
        return (held, token.end()) if token and held else None
    depth = 0
    for brace in _BRACE.finditer(text, box.end(), limit):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)  # an escaped brace is 0
        if depth == 0:
            held = piece(text, box.end() + 1, brace.start())
            return (held, brace.end()) if held else None
    return None


def _joins(between: str, one: str, two: str) -> bool:
    """Whether the text between two boxes makes a list of them; a line break alone does not."""
    if len(between) > 120:
        return False
    plain = _FILLING.sub(lambda found: f" {found[1] or ''} ", between)
    if "\\" in _LABEL.sub("", plain):
        return False
    items = _ITEM.sub(" ", plain)
    rest = _LABEL.sub(" ", items)
    if re.search(r"[\d=+/<>^{}\u2192\u21d2]", rest) or _CORRECTION.search(rest):
        return False
    if not re.search(r"\w", rest):
        listed = items != plain or rest != items or _JOINING.search(rest) or "\n" not in rest or independent(one, two)
        return bool(listed) and ("." not in rest.rstrip(" \n") or items != plain)
    words = len(rest.split())
    if items != plain and re.match(r"[\s.,;]*\n", between):
        return words <= 8
    return bool(_JOINING.search(rest)) and words <= 7 and "." not in rest


def _together(text: str, boxes: list[Piece], start: int, end: int) -> Piece:
    answers = [box.answer for box in boxes]
    if len(set(answers)) == 1 or _same_number(answers):
        return boxes[-1]
    answer = joined(text, boxes).answer
    around = text[start - 1 : start] + text[end : end + 1]
    if around in ("()", "[]", "(]", "[)"):  # (\boxed{3}, \boxed{5})
        answer = f"{around[0]}{answer}{around[1]}"
    return Piece(answer, boxes[0].start, boxes[-1].end)


def _same_number(answers: list[str]) -> bool:
    numbers = [read_number(answer) for answer in answers]
    return None not in numbers and len({number.value for number in numbers if number}) == 1
