"""Verdicts: answers compared by math-verify in processes that can be killed."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Literal

from data.answers.equivalence import Kind, Pair, decide_quickly
from data.answers.extract import Extracted
from data.answers.spelling import clean

STARTUP_SECONDS = 120.0  # a worker imports sympy: 1-2 s, more on a busy machine
Verdict = Literal["correct", "wrong", "no_answer", "timeout", "truncated"]


def grade(rows: Sequence[tuple[Extracted | None, str, bool]], kind: Kind, grader: Grader) -> list[Verdict]:
    """The verdict on each (extracted answer, gold, response hit the token limit).

    A response that hit the limit is "truncated" only if it stated no answer: a box, hashes or a phrase count,
    a last number amid a calculation does not. "timeout" is not "wrong": the pair could not be decided.
    """
    verdicts: list[Verdict] = []
    stated = [(x.answer, gold) for x, gold, cut in rows if x and not (cut and x.guessed)]
    equal = iter(grader.equivalent(stated, kind))
    for extracted, _, truncated in rows:
        if truncated and (extracted is None or extracted.guessed):
            verdicts.append("truncated")
        elif extracted is None:
            verdicts.append("no_answer")
        else:
            same = next(equal)
            verdicts.append("timeout" if same is None else "correct" if same else "wrong")
    return verdicts


def _serve(connection: Connection, timeout_seconds: float) -> None:
    """A worker: answers one pair after another until its parent closes the pipe or dies."""
    import logging

    from math_verify import (
        ExprExtractionConfig,
        LatexExtractionConfig,
        parse,
        verify,
    )

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    config = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    verify(parse("$x+1$", config, parsing_timeout=None), parse("$1+x$", config, parsing_timeout=None))  # loads the rest
    connection.send("ready")
    while True:
        try:
            pair: Pair = connection.recv()
        except EOFError:
            return
        # The parent kills a slow worker. If the parent is gone, the alarm's default action does, even in C.
        signal.alarm(int(timeout_seconds) + 10)
        a, b = (parse(f"${clean(text)}$", config, fallback_mode="no_fallback", parsing_timeout=None) for text in pair)
        equal = verify(a, b, timeout_seconds=None) or verify(b, a, timeout_seconds=None)
        signal.alarm(0)
        connection.send(bool(equal))


class _Worker:
    def __init__(self, timeout_seconds: float) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy CUDA and thread state
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, timeout_seconds), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False
        self.pair: Pair | None = None
        self.deadline = time.monotonic() + STARTUP_SECONDS

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Grader:
    """Decides whether answers are equivalent, and remembers each pair in either order.

    Worker processes start with the first pair that needs math-verify. A worker imports the main module again,
    so a script needs the usual `if __name__ == "__main__":`.
    """

    def __init__(self, timeout_seconds: float = 5.0, workers: int = 2) -> None:
        if timeout_seconds <= 0 or workers < 1:
            raise ValueError(f"timeout_seconds={timeout_seconds} and workers={workers} must be positive")
        self.timeout_seconds = timeout_seconds
        self.max_workers = workers
        self._workers: list[_Worker] = []
        self._known: dict[tuple[Kind, str, str], bool | None] = {}

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        while self._workers:
            self._workers.pop().kill()

    def forget(self) -> None:
        """Drop what is remembered, so that memory does not grow with the number of shards; the workers stay."""
        self._known.clear()

    def equivalent(self, pairs: Sequence[Pair], kind: Kind) -> list[bool | None]:
        """One verdict per pair, in order; None if the pair ran out of time or its worker died."""
        keys = [(kind, min(pair), max(pair)) for pair in pairs]
        slow: list[Pair] = []
        for key in dict.fromkeys(keys):
            if key not in self._known:
                if (verdict := decide_quickly(key[1], key[2], kind)) is None:
                    slow.append(key[1:])
                else:
                    self._known[key] = verdict
        for pair, verified in self._verify(slow):
            self._known[(kind, *pair)] = verified
        return [self._known[key] for key in keys]

    def _verify(self, pairs: Sequence[Pair]) -> Iterable[tuple[Pair, bool | None]]:
        queue = deque(pairs)
        while queue or any(worker.pair for worker in self._workers):
            self._workers = [w for w in self._workers if w.pair or not w.ready or w.process.is_alive()]
            while len(self._workers) < min(self.max_workers, len(queue)):
                self._workers.append(_Worker(self.timeout_seconds))
            for worker in self._workers:
                if worker.ready and worker.pair is None and queue:
                    worker.pair = queue.popleft()
                    worker.deadline = time.monotonic() + self.timeout_seconds
                    worker.connection.send(worker.pair)
            waiting = [worker for worker in self._workers if worker.pair or not worker.ready]
            patience = min(worker.deadline for worker in waiting) - time.monotonic()
            heard = wait([worker.connection for worker in waiting], max(0.0, patience))
            for worker in waiting:
                if worker.connection in heard or time.monotonic() >= worker.deadline:
                    yield from self._hear(worker)

    def _hear(self, worker: _Worker) -> Iterable[tuple[Pair, bool | None]]:
        """Takes a worker's message; a worker that is late or dead is removed, and its pair is None."""
        try:
            message = worker.connection.recv() if worker.connection.poll() else None
        except (EOFError, ConnectionResetError):
            message = None
        pair, worker.pair = worker.pair, None
        if message is None:
            worker.kill()
            self._workers.remove(worker)
            if pair is None:
                code = worker.process.exitcode
                raise RuntimeError(
                    f"a math-verify worker ended with exit code {code}; expected: ready within "
                    f"{STARTUP_SECONDS:.0f} s. See its traceback above; try `python -c 'import math_verify'`"
                )
        if pair is None:
            worker.ready = True
        else:
            yield pair, message
