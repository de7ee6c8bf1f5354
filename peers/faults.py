"""One request that fails must not take its batch with it: the guilty one is found by halving."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from data.errors import UserError, trouble
from data.task import Advance

T = TypeVar("T")
R = TypeVar("R")


class NotFinite(UserError):
    """Nothing can be drawn from the logits of some of a batch's requests: of one, or of all of a damaged model."""


@dataclass(frozen=True)
class Fault:
    """Why one item could not be done, in one line."""

    reason: str


class Attempt:
    """Progress of something that may fail, and then is taken back."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.items, self.tokens = advance, 0, 0

    def __call__(self, items: int, tokens: int) -> None:
        """Report progress."""
        self.items += items
        self.tokens += tokens
        self.advance(items, tokens)

    def undo(self) -> None:
        """It has failed."""
        if self.items or self.tokens:
            self.advance(-self.items, -self.tokens)
        self.items = self.tokens = 0


def error_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def of_one_item(error: Exception) -> bool:
    """Whether an error may be due to one item of many: not one that says what to do, nor a full disk, say."""
    return isinstance(error, NotFinite) or (not isinstance(error, UserError) and trouble(error) is None)


def isolate_faults(
    items: Sequence[T],
    work: Callable[[Sequence[T], Advance], Sequence[R]],
    max_faults: int,
    advance: Advance,
    is_item_fault: Callable[[Exception], bool] = of_one_item,
) -> list[R | Fault]:
    """`work(items, advance)`, one result per item; where it raises what is `is_item_fault`, of both halves instead,
    and so on down to the item that fails alone, which has a Fault and counts as done.

    At most (max_faults + 1) · (log2(items) + 1) calls fail. Raises the error if no item of several can be done, and
    UserError if more than `max_faults` fail.
    """
    found: list[R | Fault] = []
    faults: list[Fault] = []
    waiting = [(0, len(items))] if items else []
    while waiting:
        first, end = waiting.pop()
        attempt = Attempt(advance)
        try:
            found += work(items[first:end], attempt)
            continue
        except Exception as error:
            attempt.undo()
            if not is_item_fault(error):
                raise
            nothing_done = len(faults) == len(found)
            if end - first == 1:
                traceback.print_exc()  # into the stage's log
                fault = Fault(error_line(error))
                if nothing_done and len(items) > 1 and (end == len(items) or len(faults) >= max_faults):
                    raise
        if end - first > 1:
            middle = (first + end) // 2
            waiting += [(middle, end), (first, middle)]
            continue
        faults.append(fault)
        found.append(fault)
        advance(1, 0)
        if len(faults) > max_faults:
            raise UserError(
                f"{len(faults)} of {len(items)} requests failed one by one, {max_faults} may "
                f"(runtime.quarantine_share); {faults[0].reason}; the log has them all"
            )
    return found
