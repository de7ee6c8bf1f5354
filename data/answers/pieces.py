"""Pieces of a response: an answer without its surroundings, lists in rows, chains of equations."""

from __future__ import annotations

import re
from typing import NamedTuple

_MATH_SIGNS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_QUOTES = (
    ('\\"', '\\"'),
    ('"', '"'),
    ("'", "'"),
    ("\u201c", "\u201d"),
    ("\u2018", "\u2019"),
    ("\u300c", "\u300d"),
    ("\u00ab", "\u00bb"),
)
_WRAPPERS = (*_MATH_SIGNS, ("**", "**"), ("__", "__"), ("`", "`"), *_QUOTES)
_ENDING = " \t\r\n.,;:\u3002\uff0c\uff1b\uff1a\u3001"
SAYS = re.compile(r"[\w\\\u2205\u221e]")  # an answer has a letter, a digit or a sign of its own
_MAX_CHARACTERS = 2000  # anything longer is a runaway response and stays unchanged
_MAX_DEPTH = 50  # nested wrappers
_TAGS = re.compile(r"</?[A-Za-z]{1,10}>")  # <b>42</b>

_ROWS = re.compile(
    r"\\begin\{(cases|aligned|align\*?|gathered|gather\*?|split|array|eqnarray\*?)\}(?:\{[^{}]{0,20}\})?"
)
_NAME = r"(?:[A-Za-z\u0391-\u03c9]|\\[A-Za-z]{2,8})(?:_(?:\w|\{[^{}]{1,10}\}))?'{0,2}(?:\s?\([A-Za-z0-9, ]{1,12}\))?"
_EQUATION = re.compile(rf"\s*{_NAME}\s*(?:=|<|>|\\[lg]eq?\b|\\n?eq?\b|\u2264|\u2265)\s*\S.*", re.DOTALL)
_JUST_NAME = re.compile(rf"\s*(?:{_NAME}|\(\s*[A-Za-z](?:\s*,\s*[A-Za-z]){{1,3}}\s*\)|\|[A-Z]{{1,3}}\|)\s*")
_TEXT_LABEL = re.compile(r"[\s\\;,]*(?:\\(?:text|mathrm|mbox|textbf)\s?\{[^{}]*\}|[A-Za-z][A-Za-z ]{2,40})[\s\\;,]*")
_NOT_ARITHMETIC = re.compile(
    r"\\(?!times|cdot|div|d?frac|sqrt|d?binom|log|gcd|lcm|left|right|text|mathrm|mbox|[,;:!$% ])|"
    r"(?<![A-Za-z])(?!x\s*\$?[\d(])[A-Za-z](?![A-Za-z])|[<>\u2264\u2265\u2260;]|,(?!\d{3})"
)
_OPERATION = re.compile(
    r"[-+*/\u00d7\u00f7\u00b7^\u2212\u2013]|\\(?:times|cdot|div|d?frac|sqrt|d?binom|log|gcd|lcm)|!|x\s*\$?\d|times|"
    r"plus|minus|divided"
)
_EQUALS = re.compile(r"(?<![<>!=:])=(?!=)")
_LEADS_TO = re.compile(r"\\(?:implies|iff|Longrightarrow|Rightarrow|rightarrow|to)(?![A-Za-z])|[\u21d2\u27f9]|=>")
_ABOUT = re.compile(r"\\approx(?![A-Za-z])|\u2248|\\simeq(?![A-Za-z])")
_SEVERAL = re.compile(r"[,;]\s*[A-Za-z\\]|(?<![A-Za-z])(?:and|or|und|oder|et|ou)(?![A-Za-z])")
_GAP = re.compile(
    r"\s{0,4}[,;]?\s{0,4}\\q?quad(?![A-Za-z])\s{0,4}(?:\\(?:text|mbox)\s?\{\s?(?:and|"
    r"or)\s?\}\s{0,4}\\q?quad)?[,;\s]{0,4}"
)


class Piece(NamedTuple):
    """An answer that a rule found: its text, and its span in the response."""

    answer: str
    start: int
    end: int


def trim(text: str, start: int, end: int) -> tuple[int, int] | None:
    """A span without the white space, final period, Markdown bold and math delimiters around it; None: empty."""
    before = None
    for _ in range(_MAX_DEPTH):
        if before == (start, end):
            break
        before = (start, end)
        part = text[start:end].rstrip(_ENDING).removesuffix("/-")  # Rs. 42/-
        end = start + len(part)
        start = end - len(part.lstrip())
        part = text[start:end]
        if part[:1].isalnum() and part[-1:].isalnum():
            break
        if part.startswith("<") and (tag := _TAGS.match(part)):
            start += tag.end()
        if part.endswith(">") and (tag := _TAGS.fullmatch(part[part.rfind("<") :])):
            end -= len(tag[0])
        part = text[start:end]
        for opening, closing in _WRAPPERS:
            inner = part[len(opening) : len(part) - len(closing)]
            if part == opening + inner + closing and opening not in inner and closing not in inner:
                start, end = start + len(opening), end - len(closing)
                break
        else:
            start += 2 if part.startswith("**") else 0
            end -= 2 if end - start >= 2 and part.endswith("**") else 0
    return (start, end) if start < end else None


def piece(text: str, start: int, end: int) -> Piece | None:
    """A span as a piece: trimmed, with rows of equations as a list; None if empty."""
    span = trim(text, start, end)
    return None if span is None else Piece(comma_separated(text[slice(*span)]), *span)


