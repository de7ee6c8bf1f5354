r"""Gold answers: reads them from a source's answer column, in whatever form.

A gold answer is read like a response (data/answers/extract.py): the last `\boxed{...}`, the line `#### x`, "the answer
is x", and, as in OpenAI's published solutions, a last line `A: x`. Unlike for a response, nothing is guessed:

- Without any of these it must be a bare answer (`18`, `\frac{1}{2}`, `x = 5`, `Paris`), not a worked solution: the last
  number of a solution is not always its answer.
- Two rules that find different answers are an error, and so are two different `####` lines.
- A missing value (NaN, N/A, None, empty) is not an answer.

The type of the column does not matter: all are read as text (data/readers.py). A list is one answer with all of its
parts ("30, 300"), not a choice of several.

This is for mathematics; data/answers/gold_texts.py reads the answers of other kinds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import polars as pl

from data.answers import kinds
from data.answers.extract import RULES, ExtractionRule
from data.answers.gold_texts import Unreadable as Unreadable
from data.answers.gold_texts import read_choice, read_exact, read_own
from data.answers.kinds import AnswerKindName
from data.answers.numbers import read_number, read_numbers
from data.answers.pieces import trim
from data.answers.spelling import MAX_ANSWER_CHARS, TEXT_COMMAND, clean
from data.answers.texts import normal_form
from data.errors import UserError
from data.hashing import normalise_question, question_id

MISSING_WORDS = {"nan", "null", "none", "n/a", "#n/a", "<na>", "nat", "n.a.", "n.a", "notavailable", "tbd"}
_AROUND = re.compile(r"\\(?:text|mathrm|mbox)|[${}()+\-\s]")  # around a disguised missing value: (nan), -nan, $NaN
_FORMS = r"expected a bare answer, '#### x', '\boxed{x}' or 'The answer is x'"

_CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # 6*8=<<6*8=48>>48, as GSM8K writes it
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_HASHES = re.compile(r"#{4,}")
_HEADING = re.compile(r"[A-Z][a-z]{2,}(?: [A-Za-z]+)*")  # "#### Check", where another line has the answer
_A_LINE = re.compile(r"\n\s*A\s?:\s*([^\n]+)\s*$")
_OPENING = re.compile(  # but "points/answer = 48" and "24 correct answers * 2" state no answer
    r"(?:^|[.!?;:,\n]|\b(?:the|final|an?|so|my|our|is))[\s*_#]*(?:correct\s+)?(?:final\s+)?[\s*_]*"
    r"\banswers?\b[^\n]{0,40}$",
    re.I,
)
_LATEX_ROWS = re.compile(r"\\begin\b")
_SUM = re.compile(r"\d\s*[-+*/×÷]\s*\$?\d[^=]*=")
_NUMBER = re.compile(r"(?<![\w.])\d[\d,.]*(?!\w)")
_NO_NUMBER = re.compile(r"\\(?!(?:frac|times|cdot)(?![A-Za-z]))[A-Za-z]+|(?<=\d)[xyzn]\b")  # \sqrt{2}, 2\pi, 2x
_WORD = re.compile(
    r"(?<![\\\w])(?!(?:(?:arc)?(?:sin|cos|tan|cot|sec|csc)|log|exp|sqrt|max|min|mod|infinity|and|not)\b)[A-Za-z]{3,}"
)
_CHOICE_AND_TEXT = re.compile(r"\(?[A-Z][).:]\s+\S")  # B) 18
_REMARK = re.compile(r"\d\s*\([^()]*(?<![\\A-Za-z])[A-Za-z]{3,}|\d.*\s(?:#|//)\s")  # 18 (see page 3)
_GAP = re.compile(r"[-+]?\d+(?:[ '\u2019]\d+)+")  # 1 234


def read_gold(value: Any, kind: AnswerKindName, question: str = "", first: int | None = None) -> str:
    """The answer in a cell of the answer column, as text.

    `value` is text, a number, a boolean, or a list of these; `question` and `first` (the number of its first option)
    are for kind "choice". A bare answer is returned without white space and math delimiters around it, else unchanged.
    Raises Unreadable.
    """
    if kind == "exact":
        return read_exact(value)
    if kinds.is_own(kind):
        return read_own(value)
    if kind == "choice":
        return read_choice("" if value is None else str(value).strip(), question, first)
    if isinstance(value, (list, tuple)):
        return _read_list(list(value), kind)
    text = "" if value is None else str(value).strip().strip("\u200b\ufeff").strip()
    if text == "[]" or text.startswith(('["', "['", "[null")):  # how data/readers.py writes a list
        return _read_list(_listed(text), kind)
    answer = _stated(text, kind)
    return _checked(_bare(text) if answer is None else answer, kind)


def read_golds(
    cells: Sequence[str],
    kind: AnswerKindName,
    name: str,
    locate: Callable[[int], str],
    where: str,
    questions: Sequence[str] = (),
    first: int | None = None,
) -> list[str]:
    """The answers in the cells of a column, in order; `questions` belong to them, for kind "choice".

    The message names the column (`name`), the row (`locate(row)`) and the config section (`where`). Raises UserError
    for the first row that cannot be read.
    """
    found = []
    for row, cell in enumerate(cells):
        try:
            found.append(read_gold(cell, kind, questions[row] if questions else "", first))
        except Unreadable as error:
            shown = f" ({_shown(cell)})" if cell else ""
            raise UserError(f"{where}: {locate(row)} has a {name!r}{shown} that {error}") from None
    return found


def questions_with_gold(
    table: pl.DataFrame, kind: AnswerKindName, locate: Callable[[int], str], where: str, first: int | None = None
) -> dict[str, tuple[str, str]]:
    """{question id: (question, answer)} of a table of questions and gold answers, in order.

    `locate`, `where` and `first` as in `read_golds`. Raises UserError for an answer that cannot be read, and for a
    question that occurs twice with different answers.
    """
    questions, answers = table.iter_columns()
    golds = read_golds(answers.to_list(), kind, answers.name, locate, where, questions.to_list(), first)
    found: dict[str, tuple[str, str]] = {}
    for row, (question, gold) in enumerate(zip(questions, golds, strict=True)):
        _, known = found.setdefault(question_id(question), (question, gold))
        if normalise_question(known) != normalise_question(gold) and not same_gold(known, gold, kind):
            raise UserError(
                f"{where}: {locate(row)} has the question {question[:60]!r} again, with the answer {gold!r}, before it "
                f"was {known!r}; remove one"
            )
    return found


def same_gold(a: str, b: str, kind: AnswerKindName) -> bool:
    """Whether two gold answers are surely the same; pairs that only a process could decide count as different."""
    if kind == "exact":
        return {normal_form(each) for each in kinds.aliases(a)} == {normal_form(each) for each in kinds.aliases(b)}
    return (kinds.is_own(kind) and a == b) or kinds.of(kind).right(a, b) is True


def _read_list(values: list[Any], kind: AnswerKindName) -> str:
    if not values:
        raise Unreadable("is an empty list")
    return ", ".join(read_gold(value, kind) for value in values)


def _listed(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise Unreadable("is a list written as text; write a JSON list, or the parts with commas") from None
    if not isinstance(found, list) or any(isinstance(part, (list, dict)) for part in found):
        raise Unreadable("is a nested list")
    return found


def _stated(text: str, kind: AnswerKindName) -> str | None:
    """The answer of the first rule that applies; None if none does. Raises Unreadable if rules disagree."""
    text = _CALCULATOR.sub("", text)
    found = {"boxed": _boxed(text), "####": _hashes(text, kind), "phrase": _phrase(text), "A:": _a_line(text)}
    answers = {rule: answer for rule, answer in found.items() if answer is not None}
    if not answers:
        return None
    (rule, answer), *others = answers.items()
    for other, theirs in others:
        if not (same_gold(answer, theirs, kind) or same_gold(_result(answer), _result(theirs), kind)):
            raise Unreadable(f"states two answers: {_shown(answer)} ({rule}) and {_shown(theirs)} ({other})")
    return answer


def _boxed(text: str) -> str | None:
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    last = _by_rule("boxed", text)
    if last is None:
        raise Unreadable("has a box that is empty or never closed")
    line = text.rfind("\n", 0, boxes[-1].start()) + 1
    for box, following in pairwise(boxes):
        if box.start() >= line and _by_rule("boxed", text[line : following.start()]) not in (None, last):
            raise Unreadable("has two different boxes in one line; put all of the answer into one")
    return last


def _hashes(text: str, kind: AnswerKindName) -> str | None:
    parts = [part for line in text.splitlines() for part in _HASHES.split(line)[1:]]
    if not parts:
        return None
    if not any(part.strip() for part in parts):
        raise Unreadable("has an empty ####")
    read = [_by_rule("hashes", f"#### {part}") for part in parts if not _BOX.search(part)]
    answers = [answer for answer in read if answer is not None]  # the others are headings: "#### Step 2:"
    stated = [answer for answer in answers if not _HEADING.fullmatch(answer)] or answers
    for answer in stated[:-1]:
        if not same_gold(answer, stated[-1], kind):
            raise Unreadable(f"has several ####: {_shown(answer)} and {_shown(stated[-1])}")
    return stated[-1] if stated else None


def _phrase(text: str) -> str | None:
    found = RULES["phrase"](text)
    if found is None or not _OPENING.search(text[max(0, found.start - 100) : found.start]):
        return None
    return None if _BOX.search(found.answer) else found.answer  # the box rule reads it


def _a_line(text: str) -> str | None:
    line = _A_LINE.search(text)
    span = trim(text, *line.span(1)) if line else None
    answer = text[slice(*span)] if span else None
    return None if answer is None or _BOX.search(answer) else answer


def _by_rule(rule: ExtractionRule, text: str) -> str | None:
    found = RULES[rule](text)
    return found.answer if found else None


def _result(answer: str) -> str:
    """The result of an equation: 120 in "15 * 8 = 120"."""
    return answer.rpartition("=")[2] or answer


def _bare(text: str) -> str:
    """An answer without any marker. Raises Unreadable for text that looks like a solution or a sentence."""
    if "\n" in text and not _LATEX_ROWS.search(text):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if all(read_number(line) for line in lines) and max(map(len, lines)) <= 20:
            return ", ".join(lines)
        raise Unreadable(f"has several lines and states no answer; {_FORMS}")
    plain = TEXT_COMMAND.sub(" ", text)
    words = _WORD.findall(plain)
    if _CALCULATOR.search(text) or len(words) > 10 or (len(words) > 1 and _SUM.search(text)):
        raise Unreadable(f"is a worked solution and states no answer; {_FORMS}")
    wordy = re.search(r"\d", text) and len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", plain)) > 3
    if wordy and not read_number(text) and not read_numbers(text):
        raise Unreadable(f"is a sentence and states no answer; {_FORMS}")
    if text.startswith(("#", "{'", '{"')) or "##" in text or "</" in text:
        raise Unreadable(f"is not an answer; {_FORMS}")
    if text.endswith("\\"):
        return text
    span = trim(text, 0, len(text))
    answer = text[slice(*span)] if span else text
    return text if answer.endswith("\\") else answer  # the comma of "5\," is a space


def _checked(answer: str, kind: AnswerKindName) -> str:
    """The answer. Raises Unreadable if responses cannot be compared with it."""
    if not answer:
        raise Unreadable("is empty; fill it in or remove the row")
    parts = [_AROUND.sub("", part).casefold() for part in answer.split(",")]
    endless = _AROUND.sub("", answer).casefold() in ("inf", "infinity")  # but (3, infinity) is an interval
    if answer == "NA" or endless or any(part in MISSING_WORDS for part in parts):
        raise Unreadable("is a missing value, not an answer; fill it in or remove the row")
    if not re.search(r"\w", clean(answer)):
        raise Unreadable("has neither a letter nor a digit; fill it in or remove the row")
    if len(answer) > MAX_ANSWER_CHARS:
        raise Unreadable(f"states an answer of {len(answer)} characters; at most {MAX_ANSWER_CHARS} can be compared")
    if _CHOICE_AND_TEXT.match(answer):
        raise Unreadable("is a choice letter and its text; keep the one that responses should state")
    if _REMARK.search(answer):
        raise Unreadable("has a remark after the answer; remove the remark")
    if _GAP.fullmatch(answer):
        raise Unreadable("is two numbers, or one with a gap in it; write 1234 or 1,234")
    plain = TEXT_COMMAND.sub(" ", answer)
    if kind == "math" and _WORD.search(plain) and len(_NUMBER.findall(plain)) == 1 and not read_number(answer):
        raise Unreadable(f"has words around a number ({_shown(answer)}) that are not a known unit; remove them")
    if kind == "numbers" and (not read_numbers(answer) or _NO_NUMBER.search(TEXT_COMMAND.sub(" ", clean(answer)))):
        raise Unreadable("is not a list of numbers, which answers = 'numbers' expects; use 'math', or fix the row")
    return answer


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= 60 else f"{text[:28]} … {text[-28:]}")
