"""Answers that are one of several options: which options a question has, and which of them a response names.

The options are in the question's text: `(A) 24 (B) 30`, `A) 24`, `A. 24` or `A: 24`, on separate lines or in one line,
at least two, from A on without a gap; lower-case letters need brackets. An answer is the option's letter.

A response names an option by its letter, its text, or both: `(B) 24`, `B`, `Option B`, `The answer is (b)`, `24`. It
has no answer if it names several options, a missing one, or a letter with another option's text. Denying an option is
not naming it: `Option B is wrong.` (denials.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from data.answers.denials import called_right, undenied
from data.answers.equivalence import decide_quickly
from data.answers.extract import Extracted
from data.answers.spelling import MAX_ANSWER_CHARS
from data.answers.texts import ANSWER_OR_OPTION, answer_candidates, normal_form, plain
from data.answers.thoughts import hidden

MAX_LISTS = 20  # lists of options in a question that are tried, from the last
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_STYLES = (  # ways to mark options; all options of a list have the same
    re.compile(r"(?<![\w)])\(([A-Za-z])\)\s*"),
    re.compile(r"(?:^|(?<=\n))[^\S\n]*(?:[-*•]\s+)?\**([A-Z])(?:[.):]\**[^\S\n]+|[．、：）])"),
    re.compile(r"(?:^|(?<=[\s,;:?.]))([A-Za-z])\)\s+"),
    re.compile(r"(?:^|(?<=[\s,;:?.]))([A-Z])[.:][^\S\n]+"),
)
_BEFORE = re.compile(r"^(?:[}\s~]|\\[ ,;:!])+")  # "\textbf{(A)}\ 24 \qquad"
_BEHIND = re.compile(r"(?:[,;\s~{]|\\q?quad|\\\\|\\(?:text|math)(?:bf|rm|it)?\{|\\[ ,;:!])+$")
_LETTER = re.compile(
    r"""(?:(?:(?:the|la|a|die|el)\s+|l['’])?(?:correct\s+|right\s+|best\s+)?
       (?:answer|option|choice|opción|opção|opzione|lettre|letra|lettera|вариант|选项|選項)\s*(?:is\s+|:\s*)?)?
    (?: [(\[]\s*(?P<bracketed>[A-Za-z])\s*[)\]]  |  (?P<marked>[A-Za-z])\s?[).:\]](?!\w)
      | (?P<bare>[A-Za-z])(?![\w'’.]))
    [\s.:)*]*  (?P<rest>.*)""",
    re.X | re.S | re.I,
)
_ALSO = re.compile(
    r"(?:[,/&]|and\b|or\b)[\s,]*(?:and\b|or\b|&)?\s*(?:option\s+)?(?:[(\[]([A-Za-z])[)\]]|([A-Z])(?![\w'’]))"
)
_GOES_ON = re.compile(r"[-–—=:,;]|(?:because|since|is|as)\b", re.I)
_MENTION = re.compile(
    r"\b(?:option|choice|answer)\s+[(\[]?([A-Z])\b|[(\[]([A-Z])[)\]]"
    r"|(?:\b(?:so|but|hence|thus|therefore|leaving|leaves|is|be|choose|pick|select|say)|\bit['’]s)[\s,:]+"
    r"((?-i:[A-Z]))(?=[.!,;]*$|,?\s+(?:because|since|as)\b)",
    re.I,
)
_DOUBTED = re.compile(r"\W*\?\W*(?:no|nope|not|wait)\b", re.I)
_EXPLAINED = re.compile(
    r"[.!]\s+(?=[A-Z][a-z])|^(?=(?:Because|Since|Explanation|Reason\w*|This|It)\b)"
)  # "(A) 24. Explanation: ...", "A. Because ..."
_RETRACTED = re.compile(r"\b(?:wait|actually|however|correction|mistake|instead)\b", re.I)
NONE = ""  # a missing option, or several


@lru_cache(maxsize=4096)
def options_of(question: str) -> dict[str, str]:
    """{letter: text} of a question's options, in order; {} if it has none. Of several lists the longest counts, and of
    equally long ones the last."""
    best: list[tuple[str, str]] = []
    for style in _STYLES:
        marks = list(style.finditer(question))
        firsts = [number for number, mark in enumerate(marks) if mark[1].upper() == "A"]
        lists = [_texts(question, _run(marks[number:])) for number in firsts[: -MAX_LISTS - 1 : -1]]
        whole = [found for found in lists if len(found) >= 2 and all(text for _, text in found)]
        best = max([best, *whole], key=len)  # max takes the first of equally long ones
    return dict(best)


def _run(marks: list[re.Match[str]]) -> list[re.Match[str]]:
    """The marks that continue A, B, C."""
    run: list[re.Match[str]] = []
    for mark in marks:
        if len(run) < len(LETTERS) and mark[1].upper() == LETTERS[len(run)]:
            run.append(mark)
    return run


def _texts(question: str, run: list[re.Match[str]]) -> list[tuple[str, str]]:
    """The options' texts: each ends where the next option begins, the last at the end of its line."""
    end = question.find("\n", run[-1].end())
    ends = [*(following.start() for _, following in pairwise(run)), len(question) if end < 0 else end]
    return [(mark[1].upper(), _tidy(question[mark.end() : stop])) for mark, stop in zip(run, ends, strict=True)]


def _tidy(text: str) -> str:
    """An option's text without LaTeX or separators around it."""
    text = " ".join(text.split())
    if text.count("$") % 2:  # of a formula around all options
        text = text.rstrip().removesuffix("$")
    return _BEHIND.sub("", _BEFORE.sub("", text))


def problem_of(question: str) -> str | None:
    """Why a question is not a proper one with options; None if it is."""
    options = options_of(question)
    if not options:
        return "has no options: expected (A) … (B) … in the question's text, or a column that `options` names"
    texts: dict[str, str] = {}
    for letter, text in options.items():
        other = texts.setdefault(normal_form(text) or text, letter)
        if other != letter:
            return f"has the same text for the options {other} and {letter} ({text[:40]!r}); keep one of them"
    return None


def with_options(question: str, texts: list[str]) -> str:
    """A question with a list of options below it, unless it has these already."""
    clean = [" ".join(text.split()) for text in texts]
    if [normal_form(text) for text in options_of(question).values()] == [normal_form(text) for text in clean]:
        return question
    return "\n".join([question, *(f"({letter}) {text}" for letter, text in zip(LETTERS, clean, strict=False))])


def parse_options(cell: str) -> list[str]:
    """The texts of a cell of a column of options, which is JSON: a list, {"A": text, …}, or {"text": [texts], "label":
    [letters]}. Raises ValueError, whose message follows "that"."""
    try:
        found = json.loads(cell)
    except (json.JSONDecodeError, RecursionError):
        found = None
    if isinstance(found, dict):
        labels, found = found.get("label", list(found)), found.get("text", list(found.values()))
        if not isinstance(labels, list) or labels != list(LETTERS[: len(labels)]):
            raise ValueError(f"are marked {str(labels)[:40]}; expected A, B, C and so on")
    if not isinstance(found, list) or not all(isinstance(each, (str, int, float)) for each in found):
        raise ValueError(f"are not a list ({cell[:40]!r}); expected a list of texts, or one as JSON text")
    if not 2 <= len(found) <= len(LETTERS) or not all(str(each).strip() for each in found):
        raise ValueError(f"are {len(found)} texts, or have an empty one; expected 2 to {len(LETTERS)} texts")
    return [str(each) for each in found]


def find(response: str, question: str) -> Extracted | None:
    """The option that a response names: its letter and place; None if it names no single option of the question."""
    options, text = options_of(question), hidden(response)
    for each in answer_candidates(response, ANSWER_OR_OPTION):
        if each.rule == "last_line":
            found = _of_last_line(text, each, options)
            return found or _of_first_line(text, options)
        if each.rule == "phrase" and _DOUBTED.match(text, each.end):
            continue
        in_box = each.rule in ("tagged", "boxed")
        letter = read(each.answer if in_box else undenied(each.answer, options.values()), options)
        if letter is not None:
            return replace(each, answer=letter) if letter else None
        if in_box:
            return None
    return _of_first_line(text, options)


def read(text: str, options: dict[str, str]) -> str | None:
    """The letter of the option that a text is or begins with; NONE if it is missing, or if there are several; None if
    the text names no option."""
    text = plain(text)
    named = _LETTER.match(text)
    rest = plain(named["rest"]) if named else ""
    if named and not rest:
        return _there((named["bracketed"] or named["marked"] or named["bare"]).upper(), options)
    if by_text := _by_text(text, options, exactly=named is not None):
        return by_text
    if not named:
        return None
    letter = (named["bracketed"] or named["marked"] or named["bare"]).upper()
    if named["bare"] and not (letter in options and _follows(named["bare"], rest, options[letter])):
        return None
    also = _ALSO.match(rest)
    other = also and (also[1] or also[2]).upper()
    if (other and other != letter) or _by_text(rest, options) not in (None, letter):
        return NONE
    return _there(letter, options)


def _there(letter: str, options: dict[str, str]) -> str:
    return letter if letter in options else NONE


def _follows(letter: str, rest: str, text: str) -> bool:
    """Whether what comes after a letter without a bracket leaves it an option's: "B because", but not "A dog"."""
    if letter.islower():
        return False
    return letter not in ("A", "I") or bool(_GOES_ON.match(rest)) or normal_form(rest) == normal_form(text)


def _by_text(text: str, options: dict[str, str], exactly: bool = False) -> str | None:
    """The only option whose text this is; unless `exactly`, or whose number or formula."""
    form = normal_form(text)
    same = [letter for letter, other in options.items() if form and normal_form(other) == form]
    if not same and not exactly:
        same = [letter for letter, other in options.items() if decide_quickly(plain(text), plain(other), "math")]
    return same[0] if len(same) == 1 else None


def _of_last_line(text: str, line: Extracted, options: dict[str, str]) -> Extracted | None:
    said = undenied(line.answer, options.values()).rstrip()
    if right := dict(called_right(said)):
        return _mention(line, *right.popitem(), options) if len(right) == 1 else None
    letter = read(said, options)
    mentions = {
        found[found.lastindex or 0].upper(): found.start(found.lastindex or 0) for found in _MENTION.finditer(said)
    }
    if letter:
        before = read(next(iter(text[: line.start].rstrip(" \n(*-").splitlines()[-1:]), ""), options)
        listed = before and LETTERS.index(letter) == LETTERS.index(before) + 1
        several = listed or mentions.keys() - {letter}
        if several:  # a repeated list of options is not an answer
            return None
        start = line.start + len(said) - len(said.lstrip())
        return replace(line, answer=letter, start=start)
    return _mention(line, *mentions.popitem(), options) if letter is None and len(mentions) == 1 else None


def _mention(line: Extracted, letter: str, place: int, options: dict[str, str]) -> Extracted | None:
    start = line.start + place
    return Extracted(letter, start, start + 1, rule="last_line") if letter in options else None


def _of_first_line(text: str, options: dict[str, str]) -> Extracted | None:
    """The option that is alone in the first line of a response, if the rest does not speak for another."""
    first, _, rest = text.strip().partition("\n")
    if (opening := _LETTER.match(first)) and (more := _EXPLAINED.search(opening["rest"])):
        place = opening.start("rest") + more.start()
        first, rest = first[:place], f"{first[place:]}\n{rest}"
    named = _LETTER.match(plain(first))
    letter = read(first, options) if named and len(first) <= MAX_ANSWER_CHARS else None
    if not named or not letter or _RETRACTED.search(rest):
        return None
    if (own := plain(named["rest"])) and _by_text(own, options, exactly=True) != letter:
        return None
    said = undenied(rest, options.values())
    others = {each for each, _ in called_right(said)} | {
        found[found.lastindex or 0].upper() for line in said.splitlines() for found in _MENTION.finditer(line.rstrip())
    }
    denied = {found[found.lastindex or 0].upper() for found in _MENTION.finditer(rest)} - others
    listed = {read(line, options) for line in said.splitlines() if line.strip()} - {None}
    if letter in denied or (others | listed) - {letter}:
        return None
    start = text.index(first)
    return Extracted(letter, start, start + len(first), rule="last_line")
