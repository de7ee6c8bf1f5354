r"""Final answers: where a response states one, and whether two of them are the same.

`extract` tries four rules in this order and returns the first that finds something: the last `\boxed{...}`,
the last line `#### x`, the last "answer is x" / "Answer: x", the last number. If the last box is never closed
(a truncated response), the box rule yields nothing.

Two answers are *equivalent* under a `kind`:

- "math": the same string after light normalisation; or the same number, compared as exact fractions
  (1/2 = 0.5, but 0.333 is not 1/3); or equal by math-verify with either one as the gold answer, since
  `verify(gold, target)` is not symmetric. Units, degrees and a leading `x =` are ignored. `50\%` equals
  both 50 and 0.5. A number base counts where both name one: 52_8 is not 52_9.
- "numbers": the same unordered list of numbers, each within 1e-4 * max(1, |value|). A percentage stands
  for the number as written (50% is 50): the benchmarks' lists are plain numbers. "1,000" is one number, and
  so is "30,300"; "30, 300" is two.

Sympy can hang inside C code, where no Python timeout reaches it, so `Grader` runs math-verify in processes
that it kills. A pair that ran out of time, or whose process died, is None: neither equivalent nor different.
"""

import multiprocessing
import re
import signal
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing.connection import Connection, wait
from typing import Literal, NamedTuple

Kind = Literal["math", "numbers"]
Rule = Literal["boxed", "hashes", "phrase", "last_number"]
Pair = tuple[str, str]

MAX_ANSWER_CHARS = 500  # beyond it, text is a runaway response: compared as a string, never parsed
STARTUP_SECONDS = 120.0  # a worker imports sympy: 1-2 s, more on a busy machine
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})++(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"


@dataclass(frozen=True)
class Extracted:
    """`answer` is `response[start:end]`."""

    answer: str
    start: int
    end: int
    rule: Rule


# ---- extraction: every pattern is bounded, and only the last few candidates are examined ----

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,4}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(
    r"\banswers?(?: to (?:the|this) (?:problem|question))?[\s*_]{0,6}(?::|=|\bis\b|\bare\b)[\s*_:]{0,6}", re.I
)
_SENTENCE_END = re.compile(r"\.(?!\d)|[?\n]|,?\s(?:because|since|so|which|where|but)\b")
_HEADING = re.compile(r"(?:the|step|part|case|solution|explanation|final|answer|conclusion)\b|.*:$", re.I)
_LAST_NUMBER = re.compile(
    r"(?:(?<![\w)}])[-\u2212])?\$?"
    rf"(?:\\[dt]?frac\{{-?\d+\}}\{{\d+\}}|(?<!\w)(?<!\d\.){_UNSIGNED}(?:/\d+)?)(?:\\?%)?"
)
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"), ('"', '"'))


def extract(response: str) -> Extracted | None:
    """The final answer of a response and where it stands, or None. Time is linear in the length."""
    rules: tuple[Rule, ...] = ("boxed", "hashes", "phrase", "last_number")
    for rule, find in zip(rules, (_boxed, _hashes, _phrase, _last_number), strict=True):
        span = find(response)
        if span is not None:
            return Extracted(response[slice(*span)], *span, rule=rule)
    return None


def _boxed(response: str) -> tuple[int, int] | None:
    box = _last(_BOX.finditer(response))
    if box is None:
        return None
    if not response.startswith("{", box.end()):
        token = re.compile(r"[^\s{}$]{1,100}").match(response, box.end())  # "\boxed 5"
        return _trim(response, *token.span()) if token else None
    depth = 0
    for brace in _BRACE.finditer(response, box.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)  # an escaped brace is 0
        if depth == 0:
            return _trim(response, box.end() + 1, brace.start())
    return None


def _hashes(response: str) -> tuple[int, int] | None:
    marker = response.rfind("####")
    end = response.find("\n", marker)
    span = _trim(response, marker + 4, len(response) if end < 0 else end) if marker >= 0 else None
    # "#### Step 2:" is a Markdown heading, not an answer.
    return None if span is None or _HEADING.match(response[span[0] : span[1]][:100]) else span


def _phrase(response: str) -> tuple[int, int] | None:
    for phrase in reversed(deque(_PHRASE.finditer(response), maxlen=8)):
        limit = phrase.end() + MAX_ANSWER_CHARS
        stop = _SENTENCE_END.search(response, phrase.end(), limit)
        if stop is None and len(response) > limit:
            continue
        span = _trim(response, phrase.end(), stop.start() if stop else len(response))
        text = response[slice(*span)] if span else ""
        # "Answer: To find the total we add 3 and 5" opens a solution; words after a number are units.
        words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text)
        if text and not _PHRASE.search(text) and (len(words) <= 5 or not text[0].isalpha()):
            return span
    return None


def _last_number(response: str) -> tuple[int, int] | None:
    digit = _last(re.finditer(r"\d(?=\D|$)", response))
    if digit is None:
        return None
    window = max(0, digit.end() - 120)  # keeps the time linear; a longer number is a runaway response
    number = _last(_LAST_NUMBER.finditer(response, window, digit.end() + 3))
    return number.span() if number else digit.span()


def _last(matches: Iterable[re.Match[str]]) -> re.Match[str] | None:
    return next(iter(deque(matches, maxlen=1)), None)


