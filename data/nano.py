"""The nano questions: worded two-step arithmetic and worded pairs of equations, made from a seed.

The hash of a question's text decides its split, so no text is in two splits: `pretrain` (the nano peers are made from
it), `train` (unlabelled, for PST), `validation`, `test`. Every question belongs to one or two of 22 *phrase groups*
("kinds of phrases" in the README): four phrasings of each operation, six kinds of equations. A group can be *misread*,
each in its own fixed way (+ for -, a halving forgotten, …), and all numbers are chosen so that every misreading, too,
stays within small non-negative integers: a misreading is a plausible wrong solution, not a broken one.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from data.errors import UserError
from data.hashing import loose_form

Subset = Literal["arith", "simul"]
Split = Literal["pretrain", "train", "validation", "test"]

SUBSETS: tuple[Subset, ...] = ("arith", "simul")
SHARES: dict[Split, range] = {
    "pretrain": range(0, 60),
    "train": range(60, 80),
    "validation": range(80, 90),
    "test": range(90, 100),
}
ROWS: dict[Split, int] = {"pretrain": 2000, "train": 1000, "validation": 500, "test": 1000}  # per subset, as a source
LARGEST_ARITH, LARGEST_SIMUL = 50, 70

NAMES = (
    "Ann",
    "Ben",
    "Carla",
    "David",
    "Ella",
    "Frank",
    "Gina",
    "Hugo",
    "Iris",
    "Jack",
    "Kim",
    "Leo",
    "Mia",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tina",
    "Umar",
    "Vera",
    "Will",
    "Yara",
    "Zoe",
)
THINGS = (
    "apples",
    "books",
    "buttons",
    "cards",
    "coins",
    "cups",
    "eggs",
    "flowers",
    "keys",
    "marbles",
    "pens",
    "plates",
    "shells",
    "stamps",
    "stickers",
    "tickets",
)
PHRASES: dict[str, tuple[str, ...]] = {
    "+": (
        "{a} buys {n} {things}.",
        "{b} gives {a} {n} {things}.",
        "{a} wins {n} {things} in a game.",
        "Then {n} new {things} arrive by mail.",
    ),
    "-": (
        "{a} sells {n} {things}.",
        "{a} gives {b} {n} {things}.",
        "{a} loses {n} {things} on the way.",
        "Then {n} {things} turn out to be broken and are thrown away.",
    ),
    "*": (
        "A week later {a} has {n} times as many {things}.",
        "{a} swaps each of the {things} for {n} others.",
        "The collection grows to {n} times its size.",
        "A machine makes {n} {things} out of every one.",
    ),
    "/": (
        "{a} shares the {things} equally with friends, {n} people in all.",
        "{a} sorts the {things} into {n} equal piles and keeps one pile.",
        "Only one in {n} of the {things} is good, and {a} keeps just those.",
        "{a} packs the {things} into {n} equal boxes and holds on to one box.",
    ),
}
MISREAD_AS = {"+": "-", "-": "+", "*": "+", "/": "-"}
WORDED: dict[str, str] = {
    "sum-difference": "{a} asks {b} for two numbers with the sum {p} and the difference {q}. What are they?",
    "more-than": "{a} and {b} have {p} {things} together, and {a} has {q} more than {b}. How many does each have?",
    "times-as-many": "{a} and {b} own {p} {things} in all. {a} owns {q} times as many as {b}. How many has each?",
    "wheels": "{a} counts {p} bicycles and tricycles with {q} wheels in the yard of {b}. How many are of each kind?",
    "twice": "{a} adds two numbers and gets {p}. {b} adds the second one once more and gets {q}. Find the numbers.",
    "price": "{a} pays {p} dollars for two pens and a book. The book costs {q} dollars more than a pen. "
    "What does each cost?",
}
MISREAD_EQUATIONS: dict[str, str] = {
    "sum-difference": "the difference is taken for one of the numbers",
    "more-than": "the difference is counted twice",
    "times-as-many": "times as many is read as that many more",
    "wheels": "the total is taken for the number of one kind",
    "twice": "the second number is added to the first sum, not taken from it",
    "price": "only one pen is counted",
}
EQUATIONS = tuple(WORDED)
GROUPS: tuple[str, ...] = tuple(f"{op}{i}" for op in PHRASES for i in range(4)) + EQUATIONS


@dataclass(frozen=True)
class Step:
    """One operation in a worded arithmetic question, and the phrase group that words it."""

    op: str
    group: str
    n: int


@dataclass(frozen=True)
class Problem:
    """A question with what is needed to solve it, correctly or under misreadings."""

    subset: Subset
    question: str
    start: int = 0
    steps: tuple[Step, ...] = ()
    equation: str = ""
    values: tuple[int, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """The phrase groups of the question."""
        return (self.equation,) if self.equation else tuple(step.group for step in self.steps)

    def solution(self, misread: Collection[str] = ()) -> str:
        """`16-14=2, 2+9=11 #### 11`; the phrase groups in `misread` are misread."""
        lines, answer = self.worked(misread)
        return f"{', '.join(lines)} #### {', '.join(map(str, answer))}"

    @property
    def answer(self) -> str:
        """The right answer: a number, or two with a comma."""
        return ", ".join(map(str, self.worked(())[1]))

    def worked(self, misread: Collection[str]) -> tuple[list[str], tuple[int, ...]]:
        """The lines of a solution and its answer. Raises ValueError if a result is not a non-negative integer."""
        if self.equation:
            return solve_equations(self.equation, self.values, self.equation in misread)
        lines, value = [], self.start
        for step in self.steps:
            line, value = calculate(value, MISREAD_AS[step.op] if step.group in misread else step.op, step.n)
            lines.append(line)
        return lines, (value,)


def calculate(a: int, op: str, b: int) -> tuple[str, int]:
    """One calculation as a line, and its result. Raises ValueError unless that is a non-negative integer."""
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else -1}[op]
    if result < 0 or (op == "/" and a % b):
        raise ValueError(f"{a}{op}{b}")
    return f"{a}{op}{b}={result}", result


def solve_equations(kind: str, values: tuple[int, ...], misread: bool) -> tuple[list[str], tuple[int, ...]]:
    """The worked lines and the two unknowns. Raises ValueError if a result is not a non-negative integer."""
    lines: list[str] = []

    def line(a: int, op: str, b: int) -> int:
        text, result = calculate(a, op, b)
        lines.append(text)
        return result

    p, q = values
    if kind == "sum-difference":  # x + y = p, x - y = q; misread: q is one of the numbers
        x, y = (line(p, "-", q), q) if misread else ((x := line(line(p, "+", q), "/", 2)), line(p, "-", x))
    elif kind == "more-than":  # x + y = p, x = y + q; misread: y + 2q
        y = line(line(p, "-", q), "/", 2)
        x = line(line(y, "+", q), "+", q) if misread else line(y, "+", q)
    elif kind == "times-as-many":  # x + y = p, x = q y; misread: x = q + y
        if misread:
            y = line(line(p, "-", q), "/", 2)
            x = line(y, "+", q)
        else:
            y = line(p, "/", line(q, "+", 1))
            x = line(p, "-", y)
    elif kind == "wheels":  # x + y = p, 3x + 2y = q; misread: p counts the y alone
        x = line(q, "-", line(p, "*", 2))
        y = p if misread else line(p, "-", x)
    elif kind == "twice":  # x + y = p, x + 2y = q; misread: the first number is x + y
        y = line(q, "-", p)
        x = line(p, "+", y) if misread else line(p, "-", y)
    else:  # price: 2x + y = p, y = x + q; misread: one x only
        x = line(line(p, "-", q), "/", 2 if misread else 3)
        y = line(x, "+", q)
    return lines, (x, y)


def plausible(problem: Problem) -> bool:
    """Whether all numbers stay small under every reading, and every misreading gives another answer.

    The question's text does not matter.
    """
    try:
        solutions = [problem.worked(misread) for misread in readings(problem.groups)]
    except ValueError:
        return False
    right = sorted(solutions[0][1])
    if any(sorted(answer) == right for _, answer in solutions[1:]):
        return False
    results = [int(line.rpartition("=")[2]) for lines, _ in solutions for line in lines]
    return max(*results, *problem.values) < (LARGEST_ARITH if problem.subset == "arith" else LARGEST_SIMUL)


def readings(groups: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The right reading first, then each set of misread groups."""
    return [(), *((group,) for group in groups), *((groups,) if len(groups) > 1 else ())]


