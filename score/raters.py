"""The weight of each rater's votes in a round: by how often its samples agree, or by its verifier scores of them.

A rater is a peer or a voter. What is measured is kept under the stage's `.work`, so after a kill the same command goes
on from it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from data import shards
from data.answers.clusters import compare_all
from data.answers.grader import Grader
from data.answers.votes import consistency, reliability
from data.quarantine import Quarantine
from data.run import Run
from data.task import task
from peers.workers import Workers
from score.chains import read_chains
from score.label import Votes, row_vote
from score.passes import Passes, VerifiedRow, verify_shards
from score.weights import sigmoid

CHAIN_COLUMNS = ("prompt_id", "role", "position", "peer", "is_aggregate", "answer", "finish_reason")


class Raters:
    """The raters of one round."""

    def __init__(self, run: Run, round_: int, passes: Passes) -> None:
        self.config, self.round, self.passes = run.config, round_, passes
        self.section = run.config.score

    @property
    def verified(self) -> bool:
        """Whether a vote is weighted by its author's verifier score."""
        return self.section.label == "sample-vote" and self.section.reliability == "verifier"

    def measure(self, workers: Workers, grader: Grader, lost: Quarantine) -> None:
        """Measure what is not on disk yet; nothing if the run needs no samples."""
        if not self.section.needs_samples:
            return
        if not self.path().is_file():
            shards.write_json(self.consistencies(grader), self.path())
        if self.verified:
            self.verify(workers, lost)

    def path(self) -> Path:
        """File of the raters' self-consistency."""
        return self.passes.work / "consistency.json"

    def shares(self) -> dict[str, float]:
        """{rater: mean share of the largest cluster among its samples of a question}: 0 to 1."""
        found: dict[str, float] = shards.read_json(self.path())
        return found

    def consistencies(self, grader: Grader) -> dict[str, float]:
        """Measure `shares` over the round, shard by shard."""
        total, questions, kind = defaultdict[str, float](float), Counter[str](), self.config.prompts.answers
        for source in self.passes.sources:
            chains = list(read_chains(source, CHAIN_COLUMNS))
            compare_all([[row_vote(row) for row in chain.rows] for chain in chains], kind, grader)
            for chain in chains:
                for rater in self.config.raters:
                    answers = [row_vote(chain.rows[index]) for index in chain.samples(rater)]
                    total[rater] += consistency([answers], kind, grader)
                    questions[rater] += 1
            grader.forget()
        return {rater: total[rater] / questions[rater] for rater in questions}

    def verify(self, workers: Workers, lost: Quarantine) -> None:
        """Have every peer verify its own samples and its voters'."""
        config, passes = self.config, self.passes
        total, done = dict[str, int](), dict[str, int]()
        questions = [len(list(read_chains(source, ["prompt_id"]))) for source in passes.sources]
        for peer in config.peer_names:
            todo = [n for n in range(len(passes.sources)) if not passes.verified_path(peer, n).is_file()]
            each = config.generate.samples * sum(config.model_of(rater) == peer for rater in config.raters)
            total[peer] = each * sum(questions)
            done[peer] = total[peer] - each * sum(questions[n] for n in todo)
            if todo:
                workers.submit(peer, verify_shards, self.round, passes.policies, peer, units=todo)
        with task(f"score round {self.round}, verifier", total, "samples", done) as line:
            for job, _ in workers.results(line):
                lost.look(passes.verified_path(job.peer, shard) for shard in job.units)

    def votes(self, shard: int) -> Votes:
        """The weights of the votes on the questions of a shard."""
        if not self.section.needs_samples:
            return Votes(kind=self.config.prompts.answers)
        shares, peers = self.shares(), self.config.peer_names
        best = max(peers, key=lambda peer: shares.get(peer, 0.0))  # of equal peers the first in the config
        of_rater, of_response = {}, {}
        if self.section.reliability == "self-consistency":
            of_rater = {rater: reliability(share) for rater, share in shares.items()}
        elif self.verified:
            for peer in peers:
                for row in shards.rows_of(self.passes.verified_path(peer, shard), VerifiedRow):
                    of_response[row["prompt_id"], row["place"]] = p_yes(row["score"])
        return Votes(best, self.section.least_share, of_rater, of_response, self.config.prompts.answers)


def p_yes(score: float | None) -> float:
    """The weight of a vote: p(Yes) / (p(Yes) + p(No)) from log p(Yes) - log p(No), kept above 0; 0.5 if unknown."""
    return 0.5 if score is None else max(1e-6, sigmoid(score))
