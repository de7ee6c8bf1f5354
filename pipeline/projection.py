"""The time and disk that a round needs, from a few measured rates. Pure: plain numbers in and out.

    generate   questions · responses · response tokens / chain rate
    score      questions · passes · ((prompt + review) / 2 + response) tokens / forward rate
    train      questions · examples · epochs · TRAIN · (prompt + response) tokens / forward rate
    gate       questions kept apart · response tokens / decoding rate; in round 0 (votes + 1) times as many
    evaluate   items · (k + 1) · response tokens / decoding rate
               + items · verifiers · (prompt + k · distinct · (response + request)) tokens / forward rate

Added to these are the start of the peer's engine in the first stage, and the loading of models in each stage. Rates
are those of a peer alone on its device: a device takes the sum of its peers' times, side by side or in turns, and a
stage takes as long as its slowest device. Replicas share a peer's work by their speed, but each loads its own models,
and only one trains. Equal samples of a question are verified once: `distinct` is the share of different ones. Tokens
that sequences share count once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peers.disk import CHECKPOINT_ADAPTERS, ROW

TRAIN = 3.0  # forward passes that a training token costs: one forward, and a backward of twice that
BYTES_PER_TOKEN = 2.0  # compressed bytes on disk per response token, as text and (in chains) as a number
REQUEST = 12.0  # tokens that ask whether a response is right
COMMAND = 15.0  # seconds of a command outside its stages: imports, the benchmarks, the table, the report


@dataclass(frozen=True)
class PeerRates:
    """Measurements of a peer. Tokens are means; rates are tokens per second; the rest is seconds or bytes."""

    prompt_tokens: float
    review_tokens: float  # of a prompt that shows a response
    response_tokens: float
    distinct: float  # share of a question's samples that differ
    decode_rate: float  # response tokens, including the time to read the prompts; many samples of a question
    chain_rate: float  # the same when each question is asked once, in a review, with log-probabilities
    forward_rate: float  # teacher forcing; 0 if it could not be measured, which leaves it out of the projection
    engine_seconds: float  # until the first token of a new process
    model_seconds: float  # to load the model for teacher forcing, or other weights into an engine
    adapter_bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class RoundWork:
    """A peer's work in a round."""

    questions: int
    responses: float  # per question
    passes: float  # per question in score
    examples: float  # per question in train
    epochs: int
    items: int  # benchmark questions
    samples: int  # k per item in evaluate
    gate: int = 0  # questions kept apart for the gate
    votes: int = 0  # samples of each of them from the untouched peers


@dataclass(frozen=True)
class Cost:
    """What a stage takes; `temporary` bytes are freed at the end of the stage, or of the next round."""

    seconds: float
    bytes: float
    temporary: float = 0.0


def project(
    work: RoundWork,
    peers: Mapping[str, PeerRates],
    devices: Mapping[str, Sequence[str]] | None = None,
    by_device: Mapping[str, Mapping[str, PeerRates]] | None = None,
) -> dict[str, Cost]:
    """{stage: cost} of one round, and of `baseline` and `votes`, the work of the untouched peers before round 1.

    `devices` are those of each peer's replicas; by default, all peers share one. `by_device` are the peers' rates on
    each device, if the devices differ. Raises ValueError without peers.
    """
    if not peers:
        raise ValueError("no peer's rates to project from")
    places = devices or dict.fromkeys(peers, ("cpu",))
    every = list(peers.values())
    times = {
        (name, device): _times(work, by_device[device][name] if by_device else peer)
        for name, peer in peers.items()
        for device in places[name]
    }
    different = 1 + work.samples * sum(peer.distinct for peer in every) / len(every)
    rows = {
        "baseline": (work.items * (work.samples + 1), work.items * different),
        "generate": (work.questions * work.responses, work.questions * work.responses),
        "score": (work.questions * work.responses, work.questions * work.responses),
        "train": (0.0, 0.0),
        "evaluate": (work.items * (work.samples + 1), work.items * different),
    }
    if work.gate:
        votes = work.gate * (work.votes + 1)
        rows |= {"votes": (votes, votes), "gate": (work.gate, work.gate)}
    adapters = sum(peer.adapter_bytes for peer in every)
    merged = sum(peer.weight_bytes for peer in every)
    return {
        stage: Cost(
            _slowest(stage, times, places if stage != "train" else {name: places[name][:1] for name in peers}),
            sum(rows[stage][0] * ROW + rows[stage][1] * BYTES_PER_TOKEN * peer.response_tokens for peer in every)
            + (adapters if stage == "train" else 0),
            {"train": CHECKPOINT_ADAPTERS * adapters, "evaluate": merged}.get(stage, 0),
        )
        for stage in rows
    }


