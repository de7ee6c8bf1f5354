"""How long a round will take and how much disk it needs, from a few measured rates. Pure: plain numbers in and out.

    generate   questions · responses · response tokens / decoding rate
    score      questions · passes · (prompt + 2 · response) tokens / forward rate
    train      questions · examples · epochs · TRAIN · (prompt + response) tokens / forward rate
    gate       questions kept apart · response tokens / decoding rate; of round 0 (votes + 1) times as many
    evaluate   items · (k + 1) · response tokens / decoding rate
               + items · k · verifiers · (prompt + response) tokens / forward rate

with, in each stage, the loading of the peer's engine or model. Side by side a stage takes as long as its slowest peer,
since the rates were measured side by side, too; one at a time it takes the sum. The rates are of the measured batches:
where these are smaller than the round's will be, the projection is too high; so it is where many texts are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TRAIN = 3.0  # forward passes that a training token costs: forward, and twice as much backward
TEXT = 2.0  # bytes on disk of a response's token, as text and (in chains) as a number, compressed
ROW = 20.0  # bytes on disk of a row beside its response
CHECKPOINT = 3  # adapters that a training checkpoint holds: the adapter and AdamW's two moments


@dataclass(frozen=True)
class PeerRates:
    """What was measured of a peer. Tokens are means, rates tokens per second, the rest seconds and bytes."""

    prompt_tokens: float
    response_tokens: float
    decode_rate: float  # of response tokens, the reading of their prompts included
    forward_rate: float  # teacher forcing; 0 where nothing could be measured, and then nothing is projected
    engine_seconds: float  # until the first token
    model_seconds: float  # until the model is there for teacher forcing
    adapter_bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class RoundWork:
    """What a round asks of each peer."""

    questions: int
    responses: float  # to each question
    passes: float  # of each question in score
    examples: float  # of each question in train
    epochs: int
    items: int  # benchmark questions
    samples: int  # k of each item in evaluate
    together: bool  # whether the peers work side by side
    gate: int = 0  # questions kept apart for the gate
    votes: int = 0  # samples of each of them that the untouched peers give


@dataclass(frozen=True)
class Cost:
    """What a stage takes; `temporary` bytes are gone when it, or the next round, is done."""

    seconds: float
    bytes: float
    temporary: float = 0.0


def project(work: RoundWork, peers: Mapping[str, PeerRates]) -> dict[str, Cost]:
    """{stage: cost} of one round, evaluated, and of `baseline` and `votes`, what the untouched peers do before round 1.

    Raises ValueError without peers.
    """
    if not peers:
        raise ValueError("no peer's rates to project from")
    every = list(peers.values())
    seconds = {
        "baseline": [_evaluate(work, peer, verifiers=1) for peer in every],
        "generate": [_generate(work, peer) for peer in every],
        "score": [_score(work, peer) for peer in every],
        "train": [_train(work, peer) for peer in every],
        "evaluate": [_evaluate(work, peer, verifiers=2) for peer in every],
    }
    rows = {
        "baseline": work.items * (work.samples + 1),
        "generate": work.questions * work.responses,
        "score": work.questions,
        "train": 0,
        "evaluate": work.items * (work.samples + 1),
    }
    if work.gate:
        seconds |= {"votes": [_gate(work, peer, work.votes + 1) for peer in every]}
        seconds |= {"gate": [_gate(work, peer, 1) for peer in every]}
        rows |= {"votes": work.gate * (work.votes + 1), "gate": work.gate}
    adapters = sum(peer.adapter_bytes for peer in every)
    merged = sum(peer.weight_bytes for peer in every)
    return {
        stage: Cost(
            max(each) if work.together else sum(each),
            sum(rows[stage] * (ROW + TEXT * peer.response_tokens) for peer in every)
            + (adapters if stage == "train" else 0),
            {"train": CHECKPOINT * adapters, "evaluate": merged}.get(stage, 0),
        )
        for stage, each in seconds.items()
    }


def _generate(work: RoundWork, peer: PeerRates) -> float:
    return peer.engine_seconds + _per(work.questions * work.responses * peer.response_tokens, peer.decode_rate)


def _gate(work: RoundWork, peer: PeerRates, responses: int) -> float:
    return peer.engine_seconds + _per(work.gate * responses * peer.response_tokens, peer.decode_rate)


def _score(work: RoundWork, peer: PeerRates) -> float:
    tokens = work.questions * work.passes * (peer.prompt_tokens + 2 * peer.response_tokens)
    return peer.model_seconds * bool(tokens) + _per(tokens, peer.forward_rate)


def _train(work: RoundWork, peer: PeerRates) -> float:
    tokens = work.questions * work.examples * work.epochs * (peer.prompt_tokens + peer.response_tokens)
    return peer.model_seconds + _per(TRAIN * tokens, peer.forward_rate)


def _evaluate(work: RoundWork, peer: PeerRates, verifiers: int) -> float:
    if not work.items:
        return 0.0
    written = work.items * (work.samples + 1) * peer.response_tokens
    read = work.items * work.samples * verifiers * (peer.prompt_tokens + peer.response_tokens)
    loading = peer.engine_seconds + verifiers * peer.model_seconds
    return loading + _per(written, peer.decode_rate) + _per(read, peer.forward_rate)


def _per(tokens: float, rate: float) -> float:
    return tokens / rate if rate else 0.0
