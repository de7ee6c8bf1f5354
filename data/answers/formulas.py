r"""The last formula or the last number of a response that states its answer in no other way.

Both look at the response's last characters only, so that their time does not grow with its length.
"""

from __future__ import annotations

import re

from data.answers.pieces import Piece, concluded, independent, listed, piece, trim

TAIL = 3000  # characters in which the last formula is looked for
_DIGIT = re.compile(r"\d(?=\D|$)|[\u00bc-\u00be\u2150-\u215e]")

# Formulas between delimiters

_DELIMITER = re.compile(r"\\\\|\\\$|\$\$|\$|\\\(|\\\[|\\begin\{(\w{1,12}\*?)\}|\n[ \t]*\n")
_CLOSING = {"$$": "$$", "\\(": "\\)", "\\[": "\\]"}
_PROSE = re.compile(
    r"\\(?:text|mbox|mathrm|textbf|mathbf|operatorname|textit)\*?\s?\{[^{}]*\}|\\(?:begin|end)\{\w+\*?\}(?:\{[clr|]*\})?|\\[A-Za-z]+|"
    r"\b(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|max|min|mod|gcd|lcm|and|det|deg|all|real)\b"
)
_RELATION = r"=|<|>|\u2264|\u2265|\u2260|\\(?:[lg]eq?|[lg]t|neq?|in|equiv|leqslant|geqslant|approx|subset\w*|mid|to)(?![A-Za-z])"
_TELLING = re.compile(
    rf"\d|{_RELATION}|[-+*/^]|\\(?:pi|infty|emptyset|varnothing|frac|sqrt|begin|cup|cap|mathbb|pm|text|mathrm)(?![A-Za-z])"
)
_EXPONENT = re.compile(r"\s*[\^_]|\s*\\circ")  # cm$^2$
_ASIDE = re.compile(r"\s*[,;.]?\s*\(?(?:where|since|because|for|when|if|with|as|given|provided|assuming)\b[^.!?\n]{0,40}$")
_LISTING = re.compile(r"[\s,;.]*(?:\n[ \t]*(?:[-*\u2022]|\(?\d{1,2}[.)]|\(?[a-h]\))[ \t]*)?(?:and|or|und|et|ou|y|o|oder|as well as)?[\s]*(?:\\text\{\s*(?:and|or)\s*\})?[\s]*")
_PERCENT = re.compile(r"\s{0,2}(?:\\?%|(?:percent|per cent|pct)\b)")

# Numbers and formulas in plain text

