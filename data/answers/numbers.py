"""Answers read as numbers."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from data.answers.spelling import MAX_ANSWER_CHARS, UNSIGNED, clean, plain_fractions
from data.answers.units import CHANGE, spoken

_UNIT = re.compile(r"(?<=[\d}%])\s*\\(?:text|mbox|mathrm|textrm)\s?\{[^{}]*\}(?:\^\{?[23]\}?)?\s*$")
_NUMBER = re.compile(
    r"(?<![\w)])(?<!\d\.)(?P<sign>-?)(?:(?P<whole>\d{1,9})\s+(?=\d{1,9}/))?"
    rf"(?P<top>{UNSIGNED})(?:\s?/\s?(?P<bottom>{UNSIGNED}))?"
    r"(?:(?:\s*\\(?:times|cdot)\s*10\^\{?|[eE])(?P<exponent>[-+]?\d{1,3})\}?(?!\d))?"
    r"(?:_\{?(?P<base>\d{1,2})\}?)?(?P<percent>\s*\\?%|\s+percent\b)?"
)
_LABEL = re.compile(r"([A-Za-z][A-Za-z ]{0,40}?)\s*[=:]\s*")
_ARITHMETIC = re.compile(r"\s*(?:[-+*/^x]|\\times|\\cdot)\s*\d")
_AREA = re.compile(r"\b(?:[ckm]?m|in|ft|[a-z]{3,})\^\{?[23]\}?")
_UNIT_WORD = re.compile(
    r"(?!(?:and|or|not|plus|minus|negative|times|infinity|percent|sqrt|pi|sin|cos|tan|log|mod)$)"
    r"(?:[a-z]{3,}|a|an|of|in|is|it|he|to|us|cm|mm|km|kg|ft|yd|oz|lb|ml|hr|rs|sq|cu|[ap]\.?m)",
    re.I,
)
_NEXT_EQUATION = re.compile(rf"(=\s*-?{UNSIGNED}(?:\s+[A-Za-z]+)?)\s+(?=[A-Za-z]\w*\s*=)")  # x = 3 y = 5
_ASIDE = re.compile(r"\bfor \d+ [A-Za-z]+|(?<=[A-Za-z}])\s?\^\{?[23]\}?")  # 30 dollars for 2 tickets; cm^2
_HEADING = re.compile(r"^\s*[A-Za-z][\w ]*:(?=\s)")  # Number 1: 33


class Number(NamedTuple):
    """An answer that is one number."""

    value: Fraction
    percent: bool
    label: str  # the variable of "x = 5", or ""
    base: str  # the base of 52_8, or ""


def _value(number: re.Match[str]) -> Fraction | None:
    top, bottom = (Fraction((number[part] or "1").replace(",", "")) for part in ("top", "bottom"))
    if bottom == 0:
        return None
    size = int(number["whole"] or 0) + top / bottom * Fraction(10) ** int(number["exponent"] or 0)
    return -size if number["sign"] else size


def read_number(text: str) -> Number | None:
    """The number that an answer names, with an optional `x =` before it and words or a unit around it."""
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = clean(text)
    words, changes = CHANGE.subn(" ", spoken(text))
    text = words if changes else plain_fractions(_UNIT.sub("", text))
    label = _LABEL.match(text)
    rest = text[label.end() :] if label else text
    number = _NUMBER.search(rest)
    value = _value(number) if number else None
    if number is None or value is None:
        return None
    before, after = rest[: number.start()], rest[number.end() :]
    if re.match(r"(?![ckm]m\b|kg\b)[A-Za-z]", after):
        return None  # 2x, 5ab
    around = _AREA.sub("feet", f"{before} {after}").split()
    if not all(_UNIT_WORD.fullmatch(word.strip(".,'")) for word in around):
        return None
    name = label[1] if label and len(label[1]) == 1 else ""
    return Number(value, bool(number["percent"]), name, number["base"] or "")


def read_numbers(text: str) -> list[Fraction]:
    """One number from each part of a list, sorted; empty if there is none or a part is arithmetic or has two."""
    if len(text) > MAX_ANSWER_CHARS:
        return []
    text = plain_fractions(clean(text))
    text = re.sub(rf"(?<![\d.,]){UNSIGNED}", lambda number: number[0].replace(",", ""), text)
    text = _NEXT_EQUATION.sub(r"\1, ", _ASIDE.sub("", text))
    values = []
    for part in re.split(r",|;|&|\\\\|\band\b|\bor\b", text):
        part = _HEADING.sub("", part.rpartition("=")[2])  # "3 + 4 = 7" states 7
        number = _NUMBER.search(part)
        value = _value(number) if number else None
        if number and (
            value is None
            or _ARITHMETIC.match(part, number.end())
            or _NUMBER.search(part, number.end())
            or CHANGE.search(part)
        ):
            return []
        values += [] if value is None else [value]
    return sorted(values)
