"""Rates by rule of thumb, for devices that this machine does not have: the reached share of a roofline. Not measured.

    decode    tokens/s = REACHED · S / (W / bandwidth + S · T · KV / bandwidth + S · 2 P / FLOP/s)
    read      tokens/s = READ · FLOP/s / (2 P)

S requests at once, W bytes of weights, T mean tokens of a sequence, KV cache bytes per token, P weights. REACHED is the
share that vLLM reached through this project's engine on an H100 (13.5 k tokens/s, Gemma-2-2B's shape, 128 requests of
200 + 200 tokens); READ is the share that scoring should reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.config.load import parse_config
from data.config.sections import Config
from data.errors import UserError
from peers.devices import GB, Device, parse_devices
from peers.memory import GIB, TYPE_BYTES, Shape, likely_length, shape_of
from peers.placement import by_device, place, shapes_of
from pipeline.first_look import work_of
from pipeline.memory_plan import memory_plan
from pipeline.projection import PeerRates, RoundWork, project

# (least memory, "as a ...", the vendor's bf16 FLOP/s, bytes/s)
GPUS = (
    (70 * GB, "H100", 989e12, 3.35e12),
    (35 * GB, "L40S", 362e12, 0.864e12),
    (18 * GB, "A10", 125e12, 0.6e12),
    (0, "T4", 65e12, 0.32e12),
)
REACHED, READ = 0.35, 0.4
MEAN_LENGTH = 0.75  # of a sequence's final length, while its response grows
QUICKEST_STEP = 0.005  # seconds: a decoding step of the smallest model, limited by Python
MAX_READ_RATE = 300_000.0  # tokens/s: the limit from kernel launches, however small the model
GPU_START, GPU_LOAD = 60.0, 10.0  # seconds: first start of an engine; loading other weights or a scoring model
DISTINCT = 0.8  # share of a question's samples


# for --sizing: the paper's peers, with the sizes in their config.json
_TIED = {"tie_word_embeddings": True}
PAPER: dict[str, dict[str, Any]] = {
    "gemma-2-2b": {
        "num_hidden_layers": 26,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
        "attn_logit_softcapping": 50.0,
        **_TIED,
    },
    "llama-3.2-1b": {
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        **_TIED,
    },
    "qwen2.5-1.5b": {
        "num_hidden_layers": 28,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        **_TIED,
    },
}
SIZES, COUNTS, RESPONSES = (1_000, 10_000, 100_000, 1_000_000), (1, 8, 64), (256, 1024)
QUESTION, ITEMS = 120, 1_000  # tokens of a question with its wording; number of benchmark questions


def likely_shapes(config: Config) -> dict[str, Shape]:
    """Like `shapes_of`, but downloads only config.json of a hub model. Raises UserError."""
    from peers.source import hub_config

    small = {peer.name: hub_config(peer) for peer in config.peers}
    large = [peer for peer in config.peers if small[peer.name] is None]
    shapes = shapes_of(config.model_copy(update={"peers": tuple(large)})) if large else {}
    for peer in config.peers:
        found = small[peer.name]
        if found is not None:
            try:
                shapes[peer.name] = shape_of(found)
            except (KeyError, TypeError, ValueError):
                shapes |= shapes_of(config.model_copy(update={"peers": (peer,)}))
    return {name: shapes[name] for name in config.peer_names}


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a question's prompt, of a review's, and of a response."""

    prompt: float
    review: float
    response: float


def likely_lengths(config: Config) -> Lengths:
    """Without measurements: a response has half of its most tokens, a question as many as a response."""
    response = config.generate.max_new_tokens / 2
    return Lengths(response, 2 * response, response)