_CODES = (
    r"(?:USD|EUR|GBP|INR|JPY|CNY|RMB|CAD|AUD|NZD|CHF|HKD|SGD|SEK|NOK|DKK|KRW|BRL|MXN|ZAR|RUB|PLN|TRY|PHP|THB|IDR|MYR|VND"
    r"|NGN|KES|PKR|BDT|AED|SAR|Rs|Tk|Php|US|AU|CA|NZ|HK|R|A|C|S|kr)\.?\s?"
)
_DASH = "-\u2212\u2013\u2012\u2014\u2011\u2010\uff0d\ufe63\u2015"
_THOUSANDS = r"(?:,|\{,\}|\\,|,\\!\s?|[\u00a0\u2009\u202f'\u2019])"
UNSIGNED = (
    rf"(?:\d{{1,3}}(?:{_THOUSANDS}\d{{3}})++(?![\d,])(?:\.\d+)?|\d{{1,3}}(?: \d{{3}})++(?!\d)(?:[.,]\d{{1,2}}(?!\d))?"
    r"|\d++(?:[.,:/]\d+)*+|\.\d+)"
)
_POWER = r"(?:\^\{?\(?-?\d+(?:/\d+)?\)?\}?|\*\*-?\d+|[\u207b\u207a]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)"
_UNIT_POWER = (
    r"\s?(?:\\text\s?\{\s?)?(?:[mck]?m|in|ft|yd|mi|km|inch(?:es)?|feet|units?|met(?:er|re)s?|miles?|yards?)\}?\s?"
    r"(?:\^\{?[23]\}?|[\u00b2\u00b3]|[23](?![\w.]))"
)
_SCALE = (
    r"\s(?:hundred|thousand|million|billion|trillion|lakh|crore|dozen)s?\b|\s(?:halves|half|thirds?|quarters?|fourths?|"
    r"fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|hundredths?)\b(?!\s(?:of the )?(?:day|place|term|year|month))"
)
_LAST_NUMBER = re.compile(
    rf"(?:(?<![A-Za-z])(?:{_CODES})|(?<![A-Za-z0-9^\\])(?<!(?<=[A-Za-z0-9)\]}}])_)(?<!\d[.,:/])(?<![\^_]\{{)(?<![\^_]-))"
    rf"(?:(?P<sign>[{_DASH}]\s?|\b(?:minus|negative)\s)?(?P<money>\\?[$\u20ac\u00a3\u20b9\u00a5]\s?)?)"
    rf"(?P<inner>[{_DASH}])?"
    rf"(?P<size>\\[dtc]?frac\s?(?:\{{[^{{}}]{{1,40}}\}}|\d)\s?(?:\{{[^{{}}]{{1,40}}\}}|\d)|[\u00bc-\u00be\u2150-\u215e]|\u03c0/\d+"
    rf"|(?:\\sqrt\s?(?:\{{[^{{}}]{{1,40}}\}}|\d+)|\u221a\s?\(?\d+\)?|sqrt\s?\(\d+\))|\d{{1,4}}(?:\s|\sand\s|-)\d{{1,3}}/\d{{1,4}}(?!\d)"
    rf"|{UNSIGNED})"
    r"(?P<rest>"
    r"\s?[\u00bc-\u00be\u2150-\u215e]"
    r"|\s?(?:\\times|\\cdot|\u00d7|\u00b7|\*|x)\s?10(?:\^\{?[-\u2212]?\d+\}?|\*\*-?\d+|[\u207b\u207a]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)"
    r"|\s?(?:\\sqrt\s?(?:\{[^{}]{1,40}\}|\d+)|\u221a\s?\(?\d+\)?|\*?sqrt\s?\(\d+\))"
    r"|\s?\\pi(?![A-Za-z])|\s?\*?\s?\u03c0|[\s*]?pi\b"
    rf"|(?P<unit>{_UNIT_POWER})"
    rf"|{_POWER}|[eE][-+]?\d{{1,3}}(?!\w)|_\{{?\d{{1,2}}\}}?(?!\w)"
    rf"|{_SCALE}"
    r"|\s?[ap]\.?m\b\.?"
    r")?"
    r"(?:/\d+|\s/\s\d+)?(?P<percent>\s?\\?%|\s(?:percent|per cent|pct)\b)?",
)
_STEP = re.compile(
    r"\b(?:step|part|case|fig(?:ure)?|table|eq(?:uation)?|question|problem|example|chapter|page|line|method|option|note|"
    r"section|exercise|hint)s?\.?\s?[(#]?$", re.I
)  # fmt: skip
_NUMBERED = re.compile(r"(?:^|\n)[ \t#*>]*\(?$")
_REMARK = re.compile(r"\s\(([^()\n]{1,100})\)[\s.!*_]*$")
_VARIABLE = r"(?<![A-Za-z\\'\u2019])[A-Za-z](?:_\{?\w{1,3}\}?)?'?(?![A-Za-z'\u2019])"
_TOKEN = (
    r"(?:\d+(?:[.,]\d+)*|\.\d+|\\[A-Za-z]+|\b(?:sqrt|sin|cos|tan|log|ln|pi|exp|infinity|inf)(?![A-Za-z])|[\u221e\u03c0\u221a\u03b8]|"
    rf"{_VARIABLE}|[-+*/^=<>()\[\]{{}}|!\u2264\u2265\u2260\u2212\u2013\u00d7\u00b7\u00f7\u00b1\u222a\u2229\u2208]"
    r"|[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|,(?=\s?[-\w\u2212\u221e(\\]))"
)
_RUN = re.compile(rf"{_TOKEN}(?:[ \t]?{_TOKEN})*+")
_PLAIN_RELATION = re.compile(rf"{_VARIABLE}(?:\([a-z]\))?\s?(?:<=|>=|!=|[<>\u2264\u2265\u2260\u2208])|(?:<=?|>=?|[\u2264\u2265])\s?{_VARIABLE}")
_PLAIN_EQUATION = re.compile(rf"(?:{_VARIABLE}(?:\([a-z]\))?|\([a-z](?:,\s?[a-z])+\))\s?=[^=<>]+")
_LISTED = rf"[-\u2212]?[$\u20ac\u00a3]?{UNSIGNED}%?"
_ARE = re.compile(rf"\b(?:are|were):?\s+({_LISTED}(?:,\s+{_LISTED}){{0,20}},?\s+(?:and|or|&)\s+{_LISTED})\s*[.!*]*\s*$", re.I)
_GROUP = re.compile(r"[(\[{][^()\[\]{}]*,[^()\[\]{}]*[)\]}](?:\s?(?:,|\u222a|U)\s?[(\[{][^()\[\]{}]*,[^()\[\]{}]*[)\]}])*")
_TERMS = re.compile(r"(?:\s|[-+\u2212]|\d++(?:\.\d+)?|[a-z](?:\^\{?\d\}?|[\u00b2\u00b3])?(?![A-Za-z]))++")
_COUNTED = re.compile(r"\d[a-z]|(?<![A-Za-z])[a-z](?:\^|[\u00b2\u00b3])")


def last_formula(text: str) -> Piece | None:
    """The last formula, where no number follows it, with those that it is listed with."""
    text = _without_remark(text)
    number = last_number(text)
    return _delimited(text, number) or _plain(text)


