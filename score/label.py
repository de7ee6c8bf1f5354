"""Which answer counts for a peer on a question: one small class per rule.

A label is an answer that the peers themselves give; no rule sees a gold answer. To add a rule: write a class here and
name it in LABELS; add it to the config's key (`score.label`) and its description, and to LABELS of
evaluate/page/chain_data.py; docs/architecture.md has the rest. Pure except for the grader that decides equivalence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from data.answers.grader import Grader
from data.answers.kinds import AnswerKindName
from data.answers.votes import voting_answer, weighted_vote
from data.schema import ChainRow
from score.chains import Chain

NO_VOTES = "label_no_votes"  # why a question has no label: no response states an answer
SMALL_SHARE = "label_share_too_small"


@dataclass(frozen=True)
class Label:
    """An answer and its share of the votes' weight: 0 to 1, None without a vote. `reason`: why it cannot be used."""

    answer: str | None
    share: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Votes:
    """What a rule needs besides the chain. A vote weighs `of_response`, else `of_rater`, else 1."""

    teacher: str = ""  # the peer with the highest self-consistency
    least_share: float = 0.0  # of the weight of all votes
    of_rater: Mapping[str, float] = field(default_factory=dict)
    of_response: Mapping[tuple[str, int], float] = field(default_factory=dict)  # by prompt id and index
    kind: AnswerKindName = "math"  # of the answers

    def weight(self, chain: Chain, index: int) -> float:
        """The weight of one response's vote."""
        return self.of_response.get((chain.id, index), self.of_rater.get(chain.rows[index]["peer"], 1.0))


class LabelRule(Protocol):
    """A rule that chooses labels."""

    def of(self, chain: Chain, peer: str, votes: Votes, grader: Grader) -> Label:
        """The label of a question for a peer."""
        ...


class AggregateLabel:
    """The aggregate's answer, as the paper's abstract describes it."""

    def of(self, chain: Chain, peer: str, votes: Votes, grader: Grader) -> Label:
        """See `LabelRule.of`."""
        aggregate = chain.aggregate_of(peer)
        cut = aggregate["answer"] is not None and row_vote(aggregate) is None
        reason = "aggregate_truncated" if cut else None
        return Label(aggregate["answer"], None, "aggregate_no_answer" if aggregate["answer"] is None else reason)


class SampleVote:
    """The weighted vote of all raters' samples (self-consistency, arXiv 2203.11171, over several models)."""

    def of(self, chain: Chain, peer: str, votes: Votes, grader: Grader) -> Label:
        """See `LabelRule.of`."""
        indices = chain.samples()
        return _vote(chain, indices, [votes.weight(chain, index) for index in indices], votes, grader)


class OwnVote:
    """The most frequent answer of the peer's own samples."""

    def of(self, chain: Chain, peer: str, votes: Votes, grader: Grader) -> Label:
        """See `LabelRule.of`."""
        indices = chain.samples(peer)
        return _vote(chain, indices, [1.0] * len(indices), votes, grader)


class TeacherVote:
    """The most frequent answer of the teacher's samples: distillation from the peer that agrees most with itself."""

    def of(self, chain: Chain, peer: str, votes: Votes, grader: Grader) -> Label:
        """See `LabelRule.of`."""
        indices = chain.samples(votes.teacher)
        return _vote(chain, indices, [1.0] * len(indices), votes, grader)


class NoLabel:
    """Any answer counts."""

    def of(self, chain: Chain, peer: str, votes: Votes, grader: Grader) -> Label:
        """See `LabelRule.of`."""
        return Label(None)


LABELS: dict[str, LabelRule] = {  # by score.label
    "aggregate": AggregateLabel(),
    "sample-vote": SampleVote(),
    "own-vote": OwnVote(),
    "teacher-vote": TeacherVote(),
    "none": NoLabel(),
}


def _vote(chain: Chain, indices: Sequence[int], weights: Sequence[float], votes: Votes, grader: Grader) -> Label:
    """The label by a vote of some responses: the first answer of the winning cluster, as it was written."""
    answers = [row_vote(chain.rows[index]) for index in indices]
    winner, share = weighted_vote(answers, weights, votes.kind, grader)
    if not winner:
        return Label(None, None, NO_VOTES)
    if share < votes.least_share:
        return Label(None, share, SMALL_SHARE)
    return Label(answers[winner[0]], share)


def row_vote(row: ChainRow) -> str | None:
    """The answer that a response votes for; None if it has no answer or is unfinished."""
    return voting_answer(row["answer"], row["finish_reason"])
