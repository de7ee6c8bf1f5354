"""Shared by the property tests: numbers of examples, a limit of CPU time, texts like those of models.

`make test` tries few examples, always the same. `--hypothesis-profile=thorough` tries 10,000 of each, others each time:

    python -m pytest tests/unit/test_properties_answers.py --hypothesis-profile=thorough
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

THOROUGH = 10_000  # examples
CLEAR = Path("/proc/self/clear_refs")
COMMON: dict[str, Any] = {
    "deadline": None,  # `within` has limits of CPU time, which other processes do not use up
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("quick", max_examples=25, derandomize=True, database=None, **COMMON)
settings.register_profile("thorough", max_examples=THOROUGH, print_blob=True, **COMMON)


def examples(quick: int) -> settings:
    """This many examples in `make test`; the profile's number if one was requested."""
    asked = settings().max_examples
    return settings(max_examples=quick if asked == settings.get_profile("quick").max_examples else asked)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises AssertionError for a block that takes more CPU time. Code in C that never returns to Python is not
    stopped; regular expressions are."""

    def late(*_: object) -> None:
        raise AssertionError(f"took more than {seconds} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


PIECES = [
    "\\boxed{", "\\fbox {", "{", "}", "####", "\n#### ", "the answer is ", "Answer: ", "final answer", "**",
    "<answer>", "</answer>", "<think>", "</think>", "<|begin_of_thought|>", "[THINK]", "\\frac{", "\\frac12",
    "\\text{", "\\sqrt[3]{", "\\(", "\\)", "\\[", "\\]", "$", "$$", "\\begin{cases}", "\\end{cases}", "\\\\",
    "&", "x = ", "y=", "^", "_", "_{10}", "\\le ", "\\cup", "\\overline{3}", "\\pm", "1", "12", "1,234",
    "1.250,50", "3,5", "18 000", "0", "-", "−", "½", "2²", "%", "\\%", "50%", "€", "\\$", "USD ", "cm",
    " km/h", " hours and ", "12:30", " pm", "1/2", "1/0", "2 to 3", "1e999", "half", "three hundred", "a dozen",
    "point five", "at least ", "squared", "thirds", "(A) ", "(B) 24", "B.", "option C", "C",
    "\nA. one\nB. two\nC. three", " and ", " or ", ", ", "; ", ". ", "? ", "! ", ":", "=", "≈", "<", ">",
    "...", "…", "\n", "\n\n", " ", "\t", "\r\n", "\u200b", "\ufeff", "\u202e", "\x1b[31m", "\x00", "é",
    "是", "答案是", "答案：", "la réponse est ", "la respuesta es ", "Die Antwort ist ", "ответ: ",
    "cannot be determined", "Wait, ", "Actually ", "not ", "wrong", "incorrect", "because ", "so ",
    "therefore ", "is ", "Dr. ", "'", '"', "“", "”", "`", "```", "|", "x^2+1", "\\infty", "[1, 2)",
    "{1, 2}", "(3, 4)", "True", "yes", "No", "Monday", "∪", "π", "🙂", "\ud7ff",
]  # fmt: skip


def pieces() -> st.SearchStrategy[str]:
    """The parts of answers and of the sentences around them, or any characters that UTF-8 can encode."""
    return st.one_of(st.sampled_from(PIECES), st.sampled_from(PIECES), st.text(max_size=6))


@st.composite
def texts(draw: st.DrawFn, most: int = 14) -> str:
    """Some pieces one after the other."""
    return "".join(draw(st.lists(pieces(), max_size=most)))


@st.composite
def long_texts(draw: st.DrawFn) -> str:
    """A few pieces again and again, between others: some 10,000 characters, on which what goes back and forth is
    slow."""
    parts = draw(st.lists(st.lists(pieces(), min_size=1, max_size=3).map("".join), min_size=1, max_size=3))
    room = 10_000 // len(parts)
    body = "".join(part * max(1, room // max(1, len(part))) for part in parts)
    return draw(texts(4)) + body + draw(texts(4))


@contextmanager
def bounded(mib: int) -> Iterator[None]:
    """Raises AssertionError if this process takes more memory than that in the block, where Linux reports it; it can
    never take a terabyte."""
    if not CLEAR.exists():
        yield
        return
    before, limits = _reset_peak(), resource.getrlimit(resource.RLIMIT_AS)
    room = _status("VmSize") + (mib << 20) + (4 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    taken = (_status("VmHWM") - before) >> 20
    assert taken <= mib, f"took {taken} MiB"


def _reset_peak() -> int:
    """Reset the peak of memory; returns the bytes in use now."""
    CLEAR.write_text("5")
    return _status("VmHWM")


def _status(key: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{key}:"))) << 10
