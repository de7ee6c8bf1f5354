"""The chains of a run as data, and what of them goes into the page."""

from __future__ import annotations

import gzip
import json
import random
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.hashing import question_id
from data.run import Run
from data.shards import Row
from evaluate.page import chains as page
from evaluate.page.chain_data import DROPPED, LABELS
from evaluate.page.chains import Browser, chains, one_chain, ordering
from evaluate.page.maths import Formulas, mathml
from tests.chain_run import chain, of_question, response, score, write_run, write_stage
from tests.conftest import ROOT

SUMS = {"1+1?": "2", "2+2?": "4", "3+3?": "6"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sums(name: str = "sums", **sections: Any) -> Run:
    """A run of three sums: one right, one wrong with a high weight, one wrong with a low one."""
    told = [chain("1+1?", ["3", "2", "2"]), chain("3+3?", ["7", "7", "7"], 0.5), chain("2+2?", ["4", "4", "5"], 1.5)]
    return write_run(name, {1: told}, SUMS, **sections)


def unpacked(packed: str) -> Any:
    """What a browser reads of an index or a block."""
    return json.loads(gzip.decompress(b64decode(packed)))


def found(browser: Browser | None) -> tuple[Any, list[Any]]:
    """The index and all chains of a browser, round after round."""
    assert browser is not None
    return unpacked(browser.index), [one for block in browser.blocks for one in unpacked(block)["chains"]]


def test_one_chain_has_what_is_known_of_a_question(here: Path) -> None:
    one = one_chain(sums(), 1, question_id("2+2?"))
    assert (one["question"], one["gold"], one["entropy"]) == ("2+2?", "4", 0.7)
    assert [(row["peer"], row["position"], row["answer"], row["right"]) for row in one["responses"]] == [
        ("ada", 1, "4", True), ("ben", 2, "4", True), ("cat", 3, "5", False),
    ]  # fmt: skip
    assert one["labels"] == [{"answer": "5", "share": None, "right": False, "peers": ["ada", "ben", "cat"]}]
    assert one["label_from"] == "the answer of the aggregate" and one["votes"] == []
    ada, _, cat = one["training"]
    assert (ada["weight"], ada["pmi"], ada["label_right"], ada["agrees"]) == (1.5, 1.0, False, False)
    assert (ada["text_by"], ada["text_from"], ada["measured"], ada["dropped"]) == ("cat", 2, 0, None)
    assert (cat["weight"], cat["dropped"]) == (None, "it wrote the aggregate itself")


def test_a_chain_is_found_by_the_beginning_of_its_id(here: Path) -> None:
    run = sums()
    assert one_chain(run, 1, question_id("1+1?")[:10])["question"] == "1+1?"
    for wrong in ("zz", ""):
        with pytest.raises(UserError, match="round 1 of run 'sums'"):
            one_chain(run, 1, wrong)
    with pytest.raises(UserError, match="make generate RUN=sums ROUND=2"):
        one_chain(run, 2, question_id("1+1?"))


def test_the_worst_come_by_the_weight_of_their_wrong_label(here: Path) -> None:
    run = sums()
    assert list(ordering(run, 1, "worst")) == [question_id("2+2?"), question_id("3+3?")]
    shuffled = list(ordering(run, 1, "random"))
    assert sorted(shuffled) == sorted(question_id(question) for question in SUMS)
    assert shuffled == list(ordering(run, 1, "random"))


def test_without_gold_nothing_is_right_or_wrong(here: Path) -> None:
    run = write_run("none", {1: [chain("1+1?", ["3", "2", "2"])]})
    one = one_chain(run, 1, question_id("1+1?"))
    assert one["gold"] is None and {row["right"] for row in one["responses"]} == {None}
    assert one["labels"][0]["right"] is None and one["training"][0]["label_right"] is None
    with pytest.raises(UserError, match="gold_column"):
        list(ordering(run, 1, "worst"))
    browser = chains("none")
    assert browser is not None and not browser.gold and "No gold answers" in browser.notices[0]


def test_a_source_that_is_gone_takes_the_verdicts_and_not_the_page(here: Path) -> None:
    sums()
    (here / "sums.jsonl").unlink()
    browser = chains("sums")
    assert browser is not None and not browser.gold and "sums.jsonl" in browser.notices[0]


def test_a_round_without_scores_shows_its_responses(here: Path) -> None:
    run = sums()
    write_stage(run, 2, "chains", chain("1+1?", ["2", "2", "2"])[0])
    one = one_chain(run, 2, question_id("1+1?"))
    assert len(one["responses"]) == 3 and one["training"] == [] and one["labels"] == [] and one["entropy"] is None
    index, shown = found(chains("sums"))
    assert index["rounds"] == [1, 2] and len(shown) == 6
    assert sum(row is None for row in index["rows"]["2"]) == 2 == sum(one is None for one in shown[3:])


def test_votes_are_counted_by_answer_and_rater(here: Path) -> None:
    said = [("ada", "1/2"), ("ada", "0.5"), ("ben", "0.5"), ("ben", "3"), ("cat", None)]
    rows = [response(who, f"{n}: {what}", what, role="sample", sample=n) for n, (who, what) in enumerate(said)]
    rows[3]["finish_reason"] = "length"
    label = {
        "label": "1/2",
        "label_share": 0.8,
        "role": "sample",
        "sample": 1,
        "target_peer": "ada",
        "target": "0: 1/2",
    }
    told = of_question("Half?", rows, [score("ada", **label), score("ben", **label)])
    run = write_run(
        "votes", {1: [told]}, {"Half?": "0.5"}, score={"label": "sample-vote", "text": "solution"},
        evaluate={"gold_column": "answer", "gold_answers": "math"},
    )  # fmt: skip
    write_stage(run, 1, "scores", told[1], self_consistency={"ada": 0.9, "ben": 0.5})
    one = one_chain(run, 1, question_id("Half?"))
    assert one["votes"] == [{"answer": "1/2", "by": {"ada": 2, "ben": 1}, "right": True}]  # who was cut off has no vote
    assert one["labels"] == [{"answer": "1/2", "share": 0.8, "right": True, "peers": ["ada", "ben"]}]
    assert "a vote of all samples" in one["label_from"] and "ada 2.20, ben 0.05" in one["label_from"]
    assert one["responses"][3]["unfinished"] == "cut off at the token limit"
    assert one["responses"][4]["right"] is False  # no answer is not right
    assert (one["training"][0]["text_from"], one["training"][0]["measured"]) == (0, 1)


def test_every_reason_and_every_label_has_words() -> None:
    source = "".join(path.read_text() for path in (ROOT / "score").glob("*.py"))
    item = re.search(r"^- `drop_reason` .*(?:\n  .*)*", (ROOT / "data" / "README.md").read_text(), re.M)
    assert item is not None
    named = set(re.findall(r"`([a-z_]+)`", item[0])) - {"drop_reason"}
    assert len(named) > 9 and named <= DROPPED.keys()
    assert set(re.findall(r'^[A-Z_]+ = "([a-z_]+)"  # ', source, re.M)) <= DROPPED.keys()
    from data.config.stages import ScoreSection

    assert set(ScoreSection.model_fields["label"].annotation.__args__) == LABELS.keys()  # type: ignore[union-attr]


def test_the_index_has_what_the_filters_ask_for(here: Path) -> None:
    sums()
    index, shown = found(chains("sums"))
    rows = {question: row for (_, question), row in zip(index["questions"], index["rows"]["1"], strict=True)}
    assert rows["1+1?"] == {
        "label": "2", "labels": 1, "right": True, "differ": True, "cut": False,
        "peers": [[1.0, 0.25, True], [1.0, 0.25, True], [None, None, True]],
    }  # fmt: skip
    assert rows["3+3?"]["right"] is False and not rows["3+3?"]["differ"]
    assert [one["id"] for one in shown] == [id_ for id_, _ in index["questions"]]


def test_a_large_run_is_a_sample_the_same_in_every_round(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_QUESTIONS", 7)
    monkeypatch.setattr(page, "BLOCK_QUESTIONS", 3)
    told = [chain(f"{n}+1?", ["1", "1", "1"]) for n in range(20)]
    write_run("large", {1: told, 2: told[::-1]})
    browser = chains("large")
    index, shown = found(browser)
    assert browser is not None and (browser.shown, browser.total, len(browser.blocks)) == (7, 20, 6)
    assert any("7 of 20 questions, a seeded sample" in line for line in browser.notices)
    ids = [id_ for id_, _ in index["questions"]]
    assert [one["id"] for one in shown] == ids + ids and len(set(ids)) == 7
    assert ids == [id_ for id_, _ in found(chains("large"))[0]["questions"]]
    write_run("other", {1: told}, run={"seed": 18})
    assert ids != [id_ for id_, _ in found(chains("other"))[0]["questions"]]


def test_a_page_has_as_many_questions_as_there_is_room_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "BLOCK_QUESTIONS", 2)
    told = [chain(f"{n}+1?", ["1", "1", "1"]) for n in range(12)]
    write_run("room", {1: told, 2: told})
    browser = chains("room")
    assert browser is not None and browser.shown == 12
    monkeypatch.setattr(page, "MAX_BYTES", 2 * 3 * max(map(len, browser.blocks)))  # both rounds, three blocks each
    browser = chains("room")
    index, shown = found(browser)
    assert browser is not None and browser.shown == len(index["questions"]) == 6 and len(shown) == 12
    assert any("6 of 12 questions" in line and "10 MB" in line for line in browser.notices)
    monkeypatch.setattr(page, "MAX_BYTES", 1)
    assert len(found(chains("room"))[1]) == 4  # never none at all


def test_the_round_with_the_longest_texts_says_how_many_questions_there_are(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "BLOCK_QUESTIONS", 2)
    draw = random.Random(1)
    short = [chain(f"{n}+1?", ["1", "1", "1"]) for n in range(8)]
    long = [chain(f"{n}+1?", [str(draw.getrandbits(4000))] * 3) for n in range(8)]
    write_run("long", {1: long, 2: short})
    browser = chains("long")
    assert browser is not None and len(browser.blocks) == 8
    monkeypatch.setattr(page, "MAX_BYTES", 2 * (len(browser.blocks[0]) + len(browser.blocks[1])))
    index, shown = found(chains("long"))
    assert 2 <= len(index["questions"]) < 8 and len(shown) == 2 * len(index["questions"])
    assert [len(rows) for rows in index["rows"].values()] == [len(index["questions"])] * 2
    assert [one["id"] for one in shown] == [id_ for id_, _ in index["questions"]] * 2


def test_a_hasty_grader_leaves_what_takes_long(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_SLOW_PAIRS", 0)
    monkeypatch.setattr(page._Hasty, "known", {})
    told = chain("x?", [r"\sqrt{3}", r"\sqrt{2}", r"\sqrt{2}"])
    config = {"evaluate": {"gold_column": "answer", "gold_answers": "math"}}
    write_run("slow", {1: [told]}, {"x?": r"\sqrt{2}"}, **config)
    browser = chains("slow")
    _, [one] = found(browser)
    assert [row["right"] for row in one["responses"]] == [None, True, True]
    assert browser is not None and any("1 pairs of answers were not compared" in line for line in browser.notices)


def test_nothing_of_a_model_can_end_the_element_that_holds_it(here: Path) -> None:
    hostile = "</script><script>alert(1)</script>\u2028\u202e\x1b[31m"
    write_run("bad", {1: [chain(hostile, [hostile, hostile, hostile])]})
    browser = chains("bad")
    assert browser is not None
    assert all(re.fullmatch(r"[A-Za-z0-9+/=]+", packed) for packed in (browser.index, *browser.blocks))
    assert found(browser)[1][0]["question"] == hostile


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("$5 and $7", 0), ("cost $5, then $7.50 each", 0), ("$5 for 3 and 7$", 0), ("pay $3*5=$15", 0), ("US$5$", 0),
        (r"\$5 and \$6", 0), ("$x^2$ and $5", 1), (r"\(x\) and \[y\]", 2), ("$ABC$ has $AB=5,$", 2), ("$\\$20$", 1),
        (r"$$\frac{1}{2}$$", 1), (r"\begin{align*}a&=b\end{align*}", 1), (r"$p$-adic", 1), ("$a$ $b$", 2),
        (r"$\text{apples and pears}=3$", 1),
    ],
)  # fmt: skip
def test_formulas_are_found_and_money_is_none(text: str, formulas: int) -> None:
    pieces = Formulas(9).of_text(text)
    if not formulas:
        assert pieces == text
        return
    assert isinstance(pieces, list) and "".join(p if isinstance(p, str) else p[0] for p in pieces) == text
    assert [piece[1] for piece in pieces if isinstance(piece, list)] == list(range(formulas))


