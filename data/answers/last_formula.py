r"""The last formula of a response without a stated answer: between delimiters, or in plain text.

Only the response's last characters are searched, so that the time does not grow with its length.
"""

from __future__ import annotations

import re

from data.answers.last_number import UNSIGNED, denied, last_digit, last_number, without_end_remark
from data.answers.pieces import Piece, comma_separated, concluded, independent, joined, piece, trim

TAIL = 3000  # characters at the end that are searched for the last formula

# Formulas between delimiters

_DELIMITER = re.compile(r"\\\\|\\\$|\$\$|\$|\\\(|\\\[|\\begin\{(\w{1,12}\*?)\}|\n[ \t]*\n")
_CLOSING = {"$$": "$$", "\\(": "\\)", "\\[": "\\]"}
_PROSE = re.compile(
    r"\\(?:text|mbox|mathrm|textbf|mathbf|operatorname|textit)\*?\s?\{[^{}]*\}|\\(?:begin|end)\{\w+\*?\}(?:\{[clr|"
    r"]*\})?|\\[A-Za-z]+|\b(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|max|min|mod|gcd|lcm|and|det|deg|all|real)\b"
)
_RELATION = (
    r"=|<|>|\u2264|\u2265|\u2260|\\(?:[lg]eq?|[lg]t|neq?|in|equiv|leqslant|geqslant|approx|subset\w*|mid|"
    r"to)(?![A-Za-z])"
)
_TELLING = re.compile(
    rf"\d|{_RELATION}|[-+*/^]|\\(?:pi|infty|emptyset|varnothing|frac|sqrt|begin|cup|cap|mathbb|pm|text|"
    rf"mathrm)(?![A-Za-z])"
)
_EXPONENT = re.compile(r"\s*[\^_]|\s*\\circ")  # cm$^2$
_ASIDE = re.compile(
    r"\s*[,;.]?\s*\(?(?:where|since|because|for|when|if|with|as|given|provided|assuming)\b[^.!?\n]{0,40}$"
)
_LISTING = re.compile(
    r"[\s,;.]*(?:\n[ \t]*(?:[-*\u2022]|\(?\d{1,2}[.)]|\(?[a-h]\))[ \t]*)?(?:and|or|und|et|ou|y|o|oder|"
    r"as well as)?[\s]*(?:\\text\{\s*(?:and|or)\s*\})?[\s]*"
)
_PERCENT = re.compile(r"\s{0,2}(?:\\?%|(?:percent|per cent|pct)\b)")

# Formulas in plain text

_VARIABLE = r"(?<![A-Za-z\\'\u2019])[A-Za-z](?:_\{?\w{1,3}\}?)?'?(?![A-Za-z'\u2019])"
_TOKEN = (
    r"(?:\d+(?:[.,]\d+)*|\.\d+|\\[A-Za-z]+|\b(?:sqrt|sin|cos|tan|log|ln|pi|exp|infinity|"
    r"inf)(?:_\{?\w{1,3}\}?)?(?![A-Za-z])|[\u221e\u03c0\u221a\u03b8]|"
    rf"{_VARIABLE}|[-+*/^=<>()\[\]{{}}|!\u2264\u2265\u2260\u2212\u2013\u00d7\u00b7\u00f7\u00b1\u222a\u2229\u2208]"
    r"|[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|,(?=\s?[-\w\u2212\u221e(\\]))"
)
_RUN = re.compile(rf"{_TOKEN}(?:[ \t]?{_TOKEN})*+")
_PLAIN_RELATION = re.compile(
    rf"{_VARIABLE}(?:\([a-z]\))?\s?(?:<=|>=|!=|[<>\u2264\u2265\u2260\u2208])|(?:<=?|>=?|[\u2264\u2265])\s?{_VARIABLE}"
)
_PLAIN_EQUATION = re.compile(rf"(?:{_VARIABLE}(?:\([a-z]\))?|\([a-z](?:,\s?[a-z])+\))\s?=[^=<>]+")
_LISTED = rf"[-\u2212]?[$\u20ac\u00a3]?{UNSIGNED}%?"
_ARE = re.compile(
    rf"\b(?:are|were):?\s+({_LISTED}(?:,\s+{_LISTED}){{0,20}},?\s+(?:and|or|&)\s+{_LISTED})\s*[.!*]*\s*$",
    re.I,
)
_GROUP = re.compile(
    r"[(\[{][^()\[\]{}]*,[^()\[\]{}]*[)\]}](?:\s?(?:,|\u222a|U)\s?[(\[{][^()\[\]{}]*,[^()\[\]{}]*[)\]}])*"
)
_SPACED = re.compile(r"(?<=[\w)\]}])\s+(?=[\w(\[\\\u221a\u03c0])")
_UNIT = re.compile(r"[-\u2212]?[\d.,]+\s?(?:[mgslhLkKCFNJWVx](?:/[smh])?[23\u00b2\u00b3]?)?")
_UNITS = re.compile(r"[A-Za-z/*\u00b7^{}23\u00b2\u00b3]+")
_STRUCTURE = re.compile(  # a variable with an operation, a root, a function
    r"\d[a-z](?![A-Za-z])|(?<![A-Za-z])[a-z]\s?(?:\^|[-+*/(\u2212\u00b2\u00b3\u2074-\u2079])|"
    r"[-+*/^(\u2212]\s?[a-z](?![A-Za-z])|(?:sqrt|sin|cos|tan|log|ln|exp)(?:_\{?\w+\}?)?\s?\(|"
    r"[-+(]\s?\d*\s?[\u221a\u03c0]|[\u221a\u03c0]\d*\)?\s?[-+/]"
)


