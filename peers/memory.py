"""How many bytes a peer takes on a device in each stage, from config.json and the headers of its weights alone.

    engine   weights + activations of one step; its key-value cache comes on top
    score    weights + one batch: hidden states and one layer's activations, and a block of the head's logits
    train    weights + adapter + micro-batch: activations of all layers for the backward pass, or, with gradient
             checkpointing, the layers' inputs and one layer's activations; logits as in score
    process  the libraries and CUDA's context, once for all of these

Letters: L layers, H hidden size, I inner size of the MLP, A attention heads, B heads of keys and values, D head size,
V vocabulary, b bytes of the arithmetic's type, r rank, N tokens of a batch, T tokens of a sequence. The activations
follow Korthikanti et al. (arXiv 2205.05198, section 4), term by term for gated MLPs and RMS norms. Sliding
windows are ignored (layers that have one keep less than estimated here), and so is the allocator's waste.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from data.config.engine import engine_here
from data.config.sections import Config, GenerateSection, PeerSection, RuntimeSection
from peers.devices import Device
from peers.weights import Stored, read_model_json, read_stored

GIB = 2**30
TYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
CUDA_CONTEXT = GIB // 2  # of a process that uses the GPU, kernels included
CPU_PROCESS = GIB // 2  # private memory of a process with torch, transformers and vLLM, without shared pages
ENGINE_TOKENS = 8192  # of one step of vLLM (peers/engines/vllm.py), at least
HEAD_ROWS, HEAD_BLOCK, CPU_HEAD_BLOCK = 2048, 16384, 1024  # of peers/logprob/head.py
LOGIT = 20  # bytes: float32 logit, probability and sorted copy, and a 64-bit index
# share of a GPU's free memory that activations may take before gradient_checkpointing = "auto" drops them: the head,
# the optimiser and fragmentation need some, too
ACTIVATION_SHARE = 0.5
LAYER = re.compile(r"\.(layers|h)\.\d+\.")  # matches the names of the blocks' tensors
OTHER_KEYS = {
    "num_hidden_layers": ("n_layer",),
    "hidden_size": ("n_embd",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
}
LORA_COPIES = 4  # float32 each: the adapter, its gradient, AdamW's two moments


@dataclass(frozen=True)
class Footprint:
    """Bytes of one peer on one device. `engine` is without its key-value cache."""

    process: int
    engine: int
    score: int
    train: int
    kv_token: int  # of the key-value cache, per token
    kv_preferred: int  # for as many requests at a time as the engine may take
    kv_minimum: int  # for one request as long as the context
    weights: int  # in the type of the arithmetic: what an engine that sleeps holds in the machine's memory
    apart: bool  # engine and model are never in the device's memory together, see `apart`

    @property
    def stage(self) -> int:
        """The larger of score and train, which a peer never runs together."""
        return max(self.score, self.train)

    def at_once(self, cache: int, model: int, turns: bool = False) -> int:
        """The process's peak in bytes: an engine with `cache` bytes of key-value cache and `model` bytes (`score` or
        `train`) side by side; the larger of the two if they are apart, or the device takes `turns`."""
        engine = self.engine + cache
        return self.process + (max(engine, model) if self.apart or turns else engine + model)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model from config.json and the headers; see the letters above."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    weights: int  # numbers in all tensors
    stored: int  # their bytes in the files
    linear: int  # inputs + outputs of all linear layers of the blocks: an adapter has rank times as many numbers
    capped: bool  # soft-capped attention scores, which no fused kernel computes

    def kv_token(self, width: int) -> int:
        """Bytes of one token in the key-value cache: 2 L B D b."""
        return 2 * self.layers * self.kv_heads * self.head_size * width

    def layer_token(self, width: int) -> int:
        """Bytes that one token leaves for one layer's backward: b (6 H + 2 (A + B) D + 4 I), and 8 H of two norms
        that compute in float32, twice as many where the scores are capped (Gemma has four)."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_size
        norms = 8 * self.hidden * (2 if self.capped else 1)
        return width * (6 * self.hidden + attention + 4 * self.inner) + norms

    def scores(self, tokens: int, longest: int, plain: bool) -> int:
        """Bytes of one layer's attention scores: 10 A N T (float32 cap and softmax, and the softmax in b) if they are
        computed in full (`plain`); nothing with a fused kernel."""
        return 10 * self.heads * tokens * longest if plain else 0


