"""Which engine `generate.engine = "auto"` stands for. A run decides that once: its frozen config names the engine, so
that a later command in another environment does not silently go on with another one."""

from __future__ import annotations

from importlib import util
from typing import Literal

from data.config.sections import Config


def engine_here() -> Literal["vllm", "transformers"]:
    """vLLM where it is installed, else transformers."""
    return "vllm" if util.find_spec("vllm") is not None else "transformers"


def settled(config: Config, frozen: Config | None = None) -> Config:
    """`config` with `auto` replaced: by the engine of the run's frozen config, or for a new run by `engine_here`."""
    if config.generate.engine != "auto":
        return config
    engine = frozen.generate.engine if frozen else engine_here()
    return config.model_copy(update={"generate": config.generate.model_copy(update={"engine": engine})})
