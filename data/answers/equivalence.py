r"""Whether two answers are the same.

When two answers are *equivalent* under a `kind`:

- "math": the same string after light normalisation; or the same number, quantity, ratio or words, compared exactly
  (1/2 = 0.5, but 0.333 is not 1/3); or equal by math-verify (formula.py). Degrees and a leading `x =` are ignored.
  `50\%` equals both 50 and 0.5. Number bases and units count if both answers name one: 52_8 is not 52_9, and 5 cm is
  not 5 m, though either equals 5. Words that change the number or make it a bound always count: neither "5 squared"
  nor "at most 5" is 5.
- "numbers": the same unordered list of numbers. Integers must be equal; other numbers may differ by
  1e-4 * max(1, |value|), since gold answers are rounded. A percentage counts as the number written (50% is 50):
  the benchmarks' lists are plain numbers. "1,000" and "30,300" are one number each; "30, 300" is two. "3 5" and
  "12 of 20" are not lists, since it is unclear which number is meant.

Decisions here are symmetric; only formula.py's have a direction. Agreement (`Grader.equivalent`) is transitive except
where one answer leaves out what two others name differently (5, x = 5, y = 5; 5, 5 feet, 5 inches; likewise base,
percent), where it has two readings (3,5), and where tolerances add up.

Sympy can hang inside C code, where no Python timeout reaches it, so `Grader` runs math-verify in processes
that it can kill. A pair that timed out, or whose process died, is None: neither equivalent nor different.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

from data.answers.numbers import LONG, NEAR, Number, read_number, read_numbers, without_number_remark
from data.answers.pieces import trim
from data.answers.quantities import read_quantity, read_ratio, read_times
from data.answers.spelling import MAX_ANSWER_CHARS, TEXT_COMMAND, clean, is_words, normalise_answer
from data.answers.units import read_changes, read_units

MathKind = Literal["math", "numbers"]
AnswerPair = tuple[str, str]
MAX_REMARKS = 8  # consecutive remarks that are removed from an answer at most


def decide_quickly(a: str, b: str, kind: MathKind) -> bool | None:
    """The verdict without math-verify, whichever answer is the gold one; None if that is not possible."""
    if (same := normalise_answer(a)) and same == normalise_answer(b):
        return True
    if a == b and a.strip():  # signs alone, which normalising removes: $
        return True
    if kind == "numbers":
        x, y = read_numbers(a), read_numbers(b)
        return 0 < len(x) == len(y) and all(map(_near, x, y))
    if max(len(a), len(b)) > MAX_ANSWER_CHARS or not a.strip() or not b.strip():
        return False
    found = [normalise_answer(x) == normalise_answer(y) or _decide(x, y) for x in readings(a) for y in readings(b)]
    return True if True in found else found[0]


def _decide(a: str, b: str) -> bool | None:
    if (one := read_quantity(a)) and (other := read_quantity(b)) and one[0] == other[0]:
        return one[1] == other[1]
    units, others = read_units(a), read_units(b)
    if not (units <= others or others <= units):
        return False
    if (at := read_times(a)) and (then := read_times(b)):
        return bool(at & then)
    if (ratio := read_ratio(a)) and (their := read_ratio(b)):
        return ratio == their
    if (parts := _parts(a)) and (wanted := _parts(b)):
        return parts == wanted
    m, n = read_number(a), read_number(b)
    if (m or n) and read_changes(a) != read_changes(b):
        return False
    if m and n:
        return _same_number(m, n, bool(LONG.search(a) or LONG.search(b)))
    words = is_words(clean(a)) + is_words(clean(b))
    if words == 2 and (found := _singular(a)) == _singular(b) and len(str(found)) > len("[['x']]"):
        return True
    return False if words == 2 or (words == 1 and (m or n)) else None


_SPLIT = re.compile(r",\s+(?:and\s+)?|;\s+|\s+and\s+")


def _parts(text: str) -> list[Fraction] | None:
    """The numbers of "5 bags and 3 boxes" or "5, 3", in ascending order; None for anything else."""
    if not _SPLIT.search(text) or read_number(text):
        return None
    numbers = [read_number(part) for part in _SPLIT.split(text)]
    if any(number is None or number.label or number.base or number.percent for number in numbers):
        return None
    return sorted({number.value for number in numbers if number})


def _singular(words: str) -> list[list[str]]:
    """The words of each part of a list, sorted, without articles and the plural's s."""
    parts = re.split(r",|&|\band\b", TEXT_COMMAND.sub(r"\1", clean(words)).lower())
    found = ([word for word in re.findall(r"[a-z']+", part) if word not in _ARTICLES] for part in parts)
    return sorted([word[:-1] if len(word) > 3 and word.endswith("s") else word for word in part] for part in found)


_ARTICLES = {"a", "an", "the"}
_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(?:0,(?=\d)|(?:\d+),(?=\d{1,2}(?!\d)|\d{4,}))(?=\d+(?![\d.,]))")
_INDIAN = re.compile(r"(?<![\d.,])\d{1,2}(?:,\d\d)+,\d{3}(?![\d,])")  # 1,23,456
_MIXED_AND = re.compile(r"(?<![\d.,/])(\d+) and (?=\d+/\d+(?!\d))")  # 9 and 1/2
_CHOICE = re.compile(
    r"(?:(?:[Oo]ption|[Cc]hoice)\s)?(?:\\(?:text|mathrm)(?:bf|rm)?\s?\{\s?)?\(?([A-H])[).]:?\s?\}?(?:\\?\s)+(\S.*)"
)  # (B) 24


def bare(text: str) -> str:
    """An answer without math delimiters and emphasis around it, and without explaining remarks."""
    for _ in range(MAX_REMARKS):
        if (span := trim(text, 0, len(text))) is None:
            break
        inner = text[slice(*span)]
        text = without_number_remark(inner)
        if text == inner:
            break
    return text


def readings(text: str) -> list[str]:
    """The readings of an answer: the text; also, if that makes it one number, with a decimal comma as a point, with
    Indian digit groups joined, or with the "and" of a mixed number removed; for "(B) 24" also the letter and the text.

    A comma before three digits separates thousands. `3,5` is both 3.5 and the list 3, 5.
    """
    text = bare(text).replace("{,}", ",")
    if choice := _CHOICE.fullmatch(text):
        return [text, choice[1], choice[2]]
    for pattern, joint in ((_DECIMAL_COMMA, "."), (_INDIAN, ""), (_MIXED_AND, " ")):
        found = list(pattern.finditer(text))
        if len(found) == 1:
            part = found[0][0].replace(" and ", joint) if joint == " " else found[0][0].replace(",", joint)
            other = text[: found[0].start()] + part + text[found[0].end() :]
            if read_number(other):
                return [text, other]
    return [text]


def _near(p: Fraction, q: Fraction) -> bool:
    if p.denominator == q.denominator == 1:
        return p == q  # 20000 is not 20001
    return abs(p - q) <= Fraction(1, 10_000) * max(Fraction(1), abs(p), abs(q))


def _same_number(m: Number, n: Number, rough: bool) -> bool:
    if any(x and y and x != y for x, y in ((m.label, n.label), (m.base, n.base))):
        return False
    if m.percent == n.percent:
        return m.value == n.value or (rough and abs(m.value - n.value) <= abs(n.value) * NEAR)
    part, whole = (m, n) if m.percent else (n, m)
    return whole.value in (part.value, part.value / 100)