def last_formula(text: str) -> Piece | None:
    """The last formula, if no number follows it, with the others in its list."""
    text = without_end_remark(text)
    number = last_number(text)
    found = _delimited(text, number) or _plain(text)
    if (
        found
        and found.answer.startswith(("- ", "* "))
        and not text[text.rfind("\n", 0, found.start) + 1 : found.start].strip()
    ):
        found = Piece(found.answer[2:].lstrip(), found.start + 2, found.end)  # a bullet
    return denied(text, found) if found else None


# Formulas between delimiters


def _delimited(text: str, number: Piece | None) -> Piece | None:
    text_end = len(text.rstrip())
    start = max(0, text_end - TAIL)
    found = _segments(text, start, text_end)
    telling = [n for n, span in enumerate(found) if _TELLING.search(text, *span) and not _EXPONENT.match(text, *span)]
    whole = text.strip()
    if not telling:  # a single letter or word is an answer only if it is all there is
        alone = len(found) == 1 and len(whole) <= found[0][1] - found[0][0] + 8
        return piece(text, *found[0]) if alone and re.search(r"\w", text[slice(*found[0])]) else None
    at = telling[-1]
    if number and number.start >= found[at][1]:
        return None
    while at and at - 1 in telling and _ASIDE.match(text[_close(text, found[at - 1][1]) : _open(text, found[at][0])]):
        at -= 1
    last = piece(text, *found[at])
    if last is None:
        return None
    end = _close(text, found[at][1])
    percent = _PERCENT.match(text, end)
    answer = concluded(last.answer) + ("%" if percent else "")
    pieces = [Piece(answer, last.start, percent.end() if percent else last.end)]
    while at and at - 1 in telling:
        between = text[_close(text, found[at - 1][1]) : _open(text, found[at][0])]
        before = piece(text, *found[at - 1])
        if len(between) > 60 or not _LISTING.fullmatch(between) or between.count("\n") > 4 or before is None:
            break
        bullet = re.search(r"[-*\u2022\d]", between) and before.answer.count("=") < 2
        if not (re.search(r"[,;a-z]", between) or bullet or independent(before.answer, pieces[0].answer)):
            break
        pieces.insert(0, Piece(concluded(before.answer), before.start, before.end))
        at -= 1
    found_together = joined(text, pieces)
    return found_together._replace(answer=comma_separated(found_together.answer))