@dataclass(frozen=True)
class Time:
    """A peer's seconds in a stage."""

    loading: float  # per replica
    work: float  # shared by the replicas

    def after(self, seconds: float) -> Time:
        """This time with more loading."""
        return Time(self.loading + seconds, self.work)


def _times(work: RoundWork, peer: PeerRates) -> dict[str, Time]:
    """A peer's times by stage."""
    found = {
        "baseline": _evaluate(work, peer, verifiers=1),
        "generate": Time(0, _per(_written(work, peer), peer.chain_rate)),
        "score": _score(work, peer),
        "train": _train(work, peer),
        "evaluate": _evaluate(work, peer, verifiers=2),
    }
    if work.gate:
        found["votes"] = _gate(work, peer, work.votes + 1)
        found["gate"] = _gate(work, peer, 1).after(peer.model_seconds)
    first = "baseline" if work.items else "votes" if work.gate else "generate"
    return found | {first: found[first].after(peer.engine_seconds)}


def _slowest(
    stage: str, times: Mapping[tuple[str, str], Mapping[str, Time]], devices: Mapping[str, Sequence[str]]
) -> float:
    """Seconds of the slowest device."""
    busy: dict[str, float] = {}
    for name, mine in devices.items():
        alone = [times[name, device][stage].work for device in mine]
        shared = 1 / sum(1 / seconds for seconds in alone) if all(alone) else 0.0
        for device in mine:
            busy[device] = busy.get(device, 0.0) + times[name, device][stage].loading + shared
    return max(busy.values())


def _written(work: RoundWork, peer: PeerRates) -> float:
    return work.questions * work.responses * peer.response_tokens


def _gate(work: RoundWork, peer: PeerRates, responses: int) -> Time:
    return Time(0, _per(work.gate * responses * peer.response_tokens, peer.decode_rate))


def _score(work: RoundWork, peer: PeerRates) -> Time:
    shown = (peer.prompt_tokens + peer.review_tokens) / 2
    tokens = work.questions * work.passes * (shown + peer.response_tokens)
    return Time(peer.model_seconds * bool(tokens), _per(tokens, peer.forward_rate))


def _train(work: RoundWork, peer: PeerRates) -> Time:
    tokens = work.questions * work.examples * work.epochs * (peer.prompt_tokens + peer.response_tokens)
    return Time(peer.model_seconds, _per(TRAIN * tokens, peer.forward_rate))


def _evaluate(work: RoundWork, peer: PeerRates, verifiers: int) -> Time:
    if not work.items:
        return Time(0, 0)
    written = work.items * (work.samples + 1) * peer.response_tokens
    different = max(1.0, work.samples * peer.distinct) * (peer.response_tokens + REQUEST)
    read = work.items * verifiers * (peer.prompt_tokens + different)
    loading = (2 * verifiers - 1) * peer.model_seconds  # the verifiers, and, after training, the engine's new weights
    return Time(loading, _per(written, peer.decode_rate) + _per(read, peer.forward_rate))


def _per(tokens: float, rate: float) -> float:
    return tokens / rate if rate else 0.0
