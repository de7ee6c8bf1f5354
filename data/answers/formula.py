r"""Formulas compared by math-verify: does a response's answer say what the gold answer says?

Imports sympy, which takes a second or two and can hang inside C code: only the grader's processes import this.

math-verify decides. We add three rules, since verdicts also choose what is trained on (measurements: docs/log.md, "what
counts as the same answer"):

- A formula is read whole or not at all. `math_verify.parse` looks for anything in a text that it can read, down to its
  last number; here the whole text goes through the same grammar, and an unreadable one equals nothing.
- Decimals are exact fractions, and differences are computed to 50 digits: 2^{-64} is not 2^{-63}. A decimal with 15
  digits or more counts as a computer's rounding of an exact value: 2.2000000000000002 is 2.2.
- Distinctions that parsing loses: (1,3) is a tuple and \{1,3\} a set; an equation does not equal its right-hand side,
  unless the equation is the gold answer or its left-hand side is a name.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify.grader import is_relation, should_treat_as_complex, take_last_relation, verify
from sympy import (
    Add,
    And,
    Basic,
    Eq,
    Expr,
    FiniteSet,
    Float,
    I,
    Intersection,
    Interval,
    Number,
    Product,
    Rational,
    Sum,
    Symbol,
    Tuple,
    UnevaluatedExpr,
    Union,
)
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from data.answers.equivalence import bare
from data.answers.numbers import LONG, NEAR
from data.answers.spelling import clean
from data.answers.units import without_unit

DIGITS = 50
EQUAL = Rational(1, 10**40)  # relative difference; NEAR if a decimal is long
# values for up to eight names: formulas whose values differ are different; the first two points are positive
SAMPLE_POINTS = [
    [Rational(sign * (prime + shift), 7 + shift) for prime in (2, 3, 5, 11, 13, 17, 19, 23)]
    for sign, shift in ((1, 0), (1, 4), (-1, 2))
]
_NORMALISED = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none")
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:and|or)\b)[A-Za-z]{4,}|[?@#]")
_CONVERTED = ConversionConfig(lowercase_symbols=False)  # R is not r
_NOTHING = re.compile(
    r"(?:\\text\s?\{\s?)?(?:there (?:is|are) )?(?:no (?:real )?solutions?|(?:the )?empty set)\s?\}?", re.I
)
_SIGNS = [
    (r"greater than or equal to|at least|no less than|not less than", r"\ge"),
    (r"less than or equal to|at most|no (?:more|greater) than|not (?:more|greater) than", r"\le"),
    (r"(?:greater|more|larger) than", ">"),
    (r"(?:less|fewer|smaller) than", "<"),
    (r"except(?: for)?|other than|but|not equal to|not", r"\ne"),
]
_SAID_BOUND = re.compile(
    r"(?:all (?:real )?(?:numbers|values)(?: of)?(?: that are)?|(?:all )?(?P<name>[a-z])(?: (?:is|must be))?) "
    rf"(?:(?P<bound>{'|'.join(words for words, _ in _SIGNS)})) (?P<number>-?\d[\d./]*)"
)
_TURNED = re.compile(r"([\[\]])([^\[\]]+,[^\[\]]+)([\[\]])")
_BUILDER = re.compile(r"\\\{\s*[a-z]\s*(?:\\in\s?\\(?:mathbb\{R\}|mathbb R))?\s*(?:\\mid|:|\||\\vert)\s*(.+?)\s*\\\}")
_REALS = re.compile(r"^\s*[a-z]\s*\\in\s?\\mathbb\{R\}\s*,\s*(?=[a-z])|,\s*[a-z]\s*\\in\s?\\mathbb\{R\}\s*$")
_JOINT = re.compile(r"\s*(?:\\text\s?\{\s*)?\b(and|or)\b(?:\s*\})?\s*|\s*(\\wedge|\\land|\\lor|\\vee|\\cup)\s*")
_BOUND = re.compile(r"[<>]|\\[lg]et?(?![A-Za-z])")
_TAG = re.compile(r"\\(?:begin|end|text|mbox|mathrm|textrm|textbf|mathbf|mathbb|operatorname)\s?\{[^{}]*\}")
_ROWS = re.compile(r"\\begin\{(cases|aligned?|gathered|array|align\*?)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.S)


def same_formula(answer: str, gold: str) -> bool:
    """Whether an answer is the gold answer, both as written. May hang: run it in a process that can be killed."""
    answer, gold = _latex(bare(answer)), _latex(bare(gold))
    if {_shape(answer), _shape(gold)} == {"set", "tuple"} or _ratio(answer) != _ratio(gold):
        return False
    mine, theirs = _read(answer), _read(gold)
    if mine is None or theirs is None:
        return False
    mine, theirs = _point(mine, theirs), _point(theirs, mine)
    if isinstance(theirs, Eq) and not theirs.free_symbols:
        theirs = theirs.rhs  # 5 + 3 = 8
    if isinstance(theirs, And) and all(isinstance(part, Eq) for part in theirs.args) and not is_relation(mine):
        theirs = take_last_relation(theirs).rhs  # 3 + 4 = x = 7
    if isinstance(theirs, Eq) and not isinstance(mine, Relational) and not _names(theirs.lhs):
        return False
    if _scalar(mine) and _scalar(theirs):
        tolerance = Rational(NEAR) if LONG.search(answer) or LONG.search(gold) else EQUAL
        if (verdict := _near(mine, theirs, tolerance)) is not None:
            return verdict
    return bool(verify([theirs], [mine], numeric_precision=DIGITS, allow_set_relation_comp=True, timeout_seconds=None))


def _latex(text: str) -> str:
    """A text prepared for parsing: cleaned, without a unit at its end, with rows of cases and aligned as a list."""
    text = without_unit(clean(text))
    if _NOTHING.fullmatch(text):
        return r"\emptyset"
    if bound := _SAID_BOUND.fullmatch(text):
        sign = next(sign for words, sign in _SIGNS if re.match(words, bound["bound"]))
        return f"{bound['name'] or 'x'} {sign} {bound['number']}"
    if rows := _ROWS.search(text):
        lines = [line.replace("&", "").strip(" ,") for line in rows[2].split("\\\\")]
        if all(line.count("=") == 1 for line in lines if line):  # the pieces of a function have conditions
            text = text[: rows.start()] + ", ".join(line for line in lines if line) + text[rows.end() :]
    if interval := _TURNED.fullmatch(text):  # ]2, 5[
        text = f"{'(' if interval[1] == ']' else '['}{interval[2]}{')' if interval[3] == '[' else ']'}"
    text = _REALS.sub("", _BUILDER.sub(r"\1", text))
    return text if r"\begin" in text else text.replace(" & ", ", ")


@lru_cache(maxsize=512)
def _read(text: str) -> Any:
    """The whole text as a sympy formula; None if it is not one."""
    if _WORD.search(_TAG.sub(" ", text)):
        return None  # a word is not a product of its letters
    if (joints := list(_JOINT.finditer(text))) and (parts := _bounds(text, joints)) is not None:
        return parts
    complex_ = should_treat_as_complex(text)
    try:
        found = latex2sympy(
            text,
            is_real=not complex_,
            convert_degrees=False,
            normalization_config=_NORMALISED,
            conversion_config=_CONVERTED,
        )
        if complex_ and isinstance(found, Basic) and not found.has(Sum, Product):  # in these, i is an index
            found = found.xreplace({name: I for name in found.free_symbols if name.name == "i"})
    except Exception:  # the parser raises Exception itself, and sympy many kinds
        return None
    decimals = {each: Rational(str(each)) for each in found.atoms(Float)} if isinstance(found, Basic) else {}
    return found.xreplace(decimals) if decimals else found


def _bounds(text: str, joints: list[re.Match[str]]) -> Any:
    """The set that bounds joined by "and" or "or" describe: x < 1 or x > 3; None if the text is anything else."""
    ends = [0, *(joint.end() for joint in joints)]
    starts = [*(joint.start() for joint in joints), len(text)]
    parts = [text[a:b] for a, b in zip(ends, starts, strict=True)]
    joins = {joint[1] or joint[2] for joint in joints}
    if not all(map(_BOUND.search, parts)) or not (joins <= _AND or joins <= _OR):
        return None
    found = [_read(part) for part in parts]
    try:
        sets = [each.as_set() for each in found]
        return (Intersection if joins <= _AND else Union)(*sets)
    except Exception:  # only relations have as_set, and sympy raises many kinds
        return None


_AND, _OR = {"and", r"\wedge", r"\land"}, {"or", r"\lor", r"\vee", r"\cup"}


def _ratio(text: str) -> bool:
    return ":" in text.rpartition("=")[2]


def _shape(text: str) -> str:
    r""" "set" if \{ \} enclose the whole text, "tuple" if ( ) do and it has a comma, else ""."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return "" if _shape(text[2:-2].strip()) else "set"  # {(1, 2)} counts as (1, 2)
    depth = 0
    for i, sign in enumerate(text):
        depth += (sign in "([") - (sign in ")]")
        if depth == 0:
            return "tuple" if sign == ")" and i + 1 == len(text) and "," in text else ""
    return ""


