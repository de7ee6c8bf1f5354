"""Answers that a response announces: "The answer is 5", a line `#### 5`, `<answer>5</answer>`."""

from __future__ import annotations

import re

from data.answers.boxes import boxed
from data.answers.last_formula import is_formula
from data.answers.last_number import last_number
from data.answers.phrases import DOUBT, IN_WORDS, MARKS, MORE, phrases
from data.answers.pieces import SAYS, Piece, balanced, concluded, piece
from data.answers.rows import displayed, is_row, list_of_rows
from data.answers.sentences import telling, without_words
from data.answers.spelling import MAX_ANSWER_CHARS

# Tags and hashes

_TAG = re.compile(r"<(/?)(?:final_)?answer>", re.I)
_HEADING = re.compile(
    r"(?:the|step|part|case|solution|explanation|final|answer|conclusion|check\w*|verif\w+|note|summary|result|"
    r"reasoning|analysis|approach|calculation|understand\w*|working|proof|method|given|remark|justification|so|why|"
    r"how|therefore|thus|hence|using|let|now|alternativ\w+|another|double|what|where|when|compute|find|determine|add|"
    r"subtract|multiply|divide|simplify|solve|convert|count|set up|write|identify|sum of|recap|key|notes?|"
    r"explan\w+)\b|\d{1,2}[.)]\s+[A-Z]|.*:$",
    re.I,
)

_INTRO = re.compile(
    r"\b(?:are|solutions?|roots|values|zeros|therefore|thus|hence|so|we (?:get|have|find|"
    r"obtain))\b(?:[^\n.]{0,80}:|[ \t]{0,3}(?:are)?)(?=[ \t*_]*\n)",
    re.I,
)

# What follows a phrase

_ABBREVIATION = re.compile(
    r"(?:\b(?:Rs|approx|ca|No|Nr|St|Mr|Mrs|Ms|Dr|vs|e\.g|i\.e|a\.m|p\.m|ft|in|sq|cu|hr|hrs|min|mins|sec|secs|lb|lbs|"
    r"oz|yd|"
    r"mi|U\.S|etc|resp|max|avg|cf|inkl|bzw|env|aprox|R|S|Tk|руб|см|км|тыс|млн))$",
    re.I,
)
_TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof)$")
_STOP = re.compile(
    r"\s\((?:i\.e|e\.g|that is|because|since)\b|"
    r"\$|\\\(|\.(?!\d|[A-Z]\.)|<\||\uff0c(?=[^\d\s])|[?\n\u3002\uff1f\uff01]|!(?=\s|$)|,?\s(?:because|since|so|which|"
    r"where|but|as (?:required|desired|expected|shown|the|a|an|we)|(?:when )?rounded|to the nearest|denn|weil|da|car|"
    r"parce|porque|perché|потому|and that is|and (?:the|my|our) answer|and this|and we are done|or equivalently|"
    r"that is|namely|in other words|i\.e|giving|making)\b|,?\sor,|(?<=[\d%)]) - (?=(?:a|an|the|this|that|which|it|he|"
    r"she|we|they|so|not|nice|[A-Z][a-z]+)\s)|(?<=[^\s\d]) [\u2014\u2013] |\s[\u2014\u2013]\s(?=[A-Za-z])"
)
_WHICH = re.compile(r",?\s(?:which|and this|so this)\s(?:equals|is equal to|makes|gives|comes to|is)\s+", re.I)
_PART = re.compile(  # the answer to part (a), Answer 2:
    r"\b(?:part|question|problem)\s?\(?(?:[a-e]|[1-9]|i{1,3})\b|\b(?:first|second|third|fourth)\b|"
    r"\banswers? \(?(?:[a-e]|[1-9])\b(?=\)?\s?[:=])",
    re.I,
)


def tagged(text: str) -> Piece | None:
    """The answer between the last `<answer>` and `</answer>`."""
    marks = list(_TAG.finditer(text)) if "nswer>" in text.lower() else []
    for mark, closing in reversed(list(zip(marks, [*marks[1:], None][: len(marks)], strict=True))[-MARKS:]):
        if not mark[1]:
            start, end = mark.end(), closing.start() if closing else len(text)
            inner = text[start:end]
            found = boxed(inner) or phrase(inner) or _short(inner) or last_number(inner)
            if found:
                return Piece(found.answer, start + found.start, start + found.end)
    return None


def _short(text: str) -> Piece | None:
    found = piece(text, 0, len(text))
    sentence = found and len(found.answer) > 60 and re.search(r"[.!?]\s", found.answer)
    return None if found is None or len(found.answer) > MAX_ANSWER_CHARS or sentence else _after(text, 0)


def hashes(text: str) -> Piece | None:
    """The last line `#### x` that is not a Markdown heading; lines with a number are preferred to words alone."""
    words = None
    end = len(text)
    for _ in range(MARKS):
        at = text.rfind("####", 0, end)
        if at < 0:
            break
        line = text.find("\n", at)
        line = len(text) if line < 0 else line
        found = piece(text, at + 4, line)
        end = at
        if text[at:line].rstrip(" \t\r*").endswith(":"):  # a heading
            continue
        if found is None or not SAYS.search(found.answer) or _HEADING.match(text[found.start : found.end][:100]):
            continue
        found = found._replace(answer=concluded(found.answer))
        if re.search(r"[\d$\\=]", found.answer):
            return found
        words = words or found
    return words


