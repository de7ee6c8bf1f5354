"""One failing request must not fail its batch: halving finds the guilty one."""

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
    """The logits of some of a batch's requests are not finite: of one, or of all if the model is damaged."""


@dataclass(frozen=True)
class Fault:
    """Why one item failed, in one line."""

    reason: str


class Attempt:
    """Reports the progress of work that may fail; `undo` then takes it back."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.items, self.tokens = advance, 0, 0

    def __call__(self, items: int, tokens: int) -> None:
        """Report progress."""
        self.items += items
        self.tokens += tokens
        self.advance(items, tokens)

    def undo(self) -> None:
        """Take back what was reported since the last call: the work failed."""
        if self.items or self.tokens:
            self.advance(-self.items, -self.tokens)
        self.items = self.tokens = 0


def error_line(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def of_one_item(error: Exception) -> bool:
    """Whether an error may be due to one item of many: not an error that tells the user what to do, nor a full disk."""
    return isinstance(error, NotFinite) or (not isinstance(error, UserError) and trouble(error) is None)


def isolate_faults(
    items: Sequence[T],
    work: Callable[[Sequence[T], Advance], Sequence[R]],
    max_faults: int,
    advance: Advance,
    is_item_fault: Callable[[Exception], bool] = of_one_item,
) -> list[R | Fault]:
    """`work(items, advance)`: one result per item. If it raises an error that `is_item_fault`, each half is tried, and
    so on down to single items; an item that fails alone gets a Fault and counts as done.

    At most (max_faults + 1) · (log2(items) + 1) calls fail. Raises the error if no item of several succeeds, and
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
                f"{len(faults)} of {len(items)} requests failed even alone; at most {max_faults} may "
                f"(runtime.quarantine_share); the first: {faults[0].reason}; the log has them all"
            )
    return found
