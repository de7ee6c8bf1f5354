"""Which peers' processes may live side by side on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from data.run import Run

GIB = 2**30


def fits_together(run: Run) -> bool:
    """Whether all peers' processes may live side by side: `runtime.resident`, or by memory on a CPU."""
    import psutil

    choice = run.config.runtime.resident
    if choice != "auto":
        return choice == "all"
    if gpu_is_there():
        return False
    from peers.source import model_directory

    directories = [model_directory(peer, run.config) for peer in run.config.peers]
    weights = sum(file.stat().st_size for folder in directories for file in folder.glob("*.safetensors"))
    # weights: in the engine, there once more while they are repacked, in the scorer or the trainer, all of which may
    # hold them in float32; the libraries and activations of a process take about 2 GiB
    need = 8 * weights + len(directories) * (run.config.runtime.kv_cache_gib + 2) * GIB
    return bool(need < 0.7 * psutil.virtual_memory().available)


def gpu_is_there() -> bool:
    """Without importing torch, which takes a second."""
    devices = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dxg")]  # dxg: WSL 2
    return bool(devices) and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
