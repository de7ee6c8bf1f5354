"""The nano questions: splits that share nothing, right answers, plausible misreadings."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice

import pytest

from data.config.sections import BenchmarkSection, PromptsSection
from data.errors import UserError
from data.hashing import loose_form
from data.nano import EQUATIONS, GROUPS, ROWS, SHARES, SUBSETS, Problem, calculate, problems, solve_equations, source
from data.questions import read_source
from peers.nano.examples import MISREADABLE, MISREADS, slip


def checked(solution: str) -> list[str]:
    """The final numbers of a solution, after checking each of its calculations."""
    body, answer = solution.split(" #### ")
    for line in body.split(", "):
        a, op, b, result = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", line).groups()  # type: ignore[union-attr]
        x, y = int(a), int(b)
        assert {"+": x + y, "-": x - y, "*": x * y, "/": x / y}[op] == int(result)
    return sorted(answer.split(", "))


@pytest.mark.slow
def test_splits_share_no_text() -> None:
    texts = {split: {loose_form(p.question) for p in source(None, split)} for split in SHARES}
    for split, found in texts.items():
        assert len(found) == 2 * ROWS[split], "all distinct"
    assert len(texts["test"]) >= 2000
    assert len(set().union(*texts.values())) == sum(map(len, texts.values()))


@pytest.mark.slow
def test_pretraining_streams_stay_in_their_split() -> None:
    held_out = {p.question for split in ("train", "validation", "test") for p in source(None, split)}
    for subset in SUBSETS:
        assert not held_out & {p.question for p in islice(problems(subset, "pretrain", "some seed"), 2000)}


@pytest.mark.parametrize(
    ("kind", "values", "right", "misread"),
    [
        ("sum-difference", (20, 4), "20+4=24, 24/2=12, 20-12=8 #### 12, 8", "20-4=16 #### 16, 4"),
        ("more-than", (20, 4), "20-4=16, 16/2=8, 8+4=12 #### 12, 8", "20-4=16, 16/2=8, 8+4=12, 12+4=16 #### 16, 8"),
        ("times-as-many", (24, 2), "2+1=3, 24/3=8, 24-8=16 #### 16, 8", "24-2=22, 22/2=11, 11+2=13 #### 13, 11"),
        ("wheels", (10, 24), "10*2=20, 24-20=4, 10-4=6 #### 4, 6", "10*2=20, 24-20=4 #### 4, 10"),
        ("twice", (15, 26), "26-15=11, 15-11=4 #### 4, 11", "26-15=11, 15+11=26 #### 26, 11"),
        ("price", (50, 26), "50-26=24, 24/3=8, 8+26=34 #### 8, 34", "50-26=24, 24/2=12, 12+26=38 #### 12, 38"),
    ],
)
def test_equations_are_solved_rightly_and_misread_as_planned(
    kind: str, values: tuple[int, int], right: str, misread: str
) -> None:
    for expected, wrongly in ((right, False), (misread, True)):
        lines, answer = solve_equations(kind, values, wrongly)
        assert f"{', '.join(lines)} #### {', '.join(map(str, answer))}" == expected


def holds(problem: Problem) -> bool:
    """Whether the right answer of an equation problem satisfies the words of its question."""
    x, y = map(int, problem.answer.split(", "))
    p, q = problem.values
    return {
        "sum-difference": x + y == p and abs(x - y) == q, "more-than": x + y == p and x - y == q,
        "times-as-many": x + y == p and x == q * y, "wheels": x + y == p and 3 * x + 2 * y == q,
        "twice": x + y == p and x + 2 * y == q, "price": 2 * x + y == p and y - x == q,
    }[problem.equation]  # fmt: skip


def test_answers_are_right_and_misreadings_are_not() -> None:
    seen: Counter[str] = Counter()
    for problem in source(None, "validation"):
        assert checked(problem.solution()) == sorted(problem.answer.split(", "))
        assert not problem.equation or holds(problem)
        for group in problem.groups:
            assert checked(problem.solution((group,))) != checked(problem.solution())
            seen[group] += 1
        assert problem.solution(set(GROUPS) - set(problem.groups)) == problem.solution()
    assert set(seen) == set(GROUPS) and len(GROUPS) == 22
    assert max(seen[group] for group in EQUATIONS) < 2 * min(seen[group] for group in EQUATIONS)


def test_arithmetic_stays_in_the_natural_numbers() -> None:
    assert calculate(7, "*", 5) == ("7*5=35", 35)
    for a, op, b in ((3, "-", 4), (7, "/", 2), (7, "/", 0)):
        with pytest.raises(ValueError, match=re.escape(f"{a}{op}{b}")):
            calculate(a, op, b)


def test_no_two_peers_misread_the_same_phrase() -> None:
    assert {name: len(groups) for name, groups in MISREADS.items()} == {"gemma2": 6, "llama": 6, "qwen2": 8}
    assert len(MISREADABLE) == 20 and set(GROUPS) > MISREADABLE


def test_a_slip_changes_the_answer() -> None:
    random_ = random.Random(0)
    for problem in islice(problems("simul", "pretrain", 0), 100):
        wrong = slip(problem.solution(), random_)
        assert wrong != problem.solution() and re.search(r"#### \d+, \d+$", wrong)


def test_the_source_called_nano() -> None:
    test = BenchmarkSection(name="b", source="nano", subset="simul", split="test")
    table = read_source(test, ["question", "answer"], "benchmarks.0")
    assert len(table) == ROWS["test"] and table["answer"].str.contains(r"^\d+, \d+$").all()
    train = read_source(PromptsSection(source="nano"), ["question"], "prompts")
    assert train.columns == ["question"] and len(train) == 2 * ROWS["train"]
    with pytest.raises(UserError, match=r"subsets arith, simul .* found subset 'geometry', split 'test'"):
        read_source(test.model_copy(update={"subset": "geometry"}), ["question"], "benchmarks.0")
