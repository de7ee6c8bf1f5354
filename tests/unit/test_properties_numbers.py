"""Weights, order, packing, config: what holds of any numbers, peers, sequences and TOML."""

from __future__ import annotations

import itertools
import json
import math
import tomllib
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from data.config.load import differences, load_config, parse_config
from data.config.sections import Config, ScoreSection
from data.errors import UserError
from data.questions import shuffled
from generate.asking import ChainAsking, Question, asking_of, peer_order
from peers.logprob.packing import REPEATED, pack, packed_batches, token_batches
from score.weights import round_weights, weights
from tests.properties import examples
from tests.unit.test_weights import DECREASING, WEIGHTINGS, Weighting, section_of
from train.loss import optimiser_steps

# --- weights ----------------------------------------------------------------------------------------------------

EIGHTHS = st.integers(-800, 800).map(lambda n: n / 8)  # sums of them are exact, so equal means equal
ENTROPY = st.one_of(st.just(0.0), st.floats(1e-6, 3))
PMI = st.one_of(EIGHTHS, st.floats(-1e6, 1e6))


@st.composite
def sections(draw: st.DrawFn, weighting: Weighting | None = None) -> ScoreSection:
    """A section of any weighting, or of this one."""
    low = draw(st.sampled_from([0.0, 1e-6, 0.05, 0.9]))
    high = draw(st.sampled_from([1.0, 20.0, 1e6]))
    center = draw(st.sampled_from(["median", 0.0, -3.0, 1e6]))
    beta = draw(st.sampled_from([0.25, 1.0, 5.0, 1e6]))
    named: Weighting = draw(st.sampled_from(WEIGHTINGS)) if weighting is None else weighting
    return section_of(named, beta=beta, center=center, weight_min=low, weight_max=high)


@st.composite
def rounds(draw: st.DrawFn, pmi: st.SearchStrategy[float] = PMI) -> tuple[list[float], list[int], list[float]]:
    """PMI, agreement and answer entropy of a peer's examples."""
    n = draw(st.integers(1, 12))
    lists = (st.lists(each, min_size=n, max_size=n) for each in (pmi, st.integers(0, 1), ENTROPY))
    found = tuple(draw(each) for each in lists)
    return found  # type: ignore[return-value]


@examples(20)
@given(rounds(), sections(), st.integers(0, 99))
def test_weights_are_not_negative_and_of_mean_1(
    examples_of: tuple[list[float], list[int], list[float]], section: ScoreSection, seed: int
) -> None:
    found = weights(*examples_of, section, seed)
    assert len(found) == len(examples_of[0]) and all(math.isfinite(w) and w >= 0 for w in found)
    positive = [w for w in found if w > 0]
    if positive:
        assert fmean(positive) == pytest.approx(1, rel=1e-9)
    if section.weight_min > 0 and section.weighting != "agreement":
        assert len(positive) == len(found)
        assert max(found) / min(found) <= section.weight_max / section.weight_min * (1 + 1e-9)


@examples(20)
@given(rounds(), st.sampled_from(DECREASING).flatmap(sections))
def test_a_larger_pmi_has_no_larger_weight(
    examples_of: tuple[list[float], list[int], list[float]], section: ScoreSection
) -> None:
    pairs = sorted(zip(examples_of[0], weights(*examples_of, section, 0), strict=True))
    for (pmi, weight), (larger, its) in itertools.pairwise(pairs):
        assert its <= weight and (its == weight or pmi < larger)


@examples(20)
@given(rounds(), sections(), st.randoms(use_true_random=False))
def test_weights_go_with_their_examples(
    examples_of: tuple[list[float], list[int], list[float]], section: ScoreSection, random_: Any
) -> None:
    assume(section.weighting != "shuffled")
    order = random_.sample(range(len(examples_of[0])), len(examples_of[0]))
    pmi, agrees, entropies = examples_of
    there = weights([pmi[i] for i in order], [agrees[i] for i in order], [entropies[i] for i in order], section, 0)
    assert there == [weights(*examples_of, section, 0)[i] for i in order]