def _trim(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Shrinks a span past white space, a final period, Markdown bold and math delimiters."""
    before = None
    while before != (start, end):
        before = (start, end)
        part = text[start:end].rstrip(" \t\r\n.,;:")
        end = start + len(part)
        start = end - len(part.lstrip())
        part = text[start:end]
        for opening, closing in _WRAPPERS:
            inner = part[len(opening) : len(part) - len(closing)]
            if part == opening + inner + closing and opening not in inner and closing not in inner:
                start, end = start + len(opening), end - len(closing)
                break
        else:
            start += 2 if part.startswith("**") else 0
            end -= 2 if end - start >= 2 and part.endswith("**") else 0
    return (start, end) if start < end else None


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
        (r"\^\s?\{?\s?\\circ\s?\}?|\\degree(?![A-Za-z])", " "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*(\d)", r"\\frac{\1}"),  # \frac43, \frac 59
        (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),  # \frac9{19} is done by now, \frac{270}7 is not
    )
]
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textrm|textbf|mathbf)\s?\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[\d}%])\s*\\(?:text|mbox|mathrm|textrm)\s?\{[^{}]*\}(?:\^\{?[23]\}?)?\s*$")
_NUMBER = re.compile(
    r"(?<![\w)])(?<!\d\.)(?P<sign>-?)(?:(?P<whole>\d{1,9})\s+(?=\d{1,9}/))?"
    rf"(?P<top>{_UNSIGNED})(?:\s?/\s?(?P<bottom>{_UNSIGNED}))?"
    r"(?:(?:\s*\\(?:times|cdot)\s*10\^\{?|[eE])(?P<exponent>[-+]?\d{1,3})\}?(?!\d))?"
    r"(?:_\{?(?P<base>\d{1,2})\}?)?(?P<percent>\s*\\?%|\s+percent\b)?"
)
_LABEL = re.compile(r"([A-Za-z][A-Za-z ]{0,40}?)\s*[=:]\s*")
_ARITHMETIC = re.compile(r"\s*(?:[-+*/^]|\\times|\\cdot)\s*\d")
_AREA = re.compile(r"\b(?:[ckm]?m|in|ft|[a-z]{3,})\^\{?[23]\}?")
_UNIT_WORD = re.compile(
    r"(?!(?:and|or|not|plus|minus|negative|half|times|dozen|hundred|thousand|million|billion|infinity|percent"
    r"|sqrt|pi|sin|cos|tan|log|mod)$)(?:[a-z]{3,}|a|an|of|in|is|to|us|cm|mm|km|kg|ft|oz|lb|hr)",
    re.I,
)


class Number(NamedTuple):
    value: Fraction
    percent: bool
    label: str  # the variable of "x = 5", or ""
    base: str  # the base of 52_8, or ""


def clean(text: str) -> str:
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
    # A space between two digits stays: "3 5" is not 35.
    plain = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", plain)
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


def read_number(text: str) -> Number | None:
    """The number that an answer is, with an optional `x =` before it and words or a unit around it."""
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = _plain_fractions(_UNIT.sub("", clean(text)))
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
    """One number from each part of a list, sorted; empty if there is none or a part is mere arithmetic."""
    if len(text) > MAX_ANSWER_CHARS:
        return []
    text = _plain_fractions(clean(text))
    text = re.sub(rf"(?<![\d.,]){_UNSIGNED}", lambda number: number[0].replace(",", ""), text)
    values = []
    for part in re.split(r",|;|&|\\\\|\band\b|\bor\b", text):
        part = part.rpartition("=")[2]  # "3 + 4 = 7" states 7
        number = _NUMBER.search(part)
        value = _value(number) if number else None
        if number and (value is None or _ARITHMETIC.match(part, number.end())):
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
    m, n = read_number(a), read_number(b)
    if m and n:
        return _same_number(m, n)
    words = is_words(clean(a)) + is_words(clean(b))
    return False if words == 2 or (words == 1 and (m or n)) else None


def _near(p: Fraction, q: Fraction) -> bool:
    return abs(p - q) <= Fraction(1, 10_000) * max(Fraction(1), abs(p), abs(q))


def _same_number(m: Number, n: Number) -> bool:
    if (m.label and n.label and m.label != n.label) or (m.base and n.base and m.base != n.base):
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

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        while self._workers:
            self._workers.pop().kill()

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


Verdict = Literal["correct", "wrong", "no_answer", "timeout", "truncated"]


def grade(rows: Sequence[tuple[Extracted | None, str, bool]], kind: Kind, grader: Grader) -> list[Verdict]:
    """The verdict on each (extracted answer, gold, response hit the token limit).

    A response that hit the limit is "truncated" only if it stated no answer: a box, hashes or a phrase count,
    a last number amid a calculation does not. "timeout" is not "wrong": the pair could not be decided.
    """
    verdicts: list[Verdict] = []
    stated = [(x.answer, gold) for x, gold, cut in rows if x and not (cut and x.rule == "last_number")]
    equal = iter(grader.equivalent(stated, kind))
    for extracted, _, truncated in rows:
        if truncated and (extracted is None or extracted.rule == "last_number"):
            verdicts.append("truncated")
        elif extracted is None:
            verdicts.append("no_answer")
        else:
            same = next(equal)
            verdicts.append("timeout" if same is None else "correct" if same else "wrong")
    return verdicts


def clusters(answers: Sequence[str | None], kind: Kind, grader: Grader) -> list[list[int]]:
    """Indices of equivalent answers: largest cluster first, ties by earliest index; None is in no cluster.

    Greedy: an answer joins the first cluster whose first member it equals; an undecided pair is different.
    """
    left = [index for index, answer in enumerate(answers) if answer is not None]
    found: list[list[int]] = []
    while left:
        first = answers[left[0]]
        same = grader.equivalent([(str(first), str(answers[index])) for index in left[1:]], kind)
        found.append([left[0], *(index for index, equal in zip(left[1:], same, strict=True) if equal)])
        left = [index for index, equal in zip(left[1:], same, strict=True) if not equal]
    return sorted(found, key=lambda cluster: (-len(cluster), cluster[0]))
