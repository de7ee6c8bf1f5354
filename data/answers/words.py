"""Numbers in words converted to digits: "twenty-four" is 24, "two thirds" 2/3, "5 million" 5000000."""

from __future__ import annotations

import re
from fractions import Fraction

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_UNITS = {word: value for value, word in enumerate(_SMALL.split())}
_TENS = {
    f"{start}ty": 10 * i for i, start in enumerate(("twen", "thir", "for", "fif", "six", "seven", "eigh", "nine"), 2)
}
_SCALES = {"hundred": 100, "dozen": 12, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7}
_SCALES |= {"billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "third": 3, "fourth": 4, "quarter": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8}
_PARTS |= {"ninth": 9, "tenth": 10, "twelfth": 12, "sixteenth": 16, "hundredth": 100, "thousandth": 1000}
_SAID = "|".join(sorted((*_UNITS, *_TENS, *_SCALES, *_PARTS, "halves", "a", "an"), key=len, reverse=True))
_DIGITS = r"(?:\d+/0*[1-9]\d*|\d+(?:\.\d+)?)"
# a phrase has at most some 20 words: nobody writes a longer number
_PHRASE = re.compile(
    rf"(?<![\w\\.])(?:{_SAID}|{_DIGITS})s?(?:(?:\s|-(?=[a-z])|\sand\s|\spoint\s){{1}}(?:{_SAID}|{_DIGITS})s?){{0,20}}"
    r"(?![\w(])(?!\.\d|/|\^|\s?[=+*^])",
    re.I,
)
_HALF_OF = re.compile(r"\bhalf an? (?=(?:hour|mile|day|minute|year|pound|dollar|pint|cup|inch)\b)", re.I)
_TWICE = re.compile(r"\s*([A-Za-z][A-Za-z -]{1,60})\(\s?(\d[\d,]*)\s?\)")
_ANY = re.compile(rf"(?<![\w\\])(?:{'|'.join((*_UNITS, *_TENS, *_SCALES, *_PARTS, 'halves'))})s?(?!\w)", re.I)


def in_digits(text: str) -> str:
    """The text with numbers in words, or in digits with a word such as million, as digits.

    Ordinals (the third), "half of" and what cannot be read stay as they are.
    """
    if not _ANY.search(text):
        return text
    text = _HALF_OF.sub("1/2 ", text)
    if (twice := _TWICE.match(text)) and _PHRASE.sub(_replaced, twice[1].strip()) == twice[2].replace(",", ""):
        text = text[twice.start(2) : twice.end(2)] + text[twice.end() :]  # five (5) apples
    return _PHRASE.sub(_replaced, text)


def numbers_in_words(text: str) -> list[tuple[int, int]]:
    """The places of numbers in words, in order, without "one" and "zero" alone, which have other meanings."""
    found = (phrase for phrase in _PHRASE.finditer(text) if phrase[0].lower() not in ("a", "an", "one", "zero"))
    return [phrase.span() for phrase in found if _replaced(phrase) != phrase[0]]


def _replaced(phrase: re.Match[str]) -> str:
    words = re.split(r"[\s-]+", phrase[0].lower())
    if not any(_ANY.fullmatch(word) for word in words):
        return phrase[0]
    before = phrase.string[: phrase.start()].rstrip().lower()
    if phrase.string[phrase.end() :].lstrip().startswith("of ") and words[-1].rstrip("s") in (*_PARTS, "halve"):
        return phrase[0]  # "half of 12", "a third of it"
    if before.endswith(("the", "base", "every")):
        return phrase[0]
    value = _value(words)
    if value is not None:
        return str(value) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"
    first, joint, second = (
        re.split(r"(\sand\s)", phrase[0], maxsplit=1) if " and " in phrase[0] else (phrase[0], "", "")
    )
    return f"{in_digits(first)}{joint}{in_digits(second)}" if joint else phrase[0]  # two and three


def _value(words: list[str]) -> Fraction | None:
    """The value of a phrase's words; None if they are not one number."""
    if "point" in words:
        whole, digits = _whole(words[: words.index("point")]), words[words.index("point") + 1 :]
        if whole is None or not digits or any(_UNITS.get(digit, 10) > 9 for digit in digits):
            return None
        return Fraction(f"{whole}.{''.join(str(_UNITS[digit]) for digit in digits)}")
    scale = Fraction(1)
    while len(words) > 2 and words[-1].rstrip("s") in _SCALES and "and" in words:  # two and a half million
        scale *= _SCALES[words[-1].rstrip("s")]
        words = words[:-1]
    part = _part(words[-1])
    if part is None:
        if len(words) > 2 and words[-2] == "and" and "/" in words[-1]:  # 9 and 1/2
            whole = _whole(words[:-2])
            return None if whole is None else (whole + Fraction(words[-1])) * scale
        value = _whole(words)
        return None if value is None else value * scale
    rest = words[:-1]
    if not rest:  # "half" is a number; "third" is a place
        return Fraction(1, 2) * scale if words[-1] == "half" else None
    whole = Fraction(0)
    if "and" in rest:  # nine and a half
        joint = len(rest) - 1 - rest[::-1].index("and")
        before = _whole(rest[:joint])
        if before is None:
            return None
        whole, rest = before, rest[joint + 1 :]
    count = _whole(rest)
    plural = words[-1].endswith("s") or words[-1] == "halves"
    if count is None or (count == 1) == plural or (words[-1] == "quarters" and rest[0].isdigit()):
        return None  # "twenty fifth" is a place, "3 quarters" are coins
    return (whole + count / part) * scale


def _part(word: str) -> int | None:
    return 2 if word == "halves" else _PARTS.get(word) or _PARTS.get(word.removesuffix("s"))


def _whole(words: list[str]) -> Fraction | None:
    """A cardinal number: English number words, or digits before words such as million."""
    total = group = Fraction(0)
    last = 1000  # what the previous word allows: after twenty a digit, after five nothing
    half_of = False
    for i, word in enumerate(words):
        word = word if word in _UNITS else word.rstrip("s")
        if word == "half" and len(words) > 1 and i == 0:
            half_of = True
        elif word in ("a", "an") and i <= 1 and len(words) > i + 1 and (words[i + 1].rstrip("s") in _SCALES):
            group, last = Fraction(1), 0
        elif word in ("a", "an") and len(words) == 1:
            return Fraction(1)
        elif word == "and":
            if i == 0 or i + 1 == len(words) or words[i - 1].rstrip("s") not in _SCALES:
                return None
        elif word in _UNITS or word in _TENS:
            value = _UNITS.get(word, _TENS.get(word, 0))
            if value >= last or (last == 10 and not 0 < value < 10):
                return None
            group, last = group + value, 10 if word in _TENS else 0
        elif word in _SCALES:
            scale = _SCALES[word]
            if i == 0:
                return None
            if scale in (12, 100) or group == 0:
                group, last = group * scale if group else Fraction(0), 100
                if group == 0:
                    total, last = total * scale, 1000
            else:
                total, group, last = total + group * scale, Fraction(0), 1000
        elif re.fullmatch(_DIGITS, word) and i == 0:
            group, last = Fraction(word), 0
        else:
            return None
    return (total + group) / (2 if half_of else 1)
