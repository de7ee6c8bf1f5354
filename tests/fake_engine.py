"""An engine without a model, and workers without processes."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data.run import Run, open_run
from data.task import Advance, Task
from peers import policy_cache
from peers.engines.protocol import Completion, Request, Sampling
from peers.placement import Placement, runtime_here
from peers.prompts import PeerPrompts
from peers.workers import Job, Work


class FakeEngine:
    """`respond(prompt, seed)` gives the token ids."""

    def __init__(self, prompts: PeerPrompts, respond: Callable[[Sequence[int], int], list[int]]) -> None:
        self.prompts, self.respond = prompts, respond
        self.batches: list[int] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Advance) -> list[Completion]:
        """See `Engine.generate`."""
        self.batches.append(len(requests))
        completions = []
        for request in requests:
            ids = self.prompts.cut(self.respond(request.prompt, request.seed)[: sampling.max_new_tokens])
            completions.append(Completion(ids, self.prompts.text(ids), -0.5 * len(ids), "stop"))
        advance(len(requests), sum(len(c.token_ids) for c in completions))
        return completions

    def close(self) -> None:
        """Nothing to release."""


class Inline:
    """`Workers` in this process: all of a peer's queued jobs before another's, or all in order of arrival."""

    def __init__(self, run: Run, together: bool = True) -> None:
        config = run.config.model_copy(update={"runtime": runtime_here(run.config.runtime)})
        self.run, self.together = Run(run.name, config), together
        self.jobs: deque[Job] = deque()
        self.stretches: list[str] = []  # peers in the order in which they worked

    def submit(
        self, peer: str, work: Work, *arguments: Any, units: Iterable[Any] | None = None, requests: int = 0
    ) -> None:
        """See `Workers.submit`."""
        self.jobs.append(Job(peer, work, arguments, tuple(units or ()), requests))

    def results(self, line: Task | None = None) -> Iterator[tuple[Job, Any]]:
        """See `Workers.results`."""
        while self.jobs:
            mine = [job for job in self.jobs if self.stretches and job.peer == self.stretches[-1]]
            job = self.jobs[0] if self.together or not mine else mine[0]
            self.jobs.remove(job)
            if self.stretches[-1:] != [job.peer]:
                self.stretches.append(job.peer)
            units = (list(job.units),) if job.units else ()
            yield job, job.work(self.run, *job.arguments, *units, line.advance if line else lambda *_: None)


def run_inline(run: str, config: Path, overrides: list[str]) -> None:
    """Rounds 0 and 1 of a run, up to training, in this process, with the engine and models of its config."""
    steps = (("evaluate", 0), ("generate", 1), ("score", 1), ("train", 1))
    with open_run(run, config, overrides) as opened:
        try:
            for stage, round_ in steps:
                main: Any = importlib.import_module(stage).main
                main(opened, round_, Inline(opened))
        finally:
            policy_cache.drop_all()


class Here(Inline):
    """`Pool` for commands without a run."""

    log: Path | None = None
    placement = Placement((), frozenset(), ())

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        policy_cache.drop_all()