@pytest.mark.parametrize(
    "latex",
    [
        r"\text{<script>alert(1)</script>}", r"\text{<img src=x onerror=alert(1)>}", r"\href{javascript:alert(1)}{x}",
        r"\style{position:fixed}{x}", r"\class{bar}{x}", r"\hspace{999em}x", r"\frac{1}", r"\frac{1", "{" * 900, "x^",
        r"\unknown{x}", "\x1b[31mx", "\u202ex", "x" * 1001, r"\left( x", r"\text{&lt;}", "a_b_c", r"\phantom{x}",
        r"\sqrt" * 190,
    ],
)  # fmt: skip
def test_a_formula_that_is_not_surely_safe_stays_text(latex: str) -> None:
    assert mathml(latex, False) is None
    assert Formulas(9).of_text(f"${latex}$") == f"${latex}$"


def test_a_formula_is_a_tree_of_known_elements() -> None:
    assert mathml(r"\frac{1}{2}", False) == ["math", {"display": "inline"}, [["mrow", {}, [["mfrac", {}, [
        ["mrow", {}, [["mn", {}, ["1"]]]], ["mrow", {}, [["mn", {}, ["2"]]]]]]]]]]  # fmt: skip
    assert mathml("x<y", True) is not None and "<" in json.dumps(mathml("x<y", True))
    assert "red" not in json.dumps(mathml(r"\color{red}{x}", False))


def test_equal_formulas_are_one_and_there_is_a_limit() -> None:
    formulas = Formulas(2)
    assert formulas.of_text("$x$ $x$ $y$ $z$") == [["$x$", 0], " ", ["$x$", 0], " ", ["$y$", 1], " $z$"]
    assert len(formulas.next_part()) == 2 and formulas.left == -1 and formulas.trees == []
    assert (
        Formulas(9).of_answer(r"\frac{1}{2}") == [[r"\frac{1}{2}", 0]] and Formulas(9).of_answer("28, 10") == "28, 10"
    )


def test_a_run_without_chains_has_no_browser_of_them(here: Path) -> None:
    write_run("empty", {})
    assert chains("empty") is None


def test_the_oracles_choice_is_shown(here: Path) -> None:
    from data.keep import write_keep

    run = sums()
    write_keep(run, 1, [(question_id("1+1?"), "ada", 1)])
    rows: list[Row] = [dict(row) for row in one_chain(run, 1, question_id("1+1?"))["training"]]
    assert [row["kept"] for row in rows] == [True, False, False]
