"""The grader for answers that a custom function compares (data/answers/own.py)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from data.answers import own
from data.answers.equivalence import AnswerPair
from data.answers.extract import Extracted
from data.answers.grader import Grader, GraderProcess
from data.answers.kinds import AnswerKindName, is_own, placed
from data.console import console
from data.errors import UserError

IMPORT_SECONDS = 60.0  # longest import of the module, which may load much
SILENT_SECONDS = 3.0  # after this it prints what it waits for


class OwnGrader(Grader):
    """The processes that call a custom function. The main `Grader` remembers the verdicts."""

    announced: ClassVar[set[tuple[str, bool]]] = set()  # kinds whose error, or lost process, was reported
    has_extract: ClassVar[dict[str, bool]] = {}  # code identity of usable functions -> whether there is an `extract`

    def __init__(self, kind: AnswerKindName, timeout_seconds: float, workers: int) -> None:
        super().__init__(timeout_seconds, workers)
        self.kind, self.identity = kind, str(own.code_identity(kind))

    @property
    def extracts(self) -> bool:
        """Whether the module has an `extract`. Raises UserError for a function that cannot be called."""
        if self.identity not in self.has_extract:
            with self._waiting():
                [(_, reply)] = self._verify([own.LOOK])
            self.has_extract[self.identity] = bool(reply and reply[0])
        return self.has_extract[self.identity]

    def verdicts(self, pairs: Sequence[AnswerPair]) -> Iterable[tuple[AnswerPair, bool | None]]:
        """The function's verdict on each (answer, gold)."""
        for (_, *pair), reply in self._verify([("verdict", *pair) for pair in pairs]):
            yield (pair[0], pair[1]), self._value(reply, "pairs are undecided")

    def extract(self, asked: Sequence[tuple[str, str]]) -> list[Extracted | None]:
        """The answer that `extract` finds in each (response, question)."""
        jobs = [("extract", *each) for each in asked]
        replies = dict(self._verify(list(dict.fromkeys(jobs))))
        found = [self._value(replies[job], "responses are without an answer") for job in jobs]
        return [answer and placed(answer, response) for answer, (response, _) in zip(found, asked, strict=True)]

    def _value(self, reply: tuple[Any, str | None] | None, such: str) -> Any:
        """The result of a job, or None; the first failure of each sort is reported."""
        value, why = reply or (None, f"it took longer than {self.timeout_seconds:g} s, or ended its process")
        if why and (self.kind, reply is None) not in self.announced:
            self.announced.add((self.kind, reply is None))
            console.print(f"answers = {self.kind!r}: {why}; such {such}", markup=False, soft_wrap=True)
        return value

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Print what is waited for, if that takes long."""
        path = own.path_of(self.kind)
        text = f"answers = {self.kind!r}: waiting for {path} to be imported, {IMPORT_SECONDS:g} s at most"
        timer = threading.Timer(SILENT_SECONDS, console.print, (text,), {"markup": False, "soft_wrap": True})
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _start(self) -> GraderProcess:
        worker = GraderProcess(own.serve, self.timeout_seconds, self.kind)
        worker.deadline = time.monotonic() + IMPORT_SECONDS
        return worker

    def _not_started(self, why: object) -> Exception:
        if isinstance(why, str):
            return UserError(f"answers = {self.kind!r}: {why}")
        return UserError(
            f"answers = {self.kind!r}: the process that imports {own.path_of(self.kind)} ended with exit code {why}, "
            f"or was not ready within {IMPORT_SECONDS:g} s: code outside its functions runs at import"
        )


def check_own(names: Iterable[AnswerKindName]) -> None:
    """Raises UserError for a custom function that cannot be called. Each file is tried once per process."""
    for kind in dict.fromkeys(filter(is_own, names)):
        pool = OwnGrader(kind, IMPORT_SECONDS, 1)
        with pool:
            assert pool.extracts is not None
