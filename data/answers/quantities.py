"""Quantities with several spellings: in another unit (90 minutes, 1.5 hours), as a ratio, as a time of day."""

from __future__ import annotations

import re
from fractions import Fraction

from data.answers.spelling import UNSIGNED, clean, plain_fractions
from data.answers.units import spoken, unit_of

# units in a line measure the same; the number is how many of the line's first unit each has
_SCALES = """
    ms 1; second 1000; minute 60000; hour 3600000; day 86400000; week 604800000
    month 1; year 12; decade 120; century 1200
    mm 1; cm 10; dm 100; metre 1000; km 1000000
    inch 1; foot 12; yard 36; mile 63360
    mg 1; gram 1000; kg 1000000
    ounce 1; pound 16
    ml 1; cl 10; liter 1000
    cup 1; pint 2; quart 4; gallon 16
    teaspoon 1; tablespoon 3
    cent 1; dollar 100
"""
_SCALE = {
    unit: (row, Fraction(size))
    for row, line in enumerate(_SCALES.strip().splitlines())
    for unit, size in (each.split() for each in line.split(";"))
}
_NUMBER = rf"(?:\d+ (?=\d+/\d))?{UNSIGNED}(?:/\d+)?"
_PART = re.compile(rf"\s*(?P<number>{_NUMBER})\s*(?P<unit>[A-Za-z]+)\b(?:\s*(?:,|and)\s*|\s*$|\s+(?=\d))")
_DOLLARS = re.compile(rf"(?:US)?\\?\$\s?({UNSIGNED})")
_FEET_AND_INCHES = re.compile(r"^\s*(\d+)\s?(?:'|′|ft)\s?(\d+)\s?(?:\"|''|″|in)\s*$")
_CLOCK = re.compile(r"(?=.*\d)(?:(\d+)\s?h\b)?\s?(?:(\d+)\s?(?:m|min)\b)?\s?(?:(\d+)\s?s\b)?")  # 2 h 30 min
_RATIO = re.compile(rf"\s*(-?{UNSIGNED})((?:\s*:\s*|\s+to\s+)-?{UNSIGNED})+\s*")
_TIME = re.compile(r"(\d{1,2})(?::([0-5]\d))?\s*(?:\\text\{\s?)?(?:([ap])\.?\s?m\b\.?)?\s*\}?", re.I)


def read_quantity(text: str) -> tuple[int, Fraction] | None:
    """(what is measured, the amount in the smallest unit) of a quantity such as "1 hour 30 minutes".

    None if the text is anything else, or has a unit without others to convert to.
    """
    if text.count("$") % 2:
        text = _DOLLARS.sub(r"\1 dollars", text)
    if (clock := _CLOCK.fullmatch(text)) and sum(part is not None for part in clock.groups()) > 1:
        names = ("hours", "minutes", "seconds")
        text = " ".join(f"{part} {name}" for part, name in zip(clock.groups(), names, strict=True) if part)
    text = spoken(clean(_FEET_AND_INCHES.sub(r"\1 feet \2 inches", text)))
    end, parts = 0, []
    while part := _PART.match(text, end):
        end = part.end()
        parts.append((_fraction(part["number"]), _SCALE.get(unit_of(part["unit"]) or "")))
    if end != len(text) or not parts or any(scale is None for _, scale in parts):
        return None
    kinds = {scale[0] for _, scale in parts if scale}
    sizes = [scale[1] for _, scale in parts if scale]
    if len(kinds) > 1 or sizes != sorted(set(sizes), reverse=True):
        return None
    return kinds.pop(), sum((value * scale[1] for value, scale in parts if scale), Fraction(0))


def _fraction(text: str) -> Fraction:
    whole, _, part = text.replace(",", "").rpartition(" ")
    top, _, bottom = part.partition("/")
    return Fraction(whole or 0) + Fraction(top) / (Fraction(bottom) if bottom and int(bottom) else 1)


def read_ratio(text: str) -> list[Fraction] | None:
    """The parts of 2:3 or "2 to 3", divided by the first; None for anything else."""
    text = plain_fractions(clean(text)).rpartition("=")[2]
    if not _RATIO.fullmatch(text):
        return None
    parts = [Fraction(part.strip().replace(",", "")) for part in re.split(r":|\bto\b", text)]
    return [part / parts[0] for part in parts] if parts[0] else None


def read_times(text: str) -> set[int] | None:
    """The possible minutes of the day for 9:30 (two: morning and evening), 9 AM or 14:30; None for anything else."""
    found = _TIME.fullmatch(clean(text))
    if found is None or not (found[2] or found[3]) or int(found[1]) > 24:
        return None
    hour, minute, half = int(found[1]), int(found[2] or 0), (found[3] or "").lower()
    if hour > 12 or hour == 0:
        return {hour % 24 * 60 + minute}
    both = {"a": hour % 12 * 60 + minute, "p": (hour % 12 + 12) * 60 + minute}
    return {both[half]} if half else set(both.values())
