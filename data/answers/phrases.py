"""Phrases that announce an answer: "the answer is", "Answer:", "Die Antwort lautet", "答案是"."""

from __future__ import annotations

import re
from collections.abc import Iterator

MARKS = 16  # last occurrences of each word that are tried, which keeps the time linear

# Per language: the words for "answer", and the words between them and the answer.

_POINTS = r"[:=\uff1a\uff1d]|-{1,2}>|=>|[\u2192\u21d2\u279c]"
_LATIN = {
    "de": ("antwort|endergebnis|lösung", "ist|sind|lautet|lauten|beträgt|betragen|wäre"),
    "fr": ("réponse|reponse", "est|sont|vaut|serait|sera"),
    "es": ("respuesta", "es|son|sería|será"),
    "it": ("rispost", "è|e'|e\u2019|sono|sarebbe|sarà"),
    "pt": ("resposta", "é|são|seria|será"),
    "nl": ("antwoord", "is|zijn|luidt"),
    "sv": ("svar", "är|er|blir"),
    "pl": ("odpowied", "to|jest|brzmi"),
    "cs": ("odpověď", "je|jsou|zní"),
    "tr": ("cevap|yanıt", ""),
    "id": ("jawaban", "adalah|ialah"),
    "vi": ("đáp án|đáp số|câu trả lời", "là"),
    "ru": ("ответ", "равен|равна|равно|это|будет|\u2014|\u2013|-"),
    "uk": ("відповідь", "дорівнює|це|\u2014|\u2013"),
    "el": ("απάντηση", "είναι"),
    "ar": ("الجواب|الإجابة", "هو|هي"),
    "hi": ("उत्तर", "है"),
}
_EAST = {
    "zh": ("答案|答", "应该是|应为|是|为|為|等于|等於|共"),
    "ja": ("答え|解答|回答|正解", "は|が"),
    "ko": ("정답|답변|답", "은|는|이|가"),
}
_BETWEEN = (  # "the answer (in dollars) is", "the answer to part (a) is", "the answer we get is"
    r"(?:\s\(?[1-9a-e]\)?(?=\s?[:=])|\s*\([^()\n]{1,60}\)|,[^.:;=\n]{1,50},|\s+(?:to|for|of|in|with|after|when|as|"
    r"that|we|i|you|here|then|therefore|thus|now|choice|option|itself|rounded|obtained|expressed|written|"
    r"is\s+(?:therefore|then|thus))\b[^.:;=\n]{0,60}?)?"
)
_CHOSEN = re.compile(r"(?:option|choice)\b[\s*_]{0,6}(?::|\bis\b)", re.I)
_ENGLISH = re.compile(
    rf"answers?\b{_BETWEEN}[\s\"'*_`)]{{0,6}}(?P<verb>{_POINTS}|"
    r"\b(?:is|are|was|equals?|(?:(?:will|would|should|must|can|could|may|turns out to|comes out to|"
    r"works out to) )?be|becomes?|remains|comes (?:out )?to|works out to|(?:will|would|should) equal)\b(?!\s+(?:not|"
    r"n't)\b)|(?=[\u2014\u2013-]\s[-$\d\\]))",
    re.I,
)
_FINAL = re.compile(r"(?:result|solution|value)s?\b[\s*_]{0,6}(?::|=|\bis\b|\bare\b)", re.I)
_ENGLISH_WORDS = ("answer", "final", "option", "choice")
_ALONE = re.compile(r"answers?[\s*_:]{0,8}(?:\n|(?=\s?(?:\$|\\[(\[])))", re.I)
_LINE_START = re.compile(r"(?:^|\n|[.!?]\s)[ \t#*_>]{0,12}(?:(?:the|my|our|final|correct)\s){0,2}$", re.I)
DOUBT = re.compile(
    r"\b(?:this|that|any|an|each|no|not|your|every|another|which|whose|possible|partial|wrong|incorrect)\s+$",
    re.I,
)
_ASKED = re.compile(
    r"\b(?:express|write|round|convert|simplify|give|state|report|check|verify)\s+(?:\w+\s+){0,2}$", re.I
)
IN_WORDS = re.compile(r"words\)|(?:must|should) be$", re.I)  # a value has to follow, not just a word
MORE = re.compile(
    r"(?:[\s*_:\uff1a>\"'\u201c]{1,12}|(?:approximately|approx\.?|about|around|roughly|nearly|simply|just|indeed|"
    r"therefore|thus|then|now|clearly|equal to|given by|found to be|as follows|the following|exactly|only|either|"
    r"ca\.|circa|environ|No\.(?=\s?\d)|also|daher|somit|donc|alors|por (?:lo )?tanto|entonces|quindi|dunque|portanto|"
    r"etwa|ungefähr|aproximadamente|circa|примерно|约|[\u2248~=])(?![A-Za-z])|[\u2014\u2013-]\s"
    r"|, (?=[a-z])[a-z' ]{3,40}, )"  # , as far as I can tell,
)


