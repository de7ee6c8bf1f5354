"""What each peer would train on for a question: its label, its texts, and the response that is measured with them.

An example refers to responses by their index among the rows of the chain; whoever needs their tokens reads the chain's
file. Pure except for the grader that decides equivalence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from data.answers.clusters import clusters, compare_all, entropy
from data.answers.grader import Grader
from data.answers.thoughts import without_thoughts
from data.config.sections import ScoreSection
from data.schema import ChainRow, schema_of
from score.chains import Chain, responses
from score.label import LABELS, Label, Votes, row_vote
from score.text import TEXTS, TargetText, TextQuery, agree, drop_reason, is_empty


class ExampleRow(TypedDict):
    """An example before its PMI. `trained`, `against` and `measured` are indices among the rows of the chain, or null.

    The peer trains on the text of `trained`. PMI is that of the text `against`, which is that of `trained` except under
    score.text = "own" (there: the aggregate), with the peer's own response `measured`. `factor` multiplies the weight.
    """

    prompt_id: str
    peer: str
    number: int
    trained: int | None
    against: int | None
    measured: int | None
    label: str | None
    label_share: float | None
    agrees: bool | None
    answer_entropy: float
    factor: float
    drop_reason: str | None


EXAMPLES = schema_of(ExampleRow)


@dataclass(frozen=True)
class ExampleChooser:
    """Chooses the examples of a round."""

    section: ScoreSection
    peers: Sequence[str]
    votes: Votes
    seed: str  # of the run and the round

    def examples(self, chains: Sequence[Chain], grader: Grader) -> list[ExampleRow]:
        """All examples of some questions, in the order of the questions."""
        compare_all([[row["answer"] for row in chain.rows] for chain in chains], self.votes.kind, grader)
        return [row for chain in chains for row in self.of(chain, grader)]

    def of(self, chain: Chain, grader: Grader) -> list[ExampleRow]:
        """The examples of one question: for each peer one or more, or one row with the reason why it has none."""
        who = [row["peer"] for row in responses(chain, self.section.y_source)] if chain.aggregates else self.peers
        return [row for peer in who for row in self.of_peer(chain, peer, grader)]

    def of_peer(self, chain: Chain, peer: str, grader: Grader) -> Iterable[ExampleRow]:
        """The examples of a peer for one question."""
        label = LABELS[self.section.label].of(chain, peer, self.votes, grader)
        seed = f"{self.seed}/{chain.id}/{peer}/text"
        query = TextQuery(chain, peer, label, self.section, self.votes.teacher, seed, self.votes.kind)
        texts = TEXTS[self.section.text].of(query, grader)
        spread = self.entropy(chain, peer, grader)
        if isinstance(texts, str):
            yield _example(chain, peer, 1, label, None, spread, texts)
            return
        for number, text in enumerate(texts, start=1):
            row = _example(chain, peer, number, label, text, spread, None)
            if self.section.trains_on_samples:
                row["measured"] = self.measured(chain, peer, text.index)
            else:
                self.beside_aggregate(chain, peer, row)
            judged = row["measured"] if row["measured"] is not None else row["trained"]
            assert judged is not None, "a text has an index"
            row["agrees"] = agree(chain.rows[judged]["answer"], label.answer, self.votes.kind, grader)
            yield row

    def beside_aggregate(self, chain: Chain, peer: str, row: ExampleRow) -> None:
        """Fill in what is measured if the peer trains on the aggregate, or on its own response in the chain."""
        response = chain.response_of(peer, self.section.y_source)
        aggregate = chain.aggregate(response)
        row["against"], row["measured"] = chain.index_of(aggregate), chain.index_of(response)
        row["drop_reason"] = drop_reason(chain, response, self.section)

    def measured(self, chain: Chain, peer: str, trained: int) -> int | None:
        """Index of the peer's response whose PMI with a sample is measured: its solo response, else the first of its
        samples. A response with the same text as that sample is passed over: its PMI would measure copying."""
        if not self.section.needs_solo:
            return None
        solo, text = chain.solo(peer), without_thoughts(chain.rows[trained]["response"])
        indices = [*([] if solo is None else [solo]), *chain.samples(peer)]
        fit = (n for n in indices if not is_empty(row := chain.rows[n]) and without_thoughts(row["response"]) != text)
        return next(fit, None)

    def entropy(self, chain: Chain, peer: str, grader: Grader) -> float:
        """Entropy of the answers to the question, in nats. If the run needs samples: over the peer's own under
        `own-vote`, else over those of all raters. Without samples: over the chain, or, in the controls without peers,
        over the peer's own responses. As in a vote, responses that are unfinished or without an answer do not count."""
        if self.section.needs_samples:
            rows = [chain.rows[index] for index in chain.samples(peer if self.section.label == "own-vote" else None)]
        elif chain.own_aggregates:
            rows = [row for row in chain.rows if row["peer"] == peer]
        else:
            rows = chain.with_role("chain", "synthesis")
        return entropy([len(each) for each in clusters(list(map(row_vote, rows)), self.votes.kind, grader)])


def _example(
    chain: Chain, peer: str, number: int, label: Label, text: TargetText | None, spread: float, reason: str | None
) -> ExampleRow:
    index = None if text is None else text.index
    return {
        "prompt_id": chain.id,
        "peer": peer,
        "number": number,
        "trained": index,
        "against": index,
        "measured": None,
        "label": label.answer,
        "label_share": label.share,
        "agrees": None,
        "answer_entropy": spread,
        "factor": 1.0 if text is None else text.factor,
        "drop_reason": reason,
    }


def row_at(chain: Chain, index: int | None) -> ChainRow | None:
    """The response at an index; None for None."""
    return None if index is None else chain.rows[index]
