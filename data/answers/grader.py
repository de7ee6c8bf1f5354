"""Verdicts: math-verify or a custom function compares answers, in processes that can be killed."""

from __future__ import annotations

import multiprocessing
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import permutations
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Literal

from data.answers import kinds
from data.answers.equivalence import AnswerPair
from data.answers.extract import Extracted
from data.answers.kinds import AnswerKindName, is_own

if TYPE_CHECKING:
    from data.answers.own_grader import OwnGrader

MEMORY = 2**31  # bytes that a worker may use; sympy and its imports need 0.4 GiB
STARTUP_SECONDS = 120.0  # a worker imports sympy: 1-2 s, more on a busy machine
STARTS = 3  # workers that may be killed before they are ready; the next one fails the stage
FAILED = "failed"  # a pair that could not be compared
Verdict = Literal["correct", "wrong", "no_answer", "timeout", "truncated"]


def grade(rows: Sequence[tuple[Extracted | None, str, bool]], kind: AnswerKindName, grader: Grader) -> list[Verdict]:
    """The verdict on each (extracted answer, gold, response hit the token limit).

    A response that hit the limit is "truncated" only if it states no answer: a box, hashes or a phrase count, a last
    number, formula or line does not. "timeout" is not "wrong": the pair could not be decided.
    """
    verdicts: list[Verdict] = []
    stated = [(x.answer, gold) for x, gold, cut in rows if x and not (cut and x.guessed)]
    equal = iter(grader.matches(stated, kind))
    for extracted, _, truncated in rows:
        if truncated and (extracted is None or extracted.guessed):
            verdicts.append("truncated")
        elif extracted is None:
            verdicts.append("no_answer")
        else:
            same = next(equal)
            verdicts.append("timeout" if same is None else "correct" if same else "wrong")
    return verdicts


def find_all(rows: Iterable[Any], kind: AnswerKindName, grader: Grader) -> None:
    """Set each row's `answer` to the one that its `response` to its `question` states."""
    some = list(rows)
    found = grader.find([(row["response"], row["question"]) for row in some], kind)
    for row, each in zip(some, found, strict=True):
        row["answer"] = each.answer if each else None


def _serve(connection: Connection, timeout_seconds: float) -> None:
    """A worker: answers one pair after another until its parent closes the pipe or dies."""
    import logging

    from data.answers.formula import same_formula

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    same_formula("x+1", "1+x")  # loads the remaining modules
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))  # a formula may be a huge number
    connection.send("ready")
    while True:
        try:
            pair: AnswerPair = connection.recv()
        except EOFError:
            return
        # The parent kills a slow worker. If the parent is gone, the alarm's default action kills it, even in C code.
        signal.alarm(int(timeout_seconds) + 10)
        try:
            verdict: bool | str = same_formula(*pair)
        except Exception:  # sympy raises many kinds, RecursionError for one
            verdict = FAILED
        signal.alarm(0)
        connection.send(verdict)


