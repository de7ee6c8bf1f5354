"""An engine without a model, for tests of pure logic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data.prompts import PeerPrompts
from generate.engine import Advance, Completion, Request, Sampling


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
        """Nothing to give back."""
