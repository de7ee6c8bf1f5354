"""What `make try` has a peer do, in its process: answer a few questions, and read what it wrote, by the clock."""

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

ENOUGH = 2  # times as many requests as the engine takes at once
LONGEST = 10.0  # seconds of each further measurement
PART = 64  # pairs that are read at a time


class Clock:
    """Seconds that a device had for one peer. On a CPU that several share these are the cores' seconds that it used:
    a peer that is measured while another one loads has more of the cores than its share."""

    def __init__(self, concurrent_peers: int, on_gpu: bool) -> None:
        self.beside, self.cores = (
            concurrent_peers,
            0 if on_gpu or concurrent_peers == 1 else len(os.sched_getaffinity(0)),
        )
        self.begun = time.monotonic(), time.process_time()

    def seconds(self) -> float:
        """Since it was made."""
        wall, used = time.monotonic() - self.begun[0], time.process_time() - self.begun[1]
        return max(wall / self.beside, used / self.cores if self.cores else 0.0, 1e-9)


@dataclass(frozen=True)
class Probe:
    """A peer's prompts and responses, and how fast it was."""

    prompts: list[str]  # as it reads them, control tokens and all
    review: str  # that of a review of the first question, its own response in view
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
    """Greedy responses and k samples to every question, then one pass over all of them by the scoring model.

    An engine that was quick is asked more, as many requests at once as in a round: small batches are slow, and what is
    projected from them is too long. `timing_questions` are further questions for that. `concurrent_peers` is how many
    peers' processes share the device and are asked at the same time: rates are given as if this one had it alone.
    """
    section, limits, prompts = run.config.evaluate, run.config.generate, policy.prompts
    tokens = prompts.all_of("solve", [(question, ()) for question in questions])
    engine = partial(policy_cache.engine, policy, run.config)
    clock = partial(Clock, concurrent_peers, gpu_is_there())
    begun = clock()
    first = Sampling(0.0, 1.0, 1, logprobs=False)
    complete(
        engine, [min(tokens, key=len)], [0], first, max_prompt_tokens(limits), lambda *_: None
    )  # loads, and warms up
    engine_seconds = begun.seconds()

    greedy_, drawn = (
        Sampling(temperature, top_p, limits.max_new_tokens, logprobs=False)
        for temperature, top_p in ((0.0, 1.0), (section.temperature, section.top_p))
    )
    greedy = complete(engine, tokens, [0] * len(tokens), greedy_, max_prompt_tokens(limits), advance)

    def ask(
        prompts_: list[list[int]], sampling: Sampling, told: Advance = lambda *_: None
    ) -> tuple[list[Completion], float]:
        """Completions, and response tokens a second."""
        seeds = [request_seed(run.config.run.seed, "try", policy.name, number) for number in range(len(prompts_))]
        begun = clock()
        found = complete(engine, prompts_, seeds, sampling, max_prompt_tokens(limits), told)
        return found, sum(len(each.token_ids) for each in found) / begun.seconds()

    asked = [ids for ids in tokens for _ in range(k)]
    asked_at = time.monotonic()
    samples, decode_rate = ask(asked, drawn, advance)
    pace = len(asked) / max(time.monotonic() - asked_at, 1e-9)
    times = min(ENOUGH * run.config.runtime.max_num_seqs, int(LONGEST * pace)) // len(asked)
    if times > 1:
        _, decode_rate = ask(asked * times, drawn)
    shown = [each.text or "…" for each in greedy]
    reviews = [
        prompts.review(question, [shown[i % len(shown)]]) for i, question in enumerate([*questions, *timing_questions])
    ]
    chain = Sampling(run.config.generate.temperature, run.config.generate.top_p, limits.max_new_tokens)
    several = reviews[: max(len(questions), min(run.config.runtime.max_num_seqs, int(LONGEST * pace)))]
    _, chain_rate = ask(several, chain)

    forward_rate, model_seconds = _reading(run, policy, questions, samples, clock)
    written = sum(len(each.token_ids) for each in samples)
    answered = [each for each in samples if each.finish_reason != "context"]
    different = {(number // k, tuple(each.token_ids)) for number, each in enumerate(samples)}
    return Probe(
        prompts=[str(prompts.tokenizer.decode(ids)) for ids in tokens],
        review=str(prompts.tokenizer.decode(reviews[0])),
        greedy=greedy,
        samples=samples,
        rates=PeerRates(
            prompt_tokens=sum(map(len, tokens)) / len(tokens),
            review_tokens=sum(map(len, reviews)) / len(reviews),
            response_tokens=written / max(1, len(answered)),
            distinct=len(different) / len(samples),
            decode_rate=decode_rate,
            chain_rate=chain_rate,
            forward_rate=forward_rate,
            engine_seconds=engine_seconds,
            model_seconds=model_seconds,
            adapter_bytes=adapter_bytes(policy, run.config.train.rank),
            weight_bytes=sum(file.stat().st_size for file in weight_files(policy.base)),
        ),
    )


def _reading(
    run: Run, policy: Policy, questions: list[str], samples: list[Completion], clock: Callable[[], Clock]
) -> tuple[float, float]:
    """Tokens per second of teacher forcing, those that sequences share counted once, and seconds until the model was
    there. Read are passes like those of score: each sample after a review that shows another sample."""
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
    while pairs and start < len(pairs) and ready.seconds() < LONGEST:
        part = pairs[start : start + PART]
        score_pairs(lm, part, budget, lambda *_: None)
        read += sum(len(tree) for batch in packed_batches(inputs_of(part), budget) for tree in batch)
        start += PART
    return read / ready.seconds(), model_seconds


def adapter_bytes(policy: Policy, rank: int) -> int:
    """Of a float32 LoRA adapter of all linear layers of a base."""
    return 4 * rank * totals(read_stored(policy.peer, policy.base))[2]
