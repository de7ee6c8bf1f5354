"""Which engine `generate.engine = "auto"` stands for. A run settles that once: its frozen config names the engine, so
that no later call, in another environment, goes on with another one in silence."""

from __future__ import annotations

from importlib import util
from typing import Literal

from data.config.sections import Config


def engine_here() -> Literal["vllm", "transformers"]:
    """vLLM where it is installed."""
    return "vllm" if util.find_spec("vllm") is not None else "transformers"


def settled(config: Config, frozen: Config | None = None) -> Config:
    """`config` with the engine that `auto` stands for: that of a run's frozen config, for a new run the one of here."""
    if config.generate.engine != "auto":
        return config
    engine = frozen.generate.engine if frozen else engine_here()
    return config.model_copy(update={"generate": config.generate.model_copy(update={"engine": engine})})
