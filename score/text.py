"""Which text an example is trained on, and why a peer does not train on a question: one small class per choice.

To add one: a class here, its name in TEXTS, the config's key (`score.target`) and its description. What `of` looks at
has to be among the columns WHO of score/stage.py, which are read to count the passes. Pure.
"""

from __future__ import annotations

from typing import Protocol

from data.config.sections import ScoreSection
from data.schema import ChainRow
from score.chains import Chain


class Text(Protocol):
    """A choice of text."""

    def of(self, response: ChainRow, aggregate: ChainRow) -> ChainRow:
        """The row whose text is trained on."""
        ...


class AggregateText:
    """The aggregate's: the abstract's reading."""

    def of(self, response: ChainRow, aggregate: ChainRow) -> ChainRow:
        """See `Text.of`."""
        return aggregate


class OwnText:
    """The peer's own response (an ablation)."""

    def of(self, response: ChainRow, aggregate: ChainRow) -> ChainRow:
        """See `Text.of`."""
        return response


NO_CLEAN_CUT = "target_not_separable"  # the scorer's tokenizer joins the prompt's end and the target's beginning
NOT_FINITE = "score_not_finite"  # the drop reason of a row whose PMI is no number

TEXTS: dict[str, Text] = {"aggregate": AggregateText(), "own": OwnText()}  # by score.target


def drop_reason(chain: Chain, response: ChainRow, section: ScoreSection) -> str | None:
    """Why a peer does not train on a question; None if it does (or would, at weight 0)."""
    aggregate = chain.aggregate(response)
    reason = _defect("aggregate", aggregate)
    if reason is None and response["n_tokens"] == 0:
        reason = "response_empty"
    if reason is None and TEXTS[section.target].of(response, aggregate) is response:
        reason = _defect("response", response)
    if reason is None and response["is_aggregate"] and not section.train_final and not chain.own_aggregates:
        reason = "is_aggregate"
    return reason


def _defect(what: str, row: ChainRow) -> str | None:
    """What makes a text unfit to be trained on."""
    if row["n_tokens"] == 0:
        return f"{what}_empty"
    if row["finish_reason"] != "stop":
        return f"{what}_truncated"
    return f"{what}_no_answer" if row["answer"] is None else None
