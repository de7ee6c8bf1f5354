"""The last number of a response, whole: never a fragment of a larger expression."""

from __future__ import annotations

import re
from functools import lru_cache

from data.answers.pieces import Piece
from data.answers.words import numbers_in_words

_DIGIT = re.compile(r"\d(?=\D|$)|[\u00bc-\u00be\u2150-\u215e]")
_CODES = (
    r"(?:USD|EUR|GBP|INR|JPY|CNY|RMB|CAD|AUD|NZD|CHF|HKD|SGD|SEK|NOK|DKK|KRW|BRL|MXN|ZAR|RUB|PLN|TRY|PHP|THB|IDR|MYR|"
    r"VND|NGN|KES|PKR|BDT|AED|SAR|Rs|Tk|Php|US|AU|CA|NZ|HK|R|A|C|S|kr)\.?\s?"
)
_DASH = "-\u2212\u2013\u2012\u2014\u2011\u2010\uff0d\ufe63\u2015"
_THOUSANDS = r"(?:,|\{,\}|\\,|,\\!\s?|[\u00a0\u2009\u202f'\u2019])"
UNSIGNED = (
    rf"(?:\d{{1,3}}(?:{_THOUSANDS}\d{{3}})++(?![\d,])(?:\.\d+)?|\d{{1,3}}(?: \d{{3}})++(?!\d)(?:[.,]\d{{1,2}}(?!\d))?"
    r"|\d++(?:[.,:/]\d+)*+|\.\d+)"
)
_POWER = r"(?:\^\{?\(?-?\d+(?:/\d+)?\)?\}?|\*\*-?\d+|[\u207b\u207a]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)"
_UNIT_POWER = (
    r"\s?(?:\\text\s?\{\s?)?(?:[mck]?m|in|ft|yd|mi|km|inch(?:es)?|feet|units?|met(?:er|re)s?|miles?|"
    r"yards?)\}?\s?(?:\^\{?[23]\}?|[\u00b2\u00b3]|(?<=[a-z])[23](?![\w.]))"
)
_SCALE = (
    r"\s(?:hundred|thousand|million|billion|trillion|lakh|crore|dozen)s?\b|\s(?:halves|half|thirds?|quarters?|"
    r"fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?)\b(?!\s(?:of the )?(?:day|place|term|"
    r"year|month))"
)
_LAST_NUMBER = re.compile(
    rf"(?:(?<![A-Za-z])(?:{_CODES})|"
    rf"(?<![A-Za-z0-9^\\])(?<!(?<=[A-Za-z0-9)\]}}])_)(?<!\d[.,:/])(?<![\^_]\{{)(?<![\^_]-))(?:(?P<sign>[{_DASH}]\s?|"
    rf"\b(?:minus|"
    rf"negative)\s)?(?P<money>\\?[$\u20ac\u00a3\u20b9\u00a5]\s?)?)(?P<inner>[{_DASH}])?"
    rf"(?P<size>\\[dtc]?frac\s?(?:\{{[^{{}}]{{1,40}}\}}|"
    rf"\d)\s?(?:\{{[^{{}}]{{1,40}}\}}|\d)|[\u00bc-\u00be\u2150-\u215e]|\u03c0/\d+|"
    rf"(?:\\sqrt\s?(?:\{{[^{{}}]{{1,40}}\}}|\d+)|\u221a\s?\(?\d+\)?|sqrt\s?\(\d+\))|\d{{1,4}}(?:\s|\sand\s|"
    rf"-)\d{{1,3}}/\d{{1,4}}(?!\d)|{UNSIGNED})"
    r"(?P<rest>\s?[\u00bc-\u00be\u2150-\u215e]|\s?(?:\\times|\\cdot|\u00d7|\u00b7|\*|x)\s?10(?:\^\{?[-\u2212]?\d+\}?|"
    r"\*\*-?\d+|[\u207b\u207a]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)|\s?(?:\\sqrt\s?(?:\{[^{}]{1,40}\}|\d+)|"
    r"\u221a\s?\(?\d+\)?|[\s*]?sqrt\s?\(\d+\))|\s?\\pi(?![A-Za-z])|\s?\*?\s?\u03c0|[\s*]?pi\b"
    rf"|(?P<unit>{_UNIT_POWER})|{_POWER}|[eE][-+]?\d{{1,3}}(?!\w)|_\{{?\d{{1,2}}\}}?(?!\w)|{_SCALE}"
    r"|\s?[ap]\.?m\b\.?)?(?:/\d+|\s/\s\d+)?(?P<percent>\s?\\?%|\s(?:percent|per cent|pct)\b)?",
)
_STEP = re.compile(
    r"\b(?:step|part|case|fig(?:ure)?|table|eq(?:uation)?|question|problem|example|chapter|page|line|method|option|"
    r"note|"
    r"section|exercise|hint)s?\.?\s?[(#]?$",
    re.I,
)
_NUMBERED = re.compile(r"(?:^|\n)[ \t#*>]*\(?$")
_BELOW = re.compile(r"\n\s*\W{0,3}(?:note|confidence|remark|explanation)\b\W{0,3}:.*", re.I | re.S)
_CLAUSE = re.compile(r",\s(?:since|because|where)\s[^\n.!?]{1,150}[.!]?\s*$")
_REMARK = re.compile(r"\s\(([^()\n]{1,100})\)[\s.!*_]*$")


