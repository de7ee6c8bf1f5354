r"""Final answers: where a response states its answer.

`extract` tries these rules in this order and returns the first that finds something: `<answer>x</answer>`, the last
`\boxed{...}` with those joined to it, the last line `#### x`, the last phrase that announces an answer ("the
answer is x", "Answer:", in English and other languages), the last formula, the last number. If the last box is never
closed (a truncated response), the box rule finds nothing. Text in `<think>...</think>` is not read.
data/answers/equivalence.py decides whether two answers are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from data.answers.boxes import boxed
from data.answers.last_formula import last_formula
from data.answers.last_number import last_number
from data.answers.pieces import SAYS, Piece
from data.answers.statements import hashes, last_list, phrase, tagged
from data.answers.thoughts import hidden

# the last two are rules of other kinds of answers (kinds.py)
ExtractionRule = Literal["tagged", "boxed", "hashes", "phrase", "last_formula", "last_number", "last_line", "own"]
GUESSED: frozenset[ExtractionRule] = frozenset(
    {"last_formula", "last_number", "last_line"}
)  # rules that need no statement


@dataclass(frozen=True)
class Extracted:
    """`answer` comes from `response[start:end]`: it is that text, or a list of its parts."""

    answer: str
    start: int
    end: int
    rule: ExtractionRule

    @property
    def guessed(self) -> bool:
        """Whether the response states no answer, so that its last number, formula or line is used."""
        return self.rule in GUESSED


def extract(response: str) -> Extracted | None:
    """The final answer of a response and its place, or None. Takes time linear in the length."""
    text = hidden(response)
    for rule, find in RULES.items():
        found = find(text)
        if found is not None and rule in GUESSED and _gives_up(text):
            return None
        if found is not None and SAYS.search(found.answer):
            if rule == "boxed" and (later := _corrected(text, found)):
                return Extracted(*later, rule="phrase")
            return Extracted(*found, rule=rule)
    return None


_GIVES_UP = re.compile(
    r"\b(?:can ?not|can't|unable to|impossible to|not possible to) (?:be )?(?:solved?|determined?|calculated?|"
    r"computed?|answer(?:ed)?(?= (?:this|the)\b|[.,]|$))|"
    r"\b(?:not enough|insufficient|lacks?|without more) information\b",
    re.I,
)
_CONCLUDES = re.compile(r"\b(?:so|thus|therefore|hence)\b|=", re.I)
_CORRECTION = re.compile(
    r"\b(?:final (?:answer|result)|wait|correct(?:ion|ed)|mistake|actually|sorry|oops|instead|wrong|incorrect)\b", re.I
)


def _gives_up(text: str) -> bool:
    """Whether the last sentence, or in a short text of up to two also the first, says that there is no answer."""
    end = len(text.rstrip(" \n\t.!?*"))
    last = max(text.rfind(stop, 0, end) for stop in (". ", "! ", "? ", "\n")) + 1
    first = 0 if end < 160 and len(re.findall(r"[.!?]\s", text[:end])) < 2 else last
    return bool(_GIVES_UP.search(text, first)) and not _CONCLUDES.search(text, last)


def _corrected(text: str, box: Piece) -> Piece | None:
    """The answer of a phrase after the last box, if it corrects the box or calls itself final."""
    if "answer" not in text[box.end :].lower():
        return None
    later = phrase(text[box.end :])
    if (
        later is None
        or not _CORRECTION.search(text, box.end, box.end + later.start)
        or not re.search(r"\d|\\", later.answer)
    ):
        return None
    return Piece(later.answer, box.end + later.start, box.end + later.end)


# in the order of trial; each returns the answer and its span
RULES: dict[ExtractionRule, Callable[[str], Piece | None]] = {
    "tagged": tagged,
    "boxed": boxed,
    "hashes": hashes,
    "phrase": phrase,
    "last_formula": lambda text: last_list(text) or last_formula(text),
    "last_number": last_number,
}
