"""Gold answers: whatever form a source writes them in, they are read, or refused with their row."""

from __future__ import annotations

import json
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from bench.gold import differences, gsm8k_cases, published_answer
from data.answers import kinds
from data.answers.gold import Unreadable, read_gold
from data.answers.grader import Grader
from data.answers.kinds import AnswerKindName
from data.config.sections import BenchmarkSection
from data.errors import UserError
from evaluate.benchmarks import load_benchmark
from tests.conftest import BENCHMARKS, write_jsonl

needs_files = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmark files are not in this checkout")

READ = [
    ("Natalia sold 48/2 = <<48/2=24>>24 clips.\nThat is <<48+24=72>>72.\n#### 72", "72"),
    ("6*8=<<6*8=48>>48\n#### 43", "43"),
    ("6*8=<<6*8=48>>48 #### 43", "43"),
    ("#### 1,234", "1,234"),
    ("#### -5", "-5"),
    ("#### $18", "$18"),
    ("####18.", "18"),
    ("x\r\n#### 18\r\n", "18"),
    ("#### 18\nSource: page 3", "18"),
    ("#### 18 ####", "18"),
    ("#### **18**", "18"),
    ("#### 18 apples", "18 apples"),
    ("#### Check\n3 + 4\n#### 18", "18"),
    ("#### 18\n#### Check", "18"),
    ("#### Step 2: add\n2 + 3\n#### 5", "5"),
    ("#### 18\n#### 18", "18"),
    ("#### The answer is 18", "18"),
    (r"#### \boxed{18}", "18"),
    ("She earns 24 points/answer = 48.\n#### 66", "66"),
    ("The answer is 15 * 8 = <<15*8=120>>120 pints\n#### 120", "120"),
    (r"Thus $x = \boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
    (r"So \boxed{\left\{ \sqrt{2}, \frac{1}{3} \right\}}, and that is all.", r"\left\{ \sqrt{2}, \frac{1}{3} \right\}"),
    ("We get \\boxed{2}.\nThen \\boxed{3}.", "3"),
    (r"\boxed{18} is right. The answer is 18.", "18"),
    ("So, the final answer is: 18 apples.", "18 apples"),
    ("**Answer:** C", "C"),
    ("She sells 9 eggs a day, 9 * 2 = $<<9*2=18>>18.\nA: 18", "18"),
    ("  18\n", "18"),
    ("\ufeff18", "18"),
    ("18.0", "18.0"),
    ("$18$", "18"),
    ("\u201c18\u201d", "18"),
    ("1,234", "1,234"),
    ("50%", "50%"),
    (r"5\,", r"5\,"),
    ("5 km", "5 km"),
    ("3 hours 20 minutes", "3 hours 20 minutes"),
    ("(B)", "(B)"),
    ("Paris", "Paris"),
    ("x=5", "x=5"),
    (r"\frac{1}{2}", r"\frac{1}{2}"),
    (r"(3, \infty)", r"(3, \infty)"),
    ("(3, infinity)", "(3, infinity)"),
    ("\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}"),
    ("7200\n2800", "7200, 2800"),
    ('["30", "300"]', "30, 300"),
    (["#### 30", "300"], "30, 300"),
    ([18], "18"),
    (18, "18"),
]
REFUSED = [
    (None, "empty"),
    ("", "empty"),
    (" \n", "empty"),
    ("nan", "missing value"),
    ("#### NaN", "missing value"),
    ("None", "missing value"),
    ("N/A", "missing value"),
    (r"\boxed{null}", "missing value"),
    ("-inf", "missing value"),
    ("-nan", "missing value"),
    ("(nan)", "missing value"),
    ("$NaN$", "missing value"),
    ("nan, 5", "missing value"),
    ("Infinity", "missing value"),
    ("not available", "missing value"),
    ("NA", "missing value"),
    ("?", "neither a letter nor a digit"),
    ("####", "empty ####"),
    ("work\n#### \n18", "empty ####"),
    (r"\boxed{18", "never closed"),
    (r"\boxed{}", "empty"),
    (r"\boxed{18} #### 19", r"'18' \(boxed\) and '19' \(####\)"),
    ("The answer is 17.\n#### 18", r"'18' \(####\) and '17' \(phrase\)"),
    ("The answer is 17.\nA: 18", r"'17' \(phrase\) and '18' \(A:\)"),
    ("#### 12\n#### 18", "several ####: '12' and '18'"),
    (r"\boxed{2} and \boxed{3}", "two different boxes"),
    ("She sold 48/2 = 24.\nThen 72 in all.", "several lines"),
    ("She has 3+4 = 7 apples", "worked solution"),
    ("6*8=<<6*8=48>>48", "worked solution"),
    ("So he had 5 + 3 apples, so 8", "sentence"),
    ("Therefore x is 18", "words around a number"),
    ("#### 18 (see page 3)", "remark"),
    ("B) 18", "choice letter"),
    ("1 234", "gap"),
    ("['18']", "list written as text"),
    ('{"value": 18}', "not an answer"),
    ("<answer>18</answer>", "not an answer"),
    ("### 18", "not an answer"),
    ([], "empty list"),
    (["18", None], "empty"),
    ("#### " + "9" * 600, "600 characters"),
]


@pytest.mark.parametrize(("cell", "answer"), READ)
def test_a_gold_answer_is_read(cell: Any, answer: str) -> None:
    assert read_gold(cell, "math") == answer


@pytest.mark.parametrize(("cell", "why"), REFUSED)
@pytest.mark.parametrize("kind", ["math", "numbers"])
def test_what_is_no_gold_answer_is_refused(cell: Any, why: str, kind: AnswerKindName) -> None:
    if kind == "numbers" and "words around" in why:
        assert read_gold(cell, kind) == cell  # the one number of a part, whatever is around it
        return
    with pytest.raises(Unreadable, match=why):
        read_gold(cell, kind)


@pytest.mark.parametrize("cell", ["Paris", r"\sqrt{2}", "3 5", "12 of 20", "True", "2x", r"3\pi"])
def test_text_is_refused_where_numbers_are_asked_for(cell: str) -> None:
    with pytest.raises(Unreadable, match=r"gap|not a list of numbers"):
        read_gold(f"#### {cell}", "numbers")


WRAPPINGS = [
    "{}", " {} ", "${}$", "**{}**", "#### {}", "work: 2 + 2\n#### {}", "#### {}\n", "#### Check\n1 + 1\n#### {}",
    r"\boxed{{{}}}", r"So $x = \boxed{{{}}}$.", r"$$\fbox{{{}}}$$", "The answer is {}.", "Answer: {}",
    "It is 5 + 5.\nThe final answer is ${}$.", r"The answer is \boxed{{{}}}.", r"#### $\boxed{{{}}}$",
    "1 + 1 = <<1+1=2>>2\nA: {}", "The answer is {}.\n#### {}", r"\boxed{{{}}}" "\n#### {}",
]  # fmt: skip
FORMS = ["#### {}", r"\boxed{{{}}}", "The answer is {}."]
ANSWERS: list[tuple[str, AnswerKindName]] = [
    *((answer, "math") for answer in (
        "18", "-5", "0.25", "1,234", r"\frac{14}{3}", "x^2 + 1", r"3\sqrt{2}", r"(3, \infty)", r"\{1, 2\}", "p - q",
        r"\left( 3, \frac{\pi}{2} \right)", r"\text{Tuesday}", "(C)", "50\\%", "7 apples", "2 + 3i",
        r"\frac{\sqrt{2}}{2}",
    )),
    *((answer, "numbers") for answer in ("18", "-5", "0.25", "1,234", "30, 300", "7,200 and 2,800", "1/2")),
]  # fmt: skip


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_rule_around_an_answer_reads_to_the_answer(wrapping: str) -> None:
    for answer, kind in ANSWERS:
        read = read_gold(wrapping.format(answer, answer), kind)
        assert kinds.of(kind).right(read, answer) is True, (answer, read)


@pytest.mark.parametrize(("first", "second"), list(product(FORMS, repeat=2)))
def test_rules_that_disagree_are_refused(first: str, second: str) -> None:
    text = f"{first.format(17)}\n{second.format(18)}"
    if first == second and "####" not in first:
        assert read_gold(text, "math") == "18"  # the last box or phrase of a solution counts, as in a response
    else:
        with pytest.raises(Unreadable):
            read_gold(text, "math")


def benchmark(path: Path, **more: Any) -> BenchmarkSection:
    """A benchmark of a file."""
    return BenchmarkSection(name="t", source=str(path), **more)


def test_gold_answers_are_read_from_columns_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"

    def read(values: list[Any], dtype: Any = None, kind: AnswerKindName = "math") -> list[str]:
        answers = values if isinstance(values, pl.Series) else pl.Series("answer", values, dtype=dtype)
        pl.DataFrame([pl.Series("question", [f"q{i}?" for i in range(len(values))]), answers]).write_parquet(path)
        return [item.gold for item in load_benchmark(benchmark(path, answers=kind), "benchmarks.0")]

    assert read([18, -3]) == ["18", "-3"]
    assert read([18.0, 0.5]) == ["18.0", "0.5"]  # which the grader takes for 18
    assert read([0.5, 18.0], pl.Float32) == ["0.5", "18.0"]
    assert read([Decimal("18.00")]) == ["18.00"]
    assert read([True, False]) == ["true", "false"]
    assert read(["18", "#### 5"], pl.Categorical) == ["18", "5"]
    assert read([[30, 300], [5]], kind="numbers") == ["30, 300", "5"]
    assert read([[30.5, 0.5]], kind="numbers") == ["30.5, 0.5"]
    assert read([["a", "b"]]) == ["a, b"]
    assert read([[1, 2]], pl.Array(pl.Int64, 2)) == ["1, 2"]
    cases: list[tuple[Any, str]] = [
        ([1.0, float("nan")], "row 2: 'answer' is nan"),
        ([1.0, float("inf")], "row 2: 'answer' is inf"),
        ([1, None], "row 2 .*empty"),
        ([2.0**53], "row 1: 'answer' is too large for a float to hold exactly; store it as text"),
        (pl.Series("answer", [2.0**24], dtype=pl.Float32), "row 1: 'answer' is too large"),
        ([[1], []], "row 2 .*empty list"),
        ([[1], None], "row 2 .*empty"),
        ([[1], [2, None], [3]], "row 2 .*empty"),
        ([[1], [None, 2]], "row 2 .*empty"),
        ([{"value": 3}], "row 1 has a 'answer' .*that is not an answer"),
        ([[[1]]], "has .*list.* values in column 'answer'; expected text"),
        ([b"18"], "has .*binary.* values in column 'answer'; expected text"),
    ]
    for values, told in cases:
        with pytest.raises(UserError, match=told) as stop:
            read(values)
        assert str(stop.value).startswith("benchmarks.0: ") and "f.parquet" in str(stop.value)
        assert "\n" not in str(stop.value)


def test_a_benchmark_has_the_answers_that_were_read(tmp_path: Path) -> None:
    rows = [{"question": "a?", "answer": "1+1=<<1+1=2>>2\n#### 2"}, {"question": "b?", "answer": "#### 1,000"}]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    assert [item.gold for item in load_benchmark(benchmark(path), "benchmarks.0")] == ["2", "1,000"]
    (tmp_path / "n.jsonl").write_text(
        '{"question":"a?","answer":[30,300]}\n{"question":"b?","answer":[1.5]}\n', "utf-8"
    )
    numbers = benchmark(tmp_path / "n.jsonl", answers="numbers")
    assert [item.gold for item in load_benchmark(numbers, "benchmarks.0")] == ["30, 300", "1.5"]
    again = [*rows, {"question": " a?\n", "answer": "2.0"}]  # the same answer, written otherwise
    assert len(load_benchmark(benchmark(write_jsonl(path, again)), "benchmarks.0")) == 2
    with pytest.raises(
        UserError, match=r"t\.jsonl row 3 has the question 'a\?' again, with the answer '3', before it was '2'"
    ):
        load_benchmark(benchmark(write_jsonl(path, [*rows, {"question": "a?", "answer": "#### 3"}])), "benchmarks.0")
    write_jsonl(path, [*rows, {"question": "c?", "answer": "5 and 5 is\n10"}, {"question": "d?", "answer": "4"}])
    for section, row in ((benchmark(path), 3), (benchmark(path, rows=(1, 4)), 3)):
        with pytest.raises(UserError, match=rf"^benchmarks\.0: \S*t\.jsonl row {row} has a 'answer' .* several lines"):
            load_benchmark(section, "benchmarks.0")


# --- the published files ----------------------------------------------------------------------------------------


def golds(name: str) -> list[str]:
    """The answer column of a file in ../shared."""
    lines = (BENCHMARKS / f"{name}.jsonl").read_text("utf-8").strip().split("\n")  # splitlines has more line ends
    return [json.loads(line)["answer"] for line in lines]


@needs_files
@pytest.mark.parametrize(
    ("name", "kinds"), [("math500", ["math"]), ("multiarith", ["math", "numbers"]), ("simuleq", ["math", "numbers"])]
)
def test_bare_answers_stay_as_they_are(name: str, kinds: list[AnswerKindName]) -> None:
    for kind, gold in product(kinds, golds(name)):
        assert read_gold(gold, kind) == gold


@needs_files
def test_gsm8k_is_read_and_graded(tmp_path: Path) -> None:
    cells = golds("gsm8k-train")
    assert [read_gold(cell, "math").replace(",", "") for cell in cells] == [str(published_answer(c)) for c in cells]
    few = write_jsonl(tmp_path / "few.jsonl", [{"answer": cell} for cell in cells[::25]])
    with Grader(workers=1) as grader:
        for kind in ("math", "numbers"):
            counts, differing = differences(gsm8k_cases(few, kind), kind, grader)
            assert counts == {True: 299, False: 299} and not differing


@needs_files
@pytest.mark.slow
def test_all_of_gsm8k_is_graded() -> None:
    with Grader(workers=1) as grader:
        for kind in ("math", "numbers"):
            counts, differing = differences(gsm8k_cases(BENCHMARKS / "gsm8k-train.jsonl", kind), kind, grader)
            assert counts == {True: 7473, False: 7473} and not differing
