r"""Answers that a phrase announces: "The answer is 5", a line `#### 5`, `<answer>5</answer>`, "Die Antwort ist 3,5."."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data.answers.boxes import boxed
from data.answers.formulas import UNSIGNED, is_formula, last_number
from data.answers.pieces import Piece, balanced, concluded, piece, trim
from data.answers.spelling import MAX_ANSWER_CHARS

# Tags and hashes

_TAG = re.compile(r"<(/?)(?:final_)?answer>", re.I)
_MARKS = 16  # of the last phrases, lines or tags that are looked at
_HEADING = re.compile(
    r"(?:the|step|part|case|solution|explanation|final|answer|conclusion|check\w*|verif\w+|note|summary|result|reasoning|"
    r"analysis|approach|calculation|understand\w*|working|proof|method|given|remark|justification)\b|\d{1,2}[.)]\s+[A-Z]|.*:$",
    re.I,
)

# Phrases. A language has the words for "answer", and those that come between them and the answer.

_POINTS = r"[:=\uff1a\uff1d]|-{1,2}>|=>|[\u2192\u21d2\u279c]"
_LATIN = {
    "de": ("antwort|endergebnis|l\u00f6sung", "ist|sind|lautet|lauten|betr\u00e4gt|betragen|w\u00e4re"),
    "fr": ("r\u00e9ponse|reponse", "est|sont|vaut|serait|sera"),
    "es": ("respuesta", "es|son|ser\u00eda|ser\u00e1"),
    "it": ("rispost", "\u00e8|e'|e\u2019|sono|sarebbe|sar\u00e0"),
    "pt": ("resposta", "\u00e9|s\u00e3o|seria|ser\u00e1"),
    "nl": ("antwoord", "is|zijn|luidt"),
    "sv": ("svar", "\u00e4r|er|blir"),
    "pl": ("odpowied", "to|jest|brzmi"),
    "cs": ("odpov\u011b\u010f", "je|jsou|zn\u00ed"),
    "tr": ("cevap|yan\u0131t", ""),
    "id": ("jawaban", "adalah|ialah"),
    "vi": ("\u0111\u00e1p \u00e1n|\u0111\u00e1p s\u1ed1|c\u00e2u tr\u1ea3 l\u1eddi", "l\u00e0"),
    "ru": ("\u043e\u0442\u0432\u0435\u0442", "\u0440\u0430\u0432\u0435\u043d|\u0440\u0430\u0432\u043d\u0430|"
           "\u0440\u0430\u0432\u043d\u043e|\u044d\u0442\u043e|\u0431\u0443\u0434\u0435\u0442|\u2014|\u2013|-"),
    "uk": ("\u0432\u0456\u0434\u043f\u043e\u0432\u0456\u0434\u044c", "\u0434\u043e\u0440\u0456\u0432\u043d\u044e\u0454|\u0446\u0435|\u2014|\u2013"),
    "el": ("\u03b1\u03c0\u03ac\u03bd\u03c4\u03b7\u03c3\u03b7", "\u03b5\u03af\u03bd\u03b1\u03b9"),
    "ar": ("\u0627\u0644\u062c\u0648\u0627\u0628|\u0627\u0644\u0625\u062c\u0627\u0628\u0629", "\u0647\u0648|\u0647\u064a"),
    "hi": ("\u0909\u0924\u094d\u0924\u0930", "\u0939\u0948"),
}  # fmt: skip
_EAST = {
    "zh": ("\u7b54\u6848|\u7b54", "\u5e94\u8be5\u662f|\u5e94\u4e3a|\u662f|\u4e3a|\u70ba|\u7b49\u4e8e|\u7b49\u65bc|\u5171"),
    "ja": ("\u7b54\u3048|\u89e3\u7b54|\u56de\u7b54|\u6b63\u89e3", "\u306f|\u304c"),
    "ko": ("\uc815\ub2f5|\ub2f5\ubcc0|\ub2f5", "\uc740|\ub294|\uc774|\uac00"),
}
_BETWEEN = (  # "the answer (in dollars) is", "the answer to part (a) is", "the answer we get is"
    r"(?:\s*\([^()\n]{1,60}\)|,[^.:;=\n]{1,50},|\s+(?:to|for|of|in|with|after|when|as|that|we|i|you|here|then|therefore|"
    r"thus|now|choice|option|itself|rounded|obtained|expressed|written|is\s+(?:therefore|then|thus))\b[^.:;=\n]{0,60}?)?"
)
_ENGLISH = re.compile(
    rf"answers?\b{_BETWEEN}[\s\"'*_`)]{{0,6}}(?P<verb>{_POINTS}|\b(?:is|are|was|equals?|be|becomes?|remains|comes (?:out )?to)"
    r"\b(?!\s+(?:not|n't)\b)|(?=[\u2014\u2013-]\s[-$\d\\]))",
    re.I,
)
_FINAL = re.compile(r"(?:result|solution|value)s?\b[\s*_]{0,6}(?::|=|\bis\b|\bare\b)", re.I)
_ALONE = re.compile(r"answers?[\s*_:]{0,8}(?:\n|(?=\s?(?:\$|\\[(\[])))", re.I)
_LINE_START = re.compile(r"(?:^|\n|[.!?]\s)[ \t#*_>]{0,12}(?:(?:the|my|our|final|correct)\s){0,2}$", re.I)
_DOUBT = re.compile(r"\b(?:this|that|any|an|each|no|not|your|every|another|which|whose|possible|partial|wrong|incorrect)\s+$", re.I)
_IN_WORDS = re.compile(r"words\)|(?:must|should) be$", re.I)
_MORE = re.compile(
    r"(?:[\s*_:\uff1a>\"'\u201c]{1,12}|(?:approximately|approx\.?|about|around|roughly|nearly|simply|just|indeed|therefore|thus|"
    r"then|now|clearly|equal to|given by|found to be|as follows|the following|exactly|only|either|ca\.|circa|environ|"
    r"No\.(?=\s?\d)|also|daher|somit|donc|alors|por (?:lo )?tanto|entonces|quindi|dunque|portanto|"
    r"etwa|ungef\u00e4hr|aproximadamente|circa|\u043f\u0440\u0438\u043c\u0435\u0440\u043d\u043e|\u7ea6|[\u2248~=])(?![A-Za-z])"
    r"|[\u2014\u2013-]\s)"
)

_INTRO = re.compile(
    r"\b(?:are|solutions?|roots|values|zeros|therefore|thus|hence|so|we (?:get|have|find|obtain))\b[^\n.]{0,80}:(?=[ \t*_]*\n)", re.I
)

# What follows a phrase

_ABBREVIATION = re.compile(
    r"(?:\b(?:Rs|approx|ca|No|Nr|St|Mr|Mrs|Ms|Dr|vs|e\.g|i\.e|a\.m|p\.m|ft|in|sq|cu|hr|hrs|min|mins|sec|secs|lb|lbs|oz|yd|"
    r"mi|U\.S|etc|resp|max|avg|cf|inkl|bzw|env|aprox|R|S|Tk|\u0440\u0443\u0431|\u0441\u043c|\u043a\u043c|\u0442\u044b\u0441|\u043c\u043b\u043d))$", re.I
)  # fmt: skip
_STOP = re.compile(
    r"\$|\\\(|\.(?!\d)|[?\n\u3002\uff1f\uff01]|!(?=\s|$)|,?\s(?:because|since|so|which|where|but|as (?:required|desired|expected|shown|the|a|an|"
    r"we)|(?:when )?rounded|to the nearest|denn|weil|da|car|parce|porque|perch\u00e9|\u043f\u043e\u0442\u043e\u043c\u0443|and that is|and this|"
    r"and we are done)\b|,?\sor,|(?<=[^\s\d]) [\u2014\u2013] |\s[\u2014\u2013]\s(?=[A-Za-z])"
)
_WHICH = re.compile(r",?\s(?:which|and this|so this)\s(?:equals|is equal to|makes|gives|comes to|is)\s+", re.I)
_ITEM = re.compile(r"\s*(?:[-*\u2022\u2013+]\s+|\(?(?:\d{1,2}|[a-hA-H]|[ivx]{1,4})[.):]\s+)")
_DISPLAY = re.compile(r"\\\[|\$\$|\\begin\{(\w{1,12}\*?)\}|```\w{0,10}\n?")
_JOIN_DISPLAY = re.compile(r"[\s,;.]{0,8}(?:and|or|und|et|y|\\text\{\s?(?:and|or)\s?\})?[\s,;]{0,8}")
_NAMED = re.compile(r"\s*(?:\*\*)?[A-Za-z][\w ()'-]{0,40}(?:\*\*)?\s?[:\uff1a](?:\*\*)?\s*(?=\S)")
_EQUATION = re.compile(r"\W{0,3}[A-Za-z](?:_?\{?\w{1,3}\}?)?(?:\([a-z]\))?\W{0,3}\s*(?:=|<|>|\\[lg]eq?|\u2264|\u2265)\s*\S.{0,120}")
_VALUE = re.compile(rf"\W{{0,4}}[-\u2212]?\W?{UNSIGNED}\W{{0,4}}(?:\s?[A-Za-z%]{{1,12}}){{0,2}}\W{{0,3}}")
_EMPTY = re.compile(
    r"(?:not?\b(?! (?:real )?(?:solution|answer|such|root|one|more|integer|value|real))|reasonable|correct|wrong|incorrect|right|valid|"
    r"unclear|unknown|below|above|as follows|obvious|clear|the same|given|found|obtained|shown|in\b|to\b|that\b|what\b|when\b|"
    r"how\b|of\b|by\b|very\b|also\b|still\b|consistent|confirmed|verified|written|expressed|supposed|expected|close|too\b|"
    r"here\b|this\b|it\b|based|always|therefore|because|if\b|you\b|we\b|i\b|let\b|going|now\b|then\b|checked|simplified|"
    r"provided|required|needed|asked|rounded|different|a (?:whole|positive|negative|single|number|fraction|decimal)|an integer)",
    re.I,
)
_OPENS = re.compile(
    r"(?:to|first|we|let|if|since|when|as|given|suppose|now|because|note|for|there (?:are|were|is)|step|start\w*|using|"
    r"consider|here|from|by|in order|okay|ok|sure|firstly|initially)\b",
    re.I,
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|equals?|be|becomes?|remains?|to get|gives?|giving|that is,?|i\.e\.,?|making|makes|totals?|comes to)(?!\w)", re.I
)
_WORKING = re.compile(r"(?:obtained|found|calculated|computed|determined|the (?:sum|product|difference|quotient|ratio) of)\b", re.I)
_ONE_FORMULA = re.compile(r"[A-Za-z][^$\d\\]{0,60}(?:\$([^$]+)\$|\\\(([^$]+?)\\\))")
_LETTERED = re.compile(r"(?:^|[\s,;]|\band\b)\s*\(?[a-h]\)\s+")
_EACH = re.compile(r"^(\d+) [a-z]+ and \1 [a-z]+$")  # 5 cakes and 5 pies
_UNIT = re.compile(
    r"(?:[ -](?!(?:on|for|in|from|at|by|to|with|ago|than|more|less|and|or|when|if|after|before|each|every|that|who)\b)[A-Za-z]+){0,2}"
)
_NATION = re.compile(
    rf"(?P<number>[-\u2212]?\s?(?:[$\u20ac\u00a3\u20b9\u00a5]\s?)?{UNSIGNED}(?:/\d+)?)\s?(?P<percent>%|Prozent|pour cent|por ciento|per cento|por cento|"
    r"\u043f\u0440\u043e\u0446\u0435\u043d\w*)?(?P<rest>[^\d\n=+*/<>^\\]{0,40})$",
    re.I,
)
_SCALE = re.compile(
    r"milli|mill[o\u00f3]|mil\b|mila|mille|tausend|hundert|cent[oi]?\b|\u0442\u044b\u0441|\u043c\u043b\u043d|\u043c\u0438\u043b\u043b|[\u4e07\u842c\u4ebf\u5104\u5343\u767e\ub9cc\uc5b5\ucc9c]|"
    r"^\s?[\u0439\u0446\u03c0]|[\u00bd\u00bc\u00be]|\b(?:y|et|und|e|and|\u0438|o|ou|oder|or)\b|[\u548c\u6216]", re.I
)  # fmt: skip
_ANY_NUMBER = re.compile(rf"(?<![A-Za-z0-9.,_])[-\u2212]?[$\u20ac\u00a3]?{UNSIGNED}(?:/\d+)?%?")
_EAST_END = re.compile(r"(?:\uc785\ub2c8\ub2e4|\uc774\ub2e4|\uc774\uc5d0\uc694|\u3067\u3059|\u3067\u3042\u308b|\u3067\u3057\u3087\u3046|\u3068\u306a\u308a\u307e\u3059|\u306b\u306a\u308a\u307e\u3059|\u3060)[.\u3002\s]*$")


def _tails() -> dict[str, re.Pattern[str]]:
    """For each word by which an answer is announced, what has to follow it."""
    found = {}
    for words, verbs in _LATIN.values():
        for word in words.split("|"):
            points = "" if word == "l\u00f6sung" else _POINTS  # "L\u00f6sung:" opens a solution
            verb = "|".join(filter(None, (points, rf"(?<!\w)(?:{verbs})(?!\w)" if verbs else "")))
            tail = rf"(?:\s*\([^()\n]{{1,40}}\))?(?:\s+[^\s.:;=\n]{{1,15}}){{0,3}}?[\s*_\"]{{0,6}}(?:{verb})"
            found[word] = re.compile(rf"{word}\w{{0,4}}{tail}", re.I)
    for words, verbs in _EAST.values():
        for word in words.split("|"):
            between = r"[^\n\u3002.:\uff1a=\d]{0,8}?" if len(word) > 1 else ""
            found[word] = re.compile(rf"{word}{between}[\s*_\"]{{0,6}}(?:{_POINTS}|{verbs})")
    return found


_TAILS = _tails()


def tagged(text: str) -> Piece | None:
    """What stands between the last `<answer>` and `</answer>`."""
    marks = list(_TAG.finditer(text)) if "nswer>" in text.lower() else []
    for mark, closing in reversed(list(zip(marks, [*marks[1:], None][: len(marks)], strict=True))[-_MARKS:]):
        if not mark[1]:
            start, end = mark.end(), closing.start() if closing else len(text)
            inner = text[start:end]
            found = boxed(inner) or phrase(inner) or _short(inner) or _last(inner)
            if found:
                return Piece(found.answer, start + found.start, start + found.end)
    return None


def _short(text: str) -> Piece | None:
    found = piece(text, 0, len(text))
    sentence = found and len(found.answer) > 60 and re.search(r"[.!?]\s", found.answer)
    return None if found is None or len(found.answer) > MAX_ANSWER_CHARS or sentence else _after(text, 0)


def _last(text: str) -> Piece | None:
    return last_number(text)


def hashes(text: str) -> Piece | None:
    """The last line `#### x` that is no heading of Markdown; one with a number before one of words alone."""
    words = None
    end = len(text)
    for _ in range(_MARKS):
        at = text.rfind("####", 0, end)
        if at < 0:
            break
        line = text.find("\n", at)
        found = piece(text, at + 4, len(text) if line < 0 else line)
        end = at
        if found is None or _HEADING.match(text[found.start : found.end][:100]):
            continue
        found = found._replace(answer=concluded(found.answer))
        if re.search(r"[\d$\\=]", found.answer):
            return found
        words = words or found
    return words


def phrase(text: str) -> Piece | None:
    """What follows the last phrase that announces an answer and holds one."""
    for start, end, language in _phrases(text):
        doubtful = _DOUBT.search(text[max(0, start - 12) : start]) or _IN_WORDS.search(text, start, end)
        found = _after(text, end, bool(doubtful), language)
        if found:
            return found
    return None


def last_list(text: str) -> Piece | None:
    """The list of values or equations with which a response ends, a line each: `So:`, `x = 3`, `y = 5`."""
    at = max(0, len(text) - 1500)
    intros = list(_INTRO.finditer(text, at))
    found = _after(text, intros[-1].end()) if intros else None
    if found is None or "\n" not in (part := text[found.start : found.end]) or re.search(r"\w", text[found.end :]):
        return None
    return None if any(line.count("=") > 1 for line in part.splitlines()) else found


def _phrases(text: str) -> Iterator[tuple[int, int, str]]:
    """The phrases that may announce an answer, the last first: where each begins and ends, and its language."""
    lower = text.lower()
    if len(lower) != len(text):  # a capital that has two letters in lower case
        lower = "".join(low if len(low := sign.lower()) == 1 else sign for sign in text)
    places: list[tuple[int, str]] = []
    for word in ("answer", "final", *_TAILS):
        end = len(text)
        for _ in range(_MARKS):
            end = lower.rfind(word, 0, end)
            if end < 0:
                break
            places.append((end, word))
    for at, word in sorted(places, reverse=True)[: 4 * _MARKS]:
        if at and text[at - 1].isalpha() and text[at] < "\u0e00":  # within a word; Chinese has no spaces
            continue
        if word == "final":
            tail = _FINAL.match(text, at + 6) if text[at + 5 : at + 6] == " " else None
        elif word == "answer":
            tail = _ENGLISH.match(text, at)
            if _LINE_START.search(text[max(0, at - 40) : at]) and (alone := _ALONE.match(text, at)):
                tail = alone
        else:
            tail = _TAILS[word].match(text, at)
        if tail:
            yield at, tail.end(), "en" if word in ("answer", "final") else word


def _after(text: str, at: int, doubtful: bool = False, language: str = "en") -> Piece | None:
    """The answer that begins at a place, or None where it holds none."""
    for _ in range(6):
        more = _MORE.match(text, at)
        if more is None:
            break
        at = more.end()
    if display := _displayed(text, at):
        return display
    end = _stop(text, at)
    if end is None:
        return None
    found = piece(text, at, balanced(text, at, end))
    if found is None:
        return None
    if language != "en":
        found = _without_words(text, found)
    rows = _rows_of(text, found, end)
    if rows:
        return rows
    if _WHICH.match(text, end) and re.search(r"\d\D*(?:times|plus|minus|divided by|multiplied by|[-+*/\u00d7])", found.answer):
        return _after(text, _WHICH.match(text, end).end())  # type: ignore[union-attr]
    return _telling(text, found, doubtful)


def _displayed(text: str, at: int) -> Piece | None:
    """Formulas that are set on lines of their own, or a block of code."""
    found: list[Piece] = []
    while display := _DISPLAY.match(text, at):
        sign = display[0]
        start = display.end()
        if display[1]:
            closing = f"\\end{{{display[1]}}}"
            start = display.start()
        else:
            closing = {"\\[": "\\]", "$$": "$$"}.get(sign, "```")
        end = text.find(closing, display.end(), display.end() + 2 * MAX_ANSWER_CHARS)
        if end < 0:
            break
        after = end + len(closing)
        each = piece(text, start, after if display[1] else end)
        if each is None:
            break
        found.append(each._replace(answer=concluded(each.answer)))
        join = _JOIN_DISPLAY.match(text, after)
        at = join.end() if join else after
    if not found:
        return None
    return Piece(", ".join(each.answer for each in found), found[0].start, found[-1].end)


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
        if sign == "." and _ABBREVIATION.search(text[max(at, stop.start() - 12) : stop.start()]):
            if re.match(r"\s?[-\d$\u20ac\u00a3\u20b9(\\a-z]", text[stop.end() : stop.end() + 2]):
                place = stop.end()
                continue
        return stop.start()
    return len(text) if len(text) <= limit else None


def _rows_of(text: str, first: Piece, end: int) -> Piece | None:
    """A list whose items have a line each: items of Markdown, equations, values."""
    start = text.rfind("\n", 0, first.start) + 1
    lines: list[tuple[int, int]] = []
    at = start
    while len(lines) < 12 and at < len(text):
        stop = text.find("\n", at)
        stop = len(text) if stop < 0 else stop
        if stop - at > 200:
            break
        if text[at:stop].strip():
            lines.append((at, stop))
        elif lines and text[stop : stop + 1] and not _ITEM.match(text, stop + 1):
            break
        at = stop + 1
    first_line = text[first.start : lines[0][1]].strip() if lines else ""
    for items, alike in ((True, _ITEM.match), (False, _EQUATION.fullmatch), (False, _VALUE.fullmatch)):
        texts = [text[a:b].strip() for a, b in lines]
        like = [bool(alike(part)) for part in (texts if items else [first_line, *texts[1:]])]
        count = like.index(False) if False in like else len(like)
        rows = [_row(text, a, b, items) for a, b in lines[:count]]
        if count > 1 and None not in rows:
            found = [row for row in rows if row]
            return Piece(", ".join(row.answer for row in found), found[0].start, found[-1].end)
    return None


def _row(text: str, start: int, end: int, items: bool) -> Piece | None:
    """The answer in a line of a list, without its bullet and its name; None for a sentence."""
    if items and (bullet := _ITEM.match(text, start, end)):
        start = bullet.end()
    if named := _NAMED.match(text, start, end):
        start = named.end()
    found = piece(text, start, end)
    if found is None or not (re.search(r"[\d\\$=]", found.answer) or len(found.answer.split()) <= 3):
        return None
    return found._replace(answer=concluded(found.answer))


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
    return f"{whole.replace('.', '')}.{part}"


def _telling(text: str, found: Piece, doubtful: bool) -> Piece | None:
    """What a piece states; None if it states nothing, or opens a solution."""
    answer = _EACH.sub(r"\1", concluded(found.answer))
    if len(answer) > MAX_ANSWER_CHARS or answer.endswith("="):
        return None
    plain = re.sub(r"\$[^$]*\$|\\\(.*?\\\)|\\[A-Za-z]+(?:\{[^{}]*\})?", " ", answer)
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", plain)
    exact = bool(re.search(r"[\d\\$=<>\u221e\u03c0]", answer)) or len(answer) <= 2
    if not exact and (doubtful or _EMPTY.match(answer) or len(words) > 5):
        return None
    if alone := _ONE_FORMULA.fullmatch(found.answer):
        return found._replace(answer=concluded((alone[1] or alone[2]).strip()))
    if len(_LETTERED.findall(answer)) > 1:  # (a) 3 and (b) 5
        return found._replace(answer=", ".join(part.strip(" ,;") for part in _LETTERED.split(answer) if part.strip(" ,;")))
    if re.match(r"[A-Za-z]", answer) and exact and len(words) >= 3 and not re.match(r"(?:Rs|US|no|all|any|every|none)\b", answer):
        return _of_sentence(text, found)
    if re.search(r"\banswers?\b", answer, re.I) and not exact:
        return None
    return found._replace(answer=answer)


def _of_sentence(text: str, found: Piece) -> Piece | None:
    """The answer in a sentence that states it: `The largest $n$ is 34`."""
    part = text[found.start : found.end]
    verbs = list(_VERB.finditer(part))
    if verbs and re.match(r"\s*(?:\$|\\\(|[-\u2212]?\d|\\)", part[verbs[-1].end() :]):
        inner = piece(text, found.start + verbs[-1].end(), found.end)
        return inner and inner._replace(answer=concluded(inner.answer))
    numbers = list(_ANY_NUMBER.finditer(part))
    if not numbers or _OPENS.match(part) or (_WORKING.match(part) and len(numbers) > 1):
        return None
    unit = _UNIT.match(part, numbers[0].end())
    end = unit.end() if unit else numbers[0].end()
    return piece(text, found.start + numbers[0].start(), found.start + end)
