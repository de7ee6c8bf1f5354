"""The executor of a Ray cluster: an actor per slot, in a placement group with a bundle for each.

Loaded only if `executor.kind` is "ray". An actor does its calls in a thread of its own, one after the other, and
sends its messages, including a call's answer, as a stream of batches. `peers.workers.Pool` replaces an actor that died:
Ray moves its bundle to another node if the node is gone.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from data.cli import quiet_environment
from data.console import console
from data.errors import UserError
from data.run import Run
from peers import permits
from peers.placement import Placement, Slot
from peers.ray_cluster import Need, disconnect, needs_of, nodes_of
from peers.ray_nodes import Node
from peers.serving import Send, Server, Work

ENDS = ("done", "refused", "failed")
WORD_SECONDS = 5.0  # of waiting before the user is told why
START_SECONDS = 600.0  # to wait for resources of the cluster: other jobs may end, nodes may join
BECAUSE = re.compile(r"actor (?:is dead|died|has died) because (.*?)\.(?:\s|$)")
ADDRESS = re.compile(r"^\s*ip: (\S+)", re.MULTILINE)


class RayExecutor:
    """Actors of a Ray cluster. See `peers.workers.Executor`."""

    deaths = 3  # more than on one machine: nodes may come and go

    def __init__(self, run: Run, placement: Placement) -> None:
        """Reserve what all slots need. Raises UserError if the cluster cannot give it."""
        nodes = nodes_of(run)
        import ray
        from ray.util.placement_group import placement_group

        self.ray, self.run, self.slots = ray, run, placement.slots
        self.needs = needs_of(run, placement)
        self.actor = ray.remote(max_restarts=0, max_task_retries=0)(_Actor)
        _refuse_if_too_small(self.needs, nodes)
        self.group = placement_group([need.bundle() for need in self.needs], strategy="SPREAD")
        self._wait_for_room()

    def _wait_for_room(self) -> None:
        begun = time.monotonic()
        if self.group.wait(WORD_SECONDS):
            return
        console.print(f"  waiting until the Ray cluster has room for {_sum(self.needs)}; free now: {self._free()}")
        if not self.group.wait(max(0.0, START_SECONDS - (time.monotonic() - begun))):
            raise UserError(self._no_room(_sum(self.needs)))

    def _no_room(self, needed: str) -> str:
        return (
            f"the Ray cluster had no room for {needed} in {START_SECONDS:.0f} s (free now: {self._free()}): wait for "
            "other jobs, add nodes, or lower executor.workers, cpus_per_worker or gpus_per_worker; what is finished is "
            "kept"
        )

    def _free(self) -> str:
        free = self.ray.available_resources()
        return _words(free.get("CPU", 0), free.get("GPU", 0), free.get("memory", 0))

    def start(self, run: Run, slot: Slot) -> RayWorker:
        """See `Executor.start`. The actor starts once its bundle has a node, see `messages`."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        number = self.slots.index(slot)
        need = self.needs[number]
        permit = permits.give(run, f"{slot.peer}-{slot.replica}")
        actor = self.actor.options(
            num_cpus=need.cpus,
            num_gpus=need.gpus,
            memory=need.memory or None,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=number),
        ).remote(run, slot, Path.cwd(), permit)
        return RayWorker(slot, actor, permit, self.ray)

    def messages(self, workers: Sequence[RayWorker]) -> Iterator[tuple[RayWorker, str, Any]]:
        """See `Executor.messages`."""
        streams = [worker.stream for worker in workers]
        ready, _ = self.ray.wait(streams, num_returns=1, timeout=WORD_SECONDS)
        if ready:  # take all that are ready: a worker with many messages must not keep the others waiting
            ready, _ = self.ray.wait(streams, num_returns=len(streams), timeout=0)
        for worker in workers:
            if any(worker.stream is stream for stream in ready):
                yield from ((worker, kind, value) for kind, value in worker.receive())
            elif not worker.began:
                self._hurry(worker)

    def _hurry(self, worker: RayWorker) -> None:
        """Report that a worker has not started yet. Raises UserError after START_SECONDS."""
        waited = time.monotonic() - worker.made
        need = self.needs[self.slots.index(worker.slot)]
        needed = _words(need.cpus, need.gpus, need.memory)
        if waited > START_SECONDS:
            raise UserError(self._no_room(f"a process of peer {worker.slot.peer} ({needed})"))
        if waited > 4 * WORD_SECONDS and not worker.mentioned:
            worker.mentioned = True
            console.print(f"  peer {worker.slot.peer}: waiting for {needed}; free in the cluster: {self._free()}")

    def close(self) -> None:
        """See `Executor.close`."""
        permits.tidy(self.run)
        disconnect()


