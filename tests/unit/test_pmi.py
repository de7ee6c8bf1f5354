"""PMI: the arithmetic by hand, and that a response which gives the answer away has the larger one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from data.config.sections import PeerSection, TemplateSection
from data.schema import ChainRow
from peers.logprob.model import LanguageModel, Pair
from peers.logprob.scoring import score_pairs
from peers.prompts import PeerPrompts
from peers.source import load_tokenizer
from score.chains import Chain, responses
from score.pmi import Measured, Pmi, combine, scorers


def test_pmi_of_one_scorer_by_hand() -> None:
    # -4 - (-6) = 2 nats over 4 tokens
    assert combine([Measured(given=-4.0, alone=-6.0, n_tokens=4)]) == Pmi(-4.0, -6.0, 4, 2.0, 0.5)
    # a response that misleads
    assert combine([Measured(given=-8.0, alone=-6.0, n_tokens=1)]) == Pmi(-8.0, -6.0, 1, -2.0, -2.0)


def test_pmi_of_the_mean_scorer_is_the_mean_per_token() -> None:
    # 2 nats over 4 tokens and 9 nats over 2: per token (0.5 + 4.5) / 2 = 2.5, not 5.5 / 3
    found = combine([Measured(-4.0, -6.0, 4), Measured(-3.0, -12.0, 2)])
    assert found == Pmi(-3.5, -9.0, 3, 5.5, 2.5)


@pytest.mark.parametrize("measured", [[], [Measured(0.0, 0.0, 0)], [Measured(-1.0, -2.0, 3), Measured(0.0, 0.0, 0)]])
def test_no_scorer_or_no_target_is_an_error(measured: list[Measured]) -> None:
    with pytest.raises(ValueError, match="at least one scorer and one target token"):
        combine(measured)


def test_whose_policy_measures() -> None:
    peers = ["a", "b", "c"]
    assert scorers("own", "a", "c", peers) == ["a"]
    assert scorers("aggregator", "a", "c", peers) == ["c"]
    assert scorers("mean", "a", "c", peers) == ["a", "b", "c"]
    with pytest.raises(KeyError):
        scorers("median", "a", "c", peers)  # type: ignore[arg-type]


def test_which_response_is_measured() -> None:
    def row(peer: str, role: str, number: int | None = None, is_aggregate: bool = False) -> dict[str, Any]:
        position, sample = (number if role == name else None for name in ("chain", "sample"))
        return {"peer": peer, "role": role, "position": position, "sample": sample, "is_aggregate": is_aggregate}

    def measured(rows: list[dict[str, Any]], source: str = "chain") -> list[tuple[str, str, int | None]]:
        found = responses(Chain(cast(list[ChainRow], rows)), source)
        return [(row["peer"], row["role"], row["position"] or row["sample"]) for row in found]

    solo = [row("b", "solo"), row("c", "solo")]
    chain = [row("a", "chain", 1), row("b", "chain", 2), row("c", "chain", 3, True)]
    said = [("a", "chain", 1), ("b", "chain", 2), ("c", "chain", 3)]
    assert measured([*solo, *chain]) == said
    # c wrote the aggregate, and a was shown nothing
    assert measured([*solo, *chain], "alone") == [("a", "chain", 1), ("b", "solo", None), ("c", "chain", 3)]
    assert measured([*chain[:2], row("c", "chain", 3), row("a", "synthesis", None, True)]) == said
    votes = [row("a", "sample", 1), row("b", "sample", 1, True), row("a", "sample", 2, True), row("b", "sample", 2)]
    assert measured(votes) == [("b", "sample", 1), ("a", "sample", 2)]
    own = [row("a", "solo", None, True), row("b", "solo", None, True)]
    assert measured(own) == measured(own, "alone") == [("a", "solo", None), ("b", "solo", None)]


def counting_model(vocabulary: int) -> LanguageModel:
    """A model whose logit of a token is how often it has occurred so far."""

    def decoder(input_ids: torch.Tensor, **_: Any) -> Any:
        one_hot = torch.nn.functional.one_hot(input_ids, vocabulary).float()
        return SimpleNamespace(last_hidden_state=one_hot.cumsum(1))

    lm = LanguageModel.__new__(LanguageModel)
    lm.decoder = decoder
    lm.head_V_H, lm.bias_V, lm.softcap, lm.scale = torch.eye(vocabulary), None, None, 1.0
    lm.device, lm.packed, lm.compiled, lm.compile = torch.device("cpu"), False, False, "off"
    return lm


def pmi(lm: LanguageModel, given: Sequence[int], alone: Sequence[int], target: Sequence[int]) -> Pmi:
    """PMI of two prompts with a target under one scorer."""
    first, second = score_pairs(lm, [Pair(given, target), Pair(alone, target)], 1000, lambda *_: None)
    return combine([Measured(sum(first), sum(second), len(target))])


def test_pmi_of_a_counting_model_by_hand() -> None:
    lm = counting_model(4)
    # x = 0, a = 1. Alone the counts are (1, 0, 0, 0): log p(1) = 0 - log(e + 3). With y = 1: 1 - log(2e + 2).
    alone = -math.log(math.e + 3)
    same = pmi(lm, [0, 1], [0], [1])
    assert same.logp_alone == pytest.approx(alone, abs=1e-6)
    assert same.pmi == pytest.approx(1 - math.log(2 * math.e + 2) - alone, abs=1e-6)
    # with y = 2: 0 - log(2e + 2), one nat less
    other = pmi(lm, [0, 2], [0], [1])
    assert same.pmi - other.pmi == pytest.approx(1, abs=1e-6)
    assert same.pmi > 0 > other.pmi
    # two tokens a = 1 3, y = 1: the second has log p(3) = 0 - log(e + e² + 2) given y, and 0 - log(2e + 2) alone
    both = pmi(lm, [0, 1], [0], [1, 3])
    second = -math.log(math.e + math.e**2 + 2) + math.log(2 * math.e + 2)
    assert both.pmi == pytest.approx(same.pmi + second, abs=1e-6)
    assert both.pmi_per_token == pytest.approx(both.pmi / 2)


@pytest.mark.parametrize("name", ["chatty", "plain"])
def test_an_identical_answer_tells_more_than_an_unrelated_one(name: str, tiny_models: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tiny_models[name])
    prompts = PeerPrompts(tokenizer, PeerSection(name=name, model="m"), TemplateSection(instruction="Solve."))
    lm = counting_model(len(tokenizer))
    question, answer, unrelated = "Tom has 3 pens and buys 4. How many?", "The answer is 7.", "Who knows; I don't."
    target: list[Any] = [*prompts.encode_response(answer), prompts.end_id]
    alone = prompts.solve(question)
    found = [pmi(lm, prompts.solve(question, [y]), alone, target).pmi_per_token for y in (answer, unrelated)]
    assert found[0] > 0.1 > found[1]
