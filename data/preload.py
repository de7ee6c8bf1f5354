"""Imported once by the process that all peers' processes are forked from: what takes seconds to import."""

import contextlib

import peft  # noqa: F401
import torch  # noqa: F401
import transformers.models.auto.modeling_auto  # noqa: F401

import score.logprob  # noqa: F401
import train.loop  # noqa: F401

with contextlib.suppress(ImportError):  # there are platforms without vLLM
    import vllm.entrypoints.llm
    import vllm.lora.request  # noqa: F401
