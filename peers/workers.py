"""The queue of the peers' calls, which are given to their processes in order.

A stage submits what needs a model; the main process plans, joins and writes, and runs no model. The placement
(peers/placement.py) says which processes a peer has and on which device; an executor starts them: peers/local.py on
this machine, peers/ray_executor.py on a cluster. A process keeps its libraries, its engine and its model from one call
to the next, through all stages and rounds of a command.

Side by side on a CPU, the peers' processes share the cores: small models spend most of a core's time in Python and in
single threads, so N processes of one thread do more than one of N threads. If the models of a device do not fit side
by side, its peers take turns: on a GPU a waiting peer sleeps, with its weights in host memory; on a CPU its process
ends.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from data.console import console
from data.errors import UserError
from data.run import Run
from data.spent import spent
from data.task import Task
from peers import permits, policy_cache
from peers.engines.protocol import engine_kind
from peers.placement import Placement, Slot, placement_of, resolve_runtime
from peers.serving import Work

__all__ = ["Executor", "Job", "Pool", "Work", "Worker", "Workers"]

CALL_BATCHES = 4  # an engine's batches per call: enough that it seldom runs half empty, few enough to lose in a kill


@dataclass(frozen=True)
class Job:
    """A call that needs a peer's process: `work(run, *arguments, advance)`, with any units before `advance`."""

    peer: str
    work: Work
    arguments: tuple[Any, ...]
    units: tuple[Any, ...] = ()
    requests: int = 0  # to an engine
    deaths: int = 0  # of processes that were doing it

    def __add__(self, other: Job) -> Job:
        return replace(self, units=self.units + other.units, requests=self.requests + other.requests)

    def goes_with(self, other: Job) -> bool:
        """Whether both can be done in one call."""
        mine, theirs = ((job.peer, job.work, job.arguments) for job in (self, other))
        return bool(self.units and other.units) and mine == theirs and not (self.deaths or other.deaths)

    def after_a_death(self) -> list[Job]:
        """The jobs to repeat, unit by unit, so that another death shows which unit is to blame. Finished units are
        found on disk."""
        again = replace(self, deaths=self.deaths + 1)
        each = -(-self.requests // len(self.units)) if self.units else 0
        return [replace(again, units=(unit,), requests=each) for unit in self.units] or [again]


class Workers(Protocol):
    """Where the stages send calls that need a model."""

    def submit(
        self, peer: str, work: Work, *arguments: Any, units: Iterable[Any] | None = None, requests: int = 0
    ) -> None:
        """Queue `work(run, *arguments, advance)` for a peer; its calls start in order.

        With `units`: `work(run, *arguments, units, advance)`, in one call or several, in several processes if the peer
        has them. `requests` is the number of engine requests of each unit.
        """
        ...

    def results(self, line: Task | None = None) -> Iterator[tuple[Job, Any]]:
        """Each call with its result, as they finish, until none is left; more may be submitted meanwhile.

        Raises UserError if a call raised it, RuntimeError with the traceback for any other error of a call.
        """
        ...


class Worker(Protocol):
    """A peer's process, seen from the command."""

    slot: Slot

    def send(self, log: Path | None, work: Work, arguments: tuple[Any, ...]) -> bool:
        """Start `peers.serving.Server.call`. False if the process is dead, which `messages` reports, too."""
        ...

    def end(self) -> None:
        """End the process at once, whatever it is doing."""
        ...


class Executor(Protocol):
    """How processes are started, and where."""

    deaths: int  # of processes at the same unit or call; with so many the stage fails

    def start(self, run: Run, slot: Slot) -> Any:
        """A new `Worker`; `run` is the first argument of its calls."""
        ...

    def messages(self, workers: Sequence[Any]) -> Iterator[tuple[Any, str, Any]]:
        """Wait for messages of the workers: (worker, kind, value) with the kinds of `peers.serving`, or "died" and the
        reason."""
        ...

    def close(self) -> None:
        """Free what the executor itself holds."""
        ...


@dataclass
class _Process:
    """A worker and its present job."""

    worker: Any
    job: Job | None = None
    advanced: list[int] = field(default_factory=lambda: [0, 0])  # items and tokens of the job reported so far
    awake: bool = False  # it may hold memory of its device
    since: float = 0.0  # when the job started


class Pool(AbstractContextManager["Pool"]):
    """`Workers` in processes of their own, which end with this object, whatever ends it."""

    def __init__(self, run: Run, together: bool | None = None) -> None:
        self.run, self.choice = run, together
        self.log: Path | None = None  # where the workers' libraries print
        self.queues: dict[str, deque[Job]] = {name: deque() for name in run.config.peer_names}
        self.processes: dict[Slot, _Process] = {}

    @cached_property
    def seeded(self) -> bool:
        """Whether each request has its own seed: then no sample depends on what else is in a call."""
        return engine_kind(self.run.config.generate) == "vllm"

    @cached_property
    def placement(self) -> Placement:
        """The processes and their devices. Raises UserError if a peer does not fit."""
        if self.run.config.executor.kind == "ray":
            from peers.ray_cluster import placement_on

            return placement_on(self.run, self.choice)
        return placement_of(self.run, self.choice)

    @cached_property
    def devices(self) -> dict[str, list[str]]:
        """The names of each peer's devices."""
        names: dict[str, list[str]] = {}
        for slot in self.placement.slots:
            names.setdefault(slot.peer, []).append(slot.device.name)
        return names

    @cached_property
    def executor(self) -> Executor:
        """The executor that starts the processes."""
        permits.take_all_away(self.run)  # left by a command that was killed
        if self.run.config.executor.kind == "ray":
            from peers.ray_executor import RayExecutor

            return RayExecutor(self.run, self.placement)
        from peers.local import LocalExecutor

        return LocalExecutor()

    def submit(
        self, peer: str, work: Work, *arguments: Any, units: Iterable[Any] | None = None, requests: int = 0
    ) -> None:
        """See `Workers.submit`."""
        if units is None:
            self.queues[peer].append(Job(peer, work, arguments))
        else:
            self.queues[peer].extend(Job(peer, work, arguments, (unit,), requests) for unit in units)

    def results(self, line: Task | None = None) -> Iterator[tuple[Job, Any]]:
        """See `Workers.results`."""
        while self._dispatch():
            self._tell(line)
            at_work = {id(process.worker): process for process in self.processes.values() if process.job}
            for worker, kind, value in self.executor.messages([process.worker for process in at_work.values()]):
                process = at_work[id(worker)]
                if kind == "advance":
                    self._advance(process, line, *value)
                elif kind == "print":
                    console.print(value, end="", markup=False, soft_wrap=True)
                elif kind == "refused":
                    raise value
                elif kind == "failed":
                    raise RuntimeError(f"in the process of peer {worker.slot.peer}:\n{value}")
                elif kind == "died":
                    self._died(process, line, value)
                elif kind == "done":
                    job, process.job = process.job, None
                    assert job is not None
                    spent.add(job.peer, worker.slot.device.name, time.monotonic() - process.since)
                    self._dispatch()  # the caller may take its time
                    if job.work is not policy_cache.sleep:
                        yield job, value

    def _dispatch(self) -> bool:
        """Give idle processes their next call; False if nothing is left to do or wait for."""
        for slot in self.placement.slots:
            idle = slot not in self.processes or self.processes[slot].job is None
            if idle and self.queues[slot.peer] and self._has_turn(slot):
                if slot not in self.processes:
                    self.processes[slot] = _Process(self.executor.start(self._run_of(slot), slot))
                self._give(self.processes[slot], self._next(slot))
        return any(self.queues.values()) or any(process.job for process in self.processes.values())

    def _run_of(self, slot: Slot) -> Run:
        """The run as a process sees it, with `auto` and 0 resolved for its device."""
        runtime = resolve_runtime(self.run.config.runtime, slot, self.placement.takes_turns(slot))
        return Run(self.run.name, self.run.config.model_copy(update={"runtime": runtime}))

    def _has_turn(self, slot: Slot) -> bool:
        """Whether a process may use its device's memory now; frees memory for it where possible."""
        if not self.placement.takes_turns(slot):
            return True
        others = [p for s, p in self.processes.items() if s.device == slot.device and s != slot]
        if any(p.job or (p.awake and self.queues[p.worker.slot.peer]) for p in others):
            return False  # a loaded model is used as long as there is work for it
        awake = [p for p in others if p.awake]
        for process in awake:
            if slot.device.is_gpu:
                process.awake = False
                self._give(process, Job(process.worker.slot.peer, policy_cache.sleep, ()))
            else:
                del self.processes[process.worker.slot]
                process.worker.end()
        return not (awake and slot.device.is_gpu)

    def _next(self, slot: Slot) -> Job:
        """The next call of a slot's peer: its share of the queued units, up to CALL_BATCHES full batches of requests if
        they are seeded."""
        queue = self.queues[slot.peer]
        job = queue.popleft()
        alike = 1 + sum(job.goes_with(other) for other in queue)
        share = -(-alike // self._side_by_side(slot))
        limit = CALL_BATCHES * resolve_runtime(self.run.config.runtime, slot).max_num_seqs if self.seeded else 0
        while len(job.units) < share and queue and job.goes_with(queue[0]):
            if job.requests + queue[0].requests > limit:
                break
            job += queue.popleft()
        return job

    def _side_by_side(self, slot: Slot) -> int:
        """How many processes of a slot's peer work at the same time."""
        slots = self.placement.slots_of(slot.peer)
        turns = {other.device for other in slots if self.placement.takes_turns(other)}
        return len(turns) + sum(other.device not in turns for other in slots)

    def _give(self, process: _Process, job: Job) -> None:
        process.job, process.advanced, process.since = job, [0, 0], time.monotonic()
        process.awake |= job.work is not policy_cache.sleep
        units = (list(job.units),) if job.units else ()
        process.worker.send(self.log, job.work, (*job.arguments, *units))

    def _tell(self, line: Task | None) -> None:
        """Show on the progress line who is at work, and where."""
        if line is not None:
            jobs = [process.job for process in self.processes.values()]
            working = {job.peer for job in jobs if job is not None and job.work is not policy_cache.sleep}
            line.at_work(working, self.devices)

    def _advance(self, process: _Process, line: Task | None, items: int, tokens: int) -> None:
        if line is not None:
            line.advance(items, tokens, process.worker.slot.peer)
        process.advanced[0] += items
        process.advanced[1] += tokens

    def _died(self, process: _Process, line: Task | None, reason: str) -> None:
        """Queue a dead process's call again. Raises UserError if too many processes died doing it."""
        slot, job = process.worker.slot, process.job
        assert job is not None
        del self.processes[slot]
        process.worker.end()
        if job.deaths + 1 >= self.executor.deaths:
            raise UserError(
                f"the process of peer {slot.peer} was killed {job.deaths + 1} times at the same work "
                f"({reason}; exit code -9 is usually out of memory: try runtime.resident='one', smaller "
                f"runtime.score_tokens, train_tokens or kv_cache_gib); its log is {self.log}. What is finished is "
                "kept: run the same command again"
            )
        console.print(f"  peer {slot.peer}: its process died ({reason}); starting another one", markup=False)
        if line is not None:
            line.advance(-process.advanced[0], -process.advanced[1], slot.peer)
        if job.work is not policy_cache.sleep:
            self.queues[slot.peer].extendleft(reversed(job.after_a_death()))

    def release(self) -> None:
        """At a stage's end: end the processes that take turns but cannot sleep, to free memory for the next stage."""
        for slot in [slot for slot in self.processes if self.placement.takes_turns(slot)]:
            if not slot.device.is_gpu:
                self.processes.pop(slot).worker.end()

    def close(self) -> None:
        """End all processes at once: finished work is on disk."""
        while self.processes:
            self.processes.popitem()[1].worker.end()
        for queue in self.queues.values():
            queue.clear()
        if "executor" in vars(self):
            self.executor.close()

    def __exit__(self, *_: object) -> None:
        self.close()
