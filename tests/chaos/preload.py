"""Everything that a run imports, imported once by the server that forks its processes."""

from __future__ import annotations

import importlib

FIRST = "peers.preload"  # it keeps its output and Ctrl-C from the forks
MODULES = (
    FIRST, "accelerate", "peft", "polars", "scipy.stats", "transformers.generation.stopping_criteria",
    "transformers.models.llama.modeling_llama", "transformers.models.qwen2.modeling_qwen2", "evaluate.stage",
    "evaluate.tables", "generate.stage", "peers.engines.transformers", "peers.local", "peers.merge",
    "peers.policy_cache", "pipeline.round", "pipeline.share.verify", "score.stage", "tests.chaos.child", "train.loop",
    "train.stage",
)  # fmt: skip

for name in MODULES:
    importlib.import_module(name)
