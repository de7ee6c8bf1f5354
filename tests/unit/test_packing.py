"""Packed batches: each sequence is there as a path, sees nothing else, and scores as it would alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers

from peers.logprob import attention, kernel, model
from peers.logprob.attention import MULTIPLE, PrefixTreeBatch, SegmentGroup, attend
from peers.logprob.model import LanguageModel, Pair, load_language_model, trust_compiler
from peers.logprob.packing import REPEATED, common_prefix, pack, packed_batches, token_batches
from peers.logprob.scoring import score_next, score_pairs

LLAMA = Path(__file__).parents[2] / "peers" / "llama"
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
def test_every_sequence_is_a_path(seed: int) -> None:
    draw = random.Random(seed)
    sequences = families(draw, 12)
    trees = pack(sequences, budget=draw.choice([1, 40, 512]))
    assert sorted(i for tree in trees for i in tree.paths) == list(range(len(sequences)))
    tree_batch = PrefixTreeBatch(trees, torch.device("cpu"))
    for i, path in tree_batch.paths.items():
        assert tree_batch.tokens_N[path].tolist() == sequences[i]
        assert tree_batch.depths_N[path].tolist() == list(range(len(path)))
    assert 0 <= len(tree_batch.tokens_N) - sum(map(len, trees)) < MULTIPLE and len(tree_batch.tokens_N) % MULTIPLE == 0


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("seed", range(8))
def test_a_token_sees_its_own_sequence_alone(seed: int, window: int | None) -> None:
    """Attention over a batch of trees and its gradients, against each sequence alone in float64."""
    draw = random.Random(seed)
    long = list(range(1, 50))  # with a window the ends' padding would see nothing
    sequences = [*families(draw, 6), [*long, 3], [*long, 4, 5], [*long, 60], [*long[:40], *range(60, 80)]]
    tree_batch = PrefixTreeBatch(pack(sequences, budget=512), torch.device("cpu"))
    assert {kind.causal for kind in tree_batch.kinds} == {True, False}
    torch.manual_seed(seed)
    states = [torch.randn(1, heads, len(tree_batch.tokens_N), 8) for heads in (4, 2, 2)]
    weights = torch.randn(len(tree_batch.tokens_N), 4, 8)  # the filling's outputs are nobody's
    weights[len({place for path in tree_batch.paths.values() for place in path}) :] = 0
    for softcap in (None, 2.0):
        query, key, value = (each.clone().requires_grad_() for each in states)
        with torch.no_grad():
            found = attend(None, query, key, value, None, 0.3, window, softcap, tree_batch)[0][0]
        trained = attend(None, query, key, value, None, 0.3, window, softcap, tree_batch)[0][0]
        torch.testing.assert_close(found, trained, rtol=0, atol=1e-5)
        exact = [each.double().requires_grad_() for each in states]
        expected: dict[int, Any] = {}
        for path in tree_batch.paths.values():
            q, k, v = (each[0][:, path] for each in exact)
            scores = 0.3 * q @ k.repeat_interleave(2, 0).transpose(1, 2)
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            behind = torch.arange(len(path))[:, None] - torch.arange(len(path))
            unseen = (behind < 0) | (behind >= (window or len(path)))
            seen = scores.masked_fill(unseen, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 0)
            torch.testing.assert_close(found[path].double(), seen.transpose(0, 1), rtol=0, atol=1e-5)
            expected |= {place: seen[:, depth] for depth, place in enumerate(path)}
        (trained * weights).sum().backward()
        torch.stack([(expected[place] * weights[place]).sum() for place in expected]).sum().backward()
        for ours, theirs in zip((query, key, value), exact, strict=True):
            assert ours.grad is not None and theirs.grad is not None
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=1e-5)


def test_other_kinds_of_attention_are_refused() -> None:
    x = torch.randn(1, 2, 64, 8)
    tree_batch = PrefixTreeBatch(pack([[1, 2, 3]], budget=64), torch.device("cpu"))
    attend(None, x, x, x, None, tree_batch=tree_batch, position_bias=None)
    wrong: list[dict[str, Any]] = [{"tree_batch": None}, {"tree_batch": tree_batch, "s_aux": torch.zeros(2)}]
    for arguments in wrong:
        with pytest.raises(ValueError, match="packed attention needs"):
            attend(None, x, x, x, None, **arguments)


def test_what_is_shared_is_there_once_and_trees_have_their_limits() -> None:
    stem = list(range(1, 61))
    sequences = [[*stem, 70 + i] for i in range(10)]
    assert [len(tree) for tree in pack(sequences, 512)] == [70]
    assert [len(tree) for tree in pack(sequences, 512, sharing=False)] == [61] * 10
    assert [len(tree) for tree in pack(sequences, 64)] == [64, 64, 62]
    many = pack([[*stem, i, j] for i in range(20) for j in range(20)], 100)
    assert max(tree.repeated for tree in many) <= 100 * REPEATED
    assert [len(tree) for tree in pack([[1, *range(20, 40)], [1, *range(40, 60)]], 512)] == [21, 21]  # not worth it


def test_the_common_prefix_of_two_lists_is_its_whole_length() -> None:
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
    found = list(packed_batches([*sequences, [1] * 300], 128))
    assert sorted(i for trees in found for tree in trees for i in tree.paths) == list(range(len(sequences) + 1))
    assert [len(tree) for tree in found[0]] == [300]
    assert all(sum(map(len, trees)) <= 128 for trees in found[1:])
    assert len(found) < len(sequences)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_pairs_score_as_they_do_alone(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    config = getattr(transformers, architecture)(**SHAPE, **ARCHITECTURES[architecture])
    model: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    lm = LanguageModel(model.requires_grad_(False))
    assert lm.packed
    draw = random.Random(5)
    pairs = []
    for _ in range(6):
        question, aggregate = tokens(draw, 25), tokens(draw, 12)
        given = [question[:20] + tokens(draw, 15) + question[20:] for _ in range(2)]
        pairs += [Pair(prompt, aggregate) for prompt in (question, *given)]
    assert len(pack([pair.inputs for pair in pairs], 256)) < len(pairs)
    scores = score_pairs(lm, pairs, 256, lambda *_: None)
    verdicts = score_next(lm, [pair.inputs for pair in pairs], [3, 5], 256, lambda *_: None)
    for pair, found, logits in zip(pairs, scores, verdicts, strict=True):
        with torch.no_grad():
            alone = model(torch.tensor([[*pair.prompt, *pair.target]])).logits[0].double()
        expected = alone.log_softmax(-1)[len(pair.prompt) - 1 : -1].gather(1, torch.tensor(pair.target)[:, None])
        assert found == pytest.approx(expected[:, 0].tolist(), abs=2e-5)
        assert logits == pytest.approx(alone[-2, [3, 5]].tolist(), abs=2e-5)
    # were the window left out of the masks, the packed Gemma sequences would see more than they do alone
    whole = SegmentGroup.mask
    monkeypatch.setattr(attention.SegmentGroup, "mask", lambda self, window, dtype: whole(self, None, dtype))
    wrong = score_pairs(lm, pairs, 256, lambda *_: None)
    apart = max(abs(a - b) for x, y in zip(scores, wrong, strict=True) for a, b in zip(x, y, strict=True))
    assert apart > 1e-3 if getattr(config, "sliding_window", None) else apart == 0


@pytest.mark.parametrize("reason", ["chunked", "window"])
def test_an_architecture_that_cannot_be_packed_is_given_padded_sequences(reason: str) -> None:
    torch.manual_seed(3)
    model: Any = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SHAPE)).eval()
    draw = random.Random(5)
    pairs = [Pair(tokens(draw, 9), tokens(draw, n)) for n in range(1, 9)]
    lm = LanguageModel(model.requires_grad_(False))
    expected = score_pairs(lm, pairs, 64, lambda *_: None)
    assert lm.packed
    if reason == "chunked":
        model.config.layer_types = ["chunked_attention"] * 4
    else:
        model.config.sliding_window = 8  # its attention does not tell us so
    padded = LanguageModel(model)
    assert not padded.packed and model.config._attn_implementation == "sdpa"
    for one, other in zip(expected, score_pairs(padded, pairs, 64, lambda *_: None), strict=True):
        assert other == pytest.approx(one, abs=2e-5)


def test_an_architecture_that_counts_positions_itself_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_language_model(LLAMA, "bfloat16").packed
    decoder = transformers.LlamaModel
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda self, *_, position_ids=None, **others: forward(self, **others))
    assert not load_language_model(LLAMA, "bfloat16").packed


@pytest.mark.parametrize("kind", ["pairs", "next"])
def test_whether_compiling_pays_counts_the_calls_to_come(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load_language_model(LLAMA, "float32")
    draw = random.Random(5)
    pairs = [Pair(tokens(draw, 9), tokens(draw, 5)) for _ in range(12)]
    seen: list[int] = []
    monkeypatch.setattr(lm, "compile_if_asked", seen.append)
    for parts in (1, 1000):
        if kind == "pairs":
            score_pairs(lm, pairs, 32, lambda *_: None, parts)
        else:
            score_next(lm, [[*pair.prompt, *pair.target] for pair in pairs], [3], 32, lambda *_: None, parts)
    assert seen == [12 * 14, 1000 * 12 * 14]  # once a call, before its first batch


def test_the_amount_of_work_decides_whether_compiling_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load_language_model(LLAMA, "float32")
    assert lm.layer_weights == 1_623_552
    scoring = int(6e13 / (2 * lm.layer_weights))
    training = int(4e13 / (4 * lm.layer_weights))
    with torch.no_grad():
        assert (lm.compiling_pays(scoring - 9), lm.compiling_pays(scoring + 9)) == (False, True)
    assert (lm.compiling_pays(training - 9), lm.compiling_pays(training + 9)) == (False, True)
    monkeypatch.setattr(lm, "device", torch.device("cuda"))
    assert not lm.compiling_pays(100 * training) and lm.compiling_pays(201 * training)


@pytest.mark.parametrize("compiler", [True, False])
@pytest.mark.parametrize("much", [True, False])
@pytest.mark.parametrize("choice", ["auto", "on", "off"])
def test_layers_are_compiled_once_where_that_is_asked_for(
    choice: Literal["auto", "on", "off"], much: bool, compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer, **_: layers.append(layer))
    monkeypatch.setattr(model, "keep_from_compiler", lambda: None)
    monkeypatch.setattr(model, "trust_compiler", lambda: None)
    monkeypatch.setattr(model, "compiler_is_there", lambda: compiler)
    lm = load_language_model(LLAMA, "float32")
    lm.compile = choice
    for _ in range(2):
        lm.compile_if_asked(10**12 if much else 1)
    compiled = compiler and (choice == "on" or (choice == "auto" and much))
    assert layers == (list(lm.decoder.layers) if compiled else [])


def test_a_compiler_that_is_known_is_not_tried_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    settings: Any = config

    def after(theirs: bool | None) -> bool | None:
        # monkeypatch finds no such entry in the proxy's __dict__, so it would delete the setting to put it back, and
        # torch hides what was deleted from all later tests
        with settings.patch({"cpp.vec_isa_ok": theirs}):
            trust_compiler()
            found: bool | None = settings.cpp.vec_isa_ok
        return found

    before = settings.cpp.vec_isa_ok
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(kernel, "library", lambda: "built")
    assert (after(None), after(False)) == (True, False)
    monkeypatch.setenv("CXX", "g++-9")  # which may know less than the compiler of the kernel
    assert after(None) is None
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(kernel, "library", lambda: None)
    assert after(None) is None
    assert settings.cpp.vec_isa_ok is before
