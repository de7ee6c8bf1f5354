"""How many tokens a model's positions reach, by its config.json: the length that RoPE scaling makes of it, too.

vLLM counts in the same way (`_get_and_verify_max_len` in its config/model.py) but for YaRN, of which it believes
`max_position_embeddings`; that number is often still the unscaled one, so peers/engines/vllm.py tells it this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LENGTHS = ("max_position_embeddings", "n_positions")  # GPT-2's name is the second
MULTIPLIED = ("linear", "dynamic")  # by `factor`: max_position_embeddings is what the model was trained on
ORIGINAL = "original_max_position_embeddings"


def stated_length(config: Mapping[str, Any]) -> tuple[str, Any]:
    """(key, value) with which a config states its number of positions; the value None where it states none."""
    return next(((key, config[key]) for key in LENGTHS if config.get(key) is not None), (LENGTHS[0], None))


def rope_of(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(kind, parameters) of a config's RoPE scaling; of one that differs by kind of layer (Gemma 3), whose stated
    length is scaled already, "default"."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, Mapping) or any(isinstance(each, Mapping) for each in found.values()):
        return "default", {}
    return str(found.get("rope_type") or found.get("type") or "default"), found


def longest(config: Mapping[str, Any]) -> int | None:
    """Tokens that the positions reach; None where the config states no end (ALiBi, say)."""
    length = stated_length(config)[1]
    if not isinstance(length, int):
        return None
    window = config.get("sliding_window")
    if config.get("model_type") == "cohere2" and isinstance(window, int):
        return min(length, window)  # of its windows vLLM sees one token more than transformers
    kind, rope = rope_of(config)
    factor, original = rope.get("factor"), rope.get(ORIGINAL) or config.get(ORIGINAL)
    if kind in MULTIPLIED and isinstance(factor, int | float):
        return int(length * factor)
    if kind == "yarn" and isinstance(factor, int | float) and isinstance(original, int):
        return max(length, int(original * factor))
    if kind == "longrope" and isinstance(original, int):
        # beyond it transformers changes the frequencies of a whole batch by its longest sequence, vLLM by its setting
        return min(length, original)
    return length
