"""The executor of one machine: a process per slot, with a pipe to it."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

from data.config.sections import Config
from data.run import Run
from peers.devices import gpu_is_there
from peers.placement import Slot
from peers.serving import Work, serve

PROCESSES = 1024  # most at a time


class LocalExecutor:
    """Processes of this machine. See `peers.workers.Executor`."""

    deaths = 2  # a killed process is started again once

    def __init__(self) -> None:
        self.context = _context()
        # which processes are at work; without a lock, which a killed process might hold for good
        self.busy = self.context.RawArray("b", PROCESSES)
        self.free = deque(range(PROCESSES))

    def start(self, run: Run, slot: Slot) -> LocalWorker:
        """See `Executor.start`."""
        return LocalWorker(run, slot, self)

    def messages(self, workers: Sequence[LocalWorker]) -> Iterator[tuple[LocalWorker, str, Any]]:
        """See `Executor.messages`."""
        by_connection = {worker.connection: worker for worker in workers}
        for connection in wait(list(by_connection)):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                kind, value = worker.connection.recv()
            except (EOFError, OSError):
                worker.process.join()
                kind, value = "died", f"exit code {worker.process.exitcode}"
            yield worker, kind, value

    def close(self) -> None:
        """Nothing to free: the pool has ended the processes one by one."""


class LocalWorker:
    """A process and the pipe to it. See `peers.workers.Worker`."""

    def __init__(self, run: Run, slot: Slot, executor: LocalExecutor) -> None:
        self.slot = slot
        self.executor, self.number = executor, executor.free.popleft()
        self.connection, theirs = multiprocessing.Pipe()
        arguments = (theirs, run, slot, Path.cwd(), executor.busy, self.number)
        name = f"pst-{slot.peer}" + (f"-{slot.replica}" if slot.replica else "")
        self.process = executor.context.Process(target=serve, args=arguments, name=name)
        with _only(slot):
            self.process.start()
        theirs.close()

    def send(self, log: Path | None, work: Work, arguments: tuple[Any, ...]) -> bool:
        """See `Worker.send`."""
        try:
            self.connection.send((log, work, arguments))
        except OSError:
            return False  # `messages` will see the end of the pipe
        return True

    def end(self) -> None:
        """See `Worker.end`."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.executor.busy[self.number] = 0
        self.executor.free.append(self.number)


@contextmanager
def _only(slot: Slot) -> Iterator[None]:
    """A process that is started in the block sees only its slot's GPU: CUDA reads the variable once, when it starts."""
    if not slot.device.is_gpu:
        yield
        return
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = slot.device.name
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _context() -> Any:
    """How processes start: as forks of one that has imported the heavy libraries; from scratch if there is a GPU, since
    a fork would break CUDA's context."""
    return multiprocessing.get_context("spawn" if gpu_is_there() else "forkserver")


def warm(config: Config, engine: bool) -> None:
    """Begin to import heavy libraries in the background, while the main process reads the questions; vLLM, too, if an
    `engine` will be needed. With Ray, only check that Ray can be imported. Raises UserError."""
    if config.executor.kind == "ray":
        from peers.ray_cluster import load_ray

        load_ray()
        return
    context = _context()
    if isinstance(context, ForkServerContext):
        context.set_forkserver_preload(["peers.preload", *(["peers.preload_vllm"] if engine else [])])
        ensure_running()