@examples(20)
@given(rounds(EIGHTHS), st.sampled_from(DECREASING).flatmap(sections), EIGHTHS)
def test_a_constant_added_to_all_pmi_changes_no_weight_of_a_median_or_a_rank(
    examples_of: tuple[list[float], list[int], list[float]], section: ScoreSection, constant: float
) -> None:
    assume(section.weighting == "rank" or section.center == "median")
    pmi, agrees, entropies = examples_of
    shifted = [p + constant for p in pmi]
    assert weights(shifted, agrees, entropies, section, 0) == weights(*examples_of, section, 0)


@examples(15)
@given(rounds(), sections("sigmoid"), st.integers(0, 99))
def test_shuffled_weights_are_those_of_sigmoid(
    examples_of: tuple[list[float], list[int], list[float]], section: ScoreSection, seed: int
) -> None:
    shuffled_ = section.model_copy(update={"weighting": "shuffled"})
    found = weights(*examples_of, shuffled_, seed)
    assert sorted(found) == sorted(weights(*examples_of, section, seed))
    assert found == weights(*examples_of, shuffled_, seed)


@examples(20)
@given(rounds(st.one_of(PMI, st.just(math.nan))), sections(), st.data())
def test_what_has_no_pmi_has_weight_1_and_factors_keep_the_mean(
    examples_of: tuple[list[float], list[int], list[float]], section: ScoreSection, data: st.DataObject
) -> None:
    n = len(examples_of[0])
    plain = round_weights(*examples_of, [1.0] * n, section, 0)
    by_pmi = section.weighting not in ("uniform", "entropy", "signed") or not section.trains_on_samples
    assert all(w == 1 for p, w in zip(examples_of[0], plain, strict=True) if by_pmi and math.isnan(p))
    factors = data.draw(st.lists(st.floats(-4, 4).map(lambda x: round(x, 3)), min_size=n, max_size=n))
    found = round_weights(*examples_of, factors, section, 0)
    assert all(math.isfinite(w) for w in found)
    if any(found) and any(factor != 1 for factor in factors):
        assert fmean(abs(w) for w in found if w) == pytest.approx(1, rel=1e-9)
    assert all(w == 0 or (w > 0) == (factor > 0) for w, factor in zip(found, factors, strict=True))


# --- order ------------------------------------------------------------------------------------------------------

NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=8, unique=True)
ORDERS = st.sampled_from(["rotate", "fixed", "random"])


@examples(20)
@given(NAMES, ORDERS, st.integers(0, 10**6), st.integers(0, 99), st.integers(0, 9))
def test_an_order_has_every_peer_once(peers: list[str], order: Any, number: int, round_: int, seed: int) -> None:
    found = peer_order(peers, order, number, round_, seed, f"q{number}")
    assert sorted(found) == sorted(peers)
    assert found == peer_order(peers, order, number, round_, seed, f"q{number}")


@examples(15)
@given(NAMES, st.integers(0, 10**6), st.integers(0, 99))
def test_rotation_puts_each_peer_once_in_each_place(peers: list[str], first: int, round_: int) -> None:
    several: list[list[list[str]]] = [
        [peer_order(peers, "rotate", first + step, round_, 0, "") for step in range(len(peers))],
        [peer_order(peers, "rotate", first, round_ + step, 0, "") for step in range(len(peers))],
    ]
    for orders in several:
        assert all(sorted(place) == sorted(peers) for place in zip(*orders, strict=True))
    assert Counter(map(tuple, several[0])) == Counter(map(tuple, several[1]))


def base(peers: list[str]) -> dict[str, Any]:
    """The least that a config may have."""
    return {"prompts": {"source": "x.jsonl"}, "peers": [{"name": name, "model": f"m/{name}"} for name in peers]}


CHOICES = {name: get_args(ScoreSection.model_fields[name].annotation) for name in ("label", "text", "y_source")}


