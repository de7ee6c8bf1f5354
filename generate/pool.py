"""Loaded engines: all peers at once where memory allows, else one at a time with the memory given back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from data.console import console
from data.run import Run
from generate.engine import Engine

GIB = 2**30


class EnginePool(AbstractContextManager["EnginePool"]):
    """Engines by peer name; `load(peer, n)` makes one when `n` will be resident together."""

    def __init__(self, load: Callable[[str, int], Engine], peers: Sequence[str], keep_all: bool) -> None:
        self.load, self.peers, self.keep_all = load, list(peers), keep_all
        self.engines: dict[str, Engine] = {}

    def get(self, peer: str) -> Engine:
        """The peer's engine, loaded if need be."""
        if peer not in self.engines:
            if not self.keep_all:
                self.close()
            console.print(f"  loading {peer}")
            self.engines[peer] = self.load(peer, len(self.peers) if self.keep_all else 1)
        return self.engines[peer]

    def close(self) -> None:
        """Give all memory back."""
        while self.engines:
            self.engines.popitem()[1].close()

    def __exit__(self, *_: object) -> None:
        self.close()


def open_pool(run: Run, adapters_of_round: int, keep_all: bool | None = None) -> EnginePool:
    """A pool of the peers' policies after round `adapters_of_round` (0: the base models).

    `keep_all`: all engines at once or one at a time; None leaves it to `runtime.resident`.
    """
    from train.checkpoint import policy

    policies = {peer.name: policy(run, adapters_of_round, peer.name) for peer in run.config.peers}

    def load(name: str, resident: int) -> Engine:
        from data.peers import compute_dtype
        from data.prompts import load_prompts
        from generate.engine import TransformersEngine, VllmEngine, engine_kind

        config = run.config
        dtype = compute_dtype(config.peer(name), config.runtime)
        directory, adapter = policies[name]
        prompts = load_prompts(config, name)
        if engine_kind(config.generate) == "transformers":
            return TransformersEngine(directory, prompts, config.runtime, dtype, adapter)
        return VllmEngine(
            directory, prompts, config.generate, config.runtime, dtype, config.run.seed,
            adapter, config.train.rank, share=1 / resident,
        )  # fmt: skip

    directories = [directory for directory, _ in policies.values()]
    together = _keep_all(run, directories) if keep_all is None else keep_all
    return EnginePool(load, run.config.peer_names, together)


def _keep_all(run: Run, directories: list[Path]) -> bool:
    import psutil
    import torch

    choice = run.config.runtime.resident
    if choice != "auto":
        return choice == "all"
    if torch.cuda.is_available():
        return False
    weights = sum(file.stat().st_size for folder in directories for file in folder.glob("*.safetensors"))
    # weights are held once, and once more while they are loaded and repacked; the engine itself takes about 1 GiB
    need = 2 * weights + len(directories) * (run.config.runtime.kv_cache_gib + 1) * GIB
    return bool(need < 0.7 * psutil.virtual_memory().available)
