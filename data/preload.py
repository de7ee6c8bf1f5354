"""Imported once by the process that all peers' processes are forked from: what takes seconds to import.

data/preload_vllm.py has the rest, for stages that need an engine.
"""

import peft  # noqa: F401
import torch  # noqa: F401
import transformers.models.auto.modeling_auto  # noqa: F401

import score.logprob  # noqa: F401
import train.loop  # noqa: F401
