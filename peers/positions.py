"""How many tokens a model's positions reach by its config.json, RoPE scaling included.

vLLM counts in the same way (`_get_and_verify_max_len` in its config/model.py), except for YaRN, where it believes
`max_position_embeddings`. That is often still the unscaled number, so peers/engines/vllm.py overrides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LENGTHS = ("max_position_embeddings", "n_positions")  # GPT-2's name is the second
MULTIPLIED = ("linear", "dynamic")  # multiply max_position_embeddings, the unscaled length, by `factor`
ORIGINAL = "original_max_position_embeddings"


def stated_length(config: Mapping[str, Any]) -> tuple[str, Any]:
    """(key, value) with which a config states its number of positions; value None if it states none."""
    return next(((key, config[key]) for key in LENGTHS if config.get(key) is not None), (LENGTHS[0], None))


def rope_of(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(kind, parameters) of a config's RoPE scaling; "default" if it differs by kind of layer (Gemma 3), since the
    stated length is then scaled already."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, Mapping) or any(isinstance(each, Mapping) for each in found.values()):
        return "default", {}
    return str(found.get("rope_type") or found.get("type") or "default"), found


def longest(config: Mapping[str, Any]) -> int | None:
    """Tokens that the positions reach; None if the config states no limit (as with ALiBi)."""
    length = stated_length(config)[1]
    if not isinstance(length, int):
        return None
    window = config.get("sliding_window")
    if config.get("model_type") == "cohere2" and isinstance(window, int):
        return min(length, window)  # vLLM's windows hold one token more than transformers'
    kind, rope = rope_of(config)
    factor, original = rope.get("factor"), rope.get(ORIGINAL) or config.get(ORIGINAL)
    if kind in MULTIPLIED and isinstance(factor, int | float):
        return int(length * factor)
    if kind == "yarn" and isinstance(factor, int | float) and isinstance(original, int):
        return max(length, int(original * factor))
    if kind == "longrope" and isinstance(original, int):
        # beyond it transformers picks a batch's frequencies by its longest sequence, vLLM by its configured length
        return min(length, original)
    return length
