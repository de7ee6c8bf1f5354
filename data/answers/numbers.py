"""Answers read as numbers."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from data.answers.spelling import MAX_ANSWER_CHARS, UNSIGNED, clean, plain_fractions
from data.answers.units import CHANGE, spoken, unit_of
from data.answers.words import in_digits

_NUMBER = re.compile(
    r"(?<![\w)])(?<!\d\.)(?P<sign>-?)(?:(?P<whole>\d{1,9})\s+(?=\d{1,9}/))?"
    rf"(?P<top>{UNSIGNED})(?:\s?/\s?(?P<bottom>{UNSIGNED}))?"
    r"(?:(?:\s*\\(?:times|cdot)\s*10\^\{?|[eE])(?P<exponent>[-+]?\d{1,3})\}?(?!\d))?"
    r"(?:_\{?(?P<base>\d{1,2})\}?)?(?P<percent>\s*\\?%|\s+percent\b)?"
)
_LABEL = re.compile(r"([A-Za-z][A-Za-z ]{0,40}?)\s*[=:]\s*")
_ARITHMETIC = re.compile(r"\s*(?:[-+*/^x]|\\times|\\cdot)\s*\d")
_AREA = re.compile(r"\b(?:[ckm]?m|in|ft|[a-z]{3,})\^\{?[23]\}?")
_WORD = re.compile(
    r"(?!(?:and|or|not|plus|minus|negative|infinity|percent|sqrt|pi|sin|cos|tan|log|mod)$)"
    r"(?:[a-z]{3,}(?:-[a-z]+)*(?:\(e?s\))?|a|an|of|as|in|is|it|he|to|us|[ap]\.m|sq|cu|o'clock)",
    re.I,
)
# words beside a number that make it something other than a quantity
_OTHER = re.compile(
    r"\b(?:except|excluding|without|unless|other|but|nor|neither|none|all|any|every|each number|infinite(?:ly)?|"
    r"undefined|unknown|past|between|divided|divisible|divides|multiples?|factors? of|powers?|modulo|mod|base|"
    r"nonzero|non|no|term|place|root|roots|log|squares? of|th|st|nd|rd|"
    r"thirds?|fourths|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|twelfths|hundredths?|"
    r"thousandths?)\b|(?<=\d)(?:th|st|nd|rd)\b",
    re.I,
)
_NEXT_EQUATION = re.compile(rf"(=\s*-?{UNSIGNED}(?:\s+[A-Za-z]+)?)\s+(?=[A-Za-z]\w*\s*=)")  # x = 3 y = 5
_PARENTHESES = re.compile(r"^\s*(-?)\(\s*(\d[\d.,/]*)\s*\)\s*$")  # -(5), ($5)
_CENTS = re.compile(r"\s*\d+\s+dollars?\s+and\s+(\d{1,2})\s+cents?\s*", re.I)
_ASIDE = re.compile(r"\bfor \d+ [A-Za-z]+|(?<=[A-Za-z}])\s?\^\{?[23]\}?")  # 30 dollars for 2 tickets; cm^2
_HEADING = re.compile(r"^\s*[A-Za-z][\w ]*:(?=\s)")  # Number 1: 33


# a decimal of 15 significant digits or more is a computer's rounding of an exact value: 2.2000000000000002
NEAR = Fraction(1, 10**12)  # relative difference to that value
LONG = re.compile(r"\d*\.\d{15,}|[1-9]\d*\.\d{14,}")


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


@lru_cache(maxsize=4096)
def read_number(text: str) -> Number | None:
    """The number in an answer, with an optional `x =` before it and words or a unit around it; None for other forms."""
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = clean(text)
    text = CHANGE.sub(" ", spoken(text))
    label = _LABEL.match(text)
    rest = text[label.end() :] if label else text
    rest = _PARENTHESES.sub(r"\1\2", rest)
    number = _NUMBER.search(rest)
    value = _value(number) if number else None
    if number is None or value is None:
        return None
    before, after = rest[: number.start()], rest[number.end() :]
    if (letters := re.match(r"[A-Za-z]+", after)) and (len(letters[0]) < 2 or not unit_of(letters[0])):
        return None  # 2x, 5ab
    if _OTHER.search(before) or _OTHER.search(after) or (label and _OTHER.search(label[1])):
        return None
    if cents := _CENTS.fullmatch(rest):  # 5 dollars and 50 cents
        return Number(value + Fraction(cents[1]) / 100, False, "", "")
    around = _AREA.sub("feet", spoken(f"{before} 1 {after}".strip())).replace("/", " ").split()
    around.remove("1")
    if not all(_WORD.fullmatch(word.strip(".,'")) or unit_of(word.strip(".,'")) for word in around):
        return None
    name = label[1] if label and len(label[1]) == 1 else ""
    return Number(value, bool(number["percent"]), name, number["base"] or "")


_REMARKS = re.compile(
    r"\s+\((?![^()]*\b(?:mod|base)\b)(?P<inside>[^()]*)\)$|\s+\[[A-Za-z ]+\]$"
    r"|;\s+(?=(?:[^A-Za-z;=]*\b[A-Za-z']{2,}\b){2})[^;=]*$"
    r"|\s(?:instead of|rather than)\s.*$|,\s(?:as|since|because|so|which|where|for|and (?:she|he|it|they|we))\s.*$"
    r"|,\s(?:i\.e\.|that is|namely|meaning).*$"
    r"|\s[-\u2013\u2014]\s(?=(?:[^A-Za-z\\]*\b[A-Za-z']{2,}){2}).*$",
    re.I,
)
_REMARK = re.compile(r"[A-Za-z]{3,}|[×=]|\\times|\d\s?[-+*/]\s?\d")
_LATEX_WORD = re.compile(r"\\(?!times|cdot|text|mathrm|div)[A-Za-z]+")


def without_number_remark(text: str) -> str:
    """A text without the explanation after its number: `12 (3 × 4)`, `15; she sold 3 a day`."""
    remark = _REMARKS.search(text)
    if remark is None or not re.search(r"\d", text[: remark.start()]):
        return text
    inside = remark["inside"]
    if inside is not None and (not _REMARK.search(inside) or _LATEX_WORD.search(inside)):
        return text
    return text[: remark.start()]


def read_numbers(text: str) -> list[Fraction]:
    """One number from each part of a list, sorted; empty if there are none, or a part is arithmetic or has two."""
    if len(text) > MAX_ANSWER_CHARS:
        return []
    text = in_digits(plain_fractions(clean(text)))
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
