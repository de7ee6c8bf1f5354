"""One process per peer for all that needs its model; the main process plans, joins and writes, and runs no model.

Side by side, the peers' processes share the cores: small models leave most of a core's time to Python and to single
threads, so N processes of one thread do more than one of N threads. A process that is the only one at work takes all
cores. It keeps its libraries, its engine and its model from one job to the next, and from one stage to the next where
a command runs several. Where the models do not fit side by side (or share a GPU), one process lives at a time, and its
end gives all its memory back.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from io import TextIOBase
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol, cast

from tqdm import tqdm

from data.console import Task, console
from data.errors import UserError, trouble
from data.run import Run
from data.streams import open_streams, settle
from peers.placement import Placement, gpu_is_there, placement_of, resolved

Advance = Callable[[int, int], None]
Work = Callable[..., Any]  # a module's function (run, *arguments, advance) -> something that can be pickled


@dataclass(frozen=True)
class Job:
    """A call that needs a peer's process."""

    peer: str
    work: Work
    arguments: tuple[Any, ...]


class Workers(Protocol):
    """Where the stages send what needs a model."""

    def submit(self, peer: str, work: Work, *arguments: Any) -> None:
        """Queue `work(run, *arguments, advance)` for a peer; its jobs are done in order."""
        ...

    def results(self, line: Task | None = None) -> Iterator[tuple[Job, Any]]:
        """Each job with its result as they finish, until none is left; more may be submitted meanwhile.

        Raises what a job has raised.
        """
        ...


class Processes(AbstractContextManager["Processes"]):
    """`Workers` in processes of their own. Those that run end with this object, whatever ends it."""

    def __init__(self, run: Run, together: bool | None = None) -> None:
        self.run, self.choice = run, together
        self.log: Path | None = None  # where the libraries of the workers print to
        self.queues: dict[str, deque[Job]] = {name: deque() for name in run.config.peer_names}
        self.workers: dict[str, _Worker] = {}
        self.context = _context()
        self.busy = self.context.Value("i", 0)

    @cached_property
    def together(self) -> bool:
        """Whether peers work side by side."""
        return not self.placement.turns

    @cached_property
    def placement(self) -> Placement:
        """Who runs where."""
        return placement_of(self.run, self.choice)

    def submit(self, peer: str, work: Work, *arguments: Any) -> None:
        """See `Workers.submit`."""
        self.queues[peer].append(Job(peer, work, arguments))

    def results(self, line: Task | None = None) -> Iterator[tuple[Job, Any]]:
        """See `Workers.results`."""
        while self._dispatch():
            at_work = {worker.connection: worker for worker in self.workers.values() if worker.job}
            for connection in wait(list(at_work)):
                worker = at_work[connection]  # type: ignore[index]
                kind, value = self._hear(worker)
                if kind == "advance" and line is not None:
                    line.advance(*value)
                elif kind == "print":
                    console.print(value, end="", markup=False, soft_wrap=True)
                elif kind == "refused":
                    raise value
                elif kind == "failed":
                    raise RuntimeError(f"in the process of peer {worker.name}:\n{value}")
                elif kind == "done":
                    job, worker.job = worker.job, None
                    assert job is not None
                    self._dispatch()  # the caller may take its time
                    yield job, value

    def _dispatch(self) -> bool:
        """Give idle workers their next job; False if nothing is left to do or to wait for."""
        waiting = [name for name, queue in self.queues.items() if queue]
        at_work = [name for name, worker in self.workers.items() if worker.job]
        if not self.together:
            stay = [name for name in self.workers if name in waiting]
            waiting = [] if at_work else (stay or waiting)[:1]
            for name in [name for name in self.workers if waiting and name not in waiting]:
                self.workers.pop(name).end()
        for name in waiting:
            if name not in self.workers:
                self.workers[name] = _Worker(name, self)
            worker = self.workers[name]
            if worker.job is None:
                worker.job = self.queues[name].popleft()
                try:
                    worker.connection.send((self.log, worker.job.work, worker.job.arguments))
                except OSError:
                    self._dead(worker)
        return bool(waiting or at_work)

    def _hear(self, worker: _Worker) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = worker.connection.recv()
        except (EOFError, OSError):
            self._dead(worker)
        return message

    def _dead(self, worker: _Worker) -> NoReturn:
        worker.process.join()
        raise UserError(
            f"the process of peer {worker.name} was ended from outside (exit code {worker.process.exitcode}; -9 is "
            "mostly a lack of memory: try runtime.resident='one', smaller runtime.score_tokens, train_tokens or "
            f"kv_cache_gib); its log is {self.log}. What is finished is kept: give the same command again"
        )

    def release(self) -> None:
        """End the processes of a stage where the next one's would not fit beside them."""
        if self.workers and not self.together:
            self.close()

    def close(self) -> None:
        """End all processes at once: whatever a job has finished is on disk."""
        while self.workers:
            self.workers.popitem()[1].end()
        for queue in self.queues.values():
            queue.clear()

    def __exit__(self, *_: object) -> None:
        self.close()


