"""The peer's part of `make try`, in its process: answer a few questions, read the responses, and measure the speed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from data.hashing import request_seed
from data.run import Run
from data.task import Advance
from peers import policy_cache
from peers.devices import gpu_is_there
from peers.engines.protocol import Completion, Sampling, complete
from peers.lengths import max_prompt_tokens
from peers.memory import totals
from peers.policy import Policy
from peers.weights import read_stored, weight_files
from pipeline.projection import PeerRates

MAX_BATCHES = 2  # of `runtime.max_num_seqs` requests each, in one measurement
MEASURE_SECONDS = 10.0  # that a further measurement should take
PART = 64  # pairs read at a time


class Clock:
    """Seconds of a device's time that one peer got. On a CPU that several peers share, it counts CPU time: a peer that
    is measured while another one loads has more of the cores than its share."""

    def __init__(self, concurrent_peers: int, on_gpu: bool) -> None:
        shares_cores = concurrent_peers > 1 and not on_gpu
        self.concurrent = concurrent_peers
        self.cores = len(os.sched_getaffinity(0)) if shares_cores else 0
        self.begun = time.monotonic(), time.process_time()

    def seconds(self) -> float:
        """Seconds since this clock was made."""
        wall, used = time.monotonic() - self.begun[0], time.process_time() - self.begun[1]
        return max(wall / self.concurrent, used / self.cores if self.cores else 0.0, 1e-9)


@dataclass(frozen=True)
class Probe:
    """A peer's prompts and responses, and how fast it was."""

    prompts: list[str]  # as the model reads them, with control tokens
    review: str  # prompt of a review of the first question that shows the peer's own response
    greedy: list[Completion]
    samples: list[Completion]
    rates: PeerRates


def probe(
    run: Run,
    policy: Policy,
    questions: list[str],
    timing_questions: list[str],
    k: int,
    concurrent_peers: int,
    advance: Advance,
) -> Probe:
    """Generate a greedy response and k samples for every question, then read all samples once with the scoring model.

    A quick engine gets more requests, as many at once as in a round: small batches are slow, and projections from them
    are too long. `timing_questions` are further questions for that. `concurrent_peers` is how many peers' processes
    share the device and work at the same time: rates are given as if this one had it alone.
    """
    config, prompts = run.config, policy.prompts
    tokens = prompts.all_of("solve", [(question, ()) for question in questions])
    clock = partial(Clock, concurrent_peers, gpu_is_there())
    engine = _TimedEngine(run, policy, clock)
    engine_seconds = engine.start(min(tokens, key=len))
    most = config.generate.max_new_tokens
    greedy = engine.complete(tokens, [0] * len(tokens), Sampling(0.0, 1.0, most, logprobs=False), advance)
    drawn = Sampling(config.evaluate.temperature, config.evaluate.top_p, most, logprobs=False)
    samples, decode_rate, at_once = _sample(engine, tokens, k, drawn, advance)
    shown = [each.text or "…" for each in greedy]
    reviews = [
        prompts.review(question, [shown[i % len(shown)]]) for i, question in enumerate([*questions, *timing_questions])
    ]
    chain = Sampling(config.generate.temperature, config.generate.top_p, most)
    several = reviews[: max(len(questions), min(config.runtime.max_num_seqs, at_once))]
    _, chain_rate = engine.measure(several, chain)
    forward_rate, model_seconds = _reading(run, policy, questions, samples, clock)
    return Probe(
        prompts=[str(prompts.tokenizer.decode(ids)) for ids in tokens],
        review=str(prompts.tokenizer.decode(reviews[0])),
        greedy=greedy,
        samples=samples,
        rates=PeerRates(
            prompt_tokens=_mean_length(tokens),
            review_tokens=_mean_length(reviews),
            response_tokens=_response_tokens(samples),
            distinct=_distinct(samples, k),
            decode_rate=decode_rate,
            chain_rate=chain_rate,
            forward_rate=forward_rate,
            engine_seconds=engine_seconds,
            model_seconds=model_seconds,
            adapter_bytes=adapter_bytes(policy, config.train.rank),
            weight_bytes=sum(file.stat().st_size for file in weight_files(policy.base)),
        ),
    )


