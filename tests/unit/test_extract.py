"""Where a response states its final answer: labelled responses of every kind, places, hostile texts."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from data.answers.extract import extract
from data.answers.grader import Grader, grade
from data.answers.thoughts import hidden
from tests.response_cases import CASES, FORMULAS, MORE, NUMBERS, PHRASES, SEVERAL, THOUGHTS


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(timeout_seconds=5.0, workers=2) as shared:
        yield shared


@pytest.mark.parametrize(
    "kind",
    [THOUGHTS, SEVERAL, PHRASES, NUMBERS, FORMULAS, MORE],
    ids=["thoughts", "several", "phrases", "numbers", "formulas", "more"],
)
def test_labelled_responses(grader: Grader, kind: list[tuple[str, str, bool]]) -> None:
    found = [extract(response) for response, _, _ in kind]
    verdicts = grade([(answer, gold, False) for answer, (_, gold, _) in zip(found, kind, strict=True)], "math", grader)
    wrong = [
        (response, gold, right, answer and answer.answer)
        for answer, verdict, (response, gold, right) in zip(found, verdicts, kind, strict=True)
        if (verdict == "correct") is not right
    ]
    assert not wrong


def test_there_are_enough_labelled_responses() -> None:
    assert len(CASES) == len(set(CASES)) >= 150
    assert sum(not right for _, _, right in CASES) >= 0.25 * len(CASES)


@pytest.mark.parametrize(
    ("response", "answer", "part"),
    [
        (r"$x = \boxed{3}$ and $y = \boxed{5}$.", "3, 5", r"3}$ and $y = \boxed{5"),
        ("The answers are:\nx = 3\ny = 5\n", "x = 3, y = 5", "x = 3\ny = 5"),
        ("It falls to minus 3.", "-3", "minus 3"),
        ("<think>7</think>The answer is 9.", "9", "9"),
        ("<answer> 9 </answer>", "9", "9"),
        (r"so \boxed{20} percent", "20%", "20} percent"),
        ("The answer is 3 + 4 = 7 apples.", "7 apples", "3 + 4 = 7 apples"),
        ("答案是42个。", "42", "42"),
    ],
)
def test_the_span_covers_what_the_answer_came_from(response: str, answer: str, part: str) -> None:
    found = extract(response)
    assert found and (found.answer, response[found.start : found.end]) == (answer, part)


def test_every_answer_lies_within_its_response() -> None:
    for response, _, _ in CASES:
        found = extract(response)
        assert found is None or (0 <= found.start < found.end <= len(response) and found.answer.strip())


def test_a_guess_in_a_response_that_was_cut_off_is_no_answer(grader: Grader) -> None:
    for response in ("we get 4", "so $x = 4$", "<think>The answer is 4"):
        assert grade([(extract(response), "4", True)], "math", grader) == ["truncated"]
    for response in ("<answer>4</answer>", "the answer is 4", "答案是4"):
        assert grade([(extract(response), "4", True)], "math", grader) == ["correct"]


def test_thoughts_are_hidden_without_moving_anything() -> None:
    assert hidden("a<think>b</think>c") == "a" + " " * 16 + "c"
    assert hidden("b</think>c") == " " * 9 + "c"
    assert hidden("a<think>b") == "a" + " " * 8
    assert hidden("I think so") == "I think so"
    assert hidden("<think>a<think>b</think>c") == " " * 24 + "c"


PARTS = [
    "1", "111,", "1 000 ", "the answer is ", "answer", "Answer:\n", "answer is a times b which equals ", "*", "_", "#",
    "#### ", "#### Step 1:\n", "$", "$x ", "$$", r"\[", r"\( ", r"\boxed{", r"\boxed{1} and ", r"\frac{1", r"\quad ",
    r"\begin{cases} x = 1 \\ ", r"\text{", "<think>", "</think>", "<answer>", "<answer>1</answer>", "x = ", "x = 1, ",
    "1 + ", "(1", "[1,", "(1, 2), ", "- ", "\n", "- 3\n", "x = 3\n", "die Antwort ist ", "antwort a a a ",
    "1/2 ", "m^2 ", "x_1 ", "USD", "Rs. ", "approx. ", "(a b 5) ", "so:\n", "are 1, 1", r"\approx ", "<b>", "```\n",
    '"', "İ", "12%", "答案", "답은 ",
]  # fmt: skip
FORMS = [
    "{}", "The answer is {}", "so 5 {}", "{} 5", r"\boxed{{{}}}", "<answer>{}</answer>", "#### {}",
    "The answer is ${}$",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_time_is_linear_whatever_the_text(form: str) -> None:
    for part in PARTS:
        response = form.format(part * (20_000 // len(part)))
        start = time.process_time()
        extract(response)
        assert time.process_time() - start < 0.5, part


def test_no_text_hangs_or_fails() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        parts = draw.sample([*PARTS, " ", ", ", ". ", " and ", ")", "]", "}", "5", "x", r"\]", r"\)"], 4)
        response = "".join(draw.choices(parts, k=draw.choice([10, 60, 200])))
        start = time.process_time()
        found = extract(response)
        assert found is None or 0 <= found.start < found.end <= len(response), response
        assert time.process_time() - start < 0.2, response
