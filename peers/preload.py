"""Imports that take seconds, done once in the process that all peers' processes are forked from.

peers/preload_vllm.py has the rest, for stages that need an engine. Failed imports are ignored here: the peers'
processes report them in their log.
"""

from __future__ import annotations

import gc
import os
import signal
from contextlib import suppress

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
# a reader of the command's output must not wait for this process; workers print to their logs
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
os.dup2(1, 2)
gc.set_threshold(100_000)  # see data/cli.py
with suppress(Exception):
    import peft.tuners.lora  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.auto.modeling_auto  # noqa: F401

    import peers.logprob.scoring  # noqa: F401
gc.freeze()  # the collector then writes to none of these pages, so the forks share them
