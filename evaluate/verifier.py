"""The verifier: whether a peer finds a response right, by logits or by a critique that it writes first.

    logit   log p(Yes) - log p(No), in nats, after (question, response): two logits of one prefill
    cot     +1 if the critique's last Yes or No is Yes, -1 if it is No, 0 if it has neither

Scores of -1, 0 and 1 have many ties, which the gap splits fractionally (evaluate/gap.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data import quarantine, shards
from data.answers.thoughts import without_thoughts
from data.finite import finite_or_none
from data.run import Run
from data.task import Advance
from evaluate.unit import VERDICTS, EvaluationUnit, VerifierVerdict
from peers import budget, policy_cache
from peers.engines.protocol import Completion, Engine, Sampling, complete
from peers.faults import Fault
from peers.policy import Policy
from peers.prompts import PeerPrompts
from peers.verify import QuestionResponses, logit_scores, longest_prompt

if TYPE_CHECKING:
    from peers.logprob.model import LanguageModel

FROZEN, CURRENT = "frozen", "current"  # kinds of scores: by the peer's policy of round 0, by its current one


def cross_kind(verifier: str) -> str:
    """The kind of the scores that another peer's current policy gives."""
    return f"cross~{verifier}"


def verify_all(run: Run, work: Path, policy: Policy, kind: str, units: list[EvaluationUnit], advance: Advance) -> None:
    """Have a peer score the responses of units, in its process; writes one file per unit, with critiques if it writes
    any."""
    config, prompts = run.config, policy.prompts
    for done, unit in enumerate(units):
        questions = unit.questions(work)
        texts, lost = list(questions.values()), dict[str, str]()
        if config.evaluate.verifier == "cot":
            tokens = config.evaluate.verifier_tokens
            engine = partial(policy_cache.engine, policy, config)
            faults = quarantine.allowed(config.runtime.quarantine_share, len(texts))
            max_prompt_tokens = config.generate.context_tokens - tokens
            critiques = cot_critiques(engine, prompts, texts, tokens, max_prompt_tokens, advance, faults)
            found = list(map(cot_verdict, critiques))
            lost = {key: each.error for key, each in zip(questions, critiques, strict=True) if each.error is not None}
        else:
            lm = policy_cache.language_model(policy, config)
            scores = budget.one_by_one(
                run,
                f"evaluate {work}",
                policy.name,
                texts,
                partial(longest_prompt, prompts, texts),
                partial(_logits, lm, prompts, len(units) - done),
                advance,
            )
            found = [(None if isinstance(each, Fault) else finite_or_none(each), None) for each in scores]
            lost = {key: each.reason for key, each in zip(questions, scores, strict=True) if isinstance(each, Fault)}
        advance(config.evaluate.samples * len(unit.items) - len(questions), 0)  # equal ones were verified once
        rows = [{"key": key, "score": s, "critique": text} for key, (s, text) in zip(questions, found, strict=True)]
        quarantine.note(unit.path(work, kind), unit.quarantine_entries(work, lost, policy.name))
        shards.write_rows(rows, unit.path(work, kind), VERDICTS)


def _logits(
    lm: LanguageModel, prompts: PeerPrompts, parts: int, asked: Sequence[tuple[str, str]], tokens: int, advance: Advance
) -> list[float]:
    return logit_scores(lm, prompts, list(asked), tokens, advance, parts)


def cot_critiques(
    engine: Callable[[], Engine],
    prompts: PeerPrompts,
    asked: QuestionResponses,
    max_tokens: int,
    max_prompt_tokens: int,
    advance: Advance,
    max_faults: int | None = None,
) -> list[Completion]:
    """The greedy critique of each (question, response), of at most `max_tokens` tokens; none if the prompt is longer
    than `max_prompt_tokens`. `max_faults` as in `complete`."""
    tokens = prompts.all_of("verify_cot", [(question, (response,)) for question, response in asked])
    greedy = Sampling(0.0, 1.0, max_tokens, logprobs=False)
    return complete(engine, tokens, [0] * len(tokens), greedy, max_prompt_tokens, advance, max_faults)


def cot_verdict(critique: Completion) -> VerifierVerdict:
    """The score (1, -1 or 0) of a critique, and its text: 0 and None if nothing was generated."""
    return verdict_score(critique), None if critique.finish_reason in ("context", "error") else critique.text


def verdict_score(critique: Completion) -> float:
    """1 for Yes, -1 for No, by the last of the two words in the critique, in any case; 0 if it has neither."""
    words = re.findall(r"\b(yes|no)\b", without_thoughts(critique.text).lower())
    return 0.0 if not words else 1.0 if words[-1] == "yes" else -1.0