class GraderProcess:
    """A process and the pipe to it."""

    def __init__(self, serve: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy CUDA and thread state
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False
        self.pair: tuple[str, ...] | None = None
        self.deadline = time.monotonic() + STARTUP_SECONDS

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Grader:
    """Decides whether answers are right or agree, and remembers each pair.

    Worker processes start with the first pair that needs them. A worker imports the main module again,
    so a script needs the usual `if __name__ == "__main__":`.
    """

    def __init__(self, timeout_seconds: float = 5.0, workers: int = 2) -> None:
        if timeout_seconds <= 0 or workers < 1:
            raise ValueError(f"timeout_seconds={timeout_seconds} and workers={workers} must be positive")
        self.timeout_seconds = timeout_seconds
        self.max_workers = workers
        self._workers: list[GraderProcess] = []
        self._own: dict[AnswerKindName, OwnGrader] = {}
        self._known: dict[tuple[str, ...], bool | None] = {}  # by kind, answer, gold answer
        self._failed = False  # whether any of these is None
        self._killed_early = 0  # workers that a signal ended before they were ready

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        for pool in self._own.values():
            pool.close()
        while self._workers:
            self._workers.pop().kill()

    def forget(self) -> None:
        """Forget all verdicts, so that memory does not grow with the number of shards; keep the workers."""
        self._known.clear()
        self._failed = False

    def failed_on(self, answers: Iterable[str | None], kind: AnswerKindName) -> bool:
        """Whether comparing a pair of these answers has failed since `forget`."""
        if not self._failed:
            return False
        stated = dict.fromkeys(answer for answer in answers if answer is not None)
        return any(self._known.get((kind, *pair), True) is None for pair in permutations(stated, 2))

    def find(self, asked: Sequence[tuple[str, str]], kind: AnswerKindName) -> list[Extracted | None]:
        """The answer of each (response, question), in order; None if it states none, or timed out."""
        if is_own(kind) and self._pool_of(kind).extracts:
            return self._pool_of(kind).extract(asked)
        return [kinds.of(kind).find(response, question) for response, question in asked]

    def equivalent(self, pairs: Sequence[AnswerPair], kind: AnswerKindName) -> list[bool | None]:
        """Whether two responses agree, one verdict per pair, in order. Symmetric: each must match the other. None if
        the pair timed out or its worker died."""
        ordered = [(min(pair), max(pair)) for pair in pairs]
        verdicts: dict[AnswerPair, bool | None] = {}
        if is_own(kind):  # a custom function need not call an answer equal to itself
            verdicts = {pair: True for pair in ordered if pair[0] == pair[1]}
        first = [pair for pair in dict.fromkeys(ordered) if pair not in verdicts]
        verdicts.update(zip(first, self.matches(first, kind), strict=True))
        turned = [pair for pair in first if verdicts[pair]]
        verdicts.update(zip(turned, self.matches([(b, a) for a, b in turned], kind), strict=True))
        return [verdicts[pair] for pair in ordered]

    def matches(self, pairs: Sequence[AnswerPair], kind: AnswerKindName) -> list[bool | None]:
        """Whether each (answer, gold answer) is right, in order; None if the pair timed out or its worker died.

        Unlike `equivalent` it has a direction: x + y = 7 matches the gold answer 7, but 7 does not match x + y = 7.
        """
        right, either_way = kinds.of(kind).right, kind in ("math", "numbers")
        slow: list[AnswerPair] = []
        for pair in dict.fromkeys(pairs):
            if (kind, *pair) not in self._known:
                if (verdict := right(*pair)) is None:
                    slow.append(pair)
                else:
                    self._known[(kind, *pair)] = verdict
                    if either_way:
                        self._known[(kind, pair[1], pair[0])] = verdict
        for pair, verified in self._run(slow, kind):
            self._known[(kind, *pair)] = verified
            self._failed |= verified is None
        return [self._known[(kind, *pair)] for pair in pairs]

    def _run(self, pairs: Sequence[AnswerPair], kind: AnswerKindName) -> Iterable[tuple[AnswerPair, bool | None]]:
        """The verdicts of the worker processes."""
        if not is_own(kind):
            yield from self._verify(pairs)
        elif pairs:
            yield from self._pool_of(kind).verdicts(pairs)

    def _pool_of(self, kind: AnswerKindName) -> OwnGrader:
        from data.answers.own_grader import OwnGrader

        if kind not in self._own:
            self._own[kind] = OwnGrader(kind, self.timeout_seconds, self.max_workers)
        return self._own[kind]

    def _start(self) -> GraderProcess:
        return GraderProcess(_serve, self.timeout_seconds)

    def _verify(self, pairs: Sequence[tuple[str, ...]]) -> Iterable[tuple[Any, Any]]:
        queue, again = deque(pairs), set[tuple[str, ...]]()
        while queue or any(worker.pair for worker in self._workers):
            self._workers = [w for w in self._workers if w.pair or not w.ready or w.process.is_alive()]
            while len(self._workers) < min(self.max_workers, len(queue)):
                self._workers.append(self._start())
            for worker in self._workers:
                if worker.ready and worker.pair is None and queue:
                    worker.pair = queue.popleft()
                    worker.deadline = time.monotonic() + self.timeout_seconds
                    with suppress(OSError):  # the worker has just died, which `_hear` will notice
                        worker.connection.send(worker.pair)
            waiting = [worker for worker in self._workers if worker.pair or not worker.ready]
            patience = min(worker.deadline for worker in waiting) - time.monotonic()
            heard = wait([worker.connection for worker in waiting], max(0.0, patience))
            for worker in waiting:
                if worker.connection not in heard and time.monotonic() < worker.deadline:
                    continue
                in_time = time.monotonic() < worker.deadline
                for pair, verdict in self._hear(worker):
                    # a worker that died without being slow may have been killed from outside
                    if verdict is None and in_time and worker not in self._workers and pair not in again:
                        again.add(pair)
                        queue.append(pair)
                    else:
                        yield pair, verdict

    def _hear(self, worker: GraderProcess) -> Iterable[tuple[Any, Any]]:
        """Receive a worker's message; remove a late or dead worker, whose pair then is None."""
        message, died = None, False
        try:
            message = worker.connection.recv() if worker.connection.poll() else None
        except (EOFError, ConnectionResetError):
            died = True
        pair, worker.pair = worker.pair, None
        if message is None:
            worker.kill()
            self._workers.remove(worker)
            status = worker.process.exitcode
            if pair is None and died and (status or 0) < 0 and self._killed_early < STARTS:
                self._killed_early += 1  # `_verify` starts another
                return
            if pair is None:
                raise self._not_started(status)
        if pair is None:
            worker.ready = True
            if message != "ready":
                raise self._not_started(message)
        else:
            yield pair, None if message == FAILED else message

    def _not_started(self, why: object) -> Exception:
        return RuntimeError(
            f"a math-verify worker ended with exit code {why}; expected: ready within {STARTUP_SECONDS:.0f} s. See its "
            "traceback above; try `python -c 'import math_verify'`"
        )