@lru_cache(maxsize=1)  # the last two rules call it for the same text
def last_number(text: str) -> Piece | None:
    """The last number, whole: with its sign, power, percent sign and fraction."""
    text = without_end_remark(text)
    found = _last(text)
    for _ in range(MAX_ROUNDED):  # 1/3 ≈ 0.33
        before = text[max(0, found.start - 60) : found.start] if found else ""
        about = _ABOUT.search(before)
        exact = _last(text[: found.start - len(before) + about.start(1)]) if found and about else None
        if exact is None:
            break
        found = exact
    return _whole_range(text, found) if found else None


def _last(text: str) -> Piece | None:
    digit = last_digit(text)
    if digit is None:
        return _in_words(text)
    near = max(0, text.rfind(" ", 0, max(0, digit - 24)), digit - 120)  # usually enough, and quick
    for first, last in ((near, digit + 40), (0, near + 24)):
        for match in reversed(list(_LAST_NUMBER.finditer(text, first, last))):
            if not _is_label(text, match):
                return _number(text, match)
    return None


def _in_words(text: str) -> Piece | None:
    """The last number in words of a text without a digit: `Tom is nineteen years old.`"""
    at = max(0, len(text) - 200)
    found = numbers_in_words(text[at:])
    return Piece(text[at + found[-1][0] : at + found[-1][1]], at + found[-1][0], at + found[-1][1]) if found else None


MAX_ROUNDED = 8  # steps back in 2/3 ≈ 0.667 ≈ 0.67
_ABOUT = re.compile(r"[\w})%]\$?\s*(\u2248|\\approx)\s*\W{0,2}$")
_COMPOUND = re.compile(
    r"(?<![\d.,])\d[\d.,]*\s(?:years?|months?|weeks?|days?|hours?|hrs?|minutes?|mins?|dollars?|pounds?|euros?|"
    r"feet|foot|ft|yards?|lbs?|kg|kilograms?|km|kilometers?|met(?:er|re)s?|liters?|gallons?)(?:,? and |, | )$",
    re.I,
)
_SMALLER = re.compile(
    r"\s(?:months?|weeks?|days?|hours?|hrs?|minutes?|mins?|seconds?|secs?|cents?|pence|inches|inch|in|feet|"
    r"ounces?|oz|grams?|met(?:er|re)s?|cm|centimeters?|ml|quarts?)\b",
    re.I,
)
_RANGE = re.compile(rf"(?:\bbetween\s+)?(?<![\d.,])\$?\d[\d.,]*(?:\s?[{_DASH}]\s?|\s+to\s+|\s+and\s+)\$?$")
_DENIED = re.compile(
    r"\b(except|excluding|other than|is not|isn't|not equal to|but not)\s+(?:when |for )?\W{0,3}$", re.I
)


def _whole_range(text: str, number: Piece) -> Piece:
    """A number with the other end of its range (10 to 12) or a denying word (except 5): it is not one number."""
    before = text[max(0, number.start - 60) : number.start]
    if (first := _COMPOUND.search(before)) and (second := _SMALLER.match(text, number.end)):
        start, end = number.start - len(before) + first.start(), second.end()
        return Piece(text[start:end], start, end)  # 3 hours and 20 minutes
    found = _RANGE.search(before)
    if found and ("and" not in found[0] or found[0].startswith("between")) and not _sum(before, found):
        start = number.start - len(before) + found.start()
        return Piece(text[start : number.end], start, number.end)
    return denied(text, number)


