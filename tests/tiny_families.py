"""Tiny models of twenty and more families, with random weights and a small tokenizer;
tests/pipeline/test_families.py runs them.

The weights are larger than a library would begin with, so that positions, windows and scales make a difference that can
be seen; windows and unscaled lengths are far shorter than the prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONTEXT = 256
SHAPE: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": CONTEXT, "initializer_range": 0.15,
}  # fmt: skip
NO_GROUPS: dict[str, Any] = {"num_key_value_heads": None, "head_dim": None}  # as many key heads as there are heads
ORIGINAL = CONTEXT // 4  # what a model with scaled positions was trained on first


@dataclass(frozen=True)
class Family:
    """A kind of model: its config class, and what differs from SHAPE (None: the class does not have the key)."""

    config: str
    differs: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    dtype: str = "bfloat16"  # of the files
    shard_size: str = "5GB"


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **more}}


FAMILIES: dict[str, Family] = {
    "Qwen 2 (tied)": Family("Qwen2Config", tied=True),
    "Qwen 3 (float32 files)": Family("Qwen3Config", dtype="float32"),
    "Llama (untied, in shards)": Family("LlamaConfig", shard_size="100KB"),
    "Llama with YaRN": Family(
        "LlamaConfig", _rope("yarn", original_max_position_embeddings=ORIGINAL) | {"max_position_embeddings": ORIGINAL}
    ),
    "Llama with dynamic RoPE": Family("LlamaConfig", _rope("dynamic") | {"max_position_embeddings": ORIGINAL}),
    "Mistral (sliding window)": Family("MistralConfig", {"sliding_window": 16}),
    "Gemma 2 (soft-caps)": Family("Gemma2Config", {"sliding_window": 16, "query_pre_attn_scalar": 32}, tied=True),
    "Gemma 3": Family(
        "Gemma3TextConfig", {"sliding_window": 16, "query_pre_attn_scalar": 32,
                             "layer_types": ["sliding_attention", "full_attention"]}, tied=True,
    ),
    "Granite (logit scale)": Family(
        "GraniteConfig", {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.7,
                          "attention_multiplier": 0.1}, tied=True,
    ),
    "Phi 3": Family("Phi3Config", {"head_dim": None}),
    "OLMo 2": Family("Olmo2Config", {"head_dim": None}),
    "GPT-2": Family("GPT2Config", NO_GROUPS | {"intermediate_size": None}, tied=True),
    "GPT-NeoX (float16 files)": Family("GPTNeoXConfig", NO_GROUPS, dtype="float16"),
    "OPT": Family("OPTConfig", NO_GROUPS | {"intermediate_size": None, "ffn_dim": 128, "word_embed_proj_dim": 128,
                                            "initializer_range": None, "init_std": 0.15}, tied=True),
    "StableLM": Family("StableLmConfig", {"head_dim": None}),
    "Falcon": Family("FalconConfig", {"num_key_value_heads": None, "head_dim": None, "intermediate_size": None},
                     tied=True),
    "StarCoder 2": Family("Starcoder2Config", {"head_dim": None, "sliding_window": 16}, tied=True),
    "Cohere (logit scale)": Family("CohereConfig", {"head_dim": None, "logit_scale": 0.25}, tied=True),
    "SmolLM 3": Family("SmolLM3Config", {"head_dim": None, "no_rope_layers": [1, 0]}, tied=True),
    "Mixtral (experts)": Family("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Bloom": Family("BloomConfig", NO_GROUPS | {"intermediate_size": None, "max_position_embeddings": None}, tied=True),
    "Cohere 2 (short windows)": Family(
        "Cohere2Config", {"head_dim": None, "logit_scale": 0.25, "sliding_window": 16}, tied=True
    ),
    "GPT-2 (heads of 20)": Family("GPT2Config", NO_GROUPS | {"intermediate_size": None, "hidden_size": 80}, tied=True),
    "MPT": Family("MptConfig", {**dict.fromkeys(SHAPE), "d_model": 128, "n_heads": 4, "n_layers": 2}, tied=True),
    "Mamba": Family(
        "MambaConfig", NO_GROUPS | {"intermediate_size": None, "num_attention_heads": None,
                                    "max_position_embeddings": None, "state_size": 8}, tied=True,
    ),
}  # fmt: skip


def make(folder: Path, family: str, tokenizer: Any, seed: int = 7) -> Path:
    """Write a model directory of a family."""
    import torch
    import transformers

    about = FAMILIES[family]
    torch.manual_seed(seed)
    keys = {key: value for key, value in (SHAPE | about.differs).items() if value is not None}
    config = getattr(transformers, about.config)(
        vocab_size=len(tokenizer), tie_word_embeddings=about.tied, pad_token_id=0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **keys,
    )  # fmt: skip
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, weight in model.named_parameters():  # else 1 and 0, which would hide missing ones
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, 1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
    model.to(getattr(torch, about.dtype)).save_pretrained(folder, max_shard_size=about.shard_size)
    tokenizer.save_pretrained(folder)
    return folder
