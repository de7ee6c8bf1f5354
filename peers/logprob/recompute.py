"""Gradient checkpointing: a layer keeps its input, and computes the rest again in the backward.

transformers' own works only in training mode; we train in eval mode. In the backward a layer runs again, after the
decoder has returned and the attention's name was reset; so it sets the name that it had in the first forward.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from peers.logprob.model import LanguageModel
from peers.memory import ACTIVATION_SHARE, shape_of


def should_checkpoint(choice: Literal["auto", "on", "off"], lm: LanguageModel, tokens: int, longest: int) -> bool:
    """See `runtime.gradient_checkpointing`; a micro-batch has at most `tokens`, its sequences at most `longest`."""
    if choice != "auto" or lm.device.type != "cuda":
        return choice == "on"
    return activation_bytes(lm.decoder.config, tokens, longest, lm.head_V_H.element_size()) > ACTIVATION_SHARE * _free()


def _free() -> int:
    """Bytes of the GPU's memory that torch can still use."""
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def activation_bytes(config: Any, tokens: int, longest: int, size: int) -> int:
    """Bytes that a forward keeps for its backward without checkpointing, for numbers of `size` bytes (see
    peers/memory.py). 0 for a config that names its sizes in another way."""
    try:
        shape = shape_of(config.to_dict())
    except (KeyError, TypeError):
        return 0
    return shape.layers * (tokens * shape.layer_token(size) + shape.scores(tokens, longest, shape.capped))


def checkpoint_layers(lm: LanguageModel) -> None:
    """From now on the decoder's layers keep only their inputs. Works with compiled layers, too."""
    for layer in lm.decoder.layers:
        layer.decoder_config = lm.decoder.config
        kind: Any = type(layer)
        layer.__class__ = _checkpointed(kind)


@cache
def _checkpointed(kind: Any) -> Any:
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return kind.__call__(self, *arguments, **named)
        attention = self.decoder_config._attn_implementation

        def again(*arguments: Any, **named: Any) -> Any:
            config = self.decoder_config
            before, config._attn_implementation = config._attn_implementation, attention
            try:
                return kind.__call__(self, *arguments, **named)
            finally:
                config._attn_implementation = before

        # no random state to keep: there is no dropout
        return checkpoint(again, *arguments, use_reentrant=False, preserve_rng_state=False, **named)

    return type(kind.__name__, (kind,), {"__call__": call})
