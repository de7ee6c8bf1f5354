"""Spellings of one answer brought to one."""

from __future__ import annotations

import re

MAX_ANSWER_CHARS = 500  # beyond it, text is a runaway response: compared as a string, never parsed
UNSIGNED = r"(?:\d{1,3}(?:,\d{3})++(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_SYMBOLS = {"\u2212": "-", "\u2013": "-", "\u2012": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u03c0": r"\pi "}
_SYMBOLS |= {"\u221e": r"\infty ", "\u222a": r"\cup ", "\u2264": r"\le ", "\u2265": r"\ge "}
_SYMBOLS |= {"\u221a": r"\sqrt ", "\u00b0": r"^\circ "}
_SYMBOLS |= {"\u20ac": " euro ", "\u00a3": " pound "}
_UNICODE = str.maketrans(_SYMBOLS)
_POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_POWER = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
           "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}  # fmt: skip
_MIXED = re.compile(rf"(?<=\d)\s?(?=[{''.join(_VULGAR)}])")  # 3½ is 3 1/2
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r",\\!\s*|\{,\}", ","),  # 10,\!080 and 1{,}000
        (r"\\!|\\?\$|\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])|\s", " "),  # not the row end "\\ " of a matrix
        (r"(?<![\w)\]])\*\*(.+?)\*\*", r"\1"),  # bold, but not x**2 + y**2
        (r"\*\*", "^"),
        (r"\bper cent\b", "percent"),
        (r"\^\s?\{?\s?\\circ\s?\}?|\\degree(?![A-Za-z])", " "),
        (r"(?<=\d)\s*i(?![A-Za-z])", " i"),  # math-verify takes the i of 3i and of "3 i" for two symbols
        (r"\\varnothing(?![A-Za-z])|∅", r"\\emptyset "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*(\d)", r"\\frac{\1}"),  # \frac43, \frac 59
        (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),  # \frac9{19} is done by now, \frac{270}7 is not
    )
]
TEXT = re.compile(r"\\(?:text|mbox|mathrm|textrm|textbf|mathbf)\s?\{([^{}]*)\}")


def clean(text: str) -> str:
    """LaTeX and Unicode spellings of the same thing brought to one spelling, still LaTeX."""
    text = _POWER.sub(lambda power: f"^{{{power[0].translate(_POWERS)}}}", text)
    text = "".join(_VULGAR.get(sign, sign) for sign in _MIXED.sub(" ", text)).translate(_UNICODE)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".").strip()


def normalise(text: str) -> str:
    """A string that equal answers often share; words lose their case, (c) becomes C."""
    if len(text) > MAX_ANSWER_CHARS:
        return text.strip()
    text = clean(text)
    plain = TEXT.sub(r"\1", text).strip()
    if choice := re.fullmatch(r"\(([A-Za-z])\)", plain):
        return choice[1].upper()
    # A space stays if without it two numbers would be one: "3 5" is not 35, "1, 234" is not 1,234.
    plain = re.sub(r"(?<!\d)(?<!\d,)\s+|\s+(?!\d)|(?<=\d,)\s+(?!\d{3}(?!\d))", "", plain)
    return plain.casefold() if len(plain) > 1 and is_words(text) else plain


def is_words(text: str) -> bool:
    r"""Whether a clean text is words, so that math-verify may not read it as a product: eat = tea there.

    Two or three bare letters may be such a product; in `\text{}` they are a word.
    """
    plain = TEXT.sub(r"\1", text).strip()
    words = re.split(r"[ -]+", plain.strip("()"))
    if not all(re.fullmatch(r"[A-Za-z']+", word) for word in words):
        return False
    bare = len(plain) == 1 or (min(map(len, words)) > 1 and max(map(len, words)) > 3)
    return bare or TEXT.fullmatch(text) is not None


def plain_fractions(text: str) -> str:
    r"""`137 \frac{1}{2}` becomes `137 1/2`."""
    number = r"-?\d+(?:\.\d+)?"
    text = re.sub(r"(?<=\d)\s*\\frac", r" \\frac", text)
    return re.sub(rf"\\frac\{{\s?({number})\s?\}}\{{\s?(\d+(?:\.\d+)?)\s?\}}", r"\1/\2", text)