def rough_rates(shape: Shape, config: Config, device: Device, lengths: Lengths) -> PeerRates:
    """Estimated rates of a peer alone on a GPU."""
    _, _, flops, bandwidth = next(row for row in GPUS if device.memory >= row[0])
    width = TYPE_BYTES["bfloat16"]
    requests, length = by_device(config.runtime, device).max_num_seqs, likely_length(config.generate)
    weights = shape.weights * width
    held = requests * MEAN_LENGTH * length * shape.kv_token(width)
    step = (weights + held) / bandwidth + requests * 2 * shape.weights / flops
    decoding = requests / max(step / REACHED, QUICKEST_STEP)
    return PeerRates(
        prompt_tokens=lengths.prompt,
        review_tokens=lengths.review,
        response_tokens=lengths.response,
        distinct=DISTINCT,
        decode_rate=decoding,
        chain_rate=decoding,
        forward_rate=min(MAX_READ_RATE, READ * flops / (2 * shape.weights)),
        engine_seconds=GPU_START,
        model_seconds=GPU_LOAD,
        adapter_bytes=4 * config.train.rank * shape.linear,
        weight_bytes=shape.stored,
    )


def like(device: Device) -> str:
    """The GPU model whose speed is assumed for a device."""
    return next(row[1] for row in GPUS if device.memory >= row[0])


@dataclass(frozen=True)
class Size:
    """What an experiment takes: device hours (all devices), hours, bytes that stay, most bytes, money."""

    questions: int
    devices: int
    device_hours: float
    hours: float
    disk: float
    peak_disk: float
    cost: float


def size(work: RoundWork, peers: Mapping[str, PeerRates], devices: int, rounds: int, price: float) -> Size:
    """The size of an experiment of `rounds` rounds and round 0's evaluation on equal devices, placed as by
    peers/placement.py; `price` per device hour. Pure."""
    processes = range(max(len(peers), devices))
    places = {
        name: [str(k % devices) for k in processes if k % len(peers) == number] for number, name in enumerate(peers)
    }
    costs = project(work, peers, places)
    once = {"baseline", "votes"}
    seconds = sum(cost.seconds * (1 if stage in once else rounds) for stage, cost in costs.items())
    disk = sum(cost.bytes * (1 if stage in once else rounds) for stage, cost in costs.items())
    temporary = max(cost.temporary for cost in costs.values())
    hours = seconds / 3600
    return Size(work.questions, devices, hours * devices, hours, disk, disk + temporary, hours * devices * price)


def sizing_table(gpus: list[Device], price: float, rounds: int) -> str:
    """A Markdown table: an experiment with the paper's three peers, by questions, response tokens and GPUs: the given
    ones, or, if it is one, 1, 8 and 64 of it. Raises UserError for a CPU or GPUs that differ."""
    device, counts = gpus[0], COUNTS if len(gpus) == 1 else (len(gpus),)
    if not device.is_gpu or len({each.memory for each in gpus}) > 1:
        raise UserError("--sizing needs GPUs of one kind: --devices 1x80, or 4x80 for exactly four")
    gb = round(device.memory / GB)
    lines = [
        f"| questions | response tokens | GPUs of {gb} GB | hours | device hours | disk | memory of a GPU | cost |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for questions in SIZES:
        for tokens in RESPONSES:
            config = parse_config(
                {
                    "prompts": {"source": "nano"},
                    "generate": {"max_new_tokens": 2 * tokens, "context_tokens": 8 * tokens},
                    "peers": [{"name": name, "model": f"./{name}"} for name in PAPER],
                },
                "sizing",
            )
            shapes = {name: shape_of(each) for name, each in PAPER.items()}
            lengths = Lengths(QUESTION, QUESTION + tokens, tokens)
            rates = {name: rough_rates(shape, config, device, lengths) for name, shape in shapes.items()}
            work = work_of(config, questions, ITEMS)
            for count in counts:
                placement = place(config, parse_devices(f"{count}x{gb}"), shapes)
                memory = max(row.bytes for row in memory_plan(config, placement, shapes, 0))
                found = size(work, rates, count, rounds, price)
                lines.append(
                    f"| {questions:,} | {tokens:,} | {count} | {_hours(found.hours)} | {_hours(found.device_hours)} | "
                    f"{found.peak_disk / GB:,.1f} GB | {memory / GIB:.0f} GiB | {found.cost:,.0f} |"
                )
    return "\n".join(lines) + "\n"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2f}"
