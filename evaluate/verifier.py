"""The verifier: how right a peer finds a response, by a logit or by a critique that it writes first.

    logit   log p(Yes) - log p(No), in nats, after (question, response): two logits of one prefill
    cot     +1 if the critique's verdict is Yes, -1 if it is No, 0 if it has none that can be read

Scores of -1, 0 and 1 have many ties, which the gap splits fractionally (evaluate/gap.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from data import shards
from data.answers.thoughts import without_thoughts
from data.finite import known
from data.run import Run
from evaluate.unit import VERDICTS, Unit, Verdict
from peers import policy_cache
from peers.engines.protocol import Completion, Engine, Sampling, complete
from peers.policy import Policy
from peers.prompts import PeerPrompts
from peers.verify import Asked, logit_scores
from peers.workers import Advance

FROZEN, CURRENT = "frozen", "current"  # whose scores: by round 0's policy, and by the current one


def crossed(verifier: str) -> str:
    """The kind of the scores that another peer's current policy gives."""
    return f"cross~{verifier}"


def verify_all(run: Run, work: Path, policy: Policy, kind: str, units: list[Unit], advance: Advance) -> None:
    """Scores by a peer, in its process, each unit's written as one file, with the critiques if it writes any."""
    config, prompts = run.config, policy.prompts
    for done, unit in enumerate(units):
        asked = unit.questions(work)
        texts = list(asked.values())
        if config.evaluate.verifier == "cot":
            tokens = config.evaluate.verifier_tokens
            engine = partial(policy_cache.engine, policy, config)
            found = cot_verdicts(engine, prompts, texts, tokens, config.generate.context_tokens - tokens, advance)
        else:
            lm = policy_cache.language_model(policy, config)
            scores = logit_scores(lm, prompts, texts, config.runtime.score_tokens, advance, len(units) - done)
            found = [(known(score), None) for score in scores]
        advance(config.evaluate.samples * len(unit.items) - len(asked), 0)  # equal ones were asked once
        rows = [{"key": key, "score": s, "critique": text} for key, (s, text) in zip(asked, found, strict=True)]
        shards.write_rows(rows, unit.path(work, kind), VERDICTS)


def cot_verdicts(
    engine: Callable[[], Engine], prompts: PeerPrompts, asked: Asked, max_tokens: int, room: int, advance: Advance
) -> list[Verdict]:
    """One score (1, -1 or 0) per (question, response), with the greedy critique of at most `max_tokens` tokens that it
    is read from; 0 without a critique where the prompt has more than `room` tokens."""
    tokens = prompts.all_of("verify_cot", [(question, (response,)) for question, response in asked])
    greedy = Sampling(0.0, 1.0, max_tokens, logprobs=False)
    critiques = complete(engine, tokens, [0] * len(tokens), greedy, room, advance)
    return [(verdict(each), None if each.finish_reason == "context" else each.text) for each in critiques]


def verdict(critique: Completion) -> float:
    """1 for Yes, -1 for No, by the last of the two words in the critique, in whatever case; 0 if it has neither."""
    words = re.findall(r"\b(yes|no)\b", without_thoughts(critique.text).lower())
    return 0.0 if not words else 1.0 if words[-1] == "yes" else -1.0