@dataclass(frozen=True)
class _TimedEngine:
    """A policy's engine, with a clock for its requests."""

    run: Run
    policy: Policy
    clock: Callable[[], Clock]

    def start(self, prompt: list[int]) -> float:
        """Load the engine and warm it up with one request; returns the seconds."""
        begun = self.clock()
        self.complete([prompt], [0], Sampling(0.0, 1.0, 1, logprobs=False))
        return begun.seconds()

    def complete(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling, advance: Advance = lambda *_: None
    ) -> list[Completion]:
        """A completion of each prompt."""
        config = self.run.config
        engine = partial(policy_cache.engine, self.policy, config)
        return complete(engine, prompts, seeds, sampling, max_prompt_tokens(config.generate), advance)

    def measure(
        self, prompts: list[list[int]], sampling: Sampling, advance: Advance = lambda *_: None
    ) -> tuple[list[Completion], float]:
        """Completions, and response tokens per second."""
        seed = self.run.config.run.seed
        seeds = [request_seed(seed, "try", self.policy.name, number) for number in range(len(prompts))]
        begun = self.clock()
        found = self.complete(prompts, seeds, sampling, advance)
        return found, sum(len(each.token_ids) for each in found) / begun.seconds()


def _sample(
    engine: _TimedEngine, tokens: list[list[int]], k: int, sampling: Sampling, advance: Advance
) -> tuple[list[Completion], float, int]:
    """k samples of each prompt, response tokens per second, and how many requests fit into MEASURE_SECONDS."""
    requests = [ids for ids in tokens for _ in range(k)]
    begun = time.monotonic()
    samples, rate = engine.measure(requests, sampling, advance)
    at_once = int(MEASURE_SECONDS * (len(requests) / max(time.monotonic() - begun, 1e-9)))
    times = min(MAX_BATCHES * engine.run.config.runtime.max_num_seqs, at_once) // len(requests)
    if times > 1:
        _, rate = engine.measure(requests * times, sampling)
    return samples, rate, at_once


def _mean_length(prompts: list[list[int]]) -> float:
    return sum(map(len, prompts)) / len(prompts)


def _response_tokens(samples: list[Completion]) -> float:
    """Mean tokens of a response, over the prompts that were not too long."""
    written = sum(len(each.token_ids) for each in samples)
    return written / max(1, sum(each.finish_reason != "context" for each in samples))


def _distinct(samples: list[Completion], k: int) -> float:
    """The share of samples that differ from the question's other samples."""
    different = {(number // k, tuple(each.token_ids)) for number, each in enumerate(samples)}
    return len(different) / len(samples)


def _reading(
    run: Run, policy: Policy, questions: list[str], samples: list[Completion], clock: Callable[[], Clock]
) -> tuple[float, float]:
    """Tokens per second of teacher forcing (tokens that sequences share count once), and seconds to load the model.

    The passes are like those of score: each sample after a review that shows another sample."""
    from peers.logprob.model import Pair, inputs_of
    from peers.logprob.packing import packed_batches
    from peers.logprob.scoring import score_pairs

    prompts, end, k = policy.prompts, policy.prompts.end_id, len(samples) // len(questions)
    pairs = []
    for number, each in enumerate(samples):
        if each.finish_reason != "context":
            shown = samples[(number + 1) % len(samples)].text or "…"
            pairs.append(Pair(prompts.review(questions[number // k], [shown]), [*each.token_ids, end]))
    budget = run.config.runtime.score_tokens
    begun = clock()
    lm = policy_cache.language_model(policy, run.config)
    score_pairs(lm, pairs[:1], budget, lambda *_: None)  # warms up
    model_seconds, ready, read, start = begun.seconds(), clock(), 0, 0
    while pairs and start < len(pairs) and ready.seconds() < MEASURE_SECONDS:
        part = pairs[start : start + PART]
        score_pairs(lm, part, budget, lambda *_: None)
        read += sum(len(tree) for batch in packed_batches(inputs_of(part), budget) for tree in batch)
        start += PART
    return read / ready.seconds(), model_seconds


def adapter_bytes(policy: Policy, rank: int) -> int:
    """Bytes of a float32 LoRA adapter for all linear layers of a base."""
    return 4 * rank * totals(read_stored(policy.peer, policy.base))[2]
