"""See data/preload.py."""

import vllm.entrypoints.llm
import vllm.lora.request  # noqa: F401
