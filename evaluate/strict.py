r"""The second opinion: strict extraction and the normalised-string rule for MATH. Pure, no sympy.

Source: Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH Dataset" (arXiv 2103.03874): both
answers are brought to one spelling and compared as strings. As there, a percent sign, a unit in `\text{ }` at the end
and a short `x =` are dropped (5 cm is 5 m, x = 5 is y = 5), only the decimal 0.5 becomes a fraction, and trailing zeros
and thousands' commas stay (5.0 is not 5). Two deviations: all LaTeX spacing commands are removed, not `\!` alone, and a
space stays if without it two numbers would be one: "3 5" is not 35, "1, 234" is not 1,234.

Nothing here is shared with data/answers/: a second opinion that normalises as the first does repeats its errors.
"""

from __future__ import annotations

import re

from data.answers.extract import Extracted

STATED = ("boxed", "hashes", "phrase")  # rules of `extract` that find an explicit answer, not a last number in the text

_STEPS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)(?![A-Za-z])", ""),
        (r"(?<!\\)\\[!,;: ]|\\q?quad(?![A-Za-z])|~", ""),  # not the row end "\\ " of a matrix
        (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
        (r"\^\{?\\circ\}?", ""),
        (r"\\?[$%]", ""),
        (r"\\text\{ [^{}]*\}(?:\^\{?[23]\}?)?\s*$", ""),  # a unit; \text{east}, without a space, is an answer
        (r"(?<!\d)\.(?=\d)", "0."),
        (r"^\s*[^\s=]{1,2}\s*=([^=]*)$", r"\1"),  # x = 5, but not p + q = 5
        (r"(?<!\d)(?<!\d,)\s+|\s+(?!\d)|(?<=\d,)\s+(?!\d{3}(?!\d))", ""),
        (r"\\sqrt(\w)", r"\\sqrt{\1}"),
        (r"\\frac(\w)(?=[\w{])", r"\\frac{\1}"),
        (r"(\\frac\{\w+\})(\w)", r"\1{\2}"),
        (r"^0\.5$", r"\\frac{1}{2}"),
        (r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}"),
    )
]


def normal_form(answer: str) -> str:
    """The one spelling that the strict rule compares, still LaTeX; empty if nothing is left."""
    for pattern, replacement in _STEPS:
        answer = pattern.sub(replacement, answer)
    return answer


def strict_equal(answer: str, gold: str) -> bool:
    """Whether two answers have the same, non-empty normal form."""
    return (form := normal_form(answer)) != "" and form == normal_form(gold)


def strict_correct(extracted: Extracted | None, gold: str) -> bool:
    """The strict verdict: the response states an answer explicitly, and it is `gold` by the strict rule."""
    return extracted is not None and extracted.rule in STATED and strict_equal(extracted.answer, gold)
