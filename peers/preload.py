"""Imported once by the process that all peers' processes are forked from: what takes seconds to import.

peers/preload_vllm.py has the rest, for stages that need an engine. What cannot be imported is left to the peers'
processes, which say so in their log.
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
gc.freeze()  # the forks share the pages of what is not looked at for garbage
