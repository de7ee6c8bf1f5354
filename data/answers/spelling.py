"""Unifies different spellings of an answer."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

MAX_ANSWER_CHARS = 500  # a longer text is a runaway response: compared as a string, never parsed
UNSIGNED = r"(?:\d{1,3}(?:,\d{3})++(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_SYMBOLS = dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-")
_SYMBOLS |= {"\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u2217": "*", "\u00f7": r"\div "}
_SYMBOLS |= {"\u03c0": r"\pi ", "\u221e": r"\infty ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u00b1": r"\pm "}
_SYMBOLS |= {"\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u2208": r"\in ", "\u2248": r"\approx "}
_SYMBOLS |= {"\u221a": r"\sqrt ", "\u221b": r"\sqrt[3] ", "\u00b0": r"^\circ ", "\u2026": "...", "\u22ef": "..."}
_SYMBOLS |= {"\u20ac": " euro ", "\u00a3": " pound ", "\u20b9": " rupee ", "\u00a5": " yen ", "\uffe5": " yen "}
_SYMBOLS |= {
    "\u20a9": " won ",
    "\u00a2": " cent ",
    "\u20bd": " rouble ",
    "\u2019": "'",
    "\u200b": "",
    "\ufeff": "",
    "\u2060": "",
    "\u3002": ".",
    "\uff0c": ",",
    "\uff08": "(",
    "\uff09": ")",
    "\uff1d": "=",
}
_UNICODE = str.maketrans(_SYMBOLS)
_POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_POWER = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅕": "1/5",
    "⅖": "2/5",
    "⅗": "3/5",
    "⅘": "4/5",
    "⅙": "1/6",
    "⅚": "5/6",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
    "⅞": "7/8",
}
_MIXED = re.compile(rf"(?<=\d)\s?(?=[{''.join(_VULGAR)}])")  # 3½ is 3 1/2
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt|pi"
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r",\\!\s*|\{,\}", ","),  # 10,\!080 and 1{,}000
        (r"\\!|\\(?:left|right|big|Big|bigg|Bigg|displaystyle|limits)(?![A-Za-z])", ""),
        (
            r"\b(?:USD?|CAD?|AUD?|NZD?|HKD?|SGD?|C|A|S|R)\s?\\?\$|\\?\$"
            r"|\b(?:USD|EUR|GBP|INR|CNY|JPY|CAD|AUD)\s?(?=[-\d.])",
            "",
        ),
        (r"\b[Rr]s\.?\s?(?=\d)", " rupee "),
        (r"\\textcolor\s?\{[^{}]*\}\s?\{([^{}]*)\}", r"\1"),
        (r"\\color\s?\{[^{}]*\}", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])|\s", " "),  # not the row end "\\ " of a matrix
        (r"(?<![\d.,])(\d{1,3})((?:[ '_]\d{3})+)(?![\d.]?\d|[ '_]\d)", r"\1<\2>"),  # 18 000
        (r"(?<![\d.,])(\d{1,3})((?:\.\d{3}){2,})(?![\d.,])", r"\1<\2>"),  # 12.500.000
        (r"(?<![\d.,])(\d{1,3})((?:\.\d{3})+),(?=\d+(?!\S*,))", r"\1<\2>."),  # 1.250,50
        (r"(?<![\w)\]])\*\*(.+?)\*\*", r"\1"),  # bold, but not x**2 + y**2
        (r"\*\*", "^"),
        (r"(?<=\d)\s?[xX*]\s?(?=10\s?\^)", r"\\times "),
        (r"^\s*(?:=|:|#|~|\\approx)\s*(?=[-\\\d.])", ""),
        (r"^\s*(?:minus|negative)\s+", "-"),
        (r"^\s*(?:both|either|(?:the )?(?:numbers|values|solutions|roots)(?: are)?)\s+(?=[-\d])", ""),
        (r"^\s*\+?infinity$", r"\\infty"),
        (r"^\s*(-?[\d.,/]+)\s?=\s?([A-Za-z])$", r"\2 = \1"),  # 6 = x
        (r"(?<![\w.])(\d+(?:\.\d+)?) squared\b", r"\1^2"),
        (r"(?<![\w.])(\d+(?:\.\d+)?) cubed\b", r"\1^3"),
        (r"^(?:the )?square root of (\d+)$", r"\\sqrt{\1}"),
        (r"^(?:the )?cube root of (\d+)$", r"\\sqrt[3]{\1}"),
        (r"^_+([^_]+)_+$", r"\1"),
        (r"^\s*all real(?: number)?s$", r"\\mathbb{R}"),
        (r"\+\s?/\s?-|\+-", r"\\pm "),
        (r"^\s*<\s?([^<>]+,[^<>]+)>\s*$", r"(\1)"),
        (r"\bper cent\b", "percent"),
        (r"(\\(?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*-?\d+)\s?\^\s?\{?\s?\\circ\s?\}?", r"\1 \\pi / 180"),
        (r"\^\s?\{?\s?\\circ\s?\}?|\\degree(?![A-Za-z])", " "),
        (r"(?<=\d)\s+(?:\\(?:text|mathrm)\{\s?)?([CF])(?:\s?\})?(?![\w(])", r" \\text{degree\1}"),
        (r"\\(?:mathrm|operatorname|text)\s?\{\s?([ei])\s?\}", r"\1"),
        (r"(?<![A-Za-z\\])i\s?(?=\()", r"i \\cdot "),
        (r"(?<=\d)\s*i(?![A-Za-z])", " i"),  # math-verify takes the i of 3i and of "3 i" for two symbols
        (r"\\varnothing(?![A-Za-z])|∅", r"\\emptyset "),
        (r"(?<![\\A-Za-z])(" + _FUNCTIONS + r")(?![A-Za-z])", r"\\\1 "),
        (r"\\sqrt\s*(\d+)(?=\D|$)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*(\[\d\])?\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)", r"\\sqrt\1{\2}"),
        (r"\\sqrt\s*(\[\d\])\s*(\d+|[a-z])", r"\\sqrt\1{\2}"),
        (r"\\(?:over(?:line|rightarrow)|vec|hat|bar|mathbf|bm|boldsymbol)\s?\{([A-Za-z]+)\}", r"\1"),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*(\d)", r"\\frac{\1}"),  # \frac43, \frac 59
        (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),  # \frac9{19} is already done, \frac{270}7 is not
        (r"\s*(?:!=|\\neq|\\not\s?=)\s*", r" \\ne "),
        (r">=|\\geqslant|\\geq", r"\\ge "),
        (r"<=|\\leqslant|\\leq(?![A-Za-z])", r"\\le "),
        (r"\\(?:l|c|d|v)?dots[bcmio]?(?![A-Za-z])|\.{3,}", " ... "),
        (r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
        (r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
        (r"\\(?:langle)(?![A-Za-z])", "("),
        (r"\\(?:rangle)(?![A-Za-z])", ")"),
    )
]
_REPEATING = re.compile(r"(?<![\d.])(\d{0,9})\.(\d{0,20}?)\\(?:overline|bar|dot)\s?\{(\d{1,20})\}")
_CHOICE = re.compile(r"\(([A-Za-z])\)|(?:(?:option|choice)\s\(?)([A-Za-z])\)?|([A-H])[).]", re.I)
_GROUPS = re.compile(r"<([ '_.\d]+)>")  # groups of thousands, as marked by the rewrites
TEXT_COMMAND = re.compile(r"\\(?:text|mbox|mathrm|textrm|textbf|mathbf|textnormal|textit|mathit)\s?\{([^{}]*)\}")


def _as_fraction(decimal: re.Match[str]) -> str:
    """0.1\\overline{6} is (16 - 1) / 90."""
    whole, fixed, repeated = decimal[1] or "0", decimal[2], decimal[3]
    top = int(whole + fixed + repeated) - int(whole + fixed)
    return str(Fraction(top, (10 ** len(repeated) - 1) * 10 ** len(fixed)))


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """A text with its LaTeX and Unicode spellings unified; still LaTeX."""
    text = _POWER.sub(lambda power: f"^{{{power[0].translate(_POWERS)}}}", text)
    text = "".join(_VULGAR.get(sign, sign) for sign in _MIXED.sub(" ", text)).translate(_UNICODE)
    text = _REPEATING.sub(_as_fraction, text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _GROUPS.sub(lambda groups: re.sub(r"\D", "", groups[1]), text)
    return text.strip().rstrip(".:`").lstrip("`").strip()


def normalise_answer(text: str) -> str:
    """A string that equal answers often share; words become lower-case, (c) becomes C."""
    if len(text) > MAX_ANSWER_CHARS:
        return text.strip()
    text = clean(text)
    plain = TEXT_COMMAND.sub(r"\1", text).strip()
    if choice := _CHOICE.fullmatch(plain):
        return str(choice[1] or choice[2] or choice[3]).upper()
    # A space stays if without it two numbers would be one: "3 5" is not 35, "1, 234" is not 1,234.
    plain = re.sub(r"(?<!\d)(?<!\d,)\s+|\s+(?!\d)|(?<=\d,)\s+(?!\d{3}(?!\d))", "", plain)
    said = is_words(text) or re.fullmatch(r"[A-Z][a-z]+", plain)
    return plain.casefold() if len(plain) > 1 and said else plain


def is_words(text: str) -> bool:
    r"""Whether a clean text is words, which math-verify would read as a product: to it, eat = tea.

    Two or three bare letters may be a product; in `\text{}` they are a word.
    """
    plain = TEXT_COMMAND.sub(r"\1", text).strip()
    words = re.split(r"[ -]+", plain.strip("()"))
    if not all(re.fullmatch(r"[A-Za-z']+", word) for word in words):
        return False
    bare = len(plain) == 1 or (min(map(len, words)) > 1 and max(map(len, words)) > 3)
    return bare or TEXT_COMMAND.fullmatch(text) is not None


def plain_fractions(text: str) -> str:
    r"""`137 \frac{1}{2}` becomes `137 1/2`."""
    number = r"-?\d+(?:\.\d+)?"
    text = re.sub(r"(?<=\d)\s*\\frac", r" \\frac", text)
    return re.sub(rf"\\frac\{{\s?({number})\s?\}}\{{\s?(\d+(?:\.\d+)?)\s?\}}", r"\1/\2", text)