def _segments(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """The spans of formulas between delimiters; a dollar sign before an amount of money is not a delimiter."""
    found: list[tuple[int, int]] = []
    at = start
    while opening := _DELIMITER.search(text, at, end):
        sign, at = opening[0], opening.end()
        if sign == "$":
            close = text.find("$", at, end)
            while close > 0 and text[close - 1] == "\\":
                close = text.find("$", close + 1, end)
            if close >= 0 and is_formula(text[at:close]):
                found.append((at, close))
                at = close + 1
        elif sign in _CLOSING:
            close = text.find(_CLOSING[sign], at, end)
            if close >= 0 and text[at:close].strip():
                found.append((at, close))
                at = close + 2
        elif opening[1]:
            last = text.find(f"\\end{{{opening[1]}}}", at, end)
            if last >= 0:
                close = text.index("}", last) + 1
                found.append((opening.start(), close))
                at = close
    return found


def is_formula(text: str) -> bool:
    """Whether the text between two dollar signs is a formula, not words between two amounts of money."""
    if not text.strip() or "\n\n" in text or len(text) > 1000:
        return False
    if text[0].isdigit() and (text[-1].isspace() or text[-1] in "-+=(/*,") and not text[0].isspace():
        return False
    if re.match(r"\d[\d.,]*\)", text):  # ($5)($3)
        return False
    words = re.findall(r"[A-Za-z]{3,}", _PROSE.sub(" ", text))
    alone = re.fullmatch(r"\s*[A-Za-z]+\s*", text)
    return not [word for word in words if not (word.isupper() and len(word) <= 8)] or bool(alone)


def _open(text: str, start: int) -> int:
    """Where the delimiter before a formula begins."""
    for sign in ("$$", "\\[", "\\(", "$"):
        if text.startswith(sign, max(0, start - len(sign))) and start >= len(sign):
            return start - len(sign)
    return start


def _close(text: str, end: int) -> int:
    """Where the delimiter after a formula ends."""
    for sign in ("$$", "\\]", "\\)", "$"):
        if text.startswith(sign, end):
            return end + len(sign)
    return end


# Formulas in plain text


def _plain(text: str) -> Piece | None:
    """An equation, a relation, an interval, a point, terms with a variable or a list that holds the last digit."""
    digit = last_digit(text)
    if digit is None:
        return None
    first = max(text.rfind("\n", 0, digit) + 1, digit - 160)
    end = text.find("\n", digit)
    stop = min(len(text) if end < 0 else end, digit + 60)
    if (several := _ARE.search(text, first, stop)) and several.end() >= digit:
        return piece(text, *several.span(1))
    runs = [run for run in _RUN.finditer(text, first, stop) if run.start() < digit]
    if not runs or runs[-1].end() < digit:
        return None
    found: list[Piece] = []
    after = runs[-1].end()
    for run in reversed(runs):
        each = _statement(text, run)
        if each is None or (found and not _LISTING.fullmatch(text[run.end() : after])):
            break
        found.insert(0, each)
        after = run.start()
    return joined(text, found) if found else None


def _statement(text: str, run: re.Match[str]) -> Piece | None:
    """The formula in a run of mathematical signs in plain text; None if it has no more than its last number."""
    span = trim(text, *run.span())
    if span is None:
        return None
    start, end = span
    if text[start - 1 : start].isalpha():  # the end of a word
        return None
    for sign, other in ("()", "[]", "{}"):  # an unbalanced bracket belongs to the sentence
        part = text[start:end]
        if part.endswith(other) and part.count(other) > part.count(sign) and not re.search(r"[(\[].*,", part):
            end -= 1
        if part.startswith(sign) and part.count(sign) > part.count(other) and "," not in part:
            start += 1
    part = text[start:end].strip()
    if re.search(r"\d\s[A-Za-z]$", part):  # x = 5 m
        part = part[:-2]
        end = start + len(part)
    if _GROUP.fullmatch(part) or _PLAIN_RELATION.search(part):
        return Piece(part, start, end)
    gap = [match.end() for match in _SPACED.finditer(part)]  # "a 3x + 2": the a is a word
    if gap and _UNITS.fullmatch(part, gap[-1]) and part[: gap[-1]].rstrip()[-1:].isdigit():
        return None  # 9.8 m/s^2
    if gap and "," not in part:
        start += gap[-1]
        part = text[start:end].strip()
    if part.count("=") > 1 and all(_PLAIN_EQUATION.fullmatch(each.strip()) for each in part.split(",")):
        return Piece(part, start, end)  # x = 3, y = 5
    if _PLAIN_EQUATION.fullmatch(part):
        return Piece(concluded(part), start, end)
    if "=" in part:
        result = concluded(part)
        if result == part:
            return Piece(part, start, end) if _is_expression(part.partition("=")[0].strip()) else None
        inner = text[text.rfind("=", start, end) + 1 : end].strip()
        return Piece(result, end - len(inner), end) if _is_expression(inner) else None
    return Piece(part, start, end) if _is_expression(part) else None


def _is_expression(part: str) -> bool:
    """Whether plain text is more than a number, maybe with a unit: 2x + 3, 5/sqrt(2), n(n+1)/2."""
    if _UNIT.fullmatch(part) or not part or part[-1] in "-+*/=(" or part[0] in "*/)]":
        return False
    if sum(map(part.count, "([{")) != sum(map(part.count, ")]}")):
        return False
    return bool(_STRUCTURE.search(part)) and not re.search(r"[A-Za-z]\d|[A-Z][A-Z]|\d[A-Z]", part)