@examples(20)
@given(NAMES, ORDERS, st.integers(0, 999), st.integers(1, 9), st.data())
def test_every_way_of_asking_asks_each_once_with_seeds_of_their_own(
    peers: list[str], order: Any, number: int, round_: int, data: st.DataObject
) -> None:
    score = {name: data.draw(st.sampled_from(values)) for name, values in CHOICES.items()}
    generate = {"aggregate": data.draw(st.sampled_from(["vote", "last", "synthesis", "self"])), "samples": 3}
    weighting = "uniform" if score["text"] == "samples" else "sigmoid"
    try:
        config = parse_config(base(peers) | {"score": {**score, "weighting": weighting}, "generate": generate}, "x")
    except UserError:
        assume(False)
    asking = asking_of(config, round_)
    question = Question("q", "?", number, peer_order(peers, order, number, round_, 0, "q"))
    seen: Counter[tuple[object, ...]] = Counter()
    for turn in asking.turns:
        asked = {peer: asking.asks(turn, peer, question) for peer in peers}
        if turn.role in ("chain", "synthesis"):
            assert sum(asked.values()) == 1
        for earlier in asking.shown(turn):
            assert asking.turns.index(earlier) < asking.turns.index(turn)
        for peer, times in asked.items():
            seen.update((peer, *asking.seed_of(turn, peer, question, n + 1)) for n in range(times))
    assert seen and max(seen.values()) == 1  # two responses of a peer never share their seed
    if any(turn.role == "chain" for turn in asking.turns):
        chain = ChainAsking(peers, round_)
        assert [next(p for p in peers if chain.asks(turn, p, question)) for turn in chain.turns] == question.order


@examples(15)
@given(st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=12), st.integers(0, 9), st.data())
def test_a_shuffle_does_not_depend_on_the_order_in_the_file(
    questions: dict[str, str], seed: int, data: st.DataObject
) -> None:
    found = shuffled(questions, seed)
    assert sorted(found) == sorted(questions)
    assert found == shuffled(dict(data.draw(st.permutations([*questions.items()]))), seed)


@examples(15)
@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 4), st.integers(0, 99))
def test_an_epoch_has_every_example_once(n: int, batch: int, epochs: int, seed: int) -> None:
    steps = optimiser_steps(n, batch, epochs, seed)
    assert all(1 <= len(step) <= batch for step in steps)
    assert Counter(i for step in steps for i in step) == Counter(dict.fromkeys(range(n), epochs) if n else {})


# --- packing ----------------------------------------------------------------------------------------------------

TOKENS = st.integers(1, 4)  # few, so that beginnings are shared


@st.composite
def sequences(draw: st.DrawFn) -> list[list[int]]:
    """Some that share beginnings, are equal, or begin as others end; none empty."""
    stems = draw(st.lists(st.lists(TOKENS, max_size=30), min_size=1, max_size=3))
    ends = st.lists(TOKENS, max_size=12)
    found = draw(st.lists(st.tuples(st.sampled_from(stems), ends).map(lambda pair: [*pair[0], *pair[1]]), max_size=12))
    return [each for each in found if each]


@examples(20)
@given(sequences(), st.integers(1, 80), st.booleans())
def test_packing_has_every_sequence_once_within_the_budget(given_: list[list[int]], budget: int, sharing: bool) -> None:
    trees = pack(given_, budget, sharing)
    assert sorted(i for tree in trees for i in tree.paths) == list(range(len(given_)))
    for tree in trees:
        for i, path in tree.paths.items():
            assert [tree.tokens[place] for place in path] == given_[i] and path == sorted(set(path))
        assert tree.repeated == sum(len(given_[i]) for i in tree.paths)
        assert len(tree.paths) == 1 or (len(tree) <= budget and tree.repeated <= REPEATED * budget)
        covered = sorted(place for segment in tree.segments for place in range(segment.first, segment.end))
        assert covered == list(range(len(tree)))
    batches = list(packed_batches(given_, budget, sharing))
    assert sorted(i for batch in batches for tree in batch for i in tree.paths) == list(range(len(given_)))
    for batch in batches:
        assert len(batch) == 1 or sum(map(len, batch)) <= budget
        assert len(batch) == 1 or sum(tree.repeated for tree in batch) <= REPEATED * budget