def denied(text: str, found: Piece) -> Piece:
    """A number with the denying word before it: "all numbers except 5" is not 5."""
    word = _DENIED.search(text[max(0, found.start - 30) : found.start])
    return Piece(f"{word[1]} {found.answer}", found.start - len(word[0]), found.end) if word else found


def _sum(before: str, found: re.Match[str]) -> bool:
    """Whether what looks like a range is a difference: 9 - 4, 12 - 4 - 3, x = 9-4."""
    return not (re.search(r"[A-Za-z]\s+$", before[: found.start()]) or found[0].startswith("between"))


def first_number(text: str, start: int, end: int) -> Piece | None:
    """The first number in a part of a text, whole, with the power of its unit: `48 m^2`."""
    number = _LAST_NUMBER.search(text, start, end)
    if number is None:
        return None
    found = _number(text, number)
    return found._replace(answer=found.answer + number["unit"], end=number.end()) if number["unit"] else found


def _number(text: str, number: re.Match[str]) -> Piece:
    start = (
        number.start("money") if number["money"] else number.start("inner") if number["inner"] else number.start("size")
    )
    negative = bool(number["inner"])
    if number["sign"] and _counts(text, number):
        negative, start = True, number.start("sign")
    money = (number["money"] or "").strip()
    size = text[number.start("size") : number.start("unit") if number["unit"] else number.end()].rstrip()
    return Piece(f"{'-' if negative else ''}{money}{size}", start, number.start("size") + len(size))


def _counts(text: str, number: re.Match[str]) -> bool:
    """Whether a sign belongs to the number after it, rather than to a bullet, a range or a difference."""
    at = number.start("sign")
    before = text[max(0, at - 40) : at]
    if number["sign"].startswith("n"):  # negative
        return True
    stripped = before.rstrip(" \t*_$")
    last = stripped[-1:] or "\n"
    if number["sign"].startswith("m"):  # minus
        return not (last.isdigit() or last in ")]}%")
    if number["sign"][-1:].isspace():
        return last in "=([<>\u2264\u2265\u2248:" and "\n" not in before[len(stripped) :]
    if last.isdigit() or last in ")]}%":
        return False
    return not before[-1:].isalnum()


def _is_label(text: str, number: re.Match[str]) -> bool:
    """Whether a number only counts steps or items: Step 3, "2. Then ..."."""
    before = text[max(0, number.start() - 14) : number.start()]
    if _STEP.search(before):
        return True
    if re.search(r"[A-Za-z.] ?\[$", before) and text.startswith("]", number.end()):  # a reference
        return True
    follows = text[number.end() : number.end() + 3]
    return bool(
        number["size"].isdigit()
        and len(number["size"]) <= 2
        and _NUMBERED.search(before)
        and re.match(r"[.)]\s*(?:\S|$)", follows)
        and re.search(r"\d", text[: number.start()][-400:])
    )


def last_digit(text: str) -> int | None:
    """Where the last digit ends."""
    end = len(text)
    size = 64
    while end > 0:
        digits = list(_DIGIT.finditer(text, max(0, end - size), min(len(text), end + 1)))
        if digits:
            return digits[-1].end()
        end, size = end - size, 4 * size
    return None


def without_end_remark(text: str) -> str:
    """The text without explanations at its end: a remark in brackets, a last clause, notes below."""
    if (below := _BELOW.search(text, max(0, len(text) - 400))) and re.search(r"\d", text[: below.start()][-400:]):
        text = text[: below.start()]
    clause = _CLAUSE.search(text, max(0, len(text) - 200))
    if clause and re.search(r"\d", re.split(r"[.!?]\s|\n", text[: clause.start()])[-1]):
        text = text[: clause.start()]
    tail = text[-160:]
    remark = _REMARK.search(tail)
    if remark is None:
        return text
    before = tail[: remark.start()].rstrip(" *_$")
    sentence = re.split(r"[.!?]\s|\n", before)[-1]
    told = re.search(r"\d", sentence) and re.search(r"[A-Za-z\d%}$.]$", before)
    if not told or re.fullmatch(r"[^A-Za-z=]*\d[^A-Za-z=]*,[^A-Za-z=]*", remark[1]):
        return text
    return text[: len(text) - len(tail) + remark.start()]
