"""Out of memory halves the token budget: of a process, so of its peer, for the rest of the stage."""

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
# what torch, its libraries and the CPU's allocator say; a Python list that does not fit is a MemoryError
NO_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate memory|bad_alloc|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_lowered: dict[str, int] = {}  # by stage and round: what its budget has come to in this process


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has too little memory. (torch.OutOfMemoryError is a
    RuntimeError.)"""
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
    """`work(items, tokens, advance)`: teacher forcing, with as many tokens at a time as there is memory for, and
    without those items that it fails on. `key`, `peer` and `longest` as in `within`."""
    runtime = run.config.runtime
    attempt, faults = Attempt(advance), quarantine.allowed(runtime.quarantine_share, len(items))

    def with_budget(tokens: int) -> list[R | Fault]:
        return isolate_faults(items, lambda some, told: work(some, tokens, told), faults, attempt, _of_one_item)

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
    """`work(budget in tokens)`, again with half as many each time that there is too little memory; what is left of
    `tokens` stays for all later calls with this key ("score round 3"). `failed` undoes a failed call.

    `longest()` is the longest example in tokens: a batch of a budget up to that is one example. Raises UserError where
    that does not fit either; `setting` is the budget's name in the config.
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
                    f"peer {peer}: one example of {longest()} tokens does not fit into memory ({_said(error)}); try "
                    "runtime.resident='one', runtime.gradient_checkpointing='on' or a smaller runtime.kv_cache_gib, or "
                    "shorter generate.max_new_tokens in a new run. What is finished is kept"
                ) from error
            said = _said(error)
        # here, not above: the error's traceback holds what the call had in memory
        failed()
        _give_back()
        _lowered[key] = budget // 2
        console.print(
            f"  {peer}: out of memory with {setting} = {budget:,} ({said}); {budget // 2:,} for the rest of the stage",
            markup=False,
            soft_wrap=True,
        )


def _said(error: BaseException) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first[:200]


def _give_back() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
