"""Teacher-forced log-probabilities: one function for scoring and the training loss, its logits for the verifier.

    log p(t_k | prompt, t_<k) = z_k[t_k] - log sum_v exp z_k[v],   z_k = head(h at the position before t_k)

Hidden states may be bf16. The logits are float32: a difference of two sums of bf16 log-softmax values is off by up
to half a nat over 50 tokens, about as much as a nano peer's PMI. They are computed only for the rows that are needed,
one block of the vocabulary after the other (head.py); a prefix that sequences share is computed once (packing.py).

Axes: N tokens of a packed batch, S sequences of T padded places, R hidden states that are read, H hidden size,
V vocabulary, C requested tokens.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from data.errors import UserError
from peers.gpu import lacking_to_build
from peers.logprob import kernel
from peers.logprob.attention import PACKED, PrefixTreeBatch, keep_from_compiler, register
from peers.logprob.head import logsumexp
from peers.logprob.packing import pack, packed_batches
from peers.logprob.product import exact_sums
from peers.weights_check import check_loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Work left, in FLOPs of the layers' products, from which compiling pays: 2 per weight and token, 4 with gradients. On
# two AMX cores compiling took 11 s and saved a sixth to a quarter of the rest; with gradients it took 40 s and saved up
# to a third. So it paid from 75 s of scoring and 180 s of training. That is 7.4e13 and 4.6e13 FLOPs for SmolLM2, 5.2e13
# and 3.1e13 for Gemma 3 (rates in docs/performance.md); each number lies between the two models'. A nano peer spends
# its time on small tensors (2e13 FLOPs in 75 s), so it begins to compile later than it could.
COMPILING_PAYS, COMPILING_GRADIENTS_PAYS = 6e13, 4e13
# A guess, not measured: a GPU does this work about 200 times faster, and compiling takes as long as on a CPU.
GPU_FACTOR = 200


@dataclass(frozen=True)
class Pair:
    """A prompt and the target whose tokens are scored after it. Neither may be empty."""

    prompt: Sequence[int]
    target: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)

    @property
    def inputs(self) -> list[int]:
        """The tokens that the model reads: the last target token is only predicted."""
        return [*self.prompt, *self.target[:-1]]


@dataclass(frozen=True)
class Read:
    """The hidden states of one forward that predict target tokens, pair by pair, and those tokens."""

    owners: list[int]
    hidden_R_H: Tensor
    tokens: list[int]


class LanguageModel:
    """A causal LM split into the decoder (in its own dtype) and a head whose logits are float32, on selected rows."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.decoder = model.get_decoder()
        head = model.get_output_embeddings()
        self.head_V_H: Tensor = head.weight  # frozen, except in pre-training
        config: Any = self.decoder.config  # of the text model, if the model reads more than text
        self.scale = logit_scale(config)
        bias = getattr(head, "bias", None)
        self.bias_V: Tensor | None = None if bias is None else self.scale * bias.float()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.device = head.weight.device
        self.compile: Literal["auto", "on", "off"] = "auto"  # see `runtime.compile`
        self.compiled = False
        layers = getattr(self.decoder, "layers", [])
        self.layer_weights = sum(weight.numel() for layer in layers for weight in layer.parameters())
        self._check_head()
        self.packed = self._can_pack()

    @torch.no_grad()
    def _check_head(self) -> None:
        """Compare our logits with the model's own once: architectures scale or cap them in their own ways.

        Raises UserError if they differ."""
        ids = torch.arange(1, 9, device=self.device)[None]
        ours = self.logits(self.padded_hidden(ids)[0])
        theirs = self.model(input_ids=ids, use_cache=False).logits[0].float()
        error = (ours - theirs).abs().max().item()
        if not error <= 0.02 * theirs.abs().max().item() + 1e-3:
            raise UserError(
                f"{type(self.model).__name__} computes its logits in a way that this version does not support "
                f"(off by {error:.3g}); it cannot be a peer yet"
            )

    @torch.no_grad()
    def _can_pack(self) -> bool:
        """Whether this architecture computes the same in a packed batch as for each sequence alone."""
        config: Any = self.decoder.config
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or [f"{'sliding' if window else 'full'}_attention"])
        if not kinds <= {"full_attention", "sliding_attention"}:
            return False
        some = len(self.head_V_H) // 2  # the first tokens may be special, and some of them upset a model
        stem, ends = range(6), (range(24), range(7, 12), range(6, 11))
        sequences = [[some + token for token in (*stem, *end)] for end in ends]
        if some < 30:
            return False
        alone = [self.padded_hidden(torch.tensor([sequence], device=self.device))[0] for sequence in sequences]
        tree_batch = PrefixTreeBatch(pack(sequences, budget=256), self.device)
        register()
        try:
            packed = self._packed_hidden(tree_batch)
        except Exception:  # it takes no positions or no custom attention, and raises its own kind of error
            return False
        allowed = 1e-3 if packed.dtype is torch.float32 else 0.1
        apart = [
            ((packed[tree_batch.paths[i]] - h).norm(dim=-1) / h.norm(dim=-1))[len(stem) :] for i, h in enumerate(alone)
        ]
        used = {"sliding_attention" if window else "full_attention" for window in tree_batch.kinds[0].masks}
        # in bf16 rounding alone may move single tokens far apart; wrong positions would change whole segments
        return max(each.median().item() for each in apart) <= allowed and used == kinds

    def compiling_pays(self, tokens_left: int) -> bool:
        """Whether enough work is left that compiling saves time. By FLOPs, not by a clock: results must not vary."""
        flops = (4.0 if torch.is_grad_enabled() else 2.0) * self.layer_weights * tokens_left
        pays = COMPILING_GRADIENTS_PAYS if torch.is_grad_enabled() else COMPILING_PAYS
        return bool(flops > (pays if self.device.type == "cpu" else GPU_FACTOR * pays))

    def compile_if_asked(self, tokens_left: int) -> None:
        """Compile the decoder's layers, once, if `compile` is "on", or is "auto" and compiling pays."""
        if self.compiled or self.compile == "off":
            return
        if self.compile == "on" or self.compiling_pays(tokens_left):
            self.compiled = True
            if compiler_is_there():
                keep_from_compiler()
                trust_compiler()
                for layer in getattr(self.decoder, "layers", []):
                    layer.compile(dynamic=True)

    def hidden(self, tree_batch: PrefixTreeBatch) -> Tensor:
        """Last hidden states [N, H] of a packed batch's tokens."""
        if self.packed:
            return self._packed_hidden(tree_batch)
        padded = [self.padded_hidden(tree_batch.tokens_N[kind.queries_S_Q]).flatten(0, 1) for kind in tree_batch.kinds]
        return torch.cat(padded).index_select(0, tree_batch.order_N)

    def _packed_hidden(self, tree_batch: PrefixTreeBatch) -> Tensor:
        config: Any = self.decoder.config
        before, config._attn_implementation = config._attn_implementation, PACKED
        try:
            hidden: Tensor = self.decoder(
                input_ids=tree_batch.tokens_N[None],
                position_ids=tree_batch.depths_N[None],
                use_cache=False,
                tree_batch=tree_batch,
            ).last_hidden_state
        finally:
            config._attn_implementation = before
        return hidden[0]

    def padded_hidden(self, ids_S_T: Tensor) -> Tensor:
        """Last hidden states [S, T, H]. Needs no mask: in a right-padded causal batch no real token sees padding."""
        hidden: Tensor = self.decoder(input_ids=ids_S_T, use_cache=False).last_hidden_state
        return hidden

    def batches(self, sequences: Sequence[Sequence[int]], budget: int) -> Iterator[PrefixTreeBatch]:
        """All sequences, longest first, in batches of at most `budget` tokens (or one sequence) before padding."""
        for trees in packed_batches(sequences, budget, self.packed):
            yield PrefixTreeBatch(trees, self.device)

    def logits(self, hidden_R_H: Tensor) -> Tensor:
        """Float32 logits [R, V]: for few rows, or a small vocabulary."""
        logits = torch.nn.functional.linear(self._scaled(hidden_R_H), self.head_V_H.float(), self.bias_V)
        return self._capped(logits)

    def token_logits(self, hidden_R_H: Tensor, tokens_R_C: Tensor) -> Tensor:
        """Float32 logits [R, C] of some tokens after each row. Differentiable."""
        head_R_C_H = self.head_V_H[tokens_R_C].float()
        logits = torch.einsum("rh,rch->rc", self._scaled(hidden_R_H), head_R_C_H)
        return self._capped(logits if self.bias_V is None else logits + self.bias_V[tokens_R_C])

    def _scaled(self, hidden_R_H: Tensor) -> Tensor:
        """Float32 hidden states, scaled so that their product with the head is scaled like the model's logits."""
        return hidden_R_H.float() if self.scale == 1 else self.scale * hidden_R_H.float()

    def _capped(self, logits: Tensor) -> Tensor:
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def row_logprobs(self, hidden_R_H: Tensor, tokens_R: Tensor) -> Tensor:
        """Natural-log probability [R] of one token after each row, in nats. Differentiable."""
        if self.head_V_H.requires_grad and torch.is_grad_enabled():  # pre-training
            return self.logits(hidden_R_H).log_softmax(1).gather(1, tokens_R[:, None])[:, 0]
        # float32 from here: for a likely token two gradients almost cancel, so neither may be rounded before the sum
        exact_R_H = hidden_R_H.float()
        # scaling by a power of two keeps 16-bit numbers exact
        held = hidden_R_H.dtype if math.frexp(self.scale)[0] == 0.5 else torch.float32
        normaliser_R = logsumexp(self._scaled(exact_R_H), self.head_V_H, self.bias_V, self.softcap, held)
        return self.token_logits(exact_R_H, tokens_R[:, None])[:, 0] - normaliser_R

    def read(self, tree_batch: PrefixTreeBatch, pairs: Sequence[Pair]) -> Read:
        """One forward over a packed batch: the hidden states that predict the targets of the pairs in it."""
        places = [place for i, path in tree_batch.paths.items() for place in path[len(pairs[i].prompt) - 1 :]]
        tokens = [token for i in tree_batch.paths for token in pairs[i].target]
        return Read([*tree_batch.paths], self.hidden(tree_batch)[torch.tensor(places, device=self.device)], tokens)

    def logprobs(self, batches: Sequence[Read], pairs: Sequence[Pair]) -> dict[int, Tensor]:
        """{i: per-token target log-probabilities of pairs[i], float32 [len(target)]}, in nats, differentiable."""
        owners = [i for batch in batches for i in batch.owners]
        tokens_R = torch.tensor([token for batch in batches for token in batch.tokens], device=self.device)
        flat = self.row_logprobs(torch.cat([batch.hidden_R_H for batch in batches]), tokens_R)
        return dict(zip(owners, flat.split([len(pairs[i].target) for i in owners]), strict=True))

    def target_logprobs(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """Per-token target log-probabilities, one float32 tensor [len(target)] per pair, in nats. Differentiable.

        One forward over the packed batch. Raises ValueError for an empty prompt or target.
        """
        trees = pack(inputs_of(pairs), sum(map(len, pairs)), self.packed)
        found = self.logprobs([self.read(PrefixTreeBatch(trees, self.device), pairs)], pairs)
        return [found[i] for i in range(len(pairs))]


def compiler_is_there() -> bool:
    """Whether torch.compile finds the C++ compiler that it needs on a CPU, or what Triton needs on a GPU."""
    if torch.cuda.is_available():
        return lacking_to_build() is None
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def trust_compiler() -> None:
    """Spare torch.compile its trial programs for each vector instruction set, unless the user has set `vec_isa_ok`.

    They took 7 of 18 s. A compiler that has built peers/logprob/head.c knows those sets.
    """
    from torch._inductor import config

    settings: Any = config.cpp
    known = kernel.library() is not None and not {"CC", "CXX"} & os.environ.keys()  # these may be other compilers
    if settings.vec_isa_ok is None and known:
        settings.vec_isa_ok = True


def inputs_of(pairs: Sequence[Pair]) -> list[list[int]]:
    """The tokens that the model reads for each pair. Raises ValueError for an empty prompt or target."""
    if any(not pair.prompt or not pair.target for pair in pairs):
        raise ValueError("a prompt or a target is empty")
    return [pair.inputs for pair in pairs]


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(directory: Path, dtype: str, adapter: Path | None = None) -> PreTrainedModel:
    """A model for teacher forcing, in eval mode, on `device()`, with the adapter's layers in it if one is given.

    Raises UserError if tensors are missing, have other shapes or are too many.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    found: Any = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=getattr(torch, dtype),
        attn_implementation=attention_of(config),
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    model, info = found
    check_loading(directory, info)  # the base was checked before, a merged checkpoint was not
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).get_base_model()
    exact_sums()
    model = model.to(device()).eval()
    settle_positions(model)
    return cast("PreTrainedModel", model)


def attention_of(config: Any) -> Literal["eager", "sdpa"]:
    """Fused attention, unless the scores are capped, or the architecture (Bloom) has none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return "eager" if getattr(config, "attn_logit_softcapping", None) or not kind._supports_sdpa else "sdpa"


def logit_scale(config: Any) -> float:
    """The factor of a model's logits: Cohere's `logit_scale`, the inverse of Granite's `logits_scaling`."""
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


def settle_positions(model: Any) -> None:
    """Give positions with dynamic RoPE the frequencies of the full scaled length, as vLLM does.

    transformers would use those of the longest sequence in a batch, so scores would depend on the batch and differ from
    the generator's.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for module in model.modules():
        rope = module.config.rope_parameters if getattr(module, "rope_type", None) == "dynamic" else {}
        if rope.get("factor") and "alpha" not in rope:  # with alpha (Hunyuan) the frequencies are fixed already
            length = int(module.config.max_position_embeddings * rope["factor"])
            frequencies, module.attention_scaling = ROPE_INIT_FUNCTIONS["dynamic"](
                module.config, module.inv_freq.device, seq_len=length
            )
            module.register_buffer("inv_freq", frequencies, persistent=False)
            module.rope_type = "default"


def load_language_model(directory: Path, dtype: str, adapter: Path | None = None) -> LanguageModel:
    """`load_model`, ready to score."""
    return LanguageModel(load_model(directory, dtype, adapter).requires_grad_(False))
