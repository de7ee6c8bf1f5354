"""In a peer's process: do the calls that the command sends, and report their results."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import TextIOBase
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from tqdm import tqdm

from data import shards
from data.console import console
from data.errors import UserError, trouble
from data.run import Run
from data.streams import flush_or_drop, open_streams
from data.task import Advance
from peers import policy_cache
from peers.devices import cores
from peers.gpu import check_gpu

if TYPE_CHECKING:
    from peers.placement import Slot

UNKNOWN_ITEMS = 500  # assumed for a benchmark without a limit
Work = Callable[..., Any]  # a module's function (run, *arguments, advance) -> something that can be pickled
Send = Callable[[tuple[str, Any]], None]  # to the command: ("advance", (items, tokens)), ("print", text)


class Server:
    """The part of a peer's process that every executor has: a folder, messages, and calls."""

    def __init__(self, run: Run, slot: Slot, folder: Path, send: Send) -> None:
        self.run, self.slot = run, slot
        os.chdir(folder)
        # tqdm's own lock is a system-wide semaphore, which a killed process leaves behind
        tqdm.set_lock(threading.RLock())
        console.file = cast("IO[str]", _Messages(send))
        self.announced: Path | None = None  # the log in which this process has announced itself
        if slot.device.is_gpu:
            check_gpu()
        policy_cache.expect_requests(_requests(run))

    def call(self, log: Path | None, work: Work, arguments: tuple[Any, ...], advance: Advance) -> tuple[str, Any]:
        """Do a call: ("done", value), ("refused", UserError) or ("failed", traceback)."""
        try:
            if log is not None:
                _print_to(log)
            if self.announced != log:
                self.announced = log
                print(f"peer {self.slot.peer}: process {os.getpid()} on {self.slot.device.name}", flush=True)
            answer = "done", work(self.run, *arguments, advance)
        except UserError as error:
            answer = "refused", error
        except Exception as error:
            with suppress(OSError):  # the log's disk may be full
                traceback.print_exc()
            known = trouble(error)
            answer = ("failed", traceback.format_exc()) if known is None else ("refused", UserError(known))
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            flush_or_drop(stream, number)
        return answer


def _requests(run: Run) -> int:
    """About how many requests an engine gets in a round, as far as the config and manifests say."""
    config, k = run.config, run.config.evaluate.samples
    questions: int = (shards.read_manifest(run.prompts_dir) or {"rows": 0})["rows"]
    sampled = config.generate.samples if config.score.needs_samples else 0
    items = sum(benchmark.limit or UNKNOWN_ITEMS for benchmark in config.benchmarks)
    return questions * (2 + sampled) + items * (k + 1)  # 2: one in the chain, one alone


def serve(connection: Connection, run: Run, slot: Slot, folder: Path, busy: Any, number: int) -> None:
    """Do calls until the other end of the pipe is closed. `busy` has a 1 for each process that is doing a call, this
    one at `number`."""
    open_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        server = Server(run, slot, folder, connection.send)
    except UserError as error:  # it answers the first call
        connection.recv()
        connection.send(("refused", error))
        return
    # on a GPU another number of threads would compile again
    balance = None if slot.device.is_gpu else _Balance(busy, run.config.executor.cpus_per_worker)

    def advance(items: int, tokens: int) -> None:
        connection.send(("advance", (items, tokens)))
        if balance:
            balance()

    while True:
        try:
            log, work, arguments = connection.recv()
        except EOFError:
            return
        busy[number] = 1
        if balance:
            balance()
        answer = server.call(log, work, arguments, advance)
        busy[number] = 0
        connection.send(answer)


def _die_with_parent() -> None:
    """End this process at once when its parent is gone: nothing may be written to a run whose lock nobody holds."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


class _Balance:
    """Gives torch `fixed` threads, or with 0 the process's share of the cores, split among those at work."""

    def __init__(self, busy: Any, fixed: int) -> None:
        import torch

        self.busy, self.fixed, self.set_threads = busy, fixed, torch.set_num_threads
        self.cores, self.threads = cores(), 0

    def __call__(self) -> None:
        threads = self.fixed or max(1, self.cores // max(1, bytes(self.busy).count(1)))
        if threads != self.threads:
            self.threads = threads
            self.set_threads(threads)


class _Messages(TextIOBase):
    """Sends what a worker prints for the user to the command, which knows where the progress line is."""

    def __init__(self, send: Send) -> None:
        self.send = send

    def write(self, text: str) -> int:
        """Send a piece of text."""
        self.send(("print", text))
        return len(text)


def _print_to(log: Path) -> None:
    """Redirect what libraries print, also from C, to a stage's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        flush_or_drop(stream, number)
        os.dup2(descriptor, number)
    os.close(descriptor)
