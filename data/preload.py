"""Imported once by the process that all peers' processes are forked from: what takes seconds to import.

data/preload_vllm.py has the rest, for stages that need an engine.
"""

import gc
import os
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
# a reader of the command's output must not wait for this process; workers print to their logs
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
os.dup2(1, 2)
gc.set_threshold(100_000)  # see data/stage.py

import peft  # noqa: E402, F401
import torch  # noqa: E402, F401
import transformers.models.auto.modeling_auto  # noqa: E402, F401

import score.logprob  # noqa: E402, F401
import train.loop  # noqa: E402, F401

gc.freeze()  # forks share the pages of what is never looked at again
