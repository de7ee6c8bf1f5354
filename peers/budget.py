"""Out of memory halves the token budget of a process for the rest of the stage."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from data import quarantine
from data.console import console
from data.errors import UserError
from data.run import Run
from data.task import Advance
from peers.faults import Attempt, Fault, isolate_faults, of_one_item

T = TypeVar("T")
R = TypeVar("R")
# messages of torch, its libraries and the CPU's allocator; Python itself raises MemoryError
NO_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate memory|bad_alloc|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_lowered: dict[str, int] = {}  # {stage and round: its lowered budget in this process}


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the machine ran out of memory (torch.OutOfMemoryError is a
    RuntimeError)."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None
    )


def one_by_one(
    run: Run,
    key: str,
    peer: str,
    items: Sequence[T],
    longest: Callable[[], int],
    work: Callable[[Sequence[T], int, Advance], Sequence[R]],
    advance: Advance,
) -> list[R | Fault]:
    """`work(items, tokens, advance)`, which is teacher forcing, with as many tokens at a time as memory allows; items
    on which it fails get a Fault. `key`, `peer` and `longest` as in `with_halved_budget`."""
    runtime = run.config.runtime
    attempt, faults = Attempt(advance), quarantine.allowed(runtime.quarantine_share, len(items))

    def with_budget(tokens: int) -> list[R | Fault]:
        return isolate_faults(items, lambda some, part: work(some, tokens, part), faults, attempt, _of_one_item)

    return with_halved_budget(
        key, peer, "runtime.score_tokens", runtime.score_tokens, longest, with_budget, attempt.undo
    )


def _of_one_item(error: Exception) -> bool:
    return of_one_item(error) and not out_of_memory(error)


def with_halved_budget(
    key: str,
    peer: str,
    setting: str,
    tokens: int,
    longest: Callable[[], int],
    work: Callable[[int], R],
    failed: Callable[[], None] = lambda: None,
) -> R:
    """`work(budget in tokens)`, repeated with half the budget each time that it runs out of memory. The lowered budget
    holds for all later calls with this key ("score round 3"). `failed` undoes a failed call.

    `longest()` is the longest example in tokens; with a budget up to that, a batch is one example. Raises UserError if
    not even that fits; `setting` is the budget's name in the config.
    """
    while True:
        budget = min(tokens, _lowered.get(key, tokens))
        try:
            return work(budget)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if budget <= longest():
                raise UserError(
                    f"peer {peer}: one example of {longest()} tokens does not fit into memory ({_reason(error)}); try "
                    "runtime.resident='one', runtime.gradient_checkpointing='on' or a smaller runtime.kv_cache_gib, or "
                    "a smaller generate.max_new_tokens in a new run. What is finished is kept"
                ) from error
            reason = _reason(error)
        # not within `except`, where the error's traceback keeps the call's memory alive
        failed()
        _give_back()
        _lowered[key] = budget // 2
        console.print(
            f"  {peer}: out of memory with {setting} = {budget:,} ({reason}); "
            f"{budget // 2:,} for the rest of the stage",
            markup=False,
            soft_wrap=True,
        )


def _reason(error: BaseException) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first[:200]


def _give_back() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
