r"""Final answers: where a response states one.

`extract` tries four rules in this order and returns the first that finds something: the last `\boxed{...}`,
the last line `#### x`, the last "answer is x" / "Answer: x", the last number. If the last box is never closed
(a truncated response), the box rule yields nothing. Whether two answers are the same: data/answers/equivalence.py.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from data.answers.spelling import MAX_ANSWER_CHARS, UNSIGNED

# the last two are not found here, but by other kinds of answers (kinds.py)
Rule = Literal["tagged", "boxed", "hashes", "phrase", "last_number", "last_line", "own"]
GUESSED: frozenset[Rule] = frozenset({"last_number", "last_line"})  # rules that need no statement


@dataclass(frozen=True)
class Extracted:
    """`answer` is `response[start:end]`."""

    answer: str
    start: int
    end: int
    rule: Rule

    @property
    def guessed(self) -> bool:
        """Whether the response states no answer, so that its last number or line had to do."""
        return self.rule in GUESSED


# every pattern is bounded, and only the last few candidates are examined: time is linear in the length

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,4}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(
    r"\banswers?(?: to (?:the|this) (?:problem|question))?[\s*_]{0,6}(?::|=|\bis\b|\bare\b)[\s*_:]{0,6}", re.I
)
_SENTENCE_END = re.compile(r"\.(?!\d)|[?\n]|,?\s(?:because|since|so|which|where|but)\b")
_HEADING = re.compile(r"(?:the|step|part|case|solution|explanation|final|answer|conclusion)\b|.*:$", re.I)
_LAST_NUMBER = re.compile(
    r"(?:(?<![\w)}])[-\u2212])?\$?"
    rf"(?:\\[dt]?frac\{{-?\d+\}}\{{\d+\}}|(?<!\w)(?<!\d\.){UNSIGNED}(?:/\d+)?)(?:\\?%)?"
)
_MATH_SIGNS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_WRAPPERS = (*_MATH_SIGNS, ("**", "**"), ("`", "`"), ('"', '"'), ("'", "'"), ("\u201c", "\u201d"))


def extract(response: str) -> Extracted | None:
    """The final answer of a response and where it stands, or None. Time is linear in the length."""
    for rule, find in RULES.items():
        span = find(response)
        if span is not None:
            return Extracted(response[slice(*span)], *span, rule=rule)
    return None


def _boxed(response: str) -> tuple[int, int] | None:
    box = _last(_BOX.finditer(response))
    if box is None:
        return None
    if not response.startswith("{", box.end()):
        token = re.compile(r"[^\s{}$]{1,100}").match(response, box.end())  # "\boxed 5"
        return trim(response, *token.span()) if token else None
    depth = 0
    for brace in _BRACE.finditer(response, box.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)  # an escaped brace is 0
        if depth == 0:
            return trim(response, box.end() + 1, brace.start())
    return None


def _hashes(response: str) -> tuple[int, int] | None:
    marker = response.rfind("####")
    end = response.find("\n", marker)
    span = trim(response, marker + 4, len(response) if end < 0 else end) if marker >= 0 else None
    # "#### Step 2:" is a Markdown heading, not an answer.
    return None if span is None or _HEADING.match(response[span[0] : span[1]][:100]) else span


def _phrase(response: str) -> tuple[int, int] | None:
    for phrase in reversed(deque(_PHRASE.finditer(response), maxlen=8)):
        limit = phrase.end() + MAX_ANSWER_CHARS
        stop = _SENTENCE_END.search(response, phrase.end(), limit)
        if stop is None and len(response) > limit:
            continue
        span = trim(response, phrase.end(), stop.start() if stop else len(response))
        text = response[slice(*span)] if span else ""
        # "Answer: To find the total we add 3 and 5" opens a solution; words after a number are units.
        words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text)
        if text and not _PHRASE.search(text) and (len(words) <= 5 or not text[0].isalpha()):
            return span
    return None


def _last_number(response: str) -> tuple[int, int] | None:
    digit = _last(re.finditer(r"\d(?=\D|$)", response))
    if digit is None:
        return None
    window = max(0, digit.end() - 120)  # keeps the time linear; a longer number is a runaway response
    number = _last(_LAST_NUMBER.finditer(response, window, digit.end() + 3))
    return number.span() if number else digit.span()


# in the order in which they are tried; each gives the answer's span
RULES: dict[Rule, Callable[[str], tuple[int, int] | None]] = {
    "boxed": _boxed,
    "hashes": _hashes,
    "phrase": _phrase,
    "last_number": _last_number,
}


def _last(matches: Iterable[re.Match[str]]) -> re.Match[str] | None:
    return next(iter(deque(matches, maxlen=1)), None)


def trim(text: str, start: int, end: int) -> tuple[int, int] | None:
    """A span without the white space, final period, Markdown bold and math delimiters around it; None: empty."""
    before = None
    while before != (start, end):
        before = (start, end)
        part = text[start:end].rstrip(" \t\r\n.,;:")
        end = start + len(part)
        start = end - len(part.lstrip())
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
