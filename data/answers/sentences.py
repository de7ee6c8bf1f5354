"""The value in a piece of a sentence, without the words around it; or nothing."""

from __future__ import annotations

import re

from data.answers.last_formula import is_formula
from data.answers.last_number import UNSIGNED, first_number
from data.answers.pieces import Piece, concluded, piece, trim
from data.answers.spelling import MAX_ANSWER_CHARS
from data.answers.units import CHANGE

_EMPTY = re.compile(
    r"(?:not\b(?! (?:enough|defined|determin))|no\b(?=\s)(?! (?:real )?(?:solution|answer|such|root|one|more|integer|"
    r"value|real))|reasonable|correct|wrong|incorrect|right\b(?! (?:triangle|angle|isos))|valid|unclear|unknown|"
    r"below|above|as follows|obvious|clear|the same|given|found|obtained|shown|in\b|to\b|that\b|what\b|when\b|how\b|"
    r"of\b|by\b|very\b|also\b|still\b|consistent|confirmed|verified|written|expressed|supposed|expected|close|too\b|"
    r"here\b|this\b|it\b|based|always|therefore|because|if\b|you\b|we\b|i\b|let\b|going|now\b|then\b|checked|"
    r"simplified|provided|required|needed|asked|rounded|different|a (?:whole|positive|negative|single|number|"
    r"fraction|decimal)|an integer)",
    re.I,
)
_OPENS = re.compile(
    r"(?:to|first|we|let|if|since|when|as|given|suppose|now|because|note|for|there (?:are|were|is)|out of|of the|"
    r"with|after|among|between|step|start\w*|using|consider|here|from|by|in order|okay|ok|sure|firstly|initially)\b",
    re.I,
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|equals?|be|becomes?|remains?|to get|gives?|giving|that is,?|i\.e\.,?|making|makes|totals?|"
    r"comes to)(?!\w)",
    re.I,
)
_SAID = re.compile(r"[\s*_]*(?:\$|\\|[-\u2212\u20ac\u00a3(\[{]?\d|[({\[]\w*\s?,|[A-Za-z]\s?[=<>\u2264\u2265\u2260])")
_FORMULA = re.compile(r"\$([^$]+)\$|\\\(([^$]+?)\\\)")
_HYPHENED = re.compile(r"([-\d.,/]+) ([a-z]{2,})-([a-z]{2,})")  # 0.7 light-years
_WORKING = re.compile(
    r"(?:obtained|found|calculated|computed|determined|the (?:sum|product|difference|quotient|ratio) of)\b",
    re.I,
)
_ONE_FORMULA = re.compile(r"[A-Za-z][^$\d\\]{0,60}(?:\$([^$]+)\$|\\\(([^$]+?)\\\))")
_LETTERED = re.compile(r"(?:^|[\s,;]|\band\b)\s*\(?[a-h]\)\s+")
_EQUALLING = re.compile(r"\d[^=]{3,200}?[a-z)]\s+(?:equals|is equal to|makes|comes to|gives)\s+([-$\d].*)", re.DOTALL)
_STRESSED = re.compile(r"\*\*([^*\n]{1,60})\*\*")
_EACH = re.compile(r"^(\d+) [a-z]+ and \1 [a-z]+$")  # 5 cakes and 5 pies
_UNIT = re.compile(
    r"(?:[ -](?!(?:on|for|in|from|at|by|to|of|with|ago|than|more|less|and|or|when|if|after|before|each|every|that|"
    r"who)\b)[A-Za-z]+){0,2}"
)
_NATION = re.compile(
    rf"(?P<number>[-\u2212]?\s?(?:[$\u20ac\u00a3\u20b9\u00a5]\s?)?{UNSIGNED}(?:/\d+)?)\s?(?P<percent>%|Prozent|"
    rf"pour cent|por ciento|per cento|por cento|"
    r"процен\w*)?(?P<rest>[^\d\n=+*/<>^\\]{0,40})$",
    re.I,
)
_SCALE = re.compile(
    r"milli|mill[oó]|mil\b|mila|mille|tausend|hundert|cent[oi]?\b|тыс|млн|милл|[万萬亿億千百만억천]|"
    r"^\s?[йцπ]|[\u00bd\u00bc\u00be]|\b(?:y|et|und|e|and|и|o|ou|oder|or)\b|[和或]",
    re.I,
)
_ANY_NUMBER = re.compile(rf"(?<![A-Za-z0-9.,_])[-\u2212]?[$\u20ac\u00a3]?{UNSIGNED}(?:/\d+)?%?")
_EAST_END = re.compile(r"(?:입니다|이다|이에요|です|である|でしょう|となります|になります|だ)[.\u3002\s]*$")


