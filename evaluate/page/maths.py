r"""Mathematics in texts: which parts of a text are formulas, and what a browser draws for them.

latex2mathml makes MathML, which browsers draw without scripts and fonts. What it makes of a model's LaTeX cannot be
trusted (`\text{<script>}` becomes an element), so it is read as XML, and only known elements and attributes get
through, as plain data from which the page makes nodes. What cannot be converted stays as the model wrote it.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

MathTree = list[Any]  # [element, {attribute: value}, [children: MathTree or str]]
MathText = str | list[Any]  # a text without formulas, or its pieces: str, or [LaTeX, number of the formula]

MAX_TEXT = 20_000  # characters: a longer text is not searched for formulas
MAX_FORMULA = 1_000  # characters of a formula
MAX_DEPTH = 60  # nested elements
WIDEST = 10.0  # of a space, in any unit, so that no formula breaks the page's layout
NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
CHILDREN = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
TOKENS = {"mi", "mn", "mo", "mtext", "mspace"}
ELEMENTS = {*CHILDREN, *TOKENS, "math", "mrow", "msqrt", "mstyle", "menclose", "mtable", "mtr", "mtd"}
ATTRIBUTES = {
    "display",
    "displaystyle",
    "scriptlevel",
    "mathvariant",
    "stretchy",
    "fence",
    "form",
    "separator",
    "symmetric",
    "largeop",
    "movablelimits",
    "accent",
    "accentunder",
    "notation",
    "linethickness",
    "columnalign",
    "rowspacing",
    "columnspacing",
    "columnlines",
    "rowlines",
    "lspace",
    "rspace",
    "minsize",
    "maxsize",
    "width",
}
LEFT_OUT = {"mathcolor", "mathbackground"}  # the page has its own colours
_VALUE = re.compile(r"[A-Za-z0-9 .%+\-]{0,60}")
_ENTITY = re.compile(r"&#?\w+;")  # XML would resolve it, but the page shows what was written
_SIZE = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_FORMULA = re.compile(
    r"(?<!\\)\$\$(?P<dollars>[^$]{1,1000}?)\$\$"
    r"|\\\[(?P<square>.{1,1000}?)\\\]"
    r"|\\\((?P<round>.{1,1000}?)\\\)"
    r"|(?P<environment>\\begin\{(?P<name>align|equation|gather|aligned)(?P<star>\*?)\}.{1,1000}?"
    r"\\end\{(?P=name)(?P=star)\})"
    r"|(?<![\\$\w])\$(?=\S)(?P<dollar>(?:\\.|\n(?!\s*\n)|[^$\\\n]){1,300})(?<!\s)\$(?![\d$])",
    re.DOTALL,
)
_COMMAND = re.compile(r"\\(?:(?:text|mathrm|textbf|operatorname|mbox|begin|end)\s*\{[^{}]*\}|[A-Za-z]+)")
_WORDS = re.compile(r"[a-z]{4,}|(?<=\s)[a-z]{2,}(?=\s)|^[a-z]{2,}\s|\s[a-z]{2,}$")
_UNFINISHED = re.compile(r"[-+*/=<>(]$")


class Formulas:
    """The formulas of a part of the page, each once. `left`: how many may still be converted, over all parts."""

    def __init__(self, left: int) -> None:
        self.left, self.trees, self._known = left, list[MathTree](), dict[tuple[str, bool], int | None]()

    def next_part(self) -> list[MathTree]:
        """Return the trees of this part, and begin the next."""
        trees, self.trees, self._known = self.trees, [], {}
        return trees

    def of_text(self, text: str) -> MathText:
        """A text with its formulas, or the text itself if it has none."""
        if len(text) > MAX_TEXT or not ("$" in text or "\\" in text):
            return text
        pieces: list[Any] = []
        end = 0
        for found in _FORMULA.finditer(text):
            kind = str(found.lastgroup if found.lastgroup not in ("name", "star") else "environment")
            if kind == "dollar" and _is_money(found[kind]):
                continue
            number = self.number(found[kind], kind in ("dollars", "square", "environment"))
            if number is not None:
                pieces += [text[end : found.start()], [found[0], number]]
                end = found.end()
        return [piece for piece in (*pieces, text[end:]) if piece] if pieces else text

    def of_answer(self, answer: str | None) -> MathText | None:
        r"""An answer: a formula if it has a command (\frac), since answers have no delimiters."""
        number = self.number(answer, False) if answer and "\\" in answer else None
        return answer if number is None else [[answer, number]]

    def number(self, latex: str, display: bool) -> int | None:
        """The index of a formula among the trees; None if it stays as it was written."""
        key = (latex, display)
        if key not in self._known:
            self.left -= 1
            tree = mathml(latex, display) if self.left >= 0 else None
            self._known[key] = None if tree is None else len(self.trees)
            self.trees += [] if tree is None else [tree]
        return self._known[key]


def _is_money(inside: str) -> bool:
    """Whether the text between two dollar signs is prose: "$5 for one and 7$"."""
    plain = _COMMAND.sub(" 1 ", inside)
    return bool(_WORDS.search(plain) or _UNFINISHED.search(plain))


@lru_cache(maxsize=50_000)
def mathml(latex: str, display: bool) -> MathTree | None:
    """A formula as a tree of MathML elements; None if it cannot be converted, or is not safe to show."""
    from latex2mathml.converter import convert

    hidden = any(unicodedata.category(each) in ("Cc", "Cf") and each not in "\n\t" for each in latex)
    if len(latex) > MAX_FORMULA or hidden or _ENTITY.search(latex):
        return None
    try:
        return _tree(ElementTree.fromstring(convert(latex.strip(), display="block" if display else "inline")), 0)
    except Exception:  # the library raises a dozen of its own, IndexError, RecursionError and others
        return None


def _tree(element: ElementTree.Element, depth: int) -> MathTree:
    """Raises ValueError for an element or attribute that is not on the lists."""
    name = element.tag.removeprefix(NAMESPACE)
    children, text = list(element), element.text or ""
    if name not in ELEMENTS or depth > MAX_DEPTH or len(children) != CHILDREN.get(name, len(children)):
        raise ValueError(name)
    if name in TOKENS:
        if children or text.startswith("\\"):  # a command unknown to the library
            raise ValueError(name)
        return [name, _attributes(element), [text] if text else []]
    if text.strip() or any((child.tail or "").strip() for child in children):
        raise ValueError(name)
    return [name, _attributes(element), [_tree(child, depth + 1) for child in children]]


def _attributes(element: ElementTree.Element) -> dict[str, str]:
    kept = {name: value for name, value in element.attrib.items() if name not in LEFT_OUT}
    for name, value in kept.items():
        if name not in ATTRIBUTES or not _VALUE.fullmatch(value):
            raise ValueError(name)
        if any(float(size) > WIDEST for size in _SIZE.findall(value)):
            raise ValueError(name)
    return kept
