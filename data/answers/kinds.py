"""Kinds of answers: where a response states its answer, which answers agree, and which are right.

- "math", "numbers": mathematics (data/answers/extract.py, equivalence.py);
- "choice": the letter of one of the question's options (choice.py);
- "exact": a text, compared by its normal form; the gold answer may be a list of texts, any of which is right
  (texts.py);
- "module:function": a custom function, which the grader's processes call (own.py).

To add one: write a class here, add its name to KINDS, and read its gold answers in gold.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal, Protocol

from data.answers import choice, texts
from data.answers.equivalence import decide_quickly
from data.answers.extract import Extracted, extract

AnswerKindName = str  # a name in KINDS, or "module:function"


class AnswerKind(Protocol):
    """The interface of a kind. Verdicts are None if only the grader's processes can decide."""

    def find(self, response: str, question: str) -> Extracted | None:
        """The answer of a response to a question; None if it states none."""
        ...

    def right(self, answer: str, gold: str) -> bool | None:
        """Whether a response's answer matches the gold one. In a vote, another response's answer takes its place."""
        ...


@dataclass(frozen=True)
class Mathematics:
    """Formulas and numbers, or unordered lists of numbers."""

    name: Literal["math", "numbers"]

    def find(self, response: str, question: str) -> Extracted | None:
        """See `AnswerKind.find`."""
        return extract(response)

    def right(self, answer: str, gold: str) -> bool | None:
        """See `AnswerKind.right`."""
        return decide_quickly(answer, gold, self.name)


class MultipleChoice:
    """An option's letter."""

    def find(self, response: str, question: str) -> Extracted | None:
        """See `AnswerKind.find`."""
        return choice.find(response, question)

    def right(self, answer: str, gold: str) -> bool | None:
        """See `AnswerKind.right`."""
        return answer == gold


class Exact:
    """A text."""

    def find(self, response: str, question: str) -> Extracted | None:
        """See `AnswerKind.find`."""
        return texts.find(response)

    def right(self, answer: str, gold: str) -> bool | None:
        """See `AnswerKind.right`."""
        form = texts.normal_form(answer)
        return any(texts.normal_form(alias) == form for alias in aliases(gold))


class Own:
    """A text that a custom function compares; if its module has an `extract`, `Grader.find` calls that instead."""

    def find(self, response: str, question: str) -> Extracted | None:
        """See `AnswerKind.find`."""
        return texts.find(response)

    def right(self, answer: str, gold: str) -> bool | None:
        """See `AnswerKind.right`."""
        return None


KINDS: dict[AnswerKindName, AnswerKind] = {
    "math": Mathematics("math"),
    "numbers": Mathematics("numbers"),
    "choice": MultipleChoice(),
    "exact": Exact(),
}
_OWN = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_own(kind: AnswerKindName) -> bool:
    """Whether a kind is a custom function."""
    return kind not in KINDS


def of(kind: AnswerKindName) -> AnswerKind:
    """The kind of this name."""
    return KINDS.get(kind) or Own()


def is_kind(name: str) -> bool:
    """Whether a name is the name of a kind."""
    return name in KINDS or _OWN.fullmatch(name) is not None


def check_kind_name(name: str) -> str:
    """The name itself. Raises ValueError if it is not the name of a kind."""
    if not is_kind(name):
        raise ValueError(f"is {name!r}; expected {', '.join(KINDS)}, or a custom module:function (docs/answers.md)")
    return name


def placed(answer: str, response: str) -> Extracted:
    """An answer from a custom `extract`, at its last place in the response; if it is not there, spanning all of it."""
    start = response.rfind(answer)
    span = (0, len(response)) if start < 0 else (start, start + len(answer))
    return Extracted(answer, *span, rule="own")


def aliases(gold: str) -> list[str]:
    """All right answers: the items of a JSON list of texts, else the text itself."""
    if gold.startswith('["'):
        try:
            found = json.loads(gold)
        except (json.JSONDecodeError, RecursionError):
            return [gold]
        if isinstance(found, list) and all(isinstance(each, str) for each in found):
            return found
    return [gold]