@examples(20)
@given(st.lists(st.integers(0, 90), max_size=40), st.integers(1, 120))
def test_padded_batches_have_every_index_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(token_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget for batch in batches)


# --- config -----------------------------------------------------------------------------------------------------

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
TEXTS = [path.read_text(encoding="utf-8") for path in CONFIGS]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([0, 1, -1, 10**30, "", "a"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
)
SECTIONS = sorted(Config.model_fields)
KEYS = sorted({key for name in SECTIONS for key in getattr(Config.model_fields[name].annotation, "model_fields", ())})


def holds(config: Config) -> None:
    """A loaded config survives writing to JSON and reading."""
    written = json.loads(json.dumps(config.model_dump(mode="json"), allow_nan=False))
    again = parse_config(written, "again")
    assert again == config and not differences(config, again)


def one_line(error: UserError) -> None:
    """The message for a person."""
    assert str(error).strip() and "Traceback" not in str(error)


@st.composite
def raw_configs(draw: st.DrawFn) -> dict[str, Any]:
    """A config that ships, with some of its values, keys and sections changed to anything."""
    raw = tomllib.loads(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(0, 3))):
        section = draw(st.one_of(st.sampled_from(SECTIONS), st.text(max_size=6)))
        value = draw(VALUES)
        if draw(st.booleans()):
            raw[section] = value
            continue
        key = draw(st.one_of(st.sampled_from(KEYS), st.text(max_size=6)))
        inner = raw.get(section)
        tables = inner if isinstance(inner, list) else [raw.setdefault(section, {})]
        for table in tables[:1]:
            if isinstance(table, dict):
                table[key] = value
    return raw


@examples(20)
@given(raw_configs())
def test_a_config_is_loaded_or_refused(raw: dict[str, Any]) -> None:
    try:
        config = parse_config(raw, "x.toml")
    except UserError as error:
        one_line(error)
        return
    holds(config)


@st.composite
def overrides(draw: st.DrawFn) -> str:
    """SECTION.KEY=VALUE, more or less."""
    names = st.one_of(
        st.sampled_from(SECTIONS), st.sampled_from(KEYS), st.integers(-2, 3).map(str), st.text(max_size=5)
    )
    values = st.one_of(SCALARS.map(str), SCALARS.map(lambda value: json.dumps(value)), st.text(max_size=12))
    return (
        draw(st.sampled_from([".", ".", ".", "..", ""])).join(draw(st.lists(names, max_size=4)))
        + draw(st.sampled_from(["=", "=", "=", " = ", ""]))
        + draw(values)
    )


@examples(20)
@given(st.lists(overrides(), min_size=1, max_size=3), st.sampled_from(TEXTS))
@example(["generate.temperature=" + "[" * 5000], TEXTS[0])
def test_overrides_are_taken_or_refused(given_: list[str], text: str) -> None:
    try:
        config = parse_config(tomllib.loads(text), "x.toml", given_)
    except UserError as error:
        one_line(error)
        return
    holds(config)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The bytes of a config that ships, with some cut out, put in, changed or repeated."""
    found = bytearray(draw(st.sampled_from(TEXTS)).encode())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(found)))
        end = min(len(found), at + draw(st.sampled_from([0, 0, 1, 3, 40])))
        found[at:end] = draw(
            st.one_of(st.binary(max_size=4), st.sampled_from([b"[", b"]]", b'"', b"\n", b"=", b"= 1e999"]))
        )
    return bytes(found) + draw(st.sampled_from([b"", b"", b"x = " + b"[" * 3000, b"x." * 3000 + b"y = 1"]))


@examples(15)
@given(damaged())
def test_a_damaged_file_is_loaded_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.toml"
    path.write_bytes(content)
    try:
        config = load_config(path, [])
    except UserError as error:
        one_line(error)
        return
    holds(config)