def _context() -> Any:
    """How workers are started: as forks of a process that has imported what is heavy; anew where there may be CUDA,
    whose contexts a fork would break."""
    return multiprocessing.get_context("spawn" if gpu_is_there() else "forkserver")


def warm(engine: bool) -> None:
    """Begin to import what is heavy, in the background, while the main process reads the questions; vLLM, too, if an
    `engine` will be needed."""
    context = _context()
    if isinstance(context, ForkServerContext):
        context.set_forkserver_preload(["peers.preload", *(["peers.preload_vllm"] if engine else [])])
        ensure_running()


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, name: str, parent: Processes) -> None:
        self.name = name
        self.job: Job | None = None
        self.connection, theirs = multiprocessing.Pipe()
        slot = parent.placement.slots_of(name)[0]
        runtime = resolved(parent.run.config.runtime, slot, parent.placement.takes_turns(slot))
        run = Run(parent.run.name, parent.run.config.model_copy(update={"runtime": runtime}))
        arguments = (theirs, run, Path.cwd(), parent.busy)
        self.process = parent.context.Process(target=_serve, args=arguments, name=f"pst-{name}")
        self.process.start()
        theirs.close()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


# --- in the worker ---


def _serve(connection: Connection, run: Run, folder: Path, busy: Any) -> None:
    """Do jobs in `folder` until the other end of the pipe is gone."""
    open_streams()
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # its own lock would be a system-wide semaphore, which a process that is killed leaves behind
    tqdm.set_lock(threading.RLock())
    console.file = cast("IO[str]", _Messages(connection))
    balance = _Balance(busy)

    def advance(items: int, tokens: int) -> None:
        connection.send(("advance", (items, tokens)))
        balance()

    while True:
        try:
            log, work, arguments = connection.recv()
        except EOFError:
            return
        with busy.get_lock():
            busy.value += 1
        balance()
        try:
            if log is not None:
                _print_to(log)
            answer = "done", work(run, *arguments, advance)
        except UserError as error:
            answer = "refused", error
        except Exception as error:
            with suppress(OSError):  # the log's disk may be what is full
                traceback.print_exc()
            told = trouble(error)
            answer = ("failed", traceback.format_exc()) if told is None else ("refused", UserError(told))
        with busy.get_lock():
            busy.value -= 1
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            settle(stream, number)
        connection.send(answer)


def _die_with_parent() -> None:
    """End this process when the one that asked for it is gone, whatever it is busy with: nothing may be written to a
    run that nobody holds the lock of."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


class _Balance:
    """Gives torch its share of the cores: all of them to a process that is alone at work."""

    def __init__(self, busy: Any) -> None:
        import torch

        self.busy, self.set_threads = busy, torch.set_num_threads
        self.cores, self.threads = len(os.sched_getaffinity(0)), 0

    def __call__(self) -> None:
        threads = max(1, self.cores // max(1, self.busy.value))
        if threads != self.threads:
            self.threads = threads
            self.set_threads(threads)


class _Messages(TextIOBase):
    """What a worker tells the person goes through the parent, which knows where the progress line is."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def write(self, text: str) -> int:
        """Send a piece of text."""
        self.connection.send(("print", text))
        return len(text)


def _print_to(log: Path) -> None:
    """Send what libraries print, on whatever level, to a stage's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        settle(stream, number)
        os.dup2(descriptor, number)
    os.close(descriptor)