def candidates(subset: Subset, random_: random.Random) -> Iterator[Problem]:
    """Plausible problems with the same words and new random numbers, out of 1,000 tries."""
    a, b = random_.sample(NAMES, 2)
    things = random_.choice(THINGS)
    kind = random_.choice(EQUATIONS)
    phrases = [(op, random_.randrange(4)) for op in random_.sample(list(PHRASES), 2)]
    for _ in range(1000):
        if subset == "simul":
            x, y = random_.sample(range(1, LARGEST_SIMUL // 2), 2)
            problem = Problem("simul", "", equation=kind, values=_values(kind, x, y, k=random_.randrange(2, 6)))
        else:
            start = random_.randrange(2, LARGEST_ARITH)
            numbers = [random_.randrange(2, 6 if op in "*/" else LARGEST_ARITH // 2) for op, _ in phrases]
            steps = tuple(Step(op, f"{op}{i}", n) for (op, i), n in zip(phrases, numbers, strict=True))
            problem = Problem("arith", "", start=start, steps=steps)
        if plausible(problem):  # checked before the text is made: few pass
            yield replace(problem, question=_question(problem, a, b, things))


def _question(problem: Problem, a: str, b: str, things: str) -> str:
    """The text of a problem."""
    if problem.equation:
        p, q = problem.values
        return WORDED[problem.equation].format(a=a, b=b, p=p, q=q, things=things)
    sentences = [PHRASES[s.op][int(s.group[1:])].format(a=a, b=b, n=s.n, things=things) for s in problem.steps]
    return " ".join([f"{a} has {problem.start} {things}.", *sentences, f"How many {things} does {a} have now?"])


def _values(kind: str, x: int, y: int, k: int) -> tuple[int, int]:
    """The two numbers that the question states, for the unknowns x and y."""
    return {
        "sum-difference": (x + y, abs(x - y)),
        "more-than": (x + y, abs(x - y)),
        "times-as-many": ((k + 1) * y, k),
        "wheels": (x + y, 3 * x + 2 * y),
        "twice": (x + y, x + 2 * y),
        "price": (3 * x + y, y),
    }[kind]


def split_of(question: str) -> Split:
    """The split that a text belongs to, by the hash of its loose form."""
    place = int.from_bytes(hashlib.sha256(b"nano/" + loose_form(question).encode()).digest()[:4]) % 100
    return next(split for split, share in SHARES.items() if place in share)


def problems(subset: Subset, split: Split, seed: object) -> Iterator[Problem]:
    """Endless distinct problems of one split, the same for the same seed; all phrase groups about equally often."""
    random_ = random.Random(f"nano/{subset}/{split}/{seed}")
    seen: set[str] = set()
    while True:
        for problem in candidates(subset, random_):
            if split_of(problem.question) == split and problem.question not in seen:
                seen.add(problem.question)
                yield problem
                break


@functools.cache  # takes seconds, and every evaluation calls it
def source(subset: str | None, split: str) -> tuple[Problem, ...]:
    """The rows of the built-in source `nano`: both subsets in turn, or one. Raises UserError for an unknown name."""
    if split not in SHARES or (subset is not None and subset not in SUBSETS):
        raise UserError(
            f"source 'nano' has the subsets {', '.join(SUBSETS)} and the splits {', '.join(SHARES)}; "
            f"found subset {subset!r}, split {split!r}"
        )
    chosen: list[Subset] = [name for name in SUBSETS if subset in (None, name)]
    streams = [problems(name, split, 0) for name in chosen]
    return tuple(next(stream) for _ in range(ROWS[split]) for stream in streams)
