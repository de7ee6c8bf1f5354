"""A peer as verifier: how right it finds a response, from two logits of one prefill."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data.task import Advance
from peers.prompts import PeerPrompts

if TYPE_CHECKING:
    from peers.logprob.model import LanguageModel

QuestionResponses = list[tuple[str, str]]  # (question, response)


def logit_scores(
    lm: LanguageModel, prompts: PeerPrompts, asked: QuestionResponses, budget: int, advance: Advance, parts: int = 1
) -> list[float]:
    """log p(Yes) - log p(No) of each (question, response), in nats, in batches of `budget` tokens.

    `parts` as in `score_pairs`."""
    from peers.logprob.scoring import score_next

    tokens = prompts.all_of("verify", [(question, (response,)) for question, response in asked])
    found = score_next(lm, tokens, [prompts.yes_id, prompts.no_id], budget, advance, parts)
    return [yes - no for yes, no in found]


def longest_prompt(prompts: PeerPrompts, asked: QuestionResponses) -> int:
    """Tokens of the longest of these prompts."""
    return max(map(len, prompts.all_of("verify", [(question, (response,)) for question, response in asked])))