def without_words(text: str, found: Piece) -> Piece:
    """A number without the foreign words for its unit after it: `3,5 Stunden`."""
    part = _EAST_END.sub("", text[found.start : found.end])
    number = _NATION.match(part)
    if number and not _SCALE.search(number["rest"]):
        answer = _with_points(number["number"]) + ("%" if number["percent"] else "")
        return Piece(answer, found.start, found.start + number.end("percent" if number["percent"] else "number"))
    numbers = list(_ANY_NUMBER.finditer(part))
    if len(numbers) == 1 and not re.search(r"[=$\\<>^+*]", part) and not _SCALE.search(part[numbers[0].end() :][:4]):
        start = found.start + numbers[0].start()
        return Piece(_with_points(numbers[0][0]), start, start + len(numbers[0][0]))
    span = trim(text, found.start, found.start + len(part))
    return found if span is None else Piece(text[slice(*span)], *span)


def _with_points(number: str) -> str:
    """A number with its decimal comma as a point: 3,5 and 1.234,5, but not 3,500, which may be thousands."""
    whole, comma, part = number.rpartition(",")
    if not comma or "," in whole or len(part) == 3:
        return number
    return f"{re.sub(r'[. ]', '', whole)}.{part}"


def telling(text: str, found: Piece, doubtful: bool) -> Piece | None:
    """The answer that a piece states; None if it states none, or opens a solution."""
    stressed = list(_STRESSED.finditer(text, found.start, found.end))
    if len(stressed) == 1 and text[found.start].isalpha() and re.search(r"\d", stressed[0][1]):
        return Piece(stressed[0][1].strip(), *stressed[0].span(1))  # Janet makes **$18** every day
    if equal := _EQUALLING.match(found.answer):  # 8 buses with 45 students each equals 360 students
        found = found._replace(answer=equal[1])
    answer = _EACH.sub(r"\1", concluded(found.answer))
    if hyphened := _HYPHENED.fullmatch(answer):
        answer = " ".join(hyphened.groups())
    if answer.count("**") % 2:
        answer = answer.replace("**", "", 1)
    if len(answer) > MAX_ANSWER_CHARS or answer.endswith("="):
        return None
    plain = re.sub(r"\$[^$]*\$|\\\(.*?\\\)|\\[A-Za-z]+(?:\{[^{}]*\})?", " ", answer)
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", plain)
    exact = bool(re.search(r"[\d\\$=<>\u221eπ]", answer)) or len(answer) <= 2
    if not exact and (doubtful or _EMPTY.match(answer) or len(words) > 5):
        return None
    if alone := _ONE_FORMULA.fullmatch(found.answer):
        return found._replace(answer=concluded((alone[1] or alone[2]).strip()))
    if len(_LETTERED.findall(answer)) > 1:  # (a) 3 and (b) 5
        return found._replace(
            answer=", ".join(part.strip(" ,;") for part in _LETTERED.split(answer) if part.strip(" ,;"))
        )
    if (
        re.match(r"[A-Za-z]", answer)
        and exact
        and len(words) >= 3
        and not re.match(r"(?:Rs|US|no|all|any|every|none)\b", answer)
        and not CHANGE.match(answer)  # at least 30 points
    ):
        return _of_sentence(text, found)
    if re.search(r"\banswers?\b", answer, re.I) and not exact:
        return None
    return found._replace(answer=answer)


def _of_sentence(text: str, found: Piece) -> Piece | None:
    """The answer in a sentence that states it: `The largest $n$ is 34`."""
    part = text[found.start : found.end]
    verbs = list(_VERB.finditer(part))
    if verbs and _SAID.match(part, verbs[-1].end()):
        inner = piece(text, found.start + verbs[-1].end(), found.end)
        return inner and inner._replace(answer=concluded(inner.answer))
    formulas = [formula for formula in _FORMULA.finditer(part) if is_formula(formula[1] or formula[2])]
    if len(formulas) == 1 and re.search(r"[\d=]", formulas[0][0]) and not re.search(r"\d", _FORMULA.sub("", part)):
        inner = piece(text, found.start + formulas[0].start(), found.start + formulas[0].end())
        return inner and inner._replace(answer=concluded(inner.answer))
    several = len(list(_ANY_NUMBER.finditer(part))) > 1
    if _OPENS.match(part) or (_WORKING.match(part) and several):
        return None
    number = first_number(text, found.start, found.end)
    if number is None:
        return None
    unit = _UNIT.match(text, number.end, found.end) if re.fullmatch(r"[-\d.,$/]+", number.answer) else None
    end = unit.end() if unit else number.end
    return Piece(number.answer + text[number.end : end], number.start, end)