def phrase(text: str) -> Piece | None:
    """The answer after the last phrase that announces one; all parts' answers if the phrases name parts."""
    parts: dict[str, Piece] = {}
    for start, end, language in phrases(text):
        doubtful = DOUBT.search(text[max(0, start - 12) : start]) or IN_WORDS.search(text, start, end)
        found = _after(text, end, bool(doubtful), language)
        if found is None:
            continue
        named = _PART.findall(text[max(0, start - 24) : end])
        if not named or named[-1].lower() in parts:
            return found if not parts else _of_parts(parts)
        parts[named[-1].lower()] = found
    return _of_parts(parts) if parts else None


def _of_parts(parts: dict[str, Piece]) -> Piece:
    found = list(parts.values())[::-1]
    return found[0] if len(found) == 1 else Piece(", ".join(x.answer for x in found), found[0].start, found[-1].end)


def last_list(text: str) -> Piece | None:
    """The list of values or equations, one per line, that ends a response: `So:`, `x = 3`, `y = 5`."""
    end = text.rstrip()
    if "\n" not in end or not is_row(end[end.rfind("\n") + 1 :][:200].strip()):
        return None
    at = max(0, len(text) - 1500)
    intros = list(_INTRO.finditer(text, at))
    found = _after(text, intros[-1].end() if intros else 0) if intros or len(text) < 500 else None
    if found is None or "\n" not in text[found.start : found.end] or re.search(r"\w", text[found.end :]):
        return None
    names = [row.partition("=")[0].strip() for row in found.answer.split(", ")]
    if not intros and re.search(
        r"(?<!\\)\b(?!and\b)[A-Za-z]{3,}\b", text[text.rfind("\n", 0, found.start) + 1 : found.end]
    ):
        return None  # steps, or a sum's items
    plural = intros and re.match(r"are|.{0,3}solutions|roots|values|zeros", intros[-1][0], re.I)
    return found if plural or len(set(names)) == len(names) else None


def _after(text: str, at: int, doubtful: bool = False, language: str = "en") -> Piece | None:
    """The answer that begins at a place; None if there is none."""
    for _ in range(6):
        more = MORE.match(text, at)
        if more is None:
            break
        at = more.end()
    if display := displayed(text, at):
        return display
    end = _stop(text, at)
    if end is None:
        return None
    while end > at + 1 and text[end - 1] in "*_" and text[end - 2] not in "^\\":  # MORE consumed its opening
        end -= 1
    found = piece(text, at, balanced(text, at, end))
    if found is None:
        return None
    if language != "en":
        found = without_words(text, found)
    rows = list_of_rows(text, found, end)
    if rows:
        return rows
    if _WHICH.match(text, end) and re.search(
        r"\d\D*(?:times|plus|minus|divided by|multiplied by|[-+*/\u00d7])", found.answer
    ):
        return _after(text, _WHICH.match(text, end).end())  # type: ignore[union-attr]
    return None if _begins_working(text, found, end) else telling(text, found, doubtful)


def _begins_working(text: str, found: Piece, end: int) -> bool:
    """Whether a piece is the first equation of a calculation that continues in the next line."""
    if "=" not in found.answer or re.match(r"\W{0,3}[A-Za-z]\w?\W{0,3}\s?=", found.answer):
        return False
    line = text[end : end + 200].strip().partition("\n")[0]
    return bool(
        re.match(r"[^A-Za-z\n]{0,3}(?:\d|[A-Za-z]\W)", line)
        and "=" in line
        and len(re.findall("[A-Za-z]{4,}", line)) < 3
    )


def _stop(text: str, at: int) -> int | None:
    """Where the sentence with an answer ends; None if it is too long."""
    limit = at + MAX_ANSWER_CHARS
    place = at
    while stop := _STOP.search(text, place, limit):
        sign = stop[0]
        if sign in ("$", "\\("):
            closing = "$" if sign == "$" else "\\)"
            end = text.find(closing, stop.end(), limit)
            inside = text[stop.end() : end] if end >= 0 else ""
            place = end + len(closing) if inside and is_formula(inside) else stop.end()
            continue
        if sign == "." and re.match(r"[apei]\.[a-z]\b", text[stop.start() - 1 : stop.start() + 3]):
            place = stop.end()  # p.m.
            continue
        if sign == "." and _TITLE.search(text[max(at, stop.start() - 5) : stop.start()]):
            place = stop.end()
            continue
        short = sign == "." and _ABBREVIATION.search(text[max(at, stop.start() - 12) : stop.start()])
        if short and re.match(r"\s?[-\d$\u20ac\u00a3\u20b9(\\a-z]", text[stop.end() : stop.end() + 2]):
            place = stop.end()
            continue
        return stop.start()
    return len(text) if len(text) <= limit else None
