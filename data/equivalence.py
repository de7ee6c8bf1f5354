r"""Whether two answers are the same.

Two answers are *equivalent* under a `kind`:

- "math": the same string after light normalisation; or the same number, compared as exact fractions
  (1/2 = 0.5, but 0.333 is not 1/3); or equal by math-verify with either one as the gold answer, since
  `verify(gold, target)` is not symmetric. Degrees and a leading `x =` are ignored. `50\%` equals
  both 50 and 0.5. A number base counts where both name one: 52_8 is not 52_9; so does a unit: 5 cm is not 5 m, though
  either is 5. Words that make another number or a bound count always: neither "5 squared" nor "at most 5" is 5.
- "numbers": the same unordered list of numbers. Integers must be equal; other numbers may differ by
  1e-4 * max(1, |value|), since gold answers are rounded. A percentage stands for the number as written (50% is 50):
  the benchmarks' lists are plain numbers. "1,000" is one number, and so is "30,300"; "30, 300" is two. "3 5" and
  "12 of 20" are no list, as nothing tells which number is meant.

Equivalence is symmetric. It is transitive but where one answer leaves out what two others name differently (5, x = 5,
y = 5; 5, 5 feet, 5 inches; likewise base, percent) and where tolerances add up.

Sympy can hang inside C code, where no Python timeout reaches it, so `Grader` runs math-verify in processes
that it kills. A pair that ran out of time, or whose process died, is None: neither equivalent nor different.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import time
from collections import deque
from collections.abc import Iterable, Sequence
from fractions import Fraction
from multiprocessing.connection import Connection, wait
from typing import Literal, NamedTuple

Kind = Literal["math", "numbers"]
Pair = tuple[str, str]

MAX_ANSWER_CHARS = 500  # beyond it, text is a runaway response: compared as a string, never parsed
STARTUP_SECONDS = 120.0  # a worker imports sympy: 1-2 s, more on a busy machine
UNSIGNED = r"(?:\d{1,3}(?:,\d{3})++(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"

# ---- reading: light normalisation, numbers ----

_SYMBOLS = {"\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u03c0": r"\pi "}
_SYMBOLS |= {"\u221e": r"\infty ", "\u222a": r"\cup ", "\u2264": r"\le ", "\u2265": r"\ge "}
_SYMBOLS |= {"\u221a": r"\sqrt ", "\u00b0": r"^\circ "}
_UNICODE = str.maketrans(_SYMBOLS)
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r",\\!\s*|\{,\}", ","),  # 10,\!080 and 1{,}000
        (r"\\!|\\?\$|\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])|\s", " "),  # not the row end "\\ " of a matrix
        (r"(?<![\w)\]])\*\*(.+?)\*\*", r"\1"),  # bold, but not x**2 + y**2
        (r"\*\*", "^"),
        (r"\bper cent\b", "percent"),
        (r"\^\s?\{?\s?\\circ\s?\}?|\\degree(?![A-Za-z])", " "),
        (r"(?<=\d)\s*i(?![A-Za-z])", " i"),  # math-verify takes the i of 3i and of "3 i" for two symbols
        (r"\\varnothing(?![A-Za-z])|∅", r"\\emptyset "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*(\d)", r"\\frac{\1}"),  # \frac43, \frac 59
        (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),  # \frac9{19} is done by now, \frac{270}7 is not
    )
]
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textrm|textbf|mathbf)\s?\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[\d}%])\s*\\(?:text|mbox|mathrm|textrm)\s?\{[^{}]*\}(?:\^\{?[23]\}?)?\s*$")
_NUMBER = re.compile(
    r"(?<![\w)])(?<!\d\.)(?P<sign>-?)(?:(?P<whole>\d{1,9})\s+(?=\d{1,9}/))?"
    rf"(?P<top>{UNSIGNED})(?:\s?/\s?(?P<bottom>{UNSIGNED}))?"
    r"(?:(?:\s*\\(?:times|cdot)\s*10\^\{?|[eE])(?P<exponent>[-+]?\d{1,3})\}?(?!\d))?"
    r"(?:_\{?(?P<base>\d{1,2})\}?)?(?P<percent>\s*\\?%|\s+percent\b)?"
)
_LABEL = re.compile(r"([A-Za-z][A-Za-z ]{0,40}?)\s*[=:]\s*")
_ARITHMETIC = re.compile(r"\s*(?:[-+*/^x]|\\times|\\cdot)\s*\d")
_AREA = re.compile(r"\b(?:[ckm]?m|in|ft|[a-z]{3,})\^\{?[23]\}?")
_UNIT_WORD = re.compile(
    r"(?!(?:and|or|not|plus|minus|negative|times|infinity|percent|sqrt|pi|sin|cos|tan|log|mod)$)"
    r"(?:[a-z]{3,}|a|an|of|in|is|it|he|to|us|cm|mm|km|kg|ft|yd|oz|lb|ml|hr|rs|sq|cu|[ap]\.?m)",
    re.I,
)

# Of each unit its name, then its other spellings without the plural's s. "5 more" contradicts "5 fewer" as units do.
_SPELLINGS = """
    mm millimeter millimetre; cm centimeter centimetre; metre meter; km kilometer kilometre
    inch inches; foot feet ft; yard yd; mile
    second sec; minute min; hour hr; day; week; month; year yr; am; pm
    dollar usd; cent; euro; rupee rs
    gram; kg kilogram kilo; ounce oz; pound lb; ton tonne; liter litre; ml milliliter millilitre
    degree; radian; more; less fewer
