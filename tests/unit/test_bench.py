"""The pure parts of `make bench`: statistics, extrapolation, the count of operations, and its inputs."""

from __future__ import annotations

import math
from itertools import islice

import pytest

from bench.inputs import Maker, configuration, in_words, stream
from bench.limits import Flops, Shapes, flops, seconds
from bench.measure import Contender, alternate, full_seconds
from bench.table import BEGIN, END, PAGE, Record, latest, ratios, render, spread
from peers.logprob.model import Pair
from peers.prompts import load_prompts


def test_extrapolation_leaves_the_start_up_as_it_is() -> None:
    assert full_seconds(wall=12.0, work=10.0, amount=100, whole=100) == 12.0
    assert full_seconds(wall=12.0, work=10.0, amount=100, whole=1000) == 102.0


def test_repeats_alternate() -> None:
    contenders = [Contender(label, "", {}, 1) for label in "ABC"]
    assert ["".join(c.label for c in alternate(contenders, repeat)) for repeat in range(3)] == ["ABC", "CBA", "ABC"]


def test_ratios_are_of_the_same_repeat() -> None:
    ours = [{"repeat": 0, "rate": 8.0}, {"repeat": 1, "rate": 9.0}, {"repeat": 2, "rate": 5.0}]
    theirs = [{"repeat": 1, "rate": 3.0}, {"repeat": 0, "rate": 2.0}]
    assert ratios(ours, theirs, "rate") == [4.0, 3.0]
    assert spread([4.0, 3.0, 3.5]) == "3.50 (3.00 to 4.00)"
    assert spread([4.0]) == "4.00"
    assert spread([0.37, 0.4, 0.41], 1) == "0.40 (0.37 to 0.41)" and spread([0.042]) == "0.042"
    assert spread([2785.4], 0) == "2785" and spread([0.0], 1) == "0.0"


def test_flops_of_a_small_case() -> None:
    shapes = Shapes({(4, 8): 2, (8, 4): 1}, hidden=4, vocabulary=10, layers=1, attention=4)
    pairs = [([1, 2], [3, 4]), ([1, 2], [3, 5]), ([9], [2])]  # of 3, 3 and 1 tokens that are fed 4 are different
    once = flops(shapes, pairs, budget=100)
    assert once == Flops(linear=2 * 96 * 4, head=2 * 4 * 10 * 5, attention=4 * 4 * (3 * 4 / 2 + 1))
    assert flops(shapes, pairs, 100, [[0, 1, 2]]) == Flops(2 * once.linear, 2 * once.head, 3 * once.attention)
    apart = flops(shapes, pairs, 100, [[0], [1], [2]])  # nothing is shared across optimiser steps
    assert apart == Flops(4 * 96 * 7, 2 * once.head, 12 * 4 * (2 * 3 * 4 / 2 + 1))
    # segments: 2 tokens, then two ends of 3 that each see them
    two = flops(shapes, [([1, 2], [3, 4, 5, 0]), ([1, 2], [6, 7, 8, 0])], budget=100)
    assert two.attention == 4 * 4 * ((5 * 6 / 2) + (3 * 2 + 3 * 4 / 2))
    assert math.isclose(seconds(once, 100.0, 10.0), (once.linear + once.attention) / 100 + once.head / 10)


def test_inputs_are_the_same_every_time_and_a_sample_is_their_beginning() -> None:
    config, name = configuration("nano", worked_examples=False)
    prompts = load_prompts(config, name)
    pairs = Maker(prompts, words=False, seed=3).score(2000)
    assert pairs == Maker(prompts, words=False, seed=3).score(2000)
    assert pairs[:6] == Maker(prompts, words=False, seed=3).score(1)[:3] + pairs[3:6]
    assert sum(len(Pair(*pair)) for pair in pairs) >= 2000
    alone, given, _ = pairs[:3]
    assert alone[1] == given[1] and len(alone[0]) < len(given[0])
    examples = Maker(prompts, words=False, seed=3).train_alike(16)
    assert len(examples) == 16 and len({len(target) for _, target in examples}) == 1


def test_solutions_in_words_have_every_line() -> None:
    for problem in islice(stream(1), 20):
        text = in_words(problem, (), check=True)
        lines, answer = problem.worked(())
        assert all(line.split("=")[1] in text for line in lines)
        assert text.endswith(f"The answer is {', '.join(map(str, answer))}.")
        assert len(text) > len(in_words(problem, (), check=False))


def test_table_shows_the_last_session() -> None:
    run = {"kind": "run", "options": "", "unit": "tokens", "whole": 10, "generated_tokens": None, "wall_seconds": 3.0,
           "work_seconds": 2.0, "seconds": 3.0, "peak_mib": 1024.0, "rate_without_startup": 5.0}  # fmt: skip
    key = {"part": "score", "model": "nano"}
    records: list[Record] = [
        {**key, "session": "1", "kind": "note", "text": "old"},
        {**key, "session": "2", "kind": "about", "text": "ten tokens"},
        {**key, **run, "session": "2", "system": "ours", "repeat": 0, "rate": 6.0, "amount": 10},
        {**key, **run, "session": "2", "system": "theirs", "repeat": 0, "rate": 2.0, "amount": 5},
        {**key, "session": "2", "kind": "limit", "repeat": 0, "rows": 8, "seconds_at_limit": 1.5,
         "tflops": {"bfloat16": [2.0, 1.0]}},
    ]  # fmt: skip
    assert {record["session"] for record in latest(records)["score", "nano"]} == {"2"}
    text = " ".join(render(records).split())
    assert "old" not in text and "- **theirs, extrapolated from 5 tokens**: 2.0 tokens/s; start-up 1.0 s" in text
    assert "Ours ÷ it 3.00, after start-up 1.00, our memory ÷ its 1.00." in text
    assert "that ours reaches: 0.50, without start-up 0.75" in text


@pytest.mark.parametrize("marker", [BEGIN, END])
def test_page_has_a_place_for_the_tables(marker: str) -> None:
    assert PAGE.read_text().count(marker) == 1
