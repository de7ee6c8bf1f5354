"""What a line says about options: which it denies, and which it calls right."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LETTER = r"(?:\*\*)?(?:[(\[](?P<{0}bracketed>[A-Za-z])[)\]]|(?P<{0}bare>(?-i:[A-Z]))(?![\w'’]))(?:\*\*)?"
_CLAUSE = re.compile(  # starts at the first white space: else each of thousands of line ends would be tried
    r"(?<=[.;!])\s+(?=\S)|(?<=\?)\s+(?!(?:no|nope|not|wait)\b)(?=\S)|[,;:]?(?<!\s)\s+[-–—]\s+"
    r"|,?(?<!\s)\s+(?:but|so|hence|thus|therefore|while|whereas|leaving|which\s+leaves)\b"
    r"|,\s+(?=(?:option\s+)?[(\[]?(?-i:[A-Z])[)\]]?\s+(?:is|must|remains)\b)"
    r"|,\s+(?=(?:it|that)(?:\s+is|['’]s)\s+[(\[]?(?-i:[A-Z])\b)|[。；！？，]",
    re.I,
)
_NEGATED = re.compile(
    r"\b(?:not|wrong|incorrect|false|neither|nor|eliminated?|rul(?:e|ed|ing)\s+(?:it\s+)?out|excluded?|cannot|never"
    r"|impossible|invalid|falsch|nicht|incorrect[ao]|falsa?|fausse|faux|errad[ao]|sbagliat[ao])\b|n['’]t\b"
    r"|\?\s+(?:no|nope|wait)\b|\b(?:no|não|non)\s+(?:es|son|é|è|sono)\b|n['’]est\s+pas\b"
    r"|^\W*(?:(?:and|but|so)\s+)?(?:if|suppose|assume|assuming|unless)\b"
    r"|[错錯]|不(?:对|對|正确|正確|是|选|選)",
    re.I,
)
_AFFIRMED = re.compile(  # a denial after it is about something else: "A, since B is not", "(B) 30, not 24"
    r"\b(?:correct|right|best|true|because|since|as|that|which)\b|[,(]\s*(?:and\s+)?not\b|[:—–](?!\s*(?:wrong|incorrect"
    r"|false|no\b))",
    re.I,
)
_A_LETTER = re.compile(r"(?<![\w'’])(?:[(\[][A-Za-z][)\]]|[A-Z](?![\w'’]))")
_WORDS = r"(?:\s+(?:also|thus|therefore|then|clearly|indeed|definitely|obviously|probably|likely|surely))?"
_RIGHT = re.compile(
    rf"(?<![\w'’]){_LETTER.format('')}"
    rf"(?:\s+remains\b|[\s,]*(?:is|was|must\s+be|has\s+to\s+be|should\s+be|seems|looks){_WORDS}\s+"
    r"(?:the\s+|our\s+|my\s+)?(?:only\s+|final\s+)?(?:correct|right|best|true|answer|one)\b(?!\s+(?:that|which|to)\b))",
    re.I,
)


def undenied(text: str, options: Iterable[str]) -> str:
    """A text with its denying clauses replaced by as many spaces, so that places in it stay the same. Words in the text
    of an option do not deny, unless an option is called that: "B is false"."""
    judged, kept, start = text, [], 0
    for option in filter(_NEGATED.search, options):
        own = re.compile(rf"(?<!\bis )(?<!\bare )(?<!\w){re.escape(option)}(?!\w)", re.I)
        judged = own.sub(lambda found: " " * len(found[0]), judged)
    for end in [*(mark.start() or mark.end() for mark in _CLAUSE.finditer(text)), len(text)]:
        kept.append(" " * (end - start) if _denies(judged[start:end]) else text[start:end])
        start = end
    return "".join(kept)


def _denies(clause: str) -> bool:
    """Whether a clause denies something and calls no option right before that."""
    denied, letter = _NEGATED.search(clause), _A_LETTER.search(clause)
    affirmed = _AFFIRMED.search(clause, letter.start()) if letter else None
    return denied is not None and (affirmed is None or denied.start() < affirmed.start())


def called_right(text: str) -> list[tuple[str, int]]:
    """(letter, its place) of each option that is called right: "Therefore, A is the correct answer"."""
    found = []
    for mark in _RIGHT.finditer(text):
        group = "bracketed" if mark["bracketed"] else "bare"
        found.append((mark[group].upper(), mark.start(group)))
    return found
