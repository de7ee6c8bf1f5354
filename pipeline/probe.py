"""What `make try` has a peer do, in its process: answer a few questions, and read what it wrote, by the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

from data.hashing import draw_key, request_seed
from data.run import Run
from peers import policy_cache
from peers.engines.protocol import Completion, Sampling, complete
from peers.lengths import room
from peers.memory import totals
from peers.policy import Policy
from peers.weights import read_stored, weight_files
from peers.workers import Advance
from pipeline.projection import PeerRates


@dataclass(frozen=True)
class Probe:
    """A peer's prompts and responses, and how fast it was."""

    prompts: list[str]  # as it reads them, control tokens and all
    review: str  # that of a review of the first question, its own response in view
    greedy: list[Completion]
    samples: list[Completion]
    rates: PeerRates


def probe(run: Run, policy: Policy, questions: list[str], k: int, advance: Advance) -> Probe:
    """Greedy responses and k samples to every question, then one pass over all of them by the scoring model."""
    section, limits, prompts = run.config.evaluate, run.config.generate, policy.prompts
    tokens = prompts.all_of("solve", [(question, ()) for question in questions])
    engine = partial(policy_cache.engine, policy, run.config)
    begun = time.monotonic()
    first = Sampling(0.0, 1.0, 1, logprobs=False)
    complete(engine, [min(tokens, key=len)], [0], first, room(limits), lambda *_: None)  # loads, and warms up
    engine_seconds = time.monotonic() - begun

    greedy_, drawn = (
        Sampling(temperature, top_p, limits.max_new_tokens, logprobs=False)
        for temperature, top_p in ((0.0, 1.0), (section.temperature, section.top_p))
    )
    greedy = complete(engine, tokens, [0] * len(tokens), greedy_, room(limits), advance)
    asked = [(ids, question, number) for ids, question in zip(tokens, questions, strict=True) for number in range(k)]
    seeds = [request_seed(run.config.run.seed, "try", policy.name, draw_key(q), number) for _, q, number in asked]
    begun = time.monotonic()
    samples = complete(engine, [ids for ids, *_ in asked], seeds, drawn, room(limits), advance)
    decoding = time.monotonic() - begun

    forward_rate, model_seconds = _reading(run, policy, [ids for ids, *_ in asked], samples)
    written = sum(len(each.token_ids) for each in samples)
    answered = [each for each in samples if each.finish_reason != "context"]
    return Probe(
        prompts=[str(prompts.tokenizer.decode(ids)) for ids in tokens],
        review=str(prompts.tokenizer.decode(prompts.review(questions[0], [greedy[0].text or "…"]))),
        greedy=greedy,
        samples=samples,
        rates=PeerRates(
            prompt_tokens=sum(map(len, tokens)) / len(tokens),
            response_tokens=written / max(1, len(answered)),
            decode_rate=written / max(decoding, 1e-9),
            forward_rate=forward_rate,
            engine_seconds=engine_seconds,
            model_seconds=model_seconds,
            adapter_bytes=adapter_bytes(policy, run.config.train.rank),
            weight_bytes=sum(file.stat().st_size for file in weight_files(policy.base)),
        ),
    )


def _reading(run: Run, policy: Policy, prompts: list[list[int]], samples: list[Completion]) -> tuple[float, float]:
    """Tokens per second of teacher forcing, those that samples share counted once, and seconds until the model was
    there."""
    from peers.logprob.model import Pair, inputs_of
    from peers.logprob.packing import packed_batches
    from peers.logprob.scoring import score_pairs

    end = policy.prompts.end_id
    read = zip(prompts, samples, strict=True)
    pairs = [Pair(ids, [*each.token_ids, end]) for ids, each in read if each.finish_reason != "context"]
    budget = run.config.runtime.score_tokens
    begun = time.monotonic()
    lm = policy_cache.language_model(policy, run.config)
    score_pairs(lm, pairs[:1], budget, lambda *_: None)  # warms up
    ready = time.monotonic()
    score_pairs(lm, pairs, budget, lambda *_: None)
    seconds = max(time.monotonic() - ready, 1e-9)
    read_once = sum(len(tree) for batch in packed_batches(inputs_of(pairs), budget) for tree in batch)
    return read_once / seconds, ready - begun


def adapter_bytes(policy: Policy, rank: int) -> int:
    """Of a float32 LoRA adapter of all linear layers of a base."""
    return 4 * rank * totals(read_stored(policy.peer, policy.base))[2]