"""
_UNITS = {spelling: names.split()[0] for names in re.split(r"[;\n]", _SPELLINGS) for spelling in names.split()}
_UNIT_NAME = re.compile(
    r"(?:\b(?P<before>square|sq|cubic|cu)\.? )?(?<![\\A-Za-z])(?P<name>[ap]\.m|[a-z]+)(?![A-Za-z])"
    r"(?: ?\^ ?\{?(?P<power>[23])| (?P<after>squared|cubed)\b)?",
    re.I,
)
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}
_SHORT_UNIT = re.compile(  # m and in, which may also be a variable and a word: in \text{} or after a bare number
    r"(\\(?:text|mbox|mathrm|textrm)\s?\{\s?|^(?:[A-Za-z]\s?=\s?)?[-\d.,/\s]+)(m|in)(?=/|\.?\}|\.?\s?(?:\^\{?[23]\}?)?$)"
)
_CHANGES = {
    "at_least": r"at least|or (?:more|greater|above|over)|no (?:less|fewer) than",
    "at_most": r"at most|or (?:less|fewer|below|under)|no (?:more|greater) than|up to",
    "above": r"(?:more|greater|larger|higher) than|(?:above|exceeding|over)(?= -?\d)",
    "below": r"(?:less|fewer|smaller|lower) than|(?:below|under)(?= -?\d| zero)",
    "cube_root": "cube root(?: of)?",
    "root": "square root(?: of)?|root of",
    "square": r"square of|(?:(?<=\d)|(?<=\d ))squared",
    "cube": r"cube of|(?:(?<=\d)|(?<=\d ))cubed",
    "double": "twice|doubled?",
    "triple": "thrice|tripled?",
    "part": "half|halves|(?:third|quarter) of|reciprocal|inverse",
    "factorial": "factorial",
} | {word: f"{word}s?" for word in ["dozen", "hundred", "thousand", "million", "billion"]}
_CHANGE = re.compile(r"\b(?:" + "|".join(f"(?P<{name}>{words})" for name, words in _CHANGES.items()) + r")\b", re.I)

_NEXT_EQUATION = re.compile(rf"(=\s*-?{UNSIGNED}(?:\s+[A-Za-z]+)?)\s+(?=[A-Za-z]\w*\s*=)")  # x = 3 y = 5
_ASIDE = re.compile(r"\bfor \d+ [A-Za-z]+|(?<=[A-Za-z}])\s?\^\{?[23]\}?")  # 30 dollars for 2 tickets; cm^2
_HEADING = re.compile(r"^\s*[A-Za-z][\w ]*:(?=\s)")  # Number 1: 33


class Number(NamedTuple):
    """An answer that is one number."""

    value: Fraction
    percent: bool
    label: str  # the variable of "x = 5", or ""
    base: str  # the base of 52_8, or ""


def clean(text: str) -> str:
    """LaTeX and Unicode spellings of the same thing brought to one spelling, still LaTeX."""
    text = text.translate(_UNICODE)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".").strip()


def normalise(text: str) -> str:
    """A string that equal answers often share; words lose their case, (c) becomes C."""
    if len(text) > MAX_ANSWER_CHARS:
        return text.strip()
    text = clean(text)
    plain = _TEXT.sub(r"\1", text).strip()
    if choice := re.fullmatch(r"\(([A-Za-z])\)", plain):
        return choice[1].upper()
    # A space stays if without it two numbers would be one: "3 5" is not 35, "1, 234" is not 1,234.
    plain = re.sub(r"(?<!\d)(?<!\d,)\s+|\s+(?!\d)|(?<=\d,)\s+(?!\d{3}(?!\d))", "", plain)
    return plain.casefold() if len(plain) > 1 and is_words(text) else plain


def is_words(text: str) -> bool:
    r"""Whether a clean text is words, so that math-verify may not read it as a product: eat = tea there.

    Two or three bare letters may be such a product; in `\text{}` they are a word.
    """
    plain = _TEXT.sub(r"\1", text).strip()
    words = re.split(r"[ -]+", plain.strip("()"))
    if not all(re.fullmatch(r"[A-Za-z']+", word) for word in words):
        return False
    bare = len(plain) == 1 or (min(map(len, words)) > 1 and max(map(len, words)) > 3)
    return bare or _TEXT.fullmatch(text) is not None


def _plain_fractions(text: str) -> str:
    r"""`137 \frac{1}{2}` becomes `137 1/2`."""
    number = r"-?\d+(?:\.\d+)?"
    text = re.sub(r"(?<=\d)\s*\\frac", r" \\frac", text)
    return re.sub(rf"\\frac\{{\s?({number})\s?\}}\{{\s?(\d+(?:\.\d+)?)\s?\}}", r"\1/\2", text)


def _value(number: re.Match[str]) -> Fraction | None:
    top, bottom = (Fraction((number[part] or "1").replace(",", "")) for part in ("top", "bottom"))
    if bottom == 0:
        return None
    size = int(number["whole"] or 0) + top / bottom * Fraction(10) ** int(number["exponent"] or 0)
    return -size if number["sign"] else size


def _spoken(text: str) -> str:
    r"""A clean text with the words in `\text{}` as words, single spaces, and the units m and in written out."""
    text = _SHORT_UNIT.sub(lambda short: short[1] + {"m": "metre", "in": "inch"}[short[2]], _plain_fractions(text))
    return " ".join(_TEXT.sub(r" \1", text).split())


def read_units(text: str) -> set[str]:
    r"""The known units that an answer names, as "foot" or "foot2"; `\$` or an unpaired `$` is the dollar."""
    found = {"dollar"} if r"\$" in text or text.count("$") % 2 else set()
    for unit in _UNIT_NAME.finditer(_CHANGE.sub("", _spoken(clean(text)))):
        word = unit["name"].lower().replace(".", "")
        if name := _UNITS.get(word) or _UNITS.get(word.removesuffix("s")):
            power = unit["power"] or _POWERS.get((unit["before"] or unit["after"] or "").lower(), "")
            found.add(name + power)
    return found


def read_changes(text: str) -> set[str]:
    """What the words of an answer make of its number: a bound, a square, thousands."""
    return {str(change.lastgroup) for change in _CHANGE.finditer(_spoken(clean(text)))}


def read_number(text: str) -> Number | None:
    """The number that an answer names, with an optional `x =` before it and words or a unit around it."""
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = clean(text)
    spoken, changes = _CHANGE.subn(" ", _spoken(text))
    text = spoken if changes else _plain_fractions(_UNIT.sub("", text))
    label = _LABEL.match(text)
    rest = text[label.end() :] if label else text
    number = _NUMBER.search(rest)
    value = _value(number) if number else None
    if number is None or value is None:
        return None
    before, after = rest[: number.start()], rest[number.end() :]
    if re.match(r"(?![ckm]m\b|kg\b)[A-Za-z]", after):
        return None  # 2x, 5ab
    around = _AREA.sub("feet", f"{before} {after}").split()
    if not all(_UNIT_WORD.fullmatch(word.strip(".,'")) for word in around):
        return None
    name = label[1] if label and len(label[1]) == 1 else ""
    return Number(value, bool(number["percent"]), name, number["base"] or "")


def read_numbers(text: str) -> list[Fraction]:
    """One number from each part of a list, sorted; empty if there is none or a part is arithmetic or has two."""
    if len(text) > MAX_ANSWER_CHARS:
        return []
    text = _plain_fractions(clean(text))
    text = re.sub(rf"(?<![\d.,]){UNSIGNED}", lambda number: number[0].replace(",", ""), text)
    text = _NEXT_EQUATION.sub(r"\1, ", _ASIDE.sub("", text))
    values = []
    for part in re.split(r",|;|&|\\\\|\band\b|\bor\b", text):
        part = _HEADING.sub("", part.rpartition("=")[2])  # "3 + 4 = 7" states 7
        number = _NUMBER.search(part)
        value = _value(number) if number else None
        if number and (
            value is None
            or _ARITHMETIC.match(part, number.end())
            or _NUMBER.search(part, number.end())
            or _CHANGE.search(part)
        ):
            return []
        values += [] if value is None else [value]
    return sorted(values)


# ---- equivalence ----


def _quick(a: str, b: str, kind: Kind) -> bool | None:
    """What can be decided without math-verify; None if it cannot."""
    if (same := normalise(a)) and same == normalise(b):
        return True
    if kind == "numbers":
        x, y = read_numbers(a), read_numbers(b)
        return 0 < len(x) == len(y) and all(map(_near, x, y))
    if max(len(a), len(b)) > MAX_ANSWER_CHARS or not a.strip() or not b.strip():
        return False
    units, others = read_units(a), read_units(b)
    if not (units <= others or others <= units):
        return False
    m, n = read_number(a), read_number(b)
    if (m or n) and read_changes(a) != read_changes(b):
        return False
    if m and n:
        return _same_number(m, n)
    words = is_words(clean(a)) + is_words(clean(b))
    return False if words == 2 or (words == 1 and (m or n)) else None


def _near(p: Fraction, q: Fraction) -> bool:
    if p.denominator == q.denominator == 1:
        return p == q  # 20000 is not 20001
    return abs(p - q) <= Fraction(1, 10_000) * max(Fraction(1), abs(p), abs(q))


def _same_number(m: Number, n: Number) -> bool:
    if any(x and y and x != y for x, y in ((m.label, n.label), (m.base, n.base))):
        return False
    if m.percent == n.percent:
        return m.value == n.value
    part, whole = (m, n) if m.percent else (n, m)
    return whole.value in (part.value, part.value / 100)


def _serve(connection: Connection, timeout_seconds: float) -> None:
    """A worker: answers one pair after another until its parent closes the pipe or dies."""
    import logging

    from math_verify import (
        ExprExtractionConfig,
        LatexExtractionConfig,
        parse,
        verify,
    )

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    config = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    verify(parse("$x+1$", config, parsing_timeout=None), parse("$1+x$", config, parsing_timeout=None))  # loads the rest
    connection.send("ready")
    while True:
        try:
            pair: Pair = connection.recv()
        except EOFError:
            return
        # The parent kills a slow worker. If the parent is gone, the alarm's default action does, even in C.
        signal.alarm(int(timeout_seconds) + 10)
        a, b = (parse(f"${clean(text)}$", config, fallback_mode="no_fallback", parsing_timeout=None) for text in pair)
        equal = verify(a, b, timeout_seconds=None) or verify(b, a, timeout_seconds=None)
        signal.alarm(0)
        connection.send(bool(equal))


class _Worker:
    def __init__(self, timeout_seconds: float) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy CUDA and thread state
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, timeout_seconds), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False
        self.pair: Pair | None = None
        self.deadline = time.monotonic() + STARTUP_SECONDS

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Grader:
    """Decides whether answers are equivalent, and remembers each pair in either order.

    Worker processes start with the first pair that needs math-verify. A worker imports the main module again,
    so a script needs the usual `if __name__ == "__main__":`.
    """

    def __init__(self, timeout_seconds: float = 5.0, workers: int = 2) -> None:
        if timeout_seconds <= 0 or workers < 1:
            raise ValueError(f"timeout_seconds={timeout_seconds} and workers={workers} must be positive")
        self.timeout_seconds = timeout_seconds
        self.max_workers = workers
        self._workers: list[_Worker] = []
        self._known: dict[tuple[Kind, str, str], bool | None] = {}

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        while self._workers:
            self._workers.pop().kill()

    def forget(self) -> None:
        """Drop what is remembered, so that memory does not grow with the number of shards; the workers stay."""
        self._known.clear()

    def equivalent(self, pairs: Sequence[Pair], kind: Kind) -> list[bool | None]:
        """One verdict per pair, in order; None if the pair ran out of time or its worker died."""
        keys = [(kind, min(pair), max(pair)) for pair in pairs]
        slow: list[Pair] = []
        for key in dict.fromkeys(keys):
            if key not in self._known:
                if (verdict := _quick(key[1], key[2], kind)) is None:
                    slow.append(key[1:])
                else:
                    self._known[key] = verdict
        for pair, verified in self._verify(slow):
            self._known[(kind, *pair)] = verified
        return [self._known[key] for key in keys]

    def _verify(self, pairs: Sequence[Pair]) -> Iterable[tuple[Pair, bool | None]]:
        queue = deque(pairs)
        while queue or any(worker.pair for worker in self._workers):
            self._workers = [w for w in self._workers if w.pair or not w.ready or w.process.is_alive()]
            while len(self._workers) < min(self.max_workers, len(queue)):
                self._workers.append(_Worker(self.timeout_seconds))
            for worker in self._workers:
                if worker.ready and worker.pair is None and queue:
                    worker.pair = queue.popleft()
                    worker.deadline = time.monotonic() + self.timeout_seconds
                    worker.connection.send(worker.pair)
            waiting = [worker for worker in self._workers if worker.pair or not worker.ready]
            patience = min(worker.deadline for worker in waiting) - time.monotonic()
            heard = wait([worker.connection for worker in waiting], max(0.0, patience))
            for worker in waiting:
                if worker.connection in heard or time.monotonic() >= worker.deadline:
                    yield from self._hear(worker)

    def _hear(self, worker: _Worker) -> Iterable[tuple[Pair, bool | None]]:
        """Takes a worker's message; a worker that is late or dead is removed, and its pair is None."""
        try:
            message = worker.connection.recv() if worker.connection.poll() else None
        except (EOFError, ConnectionResetError):
            message = None
        pair, worker.pair = worker.pair, None
        if message is None:
            worker.kill()
            self._workers.remove(worker)
            if pair is None:
                code = worker.process.exitcode
                raise RuntimeError(
                    f"a math-verify worker ended with exit code {code}; expected: ready within "
                    f"{STARTUP_SECONDS:.0f} s. See its traceback above; try `python -c 'import math_verify'`"
                )
        if pair is None:
            worker.ready = True
        else:
            yield pair, message
