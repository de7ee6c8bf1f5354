"""Answers that a response announces: "The answer is 5", a line `#### 5`, `<answer>5</answer>`."""

from __future__ import annotations

import re

from data.answers.boxes import boxed
from data.answers.formulas import is_formula
from data.answers.last_number import UNSIGNED, first_number, last_number
from data.answers.phrases import DOUBT, IN_WORDS, MARKS, MORE, phrases
from data.answers.pieces import SAYS, Piece, balanced, concluded, piece, trim
from data.answers.rows import displayed, is_row, rows_of
from data.answers.spelling import MAX_ANSWER_CHARS

# Tags and hashes

_TAG = re.compile(r"<(/?)(?:final_)?answer>", re.I)
_HEADING = re.compile(
    r"(?:the|step|part|case|solution|explanation|final|answer|conclusion|check\w*|verif\w+|note|summary|result|"
    r"reasoning|"
    r"analysis|approach|calculation|understand\w*|working|proof|method|given|remark|justification|so|why|how|"
    r"therefore|thus|hence|"
    r"using|let|now|alternativ\w+|another|double|what|where|when|compute|find|determine|add|subtract|multiply|divide|"
    r"simplify|solve|convert|count|set up|write|identify|sum of|recap|key|notes?|explan\w+)\b|"
    r"\d{1,2}[.)]\s+[A-Z]|.*:$",
    re.I,
)

_INTRO = re.compile(
    r"\b(?:are|solutions?|roots|values|zeros|therefore|thus|hence|so|we (?:get|have|find|"
    r"obtain))\b[^\n.]{0,80}:(?=[ \t*_]*\n)",
    re.I,
)

# What follows a phrase

_ABBREVIATION = re.compile(
    r"(?:\b(?:Rs|approx|ca|No|Nr|St|Mr|Mrs|Ms|Dr|vs|e\.g|i\.e|a\.m|p\.m|ft|in|sq|cu|hr|hrs|min|mins|sec|secs|lb|lbs|"
    r"oz|yd|"
    r"mi|U\.S|etc|resp|max|avg|cf|inkl|bzw|env|aprox|R|S|Tk|руб|см|км|тыс|млн))$", re.I
)  # fmt: skip
_TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof)$")
_STOP = re.compile(
    r"\$|\\\(|\.(?!\d|[A-Z]\.)|<\||\uff0c(?=[^\d\s])|[?\n\u3002\uff1f\uff01]|!(?=\s|$)|,?\s(?:because|since|so|which|"
    r"where|but|as (?:required|"
    r"desired|expected|shown|the|a|an|"
    r"we)|(?:when )?rounded|to the nearest|denn|weil|da|car|parce|porque|perché|потому|and that is|and (?:the|my|"
    r"our) answer|and this|"
    r"and we are done|or equivalently|that is|namely|in other words|i\.e|giving|making)\b|,?\sor,|"
    r"(?<=[\d%)]) - (?=(?:a|an|the|this|that|which|it|he|she|we|they|so|not|nice|[A-Z][a-z]+)\s)|"
    r"(?<=[^\s\d]) [\u2014\u2013] |\s[\u2014\u2013]\s(?=[A-Za-z])"
)
_WHICH = re.compile(r",?\s(?:which|and this|so this)\s(?:equals|is equal to|makes|gives|comes to|is)\s+", re.I)
_EMPTY = re.compile(
    r"(?:not\b(?! (?:enough|defined|determin))|no\b(?=\s)(?! (?:real )?(?:solution|answer|such|root|one|more|integer|"
    r"value|real))|"
    r"reasonable|correct|wrong|"
    r"incorrect|right\b(?! (?:triangle|angle|isos))|valid|"
    r"unclear|unknown|below|above|as follows|obvious|clear|the same|given|found|obtained|shown|in\b|to\b|that\b|"
    r"what\b|when\b|"
    r"how\b|of\b|by\b|very\b|also\b|still\b|consistent|confirmed|verified|written|expressed|supposed|expected|close|"
    r"too\b|"
    r"here\b|this\b|it\b|based|always|therefore|because|if\b|you\b|we\b|i\b|let\b|going|now\b|then\b|checked|"
    r"simplified|"
    r"provided|required|needed|asked|rounded|different|a (?:whole|positive|negative|single|number|fraction|decimal)|"
    r"an integer)",
    re.I,
)
_OPENS = re.compile(
    r"(?:to|first|we|let|if|since|when|as|given|suppose|now|because|note|for|there (?:are|were|is)|out of|of the|"
    r"with|after|among|between|step|start\w*|using|"
    r"consider|here|from|by|in order|okay|ok|sure|firstly|initially)\b",
    re.I,
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|equals?|be|becomes?|remains?|to get|gives?|giving|that is,?|i\.e\.,?|making|makes|totals?|"
    r"comes to)(?!\w)",
    re.I,
)
_SAID = re.compile(r"\s*(?:\$|\\|[-\u2212\u20ac\u00a3(\[{]?\d|[({\[]\w*\s?,|[A-Za-z]\s?[=<>\u2264\u2265\u2260])")
_FORMULA = re.compile(r"\$([^$]+)\$|\\\(([^$]+?)\\\)")
_HYPHENED = re.compile(r"([-\d.,/]+) ([a-z]{2,})-([a-z]{2,})")  # 0.7 light-years
_WORKING = re.compile(
    r"(?:obtained|found|calculated|computed|determined|the (?:sum|product|difference|quotient|ratio) of)\b",
    re.I,
)
_ONE_FORMULA = re.compile(r"[A-Za-z][^$\d\\]{0,60}(?:\$([^$]+)\$|\\\(([^$]+?)\\\))")
_LETTERED = re.compile(r"(?:^|[\s,;]|\band\b)\s*\(?[a-h]\)\s+")
_EQUALLING = re.compile(r"\d[^=]{3,200}?[a-z)]\s+(?:equals|is equal to|makes|comes to|gives)\s+([-$\d].*)", re.DOTALL)
_PART = re.compile(  # the answer to part (a), Answer 2:
    r"\b(?:part|question|problem)\s?\(?(?:[a-e]|[1-9]|i{1,3})\b|\b(?:first|second|third|fourth)\b|"
    r"\banswers? \(?(?:[a-e]|[1-9])\b(?=\)?\s?[:=])",
    re.I,
)
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
    r"^\s?[йцπ]|[\u00bd\u00bc\u00be]|\b(?:y|et|und|e|and|и|o|ou|oder|or)\b|[和或]", re.I
)  # fmt: skip
_ANY_NUMBER = re.compile(rf"(?<![A-Za-z0-9.,_])[-\u2212]?[$\u20ac\u00a3]?{UNSIGNED}(?:/\d+)?%?")
_EAST_END = re.compile(r"(?:입니다|이다|이에요|です|である|でしょう|となります|になります|だ)[.\u3002\s]*$")


