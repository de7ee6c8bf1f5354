"""Units and words that change a number."""

from __future__ import annotations

import re

from data.answers.spelling import TEXT_COMMAND, clean, plain_fractions
from data.answers.words import in_digits

# Each unit's name, then its other spellings, without the plural's s. "5 more" contradicts "5 fewer", as units do.
_SPELLINGS = """
    nanometre nm nanometer; micrometre micrometer micron; mm millimeter millimetre; cm centimeter centimetre
    dm decimeter decimetre; metre meter; km kilometer kilometre
    inch inches; foot feet ft; yard yd; mile mi; league; furlong; lightyear
    ms millisecond; second sec; minute min; hour hr; day; week wk; month; year yr; decade; century centuries; am; pm
    dollar usd buck; cent ¢; euro eur; rupee rs inr; yen jpy; yuan cny rmb renminbi; krw
    rouble ruble rub; peso; franc; krona; shilling; penny pence pennies; nickel; dime; baht; lira
    mg milligram; gram gm; kg kilogram kilo; ounce oz; pound lb gbp quid; ton tonne; carat; stone
    ml milliliter millilitre; cl centiliter centilitre; liter litre; gallon gal; quart qt; pint pt; cup; tablespoon tbsp
    teaspoon tsp; barrel; bushel; acre; hectare ha
    degree deg; radian rad; celsius degreec; fahrenheit degreef; kelvin
    newton; joule; kj kilojoule; calorie cal; kcal; watt; kw kilowatt; mw megawatt; kwh; volt; ampere amp; ohm; hertz hz
    khz; mhz; ghz; pascal pa; kpa; bar; decibel db; mole mol; coulomb; farad; tesla
    bit; byte; kb kilobyte; mb megabyte; gb gigabyte; tb terabyte
    more; less fewer
"""
_UNITS = {spelling: names.split()[0] for names in re.split(r"[;\n]", _SPELLINGS) for spelling in names.split()}
_SPEEDS = {"mph": {"mile", "hour"}, "kmph": {"km", "hour"}, "kph": {"km", "hour"}, "fps": {"foot", "second"}}
_UNIT_NAME = re.compile(
    r"(?:\b(?P<before>square|sq|cubic|cu)\.? )?(?<![\\A-Za-z])(?P<name>[ap]\.m|[a-z]+|¢)(?![A-Za-z])"
    r"(?: ?\^ ?\{?(?P<power>[23])| (?P<after>squared|cubed)\b)?",
    re.I,
)
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}
# single letters, which may also be variables: in \text{} or alone after a number and a space, or on either side of /
_LETTERS = {"m": "metre", "in": "inch", "s": "second", "h": "hour", "g": "gram", "l": "liter", "L": "liter"}
_LETTERS |= {"N": "newton", "J": "joule", "W": "watt", "V": "volt", "A": "ampere", "K": "kelvin", "C": "coulomb"}
_LETTER = "|".join(_LETTERS)
_AFTER = r"(?=\s?/|\.?\s?\}|\.?\s?(?:\^\s?\{?[23]\}?)?$)"
_SHORT_UNIT = re.compile(
    rf"(\\(?:text|mbox|mathrm|textrm)\s?\{{\s?|^(?:[A-Za-z]\s?=\s?)?-?\d[\d.,/\s]*?\s)({_LETTER}){_AFTER}"
    rf"|((?:[a-z]{{2,}}|[msg])\s?/\s?)({_LETTER}|min|sec){_AFTER}"
    r"|(^(?:[A-Za-z]\s?=\s?)?-?\d[\d.,]*)(m|in)(?=/|\.?\s?(?:\^\{?[23]\}?)?$)"
)
_CODE = re.compile(r"\b(USD|EUR|GBP|INR|CNY|JPY)\s?(?=[-\d.])")
_DEGREE = re.compile(r"(?:°|\\circ|\\degree)(?![A-Za-z])(?!\s?\}?\s?(?:\\text\{\s?)?[CF]\b)")
_FEET = re.compile(r"(?<=\d)\s?(''|\"|')$")
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
} | {word: f"{word}s?" for word in ["dozen", "hundred", "thousand", "lakh", "million", "crore", "billion", "trillion"]}
CHANGE = re.compile(r"\b(?:" + "|".join(f"(?P<{name}>{words})" for name, words in _CHANGES.items()) + r")\b", re.I)


def spoken(text: str) -> str:
    r"""A clean text with the words in `\text{}` as words, numbers in digits, and the units m and in written out."""
    text = _FEET.sub(lambda sign: " foot" if sign[1] == "'" else " inch", plain_fractions(text))
    for _ in range(2):  # both sides of m/s
        text = _SHORT_UNIT.sub(_written_out, text)
    return in_digits(" ".join(TEXT_COMMAND.sub(r" \1", text).split()))


def _written_out(short: re.Match[str]) -> str:
    before, letter = next((short[i], short[i + 1]) for i in (1, 3, 5) if short[i] is not None)
    return before + (" " if before[-1:].isdigit() else "") + _LETTERS.get(letter, letter)


def unit_of(word: str) -> str | None:
    """The name of the unit that a word stands for, singular or plural; None if it is not a known unit."""
    word = word.lower().replace(".", "")
    return _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))


_LAST_TEXT = re.compile(r"(?<=[\w})])\s*\\(?:text|mbox|mathrm|textrm)\s?\{([A-Za-z .]+)\}(?:\s?\^\s?\{?[23]\}?)?$")
_LAST_WORDS = re.compile(r"(?<=[\w})])\s+((?:square|cubic|sq\.?|cu\.?)?\s?[A-Za-z]+)(?:\s?\^\s?\{?[23]\}?)?$")


def without_unit(text: str) -> str:
    r"""A clean text without the unit at its end: any word in `\text{}`, or a known unit."""
    text = text.strip()
    if (found := _LAST_TEXT.search(text)) and not CHANGE.search(found[1]):
        return text[: found.start()].strip()
    if (found := _LAST_WORDS.search(text)) and (unit_of(found[1].split()[-1]) or found[1].split()[-1] == "units"):
        return text[: found.start()].strip()
    return text


def read_units(text: str) -> set[str]:
    r"""The known units that an answer names, as "foot" or "foot2"; `\$` or an unpaired `$` is the dollar."""
    found = {"dollar"} if r"\$" in text or text.count("$") % 2 else set()
    found |= {unit for code in _CODE.findall(text) if (unit := unit_of(code))}
    found |= {"degree"} if _DEGREE.search(text) else set()
    for match in _UNIT_NAME.finditer(CHANGE.sub("", spoken(clean(text)))):
        found |= _SPEEDS.get(match["name"].lower(), set())
        if name := unit_of(match["name"]):
            power = match["power"] or _POWERS.get((match["before"] or match["after"] or "").lower(), "")
            found.add(name + power)
    return found


def read_changes(text: str) -> set[str]:
    """How the words of an answer change its number: to a bound, a square, thousands."""
    return {str(change.lastgroup) for change in CHANGE.finditer(spoken(clean(text)))}
