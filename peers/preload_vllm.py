"""See peers/preload.py."""

from __future__ import annotations

import gc
from contextlib import suppress

with suppress(Exception):
    from peers.engines.vllm_internals import import_early

    import_early()
gc.freeze()