def _point(formula: Any, other: Any) -> Any:
    """(x, y) = (3, 4) and, beside a tuple, x = 3, y = 4 as the tuple of their values, in the order of the names."""
    if isinstance(formula, Eq) and isinstance(formula.lhs, Tuple):
        return formula.rhs
    if isinstance(formula, FiniteSet):
        if len(formula.args) == 1 and isinstance(other, (Interval, Tuple)):
            return formula.args[0]
        pairs = {each.lhs: each.rhs for each in formula.args if isinstance(each, Eq) and each.lhs.is_Symbol}
        if len(pairs) == len(formula.args) and isinstance(other, (Tuple, Interval)):
            return Tuple(*(pairs[name] for name in sorted(pairs, key=str)))
    return formula


def _names(side: Basic) -> bool:
    """Whether the left-hand side of an equation only names the right-hand side: x, f(x), AB/BC, P(A), n!."""
    return not side.has(Add) and bool(side.atoms(Symbol) or side.atoms(AppliedUndef)) and not side.atoms(Number) - {-1}


def _scalar(formula: Any) -> bool:
    return isinstance(formula, Expr) and not formula.has(UnevaluatedExpr)


def _near(a: Expr, b: Expr, tolerance: Rational) -> bool | None:
    """Whether two expressions have the same values; None if numbers cannot decide that."""
    names = sorted(a.free_symbols | b.free_symbols, key=str)
    if len(names) > 8:
        return None
    same = []
    for numbers in SAMPLE_POINTS[: len(SAMPLE_POINTS) if names else 1]:
        at = dict(zip(names, numbers, strict=False))
        try:
            x, y = (side.xreplace(at).doit().evalf(DIGITS) for side in (a, b))
            if not (x.is_number and y.is_number and x.is_finite and y.is_finite):
                return None
            same.append(bool(abs(x - y) <= tolerance * max(abs(x), abs(y))))
        except Exception:  # sympy raises many kinds
            return None
    if all(same):
        return True
    return False if not all(same[:2]) else None  # if only negative values differ, math-verify decides
