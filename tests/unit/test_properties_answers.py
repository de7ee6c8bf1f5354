"""Answers: whatever a model writes is read in bounded time, lies where it is said to lie, and is compared alike in both
directions."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.answers import choice, kinds, texts, thoughts
from data.answers.clusters import clusters
from data.answers.equivalence import bare, decide_quickly
from data.answers.gold import Unreadable, read_gold, same_gold
from data.answers.grader import Grader
from data.answers.spelling import normalise_answer
from tests.properties import examples, long_texts, within
from tests.properties import texts as some_texts

QUESTION = "Which one? (A) 24 (B) a dozen (C) x + 1 (D) none of these"
SECONDS = 5.0  # of CPU time, for 10,000 characters; the slowest takes one, if no other process disturbs it
KINDS = st.sampled_from([*kinds.KINDS, "answers:same"])  # of the last the text of a response alone is looked at


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    """Shared: its processes take seconds to start."""
    with Grader(timeout_seconds=5.0, workers=1) as shared:
        yield shared


@examples(20)
@given(response=some_texts(), question=st.one_of(st.just(QUESTION), some_texts()), kind=KINDS)
def test_an_answer_is_found_where_it_stands(response: str, question: str, kind: str) -> None:
    with within(SECONDS):
        found = kinds.of(kind).find(response, question)
        assert found == kinds.of(kind).find(response, question)
    if found is not None:
        assert 0 <= found.start < found.end <= len(response) and found.answer
    if found is not None and kind == "choice":
        assert found.answer == choice.NONE or found.answer in choice.options_of(question)


@examples(8)
@given(response=long_texts(), kind=KINDS)
def test_no_response_takes_long_to_read(response: str, kind: str) -> None:
    with within(SECONDS):
        kinds.of(kind).find(response, QUESTION)
        kinds.of(kind).find("", response)


@examples(20)
@given(response=some_texts(), kind=st.sampled_from([*kinds.KINDS]))
def test_an_answer_that_was_found_is_right_beside_itself(response: str, kind: str) -> None:
    found = kinds.of(kind).find(response, QUESTION)
    if found is not None:
        with within(SECONDS):
            assert kinds.of(kind).right(found.answer, found.answer) is not False


@examples(20)
@given(a=some_texts(8), b=some_texts(8), kind=st.sampled_from(["math", "numbers"]))
def test_what_is_decided_quickly_holds_in_both_directions(a: str, b: str, kind: str) -> None:
    with within(SECONDS):
        assert decide_quickly(a, b, kind) == decide_quickly(b, a, kind)  # type: ignore[arg-type]


@examples(15)
@given(a=long_texts(), b=st.one_of(long_texts(), some_texts()), kind=KINDS)
def test_no_comparison_takes_long(a: str, b: str, kind: str) -> None:
    with within(SECONDS):
        kinds.of(kind).right(a, b)


@examples(20)
@given(text=some_texts())
def test_what_was_thought_is_hidden_once_and_every_text_has_a_form(text: str) -> None:
    with within(SECONDS):
        assert texts.normal_form(text) == texts.normal_form(f" {text}\n")
        shown = thoughts.hidden(text)
        assert thoughts.hidden(shown) == shown and len(shown) == len(text)
        assert bare(bare(text)) == bare(text)
        normalise_answer(text)


@examples(20)
@given(cell=st.one_of(some_texts(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(some_texts(3))),
       question=st.one_of(st.just(QUESTION), some_texts()), kind=KINDS)  # fmt: skip
def test_a_gold_answer_is_read_or_refused(cell: object, question: str, kind: str) -> None:
    with within(SECONDS):
        try:
            found = read_gold(cell, kind, question)
        except Unreadable as error:
            assert str(error) and "\n" not in str(error)
            return
    assert isinstance(found, str)
    if not kinds.is_own(kind):
        assert same_gold(found, found, kind)


@examples(15)
@given(cell=st.one_of(some_texts(), st.lists(some_texts(3), max_size=4).map(json.dumps)), question=some_texts())
def test_options_are_listed_or_refused(cell: str, question: str) -> None:
    with within(SECONDS):
        try:
            options = choice.parse_options(cell)
        except ValueError as error:
            assert str(error)
            return
        choice.problem_of(choice.with_options(question, options))


@examples(15)
@given(options=st.lists(st.from_regex(r"[a-z]{1,9}( [0-9]{1,9})?", fullmatch=True), min_size=2, max_size=8))
def test_options_below_a_question_are_its_options(options: list[str]) -> None:
    written = choice.with_options("Which one is it?", options)
    assert [*choice.options_of(written).values()] == options
    assert choice.with_options(written, options) == written


@examples(10)
@given(answers=st.lists(st.one_of(st.none(), some_texts(5)), max_size=4), kind=st.sampled_from([*kinds.KINDS]))
def test_clusters_have_every_answer_once_and_agreement_has_no_direction(
    answers: list[str | None], kind: str, grader: Grader
) -> None:
    found = clusters(answers, kind, grader)
    assert sorted(index for cluster in found for index in cluster) == [
        index for index, answer in enumerate(answers) if answer is not None
    ]
    assert [len(cluster) for cluster in found] == sorted(map(len, found), reverse=True)
    pairs = [(a, b) for a in answers for b in answers if a is not None and b is not None]
    turned = [(b, a) for a, b in pairs]
    assert grader.equivalent(pairs, kind) == grader.equivalent(turned, kind)
    grader.forget()
