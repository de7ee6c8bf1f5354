"""Packed rows: each sequence is there as a path, sees nothing else, and scores as it would alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers

from score import packing
from score.logprob import LanguageModel, Pair, score_next, score_pairs
from score.packing import common_prefix, pack, row_batches, token_batches, visible

SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
}  # fmt: skip
ARCHITECTURES = {
    "LlamaConfig": {},
    "Qwen2Config": {},
    "Gemma2Config": {"sliding_window": 8, "query_pre_attn_scalar": 8},  # far shorter than the sequences
    "Gemma3TextConfig": {"sliding_window": 8, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
}


def tokens(draw: random.Random, n: int) -> list[int]:
    """Random tokens."""
    return [draw.randrange(1, 97) for _ in range(n)]


def families(draw: random.Random, n: int) -> list[list[int]]:
    """Sequences of which some share a beginning, some are equal, and some begin as others end."""
    found = []
    for _ in range(n):
        stem = tokens(draw, draw.randrange(1, 30))
        found += [stem + tokens(draw, draw.randrange(1, 20)) for _ in range(draw.randrange(1, 4))]
        found += [found[-1], stem] if draw.random() < 0.3 else []
    return draw.sample(found, len(found))


@pytest.mark.parametrize("seed", range(20))
def test_every_sequence_is_a_path_that_sees_itself_alone(seed: int) -> None:
    draw = random.Random(seed)
    sequences = families(draw, 12)
    rows = pack(sequences, longest=draw.choice([0, 40, 512]))
    assert sorted(i for row in rows for i in row.paths) == list(range(len(sequences)))
    longest = max(map(len, rows))
    for row in rows:
        sees = visible(row, longest)
        for i, path in row.paths.items():
            assert [row.tokens[place] for place in path] == sequences[i]
            assert [row.depths[place] for place in path] == list(range(len(path)))
            for depth, place in enumerate(path):
                assert sees[place].nonzero()[:, 0].tolist() == sorted(path[: depth + 1])
    assert sum(map(len, rows)) < sum(map(len, sequences))


def test_what_is_shared_is_there_once_and_rows_have_their_limit() -> None:
    stem = list(range(1, 61))
    sequences = [[*stem, 70 + i] for i in range(10)]
    assert [len(row) for row in pack(sequences)] == [70]
    assert [len(row) for row in pack(sequences, sharing=False)] == [61] * 10
    assert max(len(row) for row in pack([*sequences, [9] * 400], longest=100)) <= 800  # twice the longest
    assert [len(row) for row in pack([[1, *range(20, 40)], [1, *range(40, 60)]])] == [
        21,
        21,
    ]


def test_prefix_of_two_lists() -> None:
    for a, b, n in (("", "x", 0), ("x", "y", 0), ("abc", "abd", 2), ("ab", "abc", 2), ("aaaaa", "aaaaa", 5)):
        assert common_prefix([*map(ord, a)], [*map(ord, b)]) == n


def test_batches_have_every_index_once_and_keep_to_the_budget() -> None:
    draw = random.Random(1)
    lengths = [draw.randrange(1, 50) for _ in range(99)] + [300]
    batches = list(token_batches(lengths, 128))
    assert sorted(i for batch in batches for i in batch) == list(range(100))
    assert batches[0] == [99]
    assert all(max(lengths[i] for i in batch) * len(batch) <= 128 for batch in batches[1:])
    sequences = families(draw, 20)
    for rows in row_batches(sequences, 128):
        assert len(rows) * max(map(len, rows)) <= 128 or len(rows) == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_pairs_score_as_they_do_alone(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    config = getattr(transformers, architecture)(**SHAPE, **ARCHITECTURES[architecture])
    model: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    lm = LanguageModel(model.requires_grad_(False))
    assert lm.sharing
    draw = random.Random(5)
    pairs = []
    for _ in range(6):
        question, aggregate = tokens(draw, 25), tokens(draw, 12)
        given = [question[:20] + tokens(draw, 15) + question[20:] for _ in range(2)]
        pairs += [Pair(prompt, aggregate) for prompt in (question, *given)]
    assert len(pack([pair.inputs for pair in pairs])) < len(pairs)
    scores = score_pairs(lm, pairs, 256, lambda *_: None)
    verdicts = score_next(lm, [pair.inputs for pair in pairs], [3, 5], 256, lambda *_: None)
    for pair, found, logits in zip(pairs, scores, verdicts, strict=True):
        with torch.no_grad():
            alone = model(torch.tensor([[*pair.prompt, *pair.target]])).logits[0].double()
        expected = alone.log_softmax(-1)[len(pair.prompt) - 1 : -1].gather(1, torch.tensor(pair.target)[:, None])
        assert found == pytest.approx(expected[:, 0].tolist(), abs=2e-5)
        assert logits == pytest.approx(alone[-2, [3, 5]].tolist(), abs=2e-5)
    # were the window left out of the masks, the packed Gemma rows would see more than their sequences do
    monkeypatch.setattr(packing, "visible", lambda row, length: torch.ones(length, length, dtype=torch.bool).tril())
    monkeypatch.setattr("score.logprob.visible", packing.visible)
    wrong = score_pairs(lm, pairs, 256, lambda *_: None)
    assert max(abs(a - b) for x, y in zip(scores, wrong, strict=True) for a, b in zip(x, y, strict=True)) > 1e-3


def test_an_architecture_with_other_masks_is_given_plain_sequences() -> None:
    torch.manual_seed(3)
    model: Any = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SHAPE)).eval()
    model.config.layer_types = ["chunked_attention"] * 4
    assert not LanguageModel(model).sharing