def _tails() -> dict[str, re.Pattern[str]]:
    """For each word that announces an answer, the pattern that has to follow."""
    found = {}
    for words, verbs in _LATIN.values():
        for word in words.split("|"):
            points = "" if word == "lösung" else _POINTS  # "Lösung:" opens a solution
            verb = "|".join(filter(None, (points, rf"(?<!\w)(?:{verbs})(?!\w)" if verbs else "")))
            tail = rf"(?:\s*\([^()\n]{{1,40}}\))?(?:\s+[^\s.:;=\n]{{1,15}}){{0,3}}?[\s*_\"]{{0,6}}(?:{verb})"
            found[word] = re.compile(rf"{word}\w{{0,4}}{tail}", re.I)
    for words, verbs in _EAST.values():
        for word in words.split("|"):
            between = r"[^\n\u3002.:\uff1a=\d]{0,8}?" if len(word) > 1 else ""
            found[word] = re.compile(rf"{word}{between}[\s*_\"]{{0,6}}(?:{_POINTS}|{verbs})")
    return found


_TAILS = _tails()
_WORDS = (*_ENGLISH_WORDS, *_TAILS)
_ASCII_WORDS = tuple(filter(str.isascii, _WORDS))


# words before a phrase that only supposes or denies an answer
SUPPOSED = re.compile(
    r"\b(?:if|suppose|assum(?:e|ing)|imagine|say|says|think|thinks|guess|believe|claim|conclude|wrong|incorrect|common|"
    r"mistaken|false|unless|whether|check)(?: that)?\s+(?:(?:the|my|our|your|an?|final|correct|right|only|"
    r"incorrect|wrong)\s+){0,3}$",
    re.I,
)


def phrases(text: str) -> Iterator[tuple[int, int, str]]:
    """The phrases that may announce an answer, last first: (start, end, "en" or the foreign word)."""
    lower = text.lower()
    if len(lower) != len(text):  # a capital that is two letters in lower case
        lower = "".join(low if len(low := sign.lower()) == 1 else sign for sign in text)
    places: list[tuple[int, str]] = []
    for word in _ASCII_WORDS if text.isascii() else _WORDS:
        end = len(text)
        for _ in range(MARKS):
            end = lower.rfind(word, 0, end)
            if end < 0:
                break
            places.append((end, word))
    for at, word in sorted(places, reverse=True)[: 4 * MARKS]:
        if at and text[at - 1].isalpha() and text[at] < "\u0e00":  # within a word; Chinese has no spaces
            continue
        if word in ("option", "choice"):
            best = re.search(r"\b(?:correct|right|best)\s+$", text[max(0, at - 12) : at], re.I)
            tail = _CHOSEN.match(text, at) if best else None
        elif word == "final":
            tail = _FINAL.match(text, at + 6) if text[at + 5 : at + 6] == " " else None
        elif word == "answer":
            tail = None if _ASKED.search(text[max(0, at - 40) : at]) else _ENGLISH.match(text, at)
            if _LINE_START.search(text[max(0, at - 40) : at]) and (alone := _ALONE.match(text, at)):
                tail = alone
        else:
            tail = _TAILS[word].match(text, at)
        if tail and not SUPPOSED.search(text[max(0, at - 60) : at]):
            yield at, tail.end(), "en" if word in _ENGLISH_WORDS else word