def joined(text: str, pieces: list[Piece]) -> Piece:
    """Pieces as one: a list, or relations with the "or" that stands between them in the response."""
    bounds = [each for each in pieces if re.search(r"[<>\u2264\u2265]|\\[lg](?:eq?|t)\b", each.answer)]
    either = len(bounds) > 1 and re.search(r"\bor\b", text[pieces[0].end : pieces[-1].start])
    answer = (" or " if either else ", ").join(each.answer for each in pieces)
    return Piece(answer, pieces[0].start, pieces[-1].end)


def balanced(text: str, start: int, end: int) -> int:
    """The end of a span without unmatched closing brackets: `42"}` in JSON."""
    while end > start and text[end - 1] in ")]}\"'\u201d":
        part = text[start:end]
        closing = part[-1]
        opening = {")": "([", "]": "[(", "}": "{", "\u201d": "\u201c"}.get(closing, closing)
        closings = sum(map(part.count, {"([": ")]", "[(": ")]"}.get(opening, closing)))
        if closing in "\"'" and part.count(closing) % 2 == 0:
            break
        if closing not in "\"'" and sum(map(part.count, opening)) >= closings:
            break
        end -= 1
    return end


def comma_separated(answer: str) -> str:
    r"""Rows of equations (cases, aligned) and parts between `\quad`, joined by commas; anything else unchanged."""
    if len(answer) > _MAX_CHARACTERS:
        return answer
    if "\\begin" in answer and (begin := _ROWS.search(answer)):
        end = answer.find(f"\\end{{{begin[1]}}}", begin.end())
        before, after = re.sub(r"\\left\s*\\?[{.]", "", answer[: begin.start()]), answer[end:].partition("}")[2]
        after = re.sub(r"\\right\s*(?:\\?\}|\.|$)", "", after)
        if end >= 0 and not re.search(r"\w", before + after):
            rows = _rows(answer[begin.end() : end])
            return ", ".join(rows) if rows else answer
    if "quad" in answer and "\\begin" not in answer:
        return _GAP.sub(", ", answer)
    return answer


def independent(one: str, two: str) -> bool:
    """Whether two consecutive formulas are equations for two different names: x = 3, then y = 5."""
    names = [re.match(r"\s*([A-Za-z](?:_\{?\w+\}?)?)\s*=[^=]*$", each) for each in (one, two)]
    return all(names) and len({name[1] for name in names if name}) == 2


def _rows(body: str) -> list[str]:
    """The equations in rows; a row that begins with a relation continues the row before. [] if one is no equation."""
    rows: list[str] = []
    for part in re.split(r"\\\\(?:\[[^\]]{0,8}\])?", body):
        row = part.replace("&", " ").strip().rstrip(",;.").strip()
        if rows and re.match(r"=|\\approx|\\implies|\\Rightarrow", row):
            rows[-1] += f" {row}"
        elif row:
            rows.append(row)
    good = all(
        _EQUATION.fullmatch(row) and not re.search(r"\\text\s?\{\s?(?:if|for|when|otherwise)", row) for row in rows
    )
    return [" ".join(concluded(row).split()) for row in rows] if good else []


def concluded(answer: str) -> str:
    """The result of a chain of equations: `x = 2 + 3 = 5` is `x = 5`, `12 + 4 = 16 dollars` is `16 dollars`."""
    return _concluded(answer) or answer


def _concluded(answer: str) -> str:
    if len(answer) > _MAX_CHARACTERS:
        return answer
    held = re.search(r"\\begin.*=.*\\end", answer, re.DOTALL)
    if held or not any(sign.search(answer) for sign in (_EQUALS, _ABOUT, _LEADS_TO)):
        return answer
    answer = _LEADS_TO.split(answer)[-1].strip() or answer
    exact, *rough = _split(answer, _ABOUT)
    if rough:
        name = _JUST_NAME.fullmatch(exact) or _TEXT_LABEL.fullmatch(exact)
        answer = f"{exact.strip()} = {rough[-1].strip()}" if name else exact
    parts = [part.strip() for part in _split(answer, _EQUALS)]
    if len(parts) < 2 or not parts[-1] or _SEVERAL.search(answer):
        return answer.strip()
    first, last = parts[0], parts[-1]
    signs = len(re.findall(r"(?<!\\)\$", last))  # an odd one belongs to an earlier formula, unless it is money
    if signs % 2 and not re.match(r"[-\u2212]?\$\s?\d", last):
        return answer.strip()
    if (_TEXT_LABEL.fullmatch(first) or "vmatrix" in first) and not _JUST_NAME.fullmatch(first):
        return last
    if _JUST_NAME.fullmatch(first):
        return f"{first} = {last}" if len(parts) > 2 else answer.strip()
    plain = [not _NOT_ARITHMETIC.search(part) and re.search(r"\d", part) for part in parts[:-1]]
    if all(plain) and any(_OPERATION.search(part) for part in parts[:-1]):
        return last
    return last if len(parts) > 2 else answer.strip()


def _split(text: str, sign: re.Pattern[str]) -> list[str]:
    """The parts between those signs that are outside brackets."""
    parts, start, depth, seen = [], 0, 0, 0
    for match in sign.finditer(text):
        depth += sum(map(text[seen : match.start()].count, "({[")) - sum(map(text[seen : match.start()].count, ")}]"))
        seen = match.start()
        if depth <= 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]