def shape_of(config: Mapping[str, Any], stored: Mapping[str, Stored] | None = None) -> Shape:
    """Shape of a config.json and its weights; without `stored` the weights are counted from the config.

    Raises KeyError for a config without layers or sizes.
    """
    text: Mapping[str, Any] = config.get("text_config") or config
    layers, hidden, heads = (_size(text, key) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    inner, vocabulary = _size(text, "intermediate_size", 4 * hidden), int(text["vocab_size"])
    kv_heads = int(text.get("num_key_value_heads") or heads)
    size = int(text.get("head_dim") or hidden // heads)
    shapes = [(hidden, heads * size), (heads * size, hidden), *[(hidden, kv_heads * size)] * 2]
    shapes += [(hidden, inner)] * 3
    weights = layers * sum(a * b for a, b in shapes) + vocabulary * hidden
    weights += 0 if text.get("tie_word_embeddings", config.get("tie_word_embeddings", True)) else vocabulary * hidden
    held, linear = weights * TYPE_BYTES["bfloat16"], layers * sum(a + b for a, b in shapes)
    if stored is not None:
        weights, held, linear = totals(stored)
    return Shape(
        layers=layers,
        hidden=hidden,
        inner=inner,
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        vocabulary=vocabulary,
        weights=weights,
        stored=held,
        linear=linear,
        capped=bool(text.get("attn_logit_softcapping")),
    )


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A size by its usual name, or by that of GPT-2, OPT, Falcon or Bloom. Raises KeyError where there is none."""
    found = next((config[name] for name in (key, *OTHER_KEYS.get(key, ())) if config.get(name) is not None), default)
    if found is None:
        raise KeyError(key)
    return int(found)


def totals(stored: Mapping[str, Stored]) -> tuple[int, int, int]:
    """(numbers, bytes, inputs + outputs of all linear layers of the blocks) of a model's tensors."""
    linear = sum(sum(each.shape) for name, each in stored.items() if LAYER.search(name) and len(each.shape) == 2)
    return sum(prod(each.shape) for each in stored.values()), sum(each.size for each in stored.values()), linear


def shape_in(peer: PeerSection, directory: Path) -> Shape:
    """Shape of a model directory; with 0 layers, and only the weights' sizes, if the config names its sizes in another
    way."""
    stored = read_stored(peer, directory)
    try:
        return shape_of(read_model_json(peer, directory / "config.json"), stored)
    except (KeyError, TypeError, ValueError):
        weights, held, linear = totals(stored)
        return Shape(0, 0, 0, 0, 0, 0, 0, weights, held, linear, False)


def width_of(peer: PeerSection, runtime: RuntimeSection, device: Device) -> int:
    """Bytes of the type in which a peer is computed, as `compute_dtype` of peers/source.py, but without torch."""
    if runtime.compute == "float32" or (runtime.compute == "auto" and not device.is_gpu and not _cpu_multiplies_bf16()):
        return TYPE_BYTES["float32"]
    return TYPE_BYTES[peer.dtype]


def _cpu_multiplies_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return False
    return "amx_tile" in flags or "avx512_bf16" in flags


def likely_length(section: GenerateSection) -> int:
    """Assumed tokens of a prompt and its response: at most twice the longest response."""
    return min(section.context_tokens, 2 * section.max_new_tokens)


def apart(section: GenerateSection, device: Device) -> bool:
    """Whether a process never has engine and model in the device's memory together: on a GPU vLLM's engine sleeps while
    the model scores or trains (peers/policy_cache.py)."""
    return device.is_gpu and (engine_here() if section.engine == "auto" else section.engine) == "vllm"


def kept_bytes(shape: Shape, choice: str, width: int, tokens: int, longest: int, plain: bool, free: int | None) -> int:
    """Bytes that training keeps of a micro-batch for its backward, at most. `choice` is
    `runtime.gradient_checkpointing` (see peers/logprob/recompute.py), `free` the bytes of the GPU beside the weights,
    None on a CPU."""
    layer = tokens * shape.layer_token(width) + shape.scores(tokens, longest, plain)
    everything, again = shape.layers * layer, shape.layers * tokens * shape.hidden * width + layer
    if choice == "auto":
        return everything if free is None else min(everything, max(again, int(ACTIVATION_SHARE * free)))
    return again if choice == "on" else everything


def footprint(shape: Shape, peer: PeerSection, config: Config, runtime: RuntimeSection, device: Device) -> Footprint:
    """Footprint of a peer on a device, for which `runtime` is resolved (`peers.placement.by_device`)."""
    width, gpu, longest = width_of(peer, runtime, device), device.is_gpu, likely_length(config.generate)
    process = CUDA_CONTEXT if gpu else CPU_PROCESS
    weights = shape.weights * width
    kv_token = shape.kv_token(width)
    step = max(config.generate.context_tokens, ENGINE_TOKENS)
    # a step keeps one layer's activations, and for each request one row of what top-p sampling needs
    engine = weights + step * shape.layer_token(width) + LOGIT * runtime.max_num_seqs * shape.vocabulary

    def head(tokens: int) -> int:
        rows, block = min(tokens, HEAD_ROWS), min(shape.vocabulary, HEAD_BLOCK if gpu else CPU_HEAD_BLOCK)
        # float32 hidden states and their gradient, and three blocks of logits (value, cap, operand of the gradient)
        return 8 * tokens * shape.hidden + 12 * rows * block

    adapter = 4 * LORA_COPIES * config.train.rank * shape.linear
    free = max(0, device.memory - process - weights - adapter) if gpu else None
    score, train = runtime.score_tokens, runtime.train_tokens
    layer = score * shape.layer_token(width) + shape.scores(score, min(score, longest), shape.capped)
    # on a CPU training uses plain attention, whose backward is faster there
    plain, choice = shape.capped or not gpu, runtime.gradient_checkpointing
    kept = kept_bytes(shape, choice, width, train, min(train, longest), plain, free)
    return Footprint(
        process=process,
        engine=engine,
        score=weights + layer + head(score),
        train=weights + adapter + kept + head(train),
        kv_token=kv_token,
        kv_preferred=runtime.max_num_seqs * longest * kv_token,
        kv_minimum=config.generate.context_tokens * kv_token,
        weights=weights,
        apart=apart(config.generate, device),
    )
