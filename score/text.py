"""Which texts a peer is trained on for a question, and why it is on none: one small class per choice.

To add one: a class here, its name in TEXTS, the config's key (`score.text`) and its description. Pure but for the
grader.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from data.answers.grader import Grader
from data.answers.kinds import AnswerKindName
from data.answers.thoughts import without_thoughts
from data.config.sections import ScoreSection
from data.schema import ChainRow
from score.chains import Chain
from score.label import Label

NO_CLEAN_CUT = "target_not_separable"  # the scorer's tokenizer joins the prompt's end and the target's beginning
NOT_FINITE = "score_not_finite"  # the drop reason of a row whose PMI is no number
NO_SOLUTION = "no_solution"  # none of the samples that may be taken has the label
IS_TEACHER = "is_teacher"  # who teaches does not learn


@dataclass(frozen=True)
class TextQuery:
    """For whom a text is chosen, and by what."""

    chain: Chain
    peer: str
    label: Label
    section: ScoreSection
    teacher: str
    seed: str  # of the choice among several
    kind: AnswerKindName  # of the answers


@dataclass(frozen=True)
class TargetText:
    """A text to train on, by its place among the chain's rows, and what its weight is multiplied with."""

    index: int
    factor: float = 1.0


class TextRule(Protocol):
    """A choice of texts."""

    def of(self, asked: TextQuery, grader: Grader) -> list[TargetText] | str:
        """The texts, or why there is none."""
        ...


class AggregateText:
    """The aggregate's, where it has the label: the abstract's reading."""

    def of(self, asked: TextQuery, grader: Grader) -> list[TargetText] | str:
        """See `TextRule.of`."""
        aggregate = asked.chain.aggregate_of(asked.peer)
        if asked.section.label != "aggregate":
            if asked.label.answer is None:
                return asked.label.reason or NO_SOLUTION
            if not agree(aggregate["answer"], asked.label.answer, asked.kind, grader):
                return "aggregate_not_the_label"
        return [TargetText(asked.chain.index_of(aggregate))]


class OwnText:
    """The peer's own response in the chain (an ablation)."""

    def of(self, asked: TextQuery, grader: Grader) -> list[TargetText] | str:
        """See `TextRule.of`."""
        return [TargetText(asked.chain.index_of(asked.chain.response_of(asked.peer, asked.section.y_source)))]


class Solution:
    """Samples that have the label: the peer's own, else another's."""

    def sources(self, asked: TextQuery) -> list[list[int]]:
        """Places of the samples to choose from, those that come first first."""
        own = asked.chain.samples(asked.peer)
        return [own, [place for place in asked.chain.samples() if place not in own]]

    def of(self, asked: TextQuery, grader: Grader) -> list[TargetText] | str:
        """See `TextRule.of`."""
        if asked.label.reason is not None:
            return asked.label.reason
        for places in self.sources(asked):
            found = _different([p for p in places if _fit(asked.chain.rows[p], asked, grader)], asked.chain)
            if found:
                chosen = random.Random(asked.seed).sample(found, min(asked.section.solutions, len(found)))
                return [TargetText(place, 1 / len(chosen)) for place in sorted(chosen)]
        return NO_SOLUTION


class OwnSolution(Solution):
    """Samples of the peer itself that have the label."""

    def sources(self, asked: TextQuery) -> list[list[int]]:
        """See `Solution.sources`."""
        return [asked.chain.samples(asked.peer)]


class TeacherSolution(Solution):
    """Samples of the teacher that have the label; the teacher itself is not trained."""

    def sources(self, asked: TextQuery) -> list[list[int]]:
        """See `Solution.sources`."""
        return [asked.chain.samples(asked.teacher)]

    def of(self, asked: TextQuery, grader: Grader) -> list[TargetText] | str:
        """See `TextRule.of`."""
        return IS_TEACHER if asked.peer == asked.teacher else super().of(asked, grader)


class OwnSamples:
    """All finished samples of the peer: with `signed` weights each at its advantage, 1 if it has the label, else 0,
    less the mean over all its samples of the question (one step of reinforcement learning with the label as reward);
    else each that has the label at 1, the others at 0."""

    def of(self, asked: TextQuery, grader: Grader) -> list[TargetText] | str:
        """See `TextRule.of`."""
        if asked.label.reason is not None:
            return asked.label.reason
        rows = {place: asked.chain.rows[place] for place in asked.chain.samples(asked.peer)}
        reward = {place: float(_fit(row, asked, grader)) for place, row in rows.items()}
        mean = sum(reward.values()) / len(reward) if asked.section.weighting == "signed" else 0.0
        finished = [place for place, row in rows.items() if row["finish_reason"] == "stop" and row["n_tokens"]]
        return [TargetText(place, reward[place] - mean) for place in finished] or NO_SOLUTION


TEXTS: dict[str, TextRule] = {  # by score.text
    "aggregate": AggregateText(),
    "own": OwnText(),
    "solution": Solution(),
    "own-solution": OwnSolution(),
    "teacher-solution": TeacherSolution(),
    "samples": OwnSamples(),
}


def agree(answer: str | None, label: str | None, kind: AnswerKindName, grader: Grader) -> bool:
    """Whether both are answers, and equivalent; a comparison that times out is a no."""
    return answer is not None and label is not None and bool(grader.equivalent([(label, answer)], kind)[0])


def _fit(row: ChainRow, asked: TextQuery, grader: Grader) -> bool:
    """Whether a response can be trained on, and has the label; without a label, any answer."""
    if _defect("", row) is not None:
        return False
    label = asked.label.answer
    return label is None or agree(row["answer"], label, asked.kind, grader)


def _different(places: Sequence[int], chain: Chain) -> list[int]:
    """The first place of each different text."""
    texts: dict[str, int] = {}
    for place in places:
        texts.setdefault(without_thoughts(chain.rows[place]["response"]), place)
    return list(texts.values())


def drop_reason(chain: Chain, response: ChainRow, section: ScoreSection) -> str | None:
    """Why a peer does not train on an aggregate, or on its own response of the chain; None if it does (or would, at
    weight 0)."""
    aggregate = chain.aggregate(response)
    reason = _defect("aggregate", aggregate)
    if reason is None and is_empty(response):
        reason = "response_empty"
    if reason is None and section.text == "own":
        reason = _defect("response", response)
    if reason is None and response["is_aggregate"] and not section.train_final and not chain.own_aggregates:
        reason = "is_aggregate"
    return reason


def is_empty(row: ChainRow) -> bool:
    """Whether a response says nothing, or nothing after its thought."""
    return row["n_tokens"] == 0 or not without_thoughts(row["response"])


def _defect(what: str, row: ChainRow) -> str | None:
    """What makes a text unfit to be trained on."""
    if is_empty(row):
        return f"{what}_empty"
    if row["finish_reason"] != "stop":
        return f"{what}_truncated"
    return f"{what}_no_answer" if row["answer"] is None else None
