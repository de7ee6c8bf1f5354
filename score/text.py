"""Which texts a peer trains on for a question, or why it trains on none: one small class per choice.

To add one: write a class here, name it in TEXTS, and add it to the config's key (`score.text`) and its description
(docs/architecture.md has the rest).
Pure except for the grader.
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
NOT_FINITE = "score_not_finite"  # a log-probability of its PMI is not finite
NO_SOLUTION = "no_solution"  # no finished sample has the label (under `samples`: none is finished)
IS_TEACHER = "is_teacher"  # the teacher itself does not train


@dataclass(frozen=True)
class TextQuery:
    """The question and peer that a text is chosen for, and what the choice depends on."""

    chain: Chain
    peer: str
    label: Label
    section: ScoreSection
    teacher: str
    seed: str  # of the choice among several
    kind: AnswerKindName  # of the answers


@dataclass(frozen=True)
class TargetText:
    """A text to train on, by its index among the chain's rows, and the factor of its weight."""

    index: int
    factor: float = 1.0


class TextRule(Protocol):
    """A rule that chooses texts."""

    def of(self, query: TextQuery, grader: Grader) -> list[TargetText] | str:
        """The texts, or why there is none."""
        ...


class AggregateText:
    """The aggregate, if it has the label, as the paper's abstract describes it."""

    def of(self, query: TextQuery, grader: Grader) -> list[TargetText] | str:
        """See `TextRule.of`."""
        aggregate = query.chain.aggregate_of(query.peer)
        if query.section.label != "aggregate":
            if query.label.answer is None:
                return query.label.reason or NO_SOLUTION
            if not agree(aggregate["answer"], query.label.answer, query.kind, grader):
                return "aggregate_not_the_label"
        return [TargetText(query.chain.index_of(aggregate))]


class OwnText:
    """The peer's own response in the chain (an ablation)."""

    def of(self, query: TextQuery, grader: Grader) -> list[TargetText] | str:
        """See `TextRule.of`."""
        return [TargetText(query.chain.index_of(query.chain.response_of(query.peer, query.section.y_source)))]


class Solution:
    """Samples that have the label: the peer's own, else those of others."""

    def sources(self, query: TextQuery) -> list[list[int]]:
        """Indices of the samples to choose from, as groups: a later group is used only if no sample before fits."""
        own = query.chain.samples(query.peer)
        return [own, [index for index in query.chain.samples() if index not in own]]

    def of(self, query: TextQuery, grader: Grader) -> list[TargetText] | str:
        """See `TextRule.of`."""
        if query.label.reason is not None:
            return query.label.reason
        for indices in self.sources(query):
            found = _distinct([p for p in indices if _fit(query.chain.rows[p], query, grader)], query.chain)
            if found:
                chosen = random.Random(query.seed).sample(found, min(query.section.solutions, len(found)))
                return [TargetText(index, 1 / len(chosen)) for index in sorted(chosen)]
        return NO_SOLUTION


class OwnSolution(Solution):
    """Samples of the peer itself that have the label."""

    def sources(self, query: TextQuery) -> list[list[int]]:
        """See `Solution.sources`."""
        return [query.chain.samples(query.peer)]


class TeacherSolution(Solution):
    """Samples of the teacher that have the label; the teacher itself is not trained."""

    def sources(self, query: TextQuery) -> list[list[int]]:
        """See `Solution.sources`."""
        return [query.chain.samples(query.teacher)]

    def of(self, query: TextQuery, grader: Grader) -> list[TargetText] | str:
        """See `TextRule.of`."""
        return IS_TEACHER if query.peer == query.teacher else super().of(query, grader)


class OwnSamples:
    """All finished samples of the peer. A sample's reward is 1 if it has the label, else 0. Under `signed` weights its
    factor is the advantage: the reward less the mean over all the peer's samples of the question, unfinished ones
    included (reinforcement learning with the label as reward). Else the factor is the reward."""

    def of(self, query: TextQuery, grader: Grader) -> list[TargetText] | str:
        """See `TextRule.of`."""
        if query.label.reason is not None:
            return query.label.reason
        rows = {index: query.chain.rows[index] for index in query.chain.samples(query.peer)}
        reward = {index: float(_fit(row, query, grader)) for index, row in rows.items()}
        mean = sum(reward.values()) / len(reward) if query.section.weighting == "signed" else 0.0
        finished = [index for index, row in rows.items() if row["finish_reason"] == "stop" and row["n_tokens"]]
        return [TargetText(index, reward[index] - mean) for index in finished] or NO_SOLUTION


TEXTS: dict[str, TextRule] = {  # by score.text
    "aggregate": AggregateText(),
    "own": OwnText(),
    "solution": Solution(),
    "own-solution": OwnSolution(),
    "teacher-solution": TeacherSolution(),
    "samples": OwnSamples(),
}


def agree(answer: str | None, label: str | None, kind: AnswerKindName, grader: Grader) -> bool:
    """Whether both are answers, and equivalent; False if the comparison times out."""
    return answer is not None and label is not None and bool(grader.equivalent([(label, answer)], kind)[0])


def _fit(row: ChainRow, query: TextQuery, grader: Grader) -> bool:
    """Whether a response can be trained on and has the label; without a label, any answer will do."""
    if _defect("", row) is not None:
        return False
    label = query.label.answer
    return label is None or agree(row["answer"], label, query.kind, grader)


def _distinct(indices: Sequence[int], chain: Chain) -> list[int]:
    """The first index of each distinct text."""
    texts: dict[str, int] = {}
    for index in indices:
        texts.setdefault(without_thoughts(chain.rows[index]["response"]), index)
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
    """Whether a response is empty, or has nothing after its thought."""
    return row["n_tokens"] == 0 or not without_thoughts(row["response"])


def _defect(what: str, row: ChainRow) -> str | None:
    """Why a text is unfit to be trained on; None if it is fit."""
    if is_empty(row):
        return f"{what}_empty"
    if row["finish_reason"] != "stop":
        return f"{what}_truncated"
    return f"{what}_no_answer" if row["answer"] is None else None
