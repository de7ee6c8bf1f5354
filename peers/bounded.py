"""Limits of time and memory for programs in a model's files: a chat template is one, and may come from anyone.

transformers runs templates in jinja's sandbox, which keeps them from files and from Python, but not from endless loops
and endless texts.
"""

from __future__ import annotations

import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

MAX_SECONDS = 10.0  # of this thread's CPU time, for one prompt, which usually takes milliseconds
MAX_BYTES = 2**31  # of memory, beyond what the process already has
PAGE = resource.getpagesize()


class TooLong(Exception):
    """The block took more than MAX_SECONDS of CPU time."""


@contextmanager
def bounded() -> Iterator[None]:
    """The block raises TooLong beyond MAX_SECONDS, and MemoryError beyond MAX_BYTES. No limits outside the main thread,
    since signals reach no other."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    begun, (soft, hard) = time.thread_time(), resource.getrlimit(resource.RLIMIT_AS)

    def late(number: int, frame: FrameType | None) -> None:
        left = MAX_SECONDS - (time.thread_time() - begun)
        if left <= 0:
            raise TooLong(f"it is not done after {MAX_SECONDS:.0f} s")
        signal.setitimer(signal.ITIMER_PROF, max(left, 0.01))  # the machine was busy, or asleep

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # SIGALRM may be in use
    _set_memory(_size() + MAX_BYTES, soft, hard)
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
    """Bytes of this process's address space; a huge number without /proc, so that there is no real limit."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * PAGE
    except OSError:
        return 2**46
