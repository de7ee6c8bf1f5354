"""See peers/preload.py."""

from __future__ import annotations

import gc
from contextlib import suppress

with suppress(Exception):
    import vllm.entrypoints.llm
    import vllm.lora.request
    import vllm.model_executor.model_loader
    import vllm.v1.worker.cpu_worker  # noqa: F401
gc.freeze()
