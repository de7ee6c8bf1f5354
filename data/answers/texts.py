r"""Answers that are texts: where a response states one, and when two are the same.

`answer_candidates` yields possible answers, the surest first: the last `<answer>...</answer>`, the last `\boxed{...}`,
the last line `#### x`, the text after the last "answer is" or "Answer:", and the last line. A phrase or a last line of
more than MAX_WORDS words is a sentence and states no answer; nor does anything within `<think>...</think>`.

`normal_form` is SQuAD's with two exceptions: punctuation is only removed around words (3.5 is not 35), and `a` and `an`
only at the beginning (vitamin A is not vitamin). Numbers are words: -5 is not 5, 5! is not 5, and 1,000 is not 1000.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from data.answers.extract import Extracted, ExtractionRule
from data.answers.pieces import trim
from data.answers.spelling import MAX_ANSWER_CHARS
from data.answers.statements import phrase as other_phrase
from data.answers.thoughts import hidden

MAX_WORDS = 12
_TAG = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.I | re.S)
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,4}\{")
_BRACE = re.compile(r"\\.|[{}]", re.S)
_HASHES = re.compile(r"####([^\n#]*)")
_PHRASE = (
    r"\b(?:{})\b(?: to (?:the|this|your) (?:question|problem))?[\s*_]{{0,6}}"
    r"(?::|=|(?:\b(?:should|would|must|will) be|\bis|\bare)\b)[\s*_:]{{0,6}}"
)
ANSWER = re.compile(_PHRASE.format("answers?"), re.I)
ANSWER_OR_OPTION = re.compile(
    _PHRASE.format("answers?|options?|choices?")
    + r"|(?<!不)(?<!不应)(?<!不能)(?<!不要)(?<!不会)(?<!不应该)[选選](?:择|擇|[项項](?=\s*[是为為:：]))?[是为為]?"
    r"[\s*:：]{0,6}(?=[(（]?[A-Z](?![A-Za-z]))",
    re.I,
)
_WRONG = re.compile(
    r"\b(?:wrong|incorrect|false)\s+(?:answer|option|choice)s?\b[^.\n]*\Z"
    r"|(?:\b(?:no|não|non)\s+(?:es|son|é|è|sono)|n['’]est\s+pas|不是|不)\W*\Z",
    re.I,
)
_REASON = re.compile(r",?\s(?:because|since)\b|,\s(?:which|so|but|where|as)\b", re.I)
_STOP = re.compile(r"[.!?]\s+(?=[^\sa-z])")
_MAX_WORD = 60  # characters of a word that are checked; abbreviations are far shorter
_ONE_LETTER = re.compile(r"([A-Z])\.\s")  # an option's letter, which ends a sentence here
_SHORTENED = re.compile(r"(?:.*\.)?(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Sr|Jr|Mt|Ft|Prof|Gen|Sen|Gov|Capt|Lt|Col|vs|approx|ca)")
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s?\{([^{}]*)\}")
_BEFORE, _BEHIND = "\"'“”‘’«»`*_¿¡", "\"'“”‘’«»`*_.,;:?…"  # signs around a word
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—―−", "-") | {"’": "'", "‘": "'"})


def answer_candidates(response: str, phrase: re.Pattern[str] = ANSWER) -> Iterator[Extracted]:
    """Possible answers of a response, the surest first; thoughts are skipped."""
    text = hidden(response)
    spans: list[tuple[tuple[int, int] | None, ExtractionRule]] = [
        (_last(_TAG, text), "tagged"),
        (_boxed(text), "boxed"),
        (_last(_HASHES, text), "hashes"),
        *((span, "phrase") for span in _phrases(text, phrase) or _foreign(text)),
        (_last_line(text), "last_line"),
    ]
    for span, rule in spans:
        if span and rule == "phrase" and _WRONG.search(text, max(0, span[0] - 60), span[0]):
            continue
        found = trim(text, *span) if span else None  # in the hidden text: a thought may be in the same line
        if found and found[1] - found[0] <= MAX_ANSWER_CHARS:
            yield Extracted(text[slice(*found)], *found, rule=rule)


def find(response: str) -> Extracted | None:
    """The answer of a response, or None."""
    return next((each for each in answer_candidates(response) if normal_form(each.answer)), None)


def normal_form(text: str) -> str:
    """A string that is equal for texts that are the same answer; empty for a text without letters, digits and signs."""
    text = unicodedata.normalize("NFKC", plain(text)).translate(_DASHES)
    words = [_bare(word) for word in text.casefold().split()]
    words = [word for word in words if word]
    kept = [word for word in words if word != "the"] or words
    while len(kept) > 1 and kept[0] in ("a", "an"):
        kept = kept[1:]
    return " ".join(kept)


def plain(text: str) -> str:
    r"""A text without `\text{...}` and the like, and without math delimiters around it."""
    before = None
    while before != text:
        before, text = text, _WRAPPER.sub(r"\1", text).strip()
        span = trim(text, 0, len(text))
        text = text[slice(*span)] if span else ""
    return text


def _bare(word: str) -> str:
    before = None
    while before != word:  # **Paris**! has both
        before, word = word, word.lstrip(_BEFORE).rstrip(_BEHIND)
        word = word.rstrip("!") if re.search(r"[^\W\d]", word) else word  # 5! is a factorial
    return word


def _last(pattern: re.Pattern[str], response: str) -> tuple[int, int] | None:
    """The span of the first group in the last match where it is not empty."""
    spans = [found.span(1) for found in pattern.finditer(response) if found[1].strip(" \t\r\n*_:")]
    return spans[-1] if spans else None


def _boxed(response: str) -> tuple[int, int] | None:
    boxes = list(_BOX.finditer(response))
    depth = 1
    for brace in _BRACE.finditer(response, boxes[-1].end()) if boxes else ():
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return boxes[-1].end(), brace.start()
    return None


def _phrases(text: str, phrase: re.Pattern[str]) -> list[tuple[int, int]]:
    """The spans after each of the last phrases, last first, up to the end of the sentence."""
    spans = []
    for found in list(phrase.finditer(text))[:-9:-1]:
        line = text.find("\n", found.end())
        end = len(text) if line < 0 else line
        letter = _ONE_LETTER.match(text, found.end()) if phrase is ANSWER_OR_OPTION else None
        end = letter.end(1) if letter else _sentence_end(text, found.end(), end)
        announced = text[found.end() : end]
        if len(announced.split()) <= MAX_WORDS and not phrase.search(announced):
            spans.append((found.end(), end))
    return spans


def _foreign(text: str) -> list[tuple[int, int]]:
    """The span that a phrase of another language, or another English phrase, announces."""
    found = other_phrase(text)
    return [(found.start, found.end)] if found and len(found.answer.split()) <= MAX_WORDS else []


def _sentence_end(response: str, start: int, end: int) -> int:
    reason = _REASON.search(response, start, end)
    end = reason.start() if reason else end
    for stop in _STOP.finditer(response, start, end):
        before = response[max(start, stop.start() - _MAX_WORD) : stop.start()]
        word = "" if before[-1:].isspace() else (before.split() or [""])[-1]
        if not _SHORTENED.fullmatch(word.lstrip("(\"'")):  # Dr. No, the U.S. Army
            return stop.start()
    return end


def _last_line(response: str) -> tuple[int, int] | None:
    end = len(response.rstrip())
    start = response.rfind("\n", 0, end) + 1
    return (start, end) if start < end and len(response[start:end].split()) <= MAX_WORDS else None
