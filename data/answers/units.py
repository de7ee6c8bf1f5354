"""Units and words that change a number."""

from __future__ import annotations

import re

from data.answers.spelling import TEXT, clean, plain_fractions

# Of each unit its name, then its other spellings without the plural's s. "5 more" contradicts "5 fewer" as units do.
_SPELLINGS = """
    mm millimeter millimetre; cm centimeter centimetre; metre meter; km kilometer kilometre
    inch inches; foot feet ft; yard yd; mile
    second sec; minute min; hour hr; day; week; month; year yr; am; pm
    dollar usd; cent; euro; rupee rs
    gram; kg kilogram kilo; ounce oz; pound lb; ton tonne; liter litre; ml milliliter millilitre
    degree; radian; more; less fewer
"""
_UNITS = {spelling: names.split()[0] for names in re.split(r"[;\n]", _SPELLINGS) for spelling in names.split()}
_UNIT_NAME = re.compile(
    r"(?:\b(?P<before>square|sq|cubic|cu)\.? )?(?<![\\A-Za-z])(?P<name>[ap]\.m|[a-z]+)(?![A-Za-z])"
    r"(?: ?\^ ?\{?(?P<power>[23])| (?P<after>squared|cubed)\b)?",
    re.I,
)
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}
_SHORT_UNIT = re.compile(  # m and in, which may also be a variable and a word: in \text{} or after a bare number
    r"(\\(?:text|mbox|mathrm|textrm)\s?\{\s?|^(?:[A-Za-z]\s?=\s?)?[-\d.,/\s]+)(m|in)(?=/|\.?\}|\.?\s?(?:\^\{?[23]\}?)?$)"
)
_CHANGES = {
    "at_least": r"at least|or (?:more|greater|above|over)|no (?:less|fewer) than",
    "at_most": r"at most|or (?:less|fewer|below|under)|no (?:more|greater) than|up to",
    "above": r"(?:more|greater|larger|higher) than|(?:above|exceeding|over)(?= -?\d)",
    "below": r"(?:less|fewer|smaller|lower) than|(?:below|under)(?= -?\d| zero)",
    "cube_root": "cube root(?: of)?",
    "root": "square root(?: of)?|root of",
    "square": r"square of|(?:(?<=\d)|(?<=\d ))squared",
    "cube": r"cube of|(?:(?<=\d)|(?<=\d ))cubed",
    "double": "twice|doubled?",
    "triple": "thrice|tripled?",
    "part": "half|halves|(?:third|quarter) of|reciprocal|inverse",
    "factorial": "factorial",
} | {word: f"{word}s?" for word in ["dozen", "hundred", "thousand", "million", "billion"]}
CHANGE = re.compile(r"\b(?:" + "|".join(f"(?P<{name}>{words})" for name, words in _CHANGES.items()) + r")\b", re.I)


def spoken(text: str) -> str:
    r"""A clean text with the words in `\text{}` as words, single spaces, and the units m and in written out."""
    text = _SHORT_UNIT.sub(lambda short: short[1] + {"m": "metre", "in": "inch"}[short[2]], plain_fractions(text))
    return " ".join(TEXT.sub(r" \1", text).split())


def read_units(text: str) -> set[str]:
    r"""The known units that an answer names, as "foot" or "foot2"; `\$` or an unpaired `$` is the dollar."""
    found = {"dollar"} if r"\$" in text or text.count("$") % 2 else set()
    for unit in _UNIT_NAME.finditer(CHANGE.sub("", spoken(clean(text)))):
        word = unit["name"].lower().replace(".", "")
        if name := _UNITS.get(word) or _UNITS.get(word.removesuffix("s")):
            power = unit["power"] or _POWERS.get((unit["before"] or unit["after"] or "").lower(), "")
            found.add(name + power)
    return found


def read_changes(text: str) -> set[str]:
    """What the words of an answer make of its number: a bound, a square, thousands."""
    return {str(change.lastgroup) for change in CHANGE.finditer(spoken(clean(text)))}