def last_number(text: str) -> Piece | None:
    """The last number, whole: with its sign, its power, its percent sign, its fraction."""
    text = _without_remark(text)
    digit = _last_digit(text)
    if digit is None:
        return None
    window = max(0, digit - 240)
    found = [match for match in _LAST_NUMBER.finditer(text, window, digit + 40) if not _is_label(text, match)]
    if not found and window:
        found = [match for match in _LAST_NUMBER.finditer(text, 0, window) if not _is_label(text, match)][-1:]
    return _number(text, found[-1]) if found else None


def _number(text: str, number: re.Match[str]) -> Piece:
    start = number.start("money") if number["money"] else number.start("inner") if number["inner"] else number.start("size")
    negative = bool(number["inner"])
    if number["sign"] and _counts(text, number):
        negative, start = True, number.start("sign")
    elif number["inner"] and not number["money"]:
        negative, start = False, number.start("size")
    money = (number["money"] or "").strip()
    size = text[number.start("size") : number.start("unit") if number["unit"] else number.end()].rstrip()
    return Piece(f"{'-' if negative else ''}{money}{size}", start, number.start("size") + len(size))


def _counts(text: str, number: re.Match[str]) -> bool:
    """Whether a sign belongs to the number behind it: not that of a bullet, a range or a difference."""
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


def _last_digit(text: str) -> int | None:
    for end in range(len(text), 0, -1000):
        digits = list(_DIGIT.finditer(text, max(0, end - 1000), min(len(text), end + 1)))
        if digits:
            return digits[-1].end()
    return None


def _without_remark(text: str) -> str:
    """The text without a last remark in brackets: `So she has 12 apples (3 x 4).`"""
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


# Formulas between delimiters


def _delimited(text: str, number: Piece | None) -> Piece | None:
    text_end = len(text.rstrip())
    start = max(0, text_end - TAIL)
    found = _segments(text, start, text_end)
    told = [n for n, span in enumerate(found) if _TELLING.search(text, *span) and not _EXPONENT.match(text, *span)]
    whole = text.strip()
    if not told:  # a formula of one letter or word says something only where it is all there is
        alone = len(found) == 1 and len(whole) <= found[0][1] - found[0][0] + 8
        return piece(text, *found[0]) if alone and re.search(r"\w", text[slice(*found[0])]) else None
    at = told[-1]
    if number and number.start >= found[at][1]:
        return None
    while at and at - 1 in told and _ASIDE.match(text[_close(text, found[at - 1][1]) : _open(text, found[at][0])]):
        at -= 1
    last = piece(text, *found[at])
    if last is None:
        return None
    end = _close(text, found[at][1])
    percent = _PERCENT.match(text, end)
    answer = concluded(last.answer) + ("%" if percent else "")
    pieces = [Piece(answer, last.start, percent.end() if percent else last.end)]
    while at and at - 1 in told:
        between = text[_close(text, found[at - 1][1]) : _open(text, found[at][0])]
        before = piece(text, *found[at - 1])
        if len(between) > 60 or not _LISTING.fullmatch(between) or between.count("\n") > 4 or before is None:
            break
        if not re.search(r"[,;a-z]", between) and not independent(before.answer, pieces[0].answer):
            if not re.search(r"[-*\u2022\d]", between) or before.answer.count("=") > 1:
                break
        pieces.insert(0, Piece(concluded(before.answer), before.start, before.end))
        at -= 1
    return Piece(listed(", ".join(each.answer for each in pieces)), pieces[0].start, pieces[-1].end)


def _segments(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Where the formulas between delimiters stand; a dollar sign before an amount of money opens none."""
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
    """Whether what stands between two dollar signs is a formula, and not the words between two amounts of money."""
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
    """Where the delimiter behind a formula ends."""
    for sign in ("$$", "\\]", "\\)", "$"):
        if text.startswith(sign, end):
            return end + len(sign)
    return end


# Formulas in plain text


def _plain(text: str) -> Piece | None:
    """An equation, a relation, an interval, a point, terms with a variable or a list that holds the last digit."""
    digit = _last_digit(text)
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
    while runs:
        run = runs.pop()
        each = _told(text, run)
        if each is None or (found and not _LISTING.fullmatch(text[run.end() : after])):
            break
        found.insert(0, each)
        after = run.start()
    if not found:
        return None
    return Piece(", ".join(each.answer for each in found), found[0].start, found[-1].end)


def _told(text: str, run: re.Match[str]) -> Piece | None:
    span = trim(text, *run.span())
    if span is None:
        return None
    start, end = span
    for sign, other in ("()", "[]", "{}"):  # a bracket that the run does not close belongs to the sentence
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
    if _PLAIN_EQUATION.fullmatch(part):
        return Piece(concluded(part), start, end)
    if "=" in part:
        result = concluded(part)
        at = text.rfind("=", start, end) + 1
        inner = text[at:end].strip()
        if result != part and re.search(r"[A-Za-z(]", inner) and not re.fullmatch(r"[\d.,]+\s?[mgslh]", inner):
            return Piece(result, end - len(inner), end)
        return None
    if _COUNTED.search(part) and _TERMS.fullmatch(part) and not re.fullmatch(r"[-\u2212]?[\d.,]+[mgslhLkKCFxX]", part):
        return Piece(part, start, end)
    return None