def tagged(text: str) -> Piece | None:
    """What stands between the last `<answer>` and `</answer>`."""
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
    """The last line `#### x` that is no heading of Markdown; one with a number before one of words alone."""
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
    """What follows the last phrase that announces an answer and holds one; of each part where phrases name parts."""
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
    """The list of values or equations with which a response ends, a line each: `So:`, `x = 3`, `y = 5`."""
    end = text.rstrip()
    if "\n" not in end or not is_row(end[end.rfind("\n") + 1 :][:200].strip()):
        return None
    at = max(0, len(text) - 1500)
    intros = list(_INTRO.finditer(text, at))
    found = _after(text, intros[-1].end() if intros else 0) if intros or len(text) < 500 else None
    if found is None or "\n" not in text[found.start : found.end] or re.search(r"\w", text[found.end :]):
        return None
    names = [row.partition("=")[0].strip() for row in found.answer.split(", ")]
    plural = intros and re.match(r"are|.{0,3}solutions|roots|values|zeros", intros[-1][0], re.I)
    return found if plural or len(set(names)) == len(names) else None


def _after(text: str, at: int, doubtful: bool = False, language: str = "en") -> Piece | None:
    """The answer that begins at a place, or None where it holds none."""
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
    while end > at + 1 and text[end - 1] in "*_" and text[end - 2] not in "^\\":  # MORE took what opened it
        end -= 1
    found = piece(text, at, balanced(text, at, end))
    if found is None:
        return None
    if language != "en":
        found = _without_words(text, found)
    rows = rows_of(text, found, end)
    if rows:
        return rows
    if _WHICH.match(text, end) and re.search(
        r"\d\D*(?:times|plus|minus|divided by|multiplied by|[-+*/\u00d7])", found.answer
    ):
        return _after(text, _WHICH.match(text, end).end())  # type: ignore[union-attr]
    return None if _begins_working(text, found, end) else _telling(text, found, doubtful)


def _begins_working(text: str, found: Piece, end: int) -> bool:
    """Whether a piece is the first equation of a calculation that goes on in the next line."""
    if "=" not in found.answer or re.match(r"\W{0,3}[A-Za-z]\w?\W{0,3}\s?=", found.answer):
        return False
    line = text[end : end + 200].strip().partition("\n")[0]
    return bool(
        re.match(r"[^A-Za-z\n]{0,3}(?:\d|[A-Za-z]\W)", line)
        and "=" in line
        and len(re.findall("[A-Za-z]{4,}", line)) < 3
    )


def _stop(text: str, at: int) -> int | None:
    """Where the sentence ends that an answer stands in; None where it runs on for too long."""
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


def _without_words(text: str, found: Piece) -> Piece:
    """A number without the words of another language behind it, which name its unit: `3,5 Stunden`."""
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
    """A number with a decimal point for its decimal comma: 3,5 and 1.234,5, but not 3,500, which may be thousands."""
    whole, comma, part = number.rpartition(",")
    if not comma or "," in whole or len(part) == 3:
        return number
    return f"{re.sub(r'[. ]', '', whole)}.{part}"


def _telling(text: str, found: Piece, doubtful: bool) -> Piece | None:
    """What a piece states; None if it states nothing, or opens a solution."""
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