class RayWorker:
    """An actor, as the command sees it. See `peers.workers.Worker`."""

    def __init__(self, slot: Slot, actor: Any, permit: Path, ray: Any) -> None:
        self.slot, self.actor, self.permit, self.ray = slot, actor, permit, ray
        self.stream: Any = None  # messages of the present call
        self.made = time.monotonic()
        self.began = self.mentioned = False

    def send(self, log: Path | None, work: Work, arguments: tuple[Any, ...]) -> bool:
        """See `Worker.send`."""
        self.stream = self.actor.call.remote(log, work, arguments)
        return True

    def receive(self) -> list[tuple[str, Any]]:
        """The next batch of the call's messages; call it when the stream is ready."""
        errors = self.ray.exceptions
        try:
            batch: list[tuple[str, Any]] = self.ray.get(next(self.stream))
        except errors.RayTaskError as error:
            batch = [("failed", str(error))]
        except (errors.RayError, StopIteration) as error:
            batch = [("died", _reason(error))]
        self.began = True
        return batch

    def end(self) -> None:
        """See `Worker.end`."""
        if not permits.take_away(self.permit, lambda: self.ray.kill(self.actor)):
            console.print(
                f"warning: the process of peer {self.slot.peer} may not have ended yet; it has no permit to write any "
                "more, so it ends by itself unless its machine is cut off",
                soft_wrap=True,
            )


def _reason(error: BaseException) -> str:
    """Why an actor died, in a few words."""
    text = str(error)
    because, address = BECAUSE.search(text), ADDRESS.search(text)
    return (because[1] if because else type(error).__name__) + (f", node {address[1]}" if address else "")


def _refuse_if_too_small(needs: list[Need], nodes: list[Node]) -> None:
    """Raises UserError if even an empty cluster cannot hold all slots."""
    largest = Need(max(n.cpus for n in needs), max(n.gpus for n in needs), max(n.memory for n in needs))
    if sum(largest.fit_in(node) for node in nodes) < len(needs):
        has = ", ".join(f"{node.name}: {_words(node.cpus, node.gpus, node.memory)}" for node in nodes) or "no node"
        raise UserError(
            f"the Ray cluster is too small: {len(needs)} processes need {_sum(needs)}, each on one node, and it has "
            f"{has}; add nodes, or lower executor.workers, cpus_per_worker or gpus_per_worker "
            "(runtime.resident='all' ignores memory)"
        )


def _sum(needs: list[Need]) -> str:
    largest = needs[0]
    return f"{len(needs)} x ({_words(largest.cpus, largest.gpus, max(need.memory for need in needs))})"


def _words(cpus: float, gpus: float, memory: float) -> str:
    parts = [f"{cpus:g} CPU", f"{gpus:g} GPU" if gpus else "", f"{memory / 2**30:.0f} GiB" if memory else ""]
    return ", ".join(filter(None, parts))


def _call_of(run: Run, slot: Slot, folder: Path, send: Send) -> Callable[..., tuple[str, Any]]:
    """`Server.call`; if the server cannot start, a call that always answers with the reason."""
    try:
        return Server(run, slot, folder, send).call
    except UserError as error:
        refusal = "refused", error
        return lambda *_: refusal


class _Actor:
    """A peer's process, as `peers.serving.serve` is for a pipe."""

    def __init__(self, run: Run, slot: Slot, folder: Path, permit: Path) -> None:
        permits.exit_with_permit(permit)
        quiet_environment()
        if not slot.device.is_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self.calls: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.outbox: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        threading.Thread(target=self._work, args=(run, slot, folder), daemon=True).start()

    def _work(self, run: Run, slot: Slot, folder: Path) -> None:
        """Do calls, all in this thread: torch's number of threads and vLLM's binding of them belong to one thread."""
        try:
            call = _call_of(run, slot, folder, self.outbox.put)
            if not slot.device.is_gpu:
                import torch

                torch.set_num_threads(run.config.executor.cpus_per_worker or 1)
            while True:
                log, work, arguments = self.calls.get()
                self.outbox.put(call(log, work, arguments, self._advance))
        finally:
            os._exit(1)  # or calls would wait forever

    def _advance(self, items: int, tokens: int) -> None:
        self.outbox.put(("advance", (items, tokens)))

    def call(self, log: Path | None, work: Work, arguments: tuple[Any, ...]) -> Iterator[list[tuple[str, Any]]]:
        """`Server.call`: batches of its messages as they come; the last message is the call's answer."""
        yield []  # it has started
        self.calls.put((log, work, arguments))
        batch: list[tuple[str, Any]] = []
        while not batch or batch[-1][0] not in ENDS:
            batch = [self.outbox.get()]
            while not self.outbox.empty():
                batch.append(self.outbox.get())
            yield batch
