"""Time and memory for what a model's files make run: a chat template is a small program, and may come from anyone.

transformers runs templates in jinja's sandbox, which keeps them from files and from Python, but not from loops without
end and texts without end.
"""

from __future__ import annotations

import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS = 10.0  # of this thread's CPU time, for one prompt; milliseconds are usual
BYTES = 2**31  # of memory more than the process has
PAGE = resource.getpagesize()


class TooLong(Exception):
    """The time is up."""


@contextmanager
def bounded() -> Iterator[None]:
    """The block raises TooLong beyond SECONDS, and MemoryError beyond BYTES. In the main thread alone: signals reach no
    other."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    begun, (soft, hard) = time.thread_time(), resource.getrlimit(resource.RLIMIT_AS)

    def late(number: int, frame: FrameType | None) -> None:
        left = SECONDS - (time.thread_time() - begun)
        if left <= 0:
            raise TooLong(f"it is not through after {SECONDS:.0f} s")
        signal.setitimer(signal.ITIMER_PROF, max(left, 0.01))  # the machine was busy, or asleep

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGALRM may be somebody else's
    _set_memory(_size() + BYTES, soft, hard)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _set_memory(size: int, soft: int, hard: int) -> None:
    limits = [limit for limit in (size, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))


def _size() -> int:
    """Bytes of this process's address space; none known where there is no /proc, and then no limit that matters."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * PAGE
    except OSError:
        return 2**46
