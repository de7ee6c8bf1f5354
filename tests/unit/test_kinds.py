"""Kinds of answers beyond mathematics: options, texts, a function of one's own."""

from __future__ import annotations

import json
import re
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import shards
from data.answers import choice, kinds, own, own_grader, texts
from data.answers.clusters import clusters
from data.answers.gold import Unreadable, read_gold
from data.answers.grader import Grader, grade
from data.answers.own_grader import OwnGrader, check_own
from data.config.load import parse_config
from data.config.sections import BenchmarkSection, Config, ScoreSection
from data.errors import UserError
from data.run import Run
from data.schema import ChainRow
from data.stage import Stage
from evaluate.benchmarks import load_benchmark
from evaluate.checks import check_same_benchmarks
from evaluate.stage import fingerprint as of_evals
from evaluate.wording import DevSet, trial_of
from generate.aggregate import ChainVote
from generate.stage import fingerprint as of_chains
from peers.engines.protocol import Completion
from pipeline.first_look import answers_of
from pipeline.lm_eval.__main__ import benchmarks_of
from score.chains import Chain
from score.examples import ExampleChooser
from score.label import Votes
from tests.conftest import ROOT, write_jsonl

QUESTION = "What is 3*8? (A) 24 (B) 30 (C) 36"
OWN = """
import os
import time

def judge(text: str, gold: str) -> bool:
    if text == "hang":
        time.sleep(60)
    if text == "die":
        os._exit(3)
    if text == "raise":
        raise ValueError("cannot read it")
    if text == "odd":
        return "yes"
    return text.lower() == gold.lower()
"""
EXTRACT = """
def extract(response: str, question: str) -> str | None:
    return response.rpartition(":")[2] if ":" in response else None
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with mine.py; what was found out of another one's is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(OwnGrader, "has_extract", {})
    monkeypatch.setattr(OwnGrader, "announced", set())
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as found:
        yield found


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (QUESTION, {"A": "24", "B": "30", "C": "36"}),
        ("Which one?\nA) a cat\nB) a dog, or\na wolf", {"A": "a cat", "B": "a dog, or"}),
        ("Which one?\nA. 24\nB. 30 dogs.\nAnswer with a letter.", {"A": "24", "B": "30 dogs."}),
        ("Which one? A. 24 B. 30 C. 36", {"A": "24", "B": "30", "C": "36"}),
        ("Which one? a) one, b) two", {"A": "one", "B": "two"}),
        ("Which one?\n- **A.** one\n- **B.** two", {"A": "one", "B": "two"}),
        ("Point (A) lies right. (A) 24 (B) 30 (C) both (A) and (B)", {"A": "24", "B": "30", "C": "both (A) and (B)"}),
        (
            "How many?\n$\\textbf{(A)}\\ 24 \\qquad\\textbf{(B)}\\ \\frac{1}{2} \\qquad\\textbf{(C)}\\ 36$",
            {"A": "24", "B": "\\frac{1}{2}", "C": "36"},
        ),
        ("Which? (A) $\\frac{1}{2}$ (B) $2$, (C) {x}", {"A": "$\\frac{1}{2}$", "B": "$2$", "C": "{x}"}),
        ("哪一个？\nA．北京\nB．上海", {"A": "北京", "B": "上海"}),
        ("Let f(a) = 1 and (A) be a set.", {}),
        ("How many?", {}),
    ],
)
def test_options_are_found_in_the_question(question: str, options: dict[str, str]) -> None:
    assert choice.options_of(question) == options


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("(B) 30", "B"),
        ("B", "B"),
        ("Option B", "B"),
        ("**B**", "B"),
        ("b)", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("$\\boxed{(B)\\ 30}$", "B"),
        ("The answer is (b)", "B"),
        ("The answer is B. It is not C.", "B"),
        ("Three eights are 24.\n\nThe answer is 24.", "A"),
        ("24", "A"),
        ("The answer is 24 because 3 * 8 = 24.", "A"),
        ("The answer is 24.0", "A"),
        ("The correct option is C, since the others are wrong", "C"),
        ("Therefore, option C is correct.", "C"),
        ("<think>(A) looks right</think>\n<answer>C</answer>", "C"),
        ("So (B) is correct.", "B"),
        ("Eight and eight and eight.\nHence, B.", "B"),
        ("The answer should be C.", "C"),
        ("Die Antwort ist (B).", "B"),
        ("答案是B", "B"),
        ("The answer is (A).\n\nNo, wait. The answer is (B).", "B"),
        ("B\n\n3*8 = 24. So the answer should be 24.", "A"),
        # no option, none that is there, several, or a contradiction
        ("The answer is (F).", None),
        ("The answer is 31.", None),
        ("\\boxed{D}", None),
        ("A and C", None),
        ("The answer is (A), (C).", None),
        ("The answer is B or C.", None),
        ("The answer is (B) 36", None),
        ("It is not (A).", None),
        ("A dog barks", None),
        ("I do not know", None),
        ("(A) 24\n(B) 30\n(C) 36", None),
        ("", None),
    ],
)
def test_the_option_that_a_response_names(response: str, letter: str | None) -> None:
    found = choice.find(response, QUESTION)
    assert (found.answer if found else None) == letter
    if found is not None:
        assert response[found.start : found.end].strip("() ")[0] in "BbAaC2oO\\"


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("Option B is wrong. Option A is correct.", "A"),
        ("A is incorrect, so B.", "B"),
        ("Therefore, A is the correct answer.", "A"),
        ("A) 24\n\nExplanation: three times eight is 24.", "A"),
        ("La respuesta correcta es la opción A.", "A"),
        ("故选：B", "B"),
        ("因此选B。", "B"),
        ("A and B are wrong, so C.", "C"),
        ("A, B and C are wrong.", None),
        ("B is not correct.", None),
        ("Option B is incorrect.", None),
        ("B is right, A is wrong.", "B"),
        ("A is wrong, B is right.", "B"),
        ("A is correct, but B is not.", "A"),
        ("B, because it is not C", "B"),
        ("(B) 30, not 24", "B"),
        ("The answer cannot be B.", None),
        ("The answer is not B but A.", "A"),
        ("The wrong answer is B.", None),
        ("The answer: B is wrong, A is right.", "A"),
        ("It is not A, but B.", "B"),
        ("Not B.", None),
        ("B isn't right, hence A.", "A"),
        ("It can't be B, leaving A.", "A"),
        ("Option B has 30. Option A has 24.", None),
        ("(B) 30\n\nBecause it is so.", "B"),
        ("B\n\nOption A is wrong because it is even.", "B"),
        ("(A) 24\n(B) 30\n(C) 36", None),
        ("A) 24\n\nWait, it is 30.", None),
        ("A) 24\n\nSo option B is best.", "B"),
        ("A) 24\n\nOption A is wrong.", None),
        ("The option that is wrong is B.", None),
        ("Die Option B ist falsch.", None),
        ("L'option B est fausse.", None),
        ("不选B", None),
        ("Option B seems wrong; I pick A.", "A"),
        ("Neither A nor C, so B", "B"),
        ("The correct answer is not A.", None),
        ("A is the correct option because B is not 24.", "A"),
        ("I would eliminate B and C, therefore A.", "A"),
        ("The correct answer is **A) 24**, as the others are wrong", "A"),
        ("B would be wrong", None),
        ("**A) 24**\n\nExplanation: 3*8 is not 30 so long a line that it has no answer at all in it", "A"),
        ("Only A is correct.", "A"),
        ("So the correct one is A", "A"),
        ("A - B is wrong", "A"),
        ("Options B and C are incorrect. Therefore the correct option is A.", "A"),
        ("B is false", None),
        ("A, as B and C are not multiples of 8.", "A"),
        ("The answer is A, not B.", "A"),
        ("The answer is (A) 24, which is not 30.", "A"),
        ("The correct answer is A. B is wrong.", "A"),
        ("**Answer: A**\n\nB and C are wrong.", "A"),
        ("The answer is A - B and C are incorrect.", "A"),
        ("It is A, since neither B nor C is 24.", "A"),
        ("A is right. B is not.", "A"),
        ("B is not right. C is not right. A is right.", "A"),
        ("Not (B) but (A).", "A"),
        ("The answer is not (B), it is (A).", "A"),
        ("I do not think B is right.", None),
        ("I don't think A is correct.", None),
        ("A is not the correct answer.", None),
        ("Is A correct? No, B is correct.", "B"),
        ("If A is correct, then B is wrong.", None),
        ("Answer: A) 24 (not 30)", "A"),
        ("(A) 24. Explanation: three times eight is twenty four, which is what the question asks for here.", "A"),
        ("No doubt, the answer is A.", "A"),
        ("There is no doubt that A is correct.", "A"),
        ("No, the answer is A.", "A"),
        ("It's not B; the answer is A", "A"),
        ("Incorrect options: B, C. Correct option: A", "A"),
        ("<think>x</think>\n\nA) 24\n\nThat is it.", "A"),
        ("The answer is B? No. A is the answer.", "A"),
        ("A is not wrong.", None),
        ("Eliminate B and C. A remains.", "A"),
        ("The incorrect choices are B and C, so the answer is A.", "A"),
        ("La respuesta no es B.", None),
        ("La opción B no es correcta.", None),
        ("答案不是B", None),
        ("Option B? No.", None),
        ("Both B and C are wrong", None),
        ("Die richtige Antwort ist Option A.", "A"),
        ("La bonne réponse est l'option A.", "A"),
        ("A resposta correta é a opção A.", "A"),
        ("正确选项是A。", "A"),
        ("正确答案：A", "A"),
        ("选A", "A"),
        ("A. 24 is the correct answer.", "A"),
        ("(A) 24 is the correct answer.", "A"),
        ("Option (B) is definitely not correct", None),
        ("A) 24 is too small, because eight and eight and eight give a lot more than that, I think.", None),
        ("A: wrong\nB: wrong\nC: correct", None),
    ],
)
def test_an_option_that_is_denied_or_called_right(response: str, letter: str | None) -> None:
    found = choice.find(response, QUESTION)
    assert (found.answer if found else None) == letter
    assert found is None or found.answer in response[found.start : found.end]


def test_an_option_whose_text_denies() -> None:
    question = "What is 9? (A) not prime (B) prime (C) false"
    for response, letter in (
        ("(A) not prime", "A"), ("not prime", "A"), ("The answer is not prime.", "A"), ("So (C) false.", "C"),
        ("Option A (not prime) is correct.", "A"), ("The answer is false", "C"), ("(A) is not right", None),
    ):  # fmt: skip
        found = choice.find(response, question)
        assert (found.answer if found else None) == letter, response
    wrong = texts.find("The wrong answer is Rome.\nThe right one is another city")
    assert wrong is not None and wrong.rule == "last_line"


@pytest.mark.parametrize("thought", ["<think>{}</think>", "{}</think>", "<think>A? {}</think> ", "[THINK]{}[/THINK]"])
@pytest.mark.parametrize("response", ["A", "Option A is right", "So I choose A.", "24", "The answer is (A)."])
def test_a_thought_in_the_line_of_the_answer(thought: str, response: str) -> None:
    for inner in ("B", "Option B seems right.", "30", "(C)"):
        found = choice.find(thought.format(inner) + response, QUESTION)
        assert found is not None and found.answer == "A"
    for answer in ("Paris", "**Paris**", "Answer: Paris", "\\boxed{Paris}"):
        whole = thought.format("Rome?") + answer
        stated = texts.find(whole)
        assert stated is not None and stated.answer == whole[stated.start : stated.end] == "Paris"


@pytest.mark.parametrize(
    "part", ["A. ", "(A) (B) ", "A) x\n", "<answer>", "answer is ", "\\boxed{", "(", "A is wrong, so ", "故选"]
)
def test_runaway_texts_cost_little(part: str) -> None:
    start = time.process_time()
    choice.find(part * 8000, QUESTION)
    choice.find("B", part * 8000)
    texts.find(part * 8000)
    assert time.process_time() - start < 1.0


def test_an_options_text_counts_as_its_letter() -> None:
    question = "Who? (A) Ada Lovelace (B) A dog (C) I, Robot"
    for response, letter in (("The answer is Ada Lovelace.", "A"), ("A dog", "B"), ("a dog.", "B"), ("A", "A")):
        found = choice.find(response, question)
        assert found is not None and found.answer == letter, response


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Paris", "paris.", True),
        ("The Beatles", "“Beatles”", True),
        ("an apple", "Apple", True),
        ("Ｐａｒｉｓ", "  Paris ", True),
        ("\\text{New  York}", "**new york**", True),
        ("capital of the US", "capital of US", True),
        ("twenty–one", "twenty-one", True),
        ("vitamin A", "vitamin", False),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("5!", "5", False),
        ("C++", "C", False),
        ("5%", "5", False),
        ("1,000", "1000", False),
    ],
)
def test_texts_are_compared_by_their_normal_form(one: str, other: str, same: bool) -> None:
    assert (texts.normal_form(one) == texts.normal_form(other)) is same


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Paris", "Paris"),
        ("The answer is the United States of America.", "the United States of America"),
        ("Answer: Dr. No. It is a film.", "Dr. No"),
        ("The capital of it is old.\n**Final Answer:** Paris", "Paris"),
        ("The answer is:\n\nParis\n", "Paris"),
        ("Nach dem Krieg war es Bonn. Die Antwort ist Berlin.", "Berlin"),
        ("It is long.\n#### The Beatles\nBye", "The Beatles"),
        ("<think>Rome?</think>I say <answer>Paris</answer>", "Paris"),
        ("So \\boxed{Paris}, which is in France.", "Paris"),
        ("It has many words.\n\nParis", "Paris"),
        ("<think>Rome", None),
        ("this one line has far more words than any answer that a person would give to it", None),
        ("...", None),
    ],
)
def test_the_text_that_a_response_states(response: str, answer: str | None) -> None:
    found = texts.find(response)
    assert (found.answer if found else None) == answer


def test_a_last_line_is_no_answer_of_a_response_that_was_cut_off(grader: Grader) -> None:
    rows = [(texts.find(response), "Paris", True) for response in ("Paris", "The answer is Paris.")]
    assert grade(rows, "exact", grader) == ["truncated", "correct"]


@pytest.mark.parametrize(
    ("cell", "gold"),
    [("A", "A"), ("(b)", "B"), ("24", "A"), ("C) 36", "C"), ("The answer is 30.", "B"), ("#### B", "B")],
)
def test_a_gold_option_is_read_as_its_letter(cell: str, gold: str) -> None:
    assert read_gold(cell, "choice", QUESTION) == gold


@pytest.mark.parametrize(
    ("cell", "question", "first", "why"),
    [
        ("D", QUESTION, None, "is none of the options: (A) 24; (B) 30; (C) 36"),
        ("2", QUESTION, None, "set where counting starts: answer_index = 0, or 1"),
        ("3", QUESTION, 0, "is not an option's number: expected 0 to 2"),
        ("A", QUESTION, 1, "is not an option's number: expected 1 to 3"),
        ("A", "Which letter? (A) B (B) A", None, "the letter of one option and the text of another"),
        ("A", "Which letter?", None, "belongs to a question without options"),
    ],
)
def test_a_gold_option_that_cannot_be_told(cell: str, question: str, first: int | None, why: str) -> None:
    with pytest.raises(Unreadable, match=why.replace("(", r"\(").replace(")", r"\)")):
        read_gold(cell, "choice", question, first)
    assert read_gold("2", "choice", QUESTION, 0) == "C" and read_gold("2", "choice", QUESTION, 1) == "B"


def test_any_of_several_gold_texts_is_right(grader: Grader) -> None:
    gold = read_gold(["New York City", "NYC"], "exact")
    assert gold == '["New York City", "NYC"]'
    pairs = [("nyc.", gold), ("new york city", gold), ("New York", gold), ("New York", "The New York")]
    assert grader.matches(pairs, "exact") == [True, True, False, True]
    assert grader.equivalent([("NYC", "nyc"), ("NYC", "New York City")], "exact") == [True, False]
    cells: tuple[Any, ...] = ("", "nan", "...", "one line\nand another", [])
    for cell in cells:
        with pytest.raises(Unreadable):
            read_gold(cell, "exact")
    assert read_gold("None", "exact") == "None" and read_gold("I think\n#### Rome", "exact") == "Rome"


def test_votes_for_options_and_texts_are_counted_by_their_normal_form(grader: Grader) -> None:
    assert clusters(["A", "B", "A", None], "choice", grader) == [[0, 2], [1]]
    assert clusters(["Paris", "Rome", "paris.", "the Rome"], "exact", grader) == [[0, 2], [1, 3]]
    assert not grader._workers, "no process is needed for these"


# --- a function of one's own ---


def test_the_users_function_judges_and_may_hang_fail_or_die(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_own(["math", "mine:judge"])
    with Grader(1.0, 2) as grader:
        pairs = [("a", "A"), ("a", "b"), ("hang", "x"), ("die", "x"), ("raise", "x"), ("raise", "y"), ("odd", "x")]
        assert grader.matches(pairs, "mine:judge") == [True, False, None, None, None, None, None]
        assert grader.equivalent([("a", "A"), ("a", "b"), ("same", "same")], "mine:judge") == [True, False, True]
        assert clusters(["a", "b", "A", None], "mine:judge", grader) == [[0, 2], [1]]
        rows = [(texts.find("Answer: raise"), "x", False), (texts.find("Answer: X"), "x", False)]
        assert grade(rows, "mine:judge", grader) == ["timeout", "correct"]
    told = capsys.readouterr().out
    assert told.count("cannot read it") == 1 and told.count("took longer than 1 s") == 1


def test_votes_under_a_one_sided_function(here: Path) -> None:
    (here / "mine.py").write_text("def judge(text, gold):\n    return text < gold\n", encoding="utf-8")
    with Grader(5.0, 1) as grader:
        assert grader.matches([("a", "b"), ("b", "a"), ("a", "a")], "mine:judge") == [True, False, False]
        assert grader.equivalent([("a", "b"), ("b", "a"), ("a", "a")], "mine:judge") == [False, False, True]


def test_the_own_extract_is_asked(here: Path) -> None:
    (here / "mine.py").write_text(OWN + EXTRACT, encoding="utf-8")
    with Grader(5.0, 1) as grader:
        found = grader.find([("It is: 3", "q"), ("nothing", "q")], "mine:judge")
    assert [each and (each.answer, each.start, each.rule) for each in found] == [("3", 7, "own"), None]


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("mine:other", OWN, "mine.py has no 'other'"),
        ("nowhere:judge", OWN, "there is no file nowhere.py in"),
        ("math:verify", OWN, "'math' is a module of Python's own; expected one of yours"),
        ("mine:judge", "def judge(text):\n    return True\n", r"judge\(text\) cannot be called as judge\(text, gold\)"),
        ("mine:judge", "import nonsense_that_is_not_there\n", "cannot be imported: ModuleNotFoundError: No module"),
        ("mine:judge", "def judge(:\n", "cannot be imported: SyntaxError"),
        ("mine:judge", "raise SystemExit(1)\n", "cannot be imported: SystemExit"),
        ("mine:judge", "import os\nos._exit(5)\n", "ended with exit code 5"),
        ("mine:sleep", "from time import sleep\n", "'sleep' is not a function that mine.py defines"),
        ("mine:judge", OWN + "def extract(response):\n    pass\n", r"extract\(response\) cannot be called as extract"),
    ],
)
def test_a_function_that_cannot_be_called(here: Path, kind: str, text: str, why: str) -> None:
    (here / "mine.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=why):
        check_own([kind])


@pytest.mark.parametrize("name", ["time", "string"])
def test_a_module_by_the_name_of_one_of_pythons(here: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    (here / f"{name}.py").write_text(OWN, encoding="utf-8")
    with pytest.raises(own.UnusableError, match=f"another module is named '{name}' .*; rename {name}.py"):
        own.load(f"{name}:judge")


def test_a_module_that_loops_is_told(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(own_grader, "IMPORT_SECONDS", 1.5)
    monkeypatch.setattr(own_grader, "SILENT_SECONDS", 0.5)
    (here / "mine.py").write_text("while True: pass\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"imports mine\.py .* or was not ready within 1\.5 s"):
        check_own(["mine:judge"])
    assert capsys.readouterr().out.count("waiting for mine.py to be imported, 1.5 s at most") == 1


def test_what_a_fingerprint_says_of_kinds(here: Path) -> None:
    assert own.kinds_fingerprint("math") == {}
    assert own.kinds_fingerprint("choice") == {"answers": {"choice": {"kind": "choice"}}}
    before = own.kinds_fingerprint("mine:judge")
    assert before["answers"]["mine:judge"]["file"] == "mine.py"
    (here / "mine.py").write_text(OWN + "\n", encoding="utf-8")
    assert own.kinds_fingerprint("mine:judge") != before


# --- config and sources ---


def test_the_kind_of_the_prompts_is_that_of_their_labels() -> None:
    raw: dict[str, Any] = {
        "prompts": {"source": "a.jsonl", "answers": "choice"},
        "peers": [{"name": name, "model": name} for name in "ab"], "wording": {"source": "b.jsonl"},
    }  # fmt: skip
    config = parse_config(raw, "x")
    assert config.evaluate.gold_answers == "choice" and config.wording and config.wording.answers == "choice"
    assert parse_config(config.model_dump(mode="json"), "x") == config
    plain = parse_config({**raw, "prompts": {"source": "a.jsonl"}}, "x")
    assert "answers" not in plain.model_dump()["prompts"] and plain.evaluate.gold_answers == "math"
    for override, why in (
        ("prompts.answers=maths", "is 'maths'; expected math, numbers, choice, exact, or a custom module:function"),
        ("evaluate.gold_answers=math", "cannot compare the answers that prompts.answers 'choice' finds"),
        ("wording.answers=exact wording.answer_index=0", "answer_index needs answers = 'choice'"),
    ):
        with pytest.raises(UserError, match=why):
            parse_config(raw, "x", override.split())
    with pytest.raises(UserError) as told:
        parse_config(raw | {"prompts": {"source": "a.jsonl", "answers": "choices"}}, "x")
    assert str(told.value).count("'choices'; expected") == 1 and "gold_answers" not in str(told.value)


def benchmark(path: Path, **more: Any) -> BenchmarkSection:
    return BenchmarkSection(name="b", source=str(path), answers="choice", **more)


def test_options_are_read_from_a_column_of_any_form(tmp_path: Path) -> None:
    row = {"question": "What is 3*8?", "choices": ["24", "30"], "answer": 1}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    [item] = load_benchmark(benchmark(path, options="choices", answer_index=0), "benchmarks.0")
    assert (item.question, item.gold) == ("What is 3*8?\n(A) 24\n(B) 30", "B")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert load_benchmark(benchmark(tmp_path / "a.parquet", options="choices", answer_index=0), "b") == [item]
    (tmp_path / "a.csv").write_text('question,choices,answer\nWhat is 3*8?,"[""24"", ""30""]",30\n', encoding="utf-8")
    assert load_benchmark(benchmark(tmp_path / "a.csv", options="choices"), "b") == [item]
    for choices in ({"A": "24", "B": "30"}, {"text": ["24", "30"], "label": ["A", "B"]}):
        path.write_text(json.dumps(row | {"choices": choices}) + "\n", encoding="utf-8")
        assert load_benchmark(benchmark(path, options="choices", answer_index=0), "b") == [item]
        pq.write_table(pa.Table.from_pylist([row | {"choices": choices}]), tmp_path / "a.parquet")
        assert load_benchmark(benchmark(tmp_path / "a.parquet", options="choices", answer_index=0), "b") == [item]
    there = write_jsonl(tmp_path / "b.jsonl", [{"question": item.question, "choices": '["24", "30"]', "answer": "B"}])
    assert load_benchmark(benchmark(there, options="choices"), "b") == [item]


@pytest.mark.parametrize(
    ("row", "more", "why"),
    [
        ({"question": "How many?", "answer": "A"}, {}, r"b.jsonl row 1 has no options: expected \(A\)"),
        ({"question": "How many? (A) 3 (B) 3.", "answer": "A"}, {}, "the same text for the options A and B"),
        ({"question": "q", "o": "3; 4", "answer": "A"}, {"options": "o"}, "has options in 'o' that are not a list"),
        ({"question": "q", "o": '["3"]', "answer": "A"}, {"options": "o"}, "that are 1 texts"),
        ({"question": "q", "o": '{"1": "x", "2": "y"}', "answer": "1"}, {"options": "o"}, "that are marked"),
        ({"question": "q (A) 3 (B) 4", "answer": "1"}, {}, r"has a 'answer' \('1'\) that is none of the options"),
    ],
)  # fmt: skip
def test_questions_without_a_choice_are_refused(
    tmp_path: Path, row: dict[str, str], more: dict[str, str], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        load_benchmark(benchmark(write_jsonl(tmp_path / "b.jsonl", [row]), **more), "benchmarks.0")


# --- the kind in the stages ---


def row(peer: str, answer: str, **changes: Any) -> ChainRow:
    found: dict[str, Any] = {
        "prompt_id": "q", "question": "?", "peer": peer, "role": "sample", "position": None, "sample": None,
        "is_aggregate": False, "response": f"{peer} says {answer}", "answer": answer, "finish_reason": "stop",
        "n_tokens": 3, "logprob": -1.0,
    }  # fmt: skip
    return cast(ChainRow, found | changes)


def test_labels_agreement_and_entropy_are_of_the_kind(grader: Grader) -> None:
    rows = [row("a", "1/2"), row("a", "0.5"), row("a", "Paris."), row("b", "50/100"), row("b", "paris")]
    section = ScoreSection(label="sample-vote", text="solution", weighting="uniform")
    by_kind = {}
    for kind in ("exact", "math"):
        choosing = ExampleChooser(section, ("a", "b"), Votes(kind=kind), "17/1")
        mine, _ = choosing.examples([Chain(rows)], grader)
        by_kind[kind] = mine["label"], round(mine["answer_entropy"], 3)
        assert mine["agrees"]
    assert by_kind == {"exact": ("Paris.", 1.332), "math": ("1/2", 0.673)}
    assert ChainVote().pick(rows, "exact", grader)["answer"] == "Paris."
    assert ChainVote().pick(rows, "math", grader)["answer"] == "1/2"


@pytest.mark.parametrize(("kind", "agrees"), [("math", True), ("exact", False)])
def test_a_response_agrees_with_the_aggregate_by_the_kind(grader: Grader, kind: str, agrees: bool) -> None:
    rows = [
        row("a", "0.5", role="chain", position=1),
        row("b", "1/2", role="chain", position=2, is_aggregate=True),
    ]
    mine, _ = ExampleChooser(ScoreSection(), ("a", "b"), Votes(kind=kind), "17/1").examples([Chain(rows)], grader)
    assert mine["agrees"] is agrees


def config_of(answers: str, benchmark: str = "math") -> Config:
    return parse_config(
        {
            "prompts": {"source": "a.jsonl", "answers": answers}, "peers": [{"name": n, "model": n} for n in "ab"],
            "benchmarks": [{"name": "b", "source": "b.jsonl", "answers": benchmark}],
        },
        "x",
    )  # fmt: skip


def completions(*texts_: str) -> list[Completion]:
    return [Completion([1], text, 0.0, "stop") for text in texts_]


def test_a_first_look_and_wordings_find_answers_by_their_kind(grader: Grader) -> None:
    config, asked = config_of("choice"), [QUESTION, "Who? (A) Ada (B) Bo"]
    few = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"samples": 2})})
    probe: Any = SimpleNamespace(greedy=completions("24", "Bo"), samples=completions("B", "36", "Ada", "none"))
    [found] = answers_of(few, asked, {"p": probe}).values()
    assert [each and each.answer for each in found] == ["A", "B", "B", "C", "A", None]
    dev = DevSet(asked, ["A", "B"])
    trial = trial_of("w", [completions("24"), completions("The answer is (A).")], dev, "choice", grader)
    assert trial.values == [1.0, 0.0] and trial.unanswered == 0
    votes = trial_of("w", [completions("24", "A"), completions("Bo", "Ada")], DevSet(asked, None), "choice", grader)
    assert votes.values == [1.0, 0.5]


def test_another_kind_makes_another_fingerprint(here: Path) -> None:
    runs = {kind: Run("t", config_of(kind)) for kind in ("math", "numbers", "choice", "exact", "mine:judge")}
    chains = {kind: of_chains(run, {}) for kind, run in runs.items()}
    assert "answers" not in chains["math"] and len({json.dumps(each) for each in chains.values()}) == 5
    evals = of_evals(Run("t", config_of("math", "mine:judge")), {}, {})
    assert list(evals["answers"]) == ["mine:judge"]
    before = of_chains(runs["mine:judge"], {})
    (here / "mine.py").write_text(OWN + "\n", encoding="utf-8")
    assert of_chains(runs["mine:judge"], {}) != before


def test_rounds_are_graded_by_the_same_file(here: Path) -> None:
    run = Run("t", config_of("math", "mine:judge"))
    folder = run.stage_dir(0, "evals")
    shards.write_manifest(folder, {"fingerprint": of_evals(run, {}, {}), "benchmarks": {}}, [])
    again = Stage("evaluate", 1, run.stage_dir(1, "evals"), of_evals(run, {}, {}))
    check_same_benchmarks(run, again, {})
    (here / "mine.py").write_text(OWN + "\n", encoding="utf-8")
    changed = Stage("evaluate", 1, run.stage_dir(1, "evals"), of_evals(run, {}, {}))
    with pytest.raises(UserError, match="a function that compares answers has changed since round 0"):
        check_same_benchmarks(run, changed, {})


def test_the_harness_is_given_mathematics_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks_of(Run("t", config_of("math", "exact")), None, "math") == {}
    assert "benchmark b: left out, since answers = 'exact'" in capsys.readouterr().out


# --- docs/answers.md ---


def page_examples() -> list[tuple[str, list[tuple[str, str]]]]:
    """(name of the benchmark, its blocks as (language, text)) of each example of the page."""
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs/answers.md").read_text(), re.M | re.S):
        if language == "toml":
            found.append((tomllib.loads(text)["benchmarks"][0]["name"], []))
        found[-1][1].append((language, text))
    return found


@pytest.mark.parametrize(("name", "blocks"), page_examples(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_the_page_shows(here: Path, name: str, blocks: list[tuple[str, str]]) -> None:
    found = {language: text for language, text in blocks if language != "json"}
    rows, responses = (text for language, text in blocks if language == "json")
    section = BenchmarkSection(**tomllib.loads(found["toml"])["benchmarks"][0])
    (here / section.source).write_text(rows, encoding="utf-8")
    if code := found.get("python"):
        (here / code.split()[1]).write_text(code, encoding="utf-8")
    items = load_benchmark(section, "benchmarks.0")
    assert len(items) == rows.count("\n")
    shown = [json.loads(line) for line in responses.splitlines()]
    with Grader(5.0, 1) as grader:
        answers = grader.find([(each["response"], items[0].question) for each in shown], section.answers)
        verdicts = grade([(answer, items[0].gold, False) for answer in answers], section.answers, grader)
    assert [(each["response"], each["verdict"]) for each in shown] == [
        (each["response"], verdict) for each, verdict in zip(shown, verdicts, strict=True)
    ]


def test_the_page_shows_every_kind() -> None:
    shown = [tomllib.loads(text)["benchmarks"][0]["answers"] for _, [(_, text), *_] in page_examples()]
    assert {"math", "choice", "exact"} <= set(shown) and any(kinds.is_own(kind) for kind in shown)
