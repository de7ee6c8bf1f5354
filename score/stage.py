"""The score stage: chains → scores, one row per (prompt, peer).

Each scorer is loaded once and does all its passes, shard by shard; `log p(a | x)` is computed once per (scorer,
prompt), however many responses it is compared with. Weights need the whole round, so the shards are written at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from data import shards
from data.answers import extract
from data.config import digest
from data.console import console, task
from data.equivalence import Grader
from data.errors import UserError
from data.peers import check_peers, compute_dtype
from data.prompts import load_all_prompts, token_identity
from data.run import Run
from data.schema import CHAINS, SCORES
from data.shards import Row
from data.stage import Stage
from generate.chain import request_seed
from score.logprob import Pair, load_language_model, score_pairs, span_of
from score.pmi import Measured, combine, scorers
from score.weights import weights
from train.checkpoint import policy, policy_identity

PASSES = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("peer", pa.string()),  # whose response is in the prompt; null: none, log p(a | x)
        pa.field("logp", pa.float64(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Chain:
    """All responses to one question, in order, and which of them is the aggregate."""

    rows: list[Row]
    shard: int

    @property
    def id(self) -> str:
        """The prompt's id."""
        return str(self.rows[0]["prompt_id"])

    @property
    def question(self) -> str:
        """The question."""
        return str(self.rows[0]["question"])

    def aggregate(self, row: Row) -> Row:
        """The aggregate that a response is measured against: itself if it is one, else the only one there is."""
        return row if row["is_aggregate"] else next(other for other in self.rows if other["is_aggregate"])

    @property
    def responses(self) -> list[Row]:
        """One row per peer: the chain proper, without a synthesis."""
        seen: dict[str, Row] = {}
        for row in self.rows:
            seen.setdefault(row["peer"], row)
        return list(seen.values())


def main(run: Run, round_: int) -> None:
    """Score a round, or go on where an earlier call stopped."""
    check_peers(run.config)
    chains_dir = run.stage_dir(round_, "chains")
    manifest = shards.read_manifest(chains_dir)
    if manifest is None:
        raise UserError(f"{chains_dir} is not finished: run `make generate ROUND={round_}` first")
    config = run.config
    stage = Stage("score", round_, run.stage_dir(round_, "scores"), {
        "config": digest(config.model_dump(mode="json", include={"run", "score", "templates", "peers"})),
        "chains": digest(manifest["files"]),
        "policies": [policy_identity(run, round_ - 1, name) for name in config.peer_names],
    })  # fmt: skip
    run.freeze()
    if not stage.begin():
        return
    scoring = Scoring(run, round_, stage, list(read_chains(chains_dir)))
    tokens = scoring.measure()
    rows = scoring.rows()
    files = scoring.write(rows)
    trained = [row for row in rows if row["weight"] is not None]
    pmi: dict[str, list[float]] = {}
    for row in rows:
        if row["pmi_per_token"] is not None:
            pmi.setdefault(row["peer"], []).append(row["pmi_per_token"])
    stage.finish(files, len(rows), {
        "to_train": sum(row["weight"] > 0 for row in trained),
        "dropped": dict(Counter(row["drop_reason"] for row in rows if row["drop_reason"])),
        "zero_weight": sum(row["weight"] == 0 for row in trained),
        "median_pmi_nats_per_token": {peer: round(median(values), 4) for peer, values in pmi.items()},
        "agree_with_others": sum(row["agrees"] and row["peer"] != row["aggregate_peer"] for row in rows),
        "tokens": tokens,
    })  # fmt: skip


def read_chains(folder: Path) -> Iterator[Chain]:
    """The chains of a round, shard by shard. A shard's rows are sorted by question and position."""
    for number, path in enumerate(shards.shard_paths(folder)):
        for _, rows in groupby(shards.read_rows(path, CHAINS), key=lambda row: row["prompt_id"]):
            yield Chain(list(rows), number)


def drop_reason(run: Run, chain: Chain, row: Row) -> str | None:
    """Why a peer does not train on a question; None if it does (or would, at weight 0)."""
    aggregate, section = chain.aggregate(row), run.config.score
    for role, text in (("aggregate", aggregate), ("response", row)):
        if text["n_tokens"] == 0:
            return f"{role}_empty"
        if role == "response" and section.target == "aggregate":
            break
        if text["finish_reason"] != "stop":
            return f"{role}_truncated"
        if text["answer"] is None:
            return f"{role}_no_answer"
    if row["is_aggregate"] and not section.train_final and run.config.generate.aggregate != "self":
        return "is_aggregate"
    return None


@dataclass
class Scoring:
    """The state of one score stage."""

    run: Run
    round: int
    stage: Stage
    chains: list[Chain]

    def __post_init__(self) -> None:
        self.prompts = load_all_prompts(self.run.config)
        self.identity = {name: token_identity(prompts) for name, prompts in self.prompts.items()}
        self.measured: dict[tuple[str, str, str | None], tuple[float, int]] = {}

    def target(self, scorer: str, row: Row) -> list[int]:
        """A response as target tokens of `scorer`, with its end token: from the file where the author shares the
        tokenizer, else re-encoded."""
        prompts = self.prompts[scorer]
        same = self.identity[scorer] == self.identity[row["peer"]]
        ids = list(row["token_ids"]) if same else prompts.encode_response(row["response"])
        return [*ids, prompts.end_id]

    def span(self, scorer: str, row: Row, target: list[int]) -> slice:
        """Which target tokens are summed."""
        if self.run.config.score.pmi_target == "response":
            return slice(0, len(target))
        found = extract(row["response"])
        assert found is not None, "a response without an answer was dropped before"
        return span_of(self.prompts[scorer].decode, target[:-1], found.start, found.end)

    def passes(self, scorer: str) -> dict[int, dict[tuple[str, str | None], tuple[Pair, slice]]]:
        """By shard, what a scorer has to pass through its model: {(prompt, whose response or None): pair, span}."""
        names, section = self.run.config.peer_names, self.run.config.score
        jobs: dict[int, dict[tuple[str, str | None], tuple[Pair, slice]]] = {}
        for chain in self.chains:
            shard = jobs.setdefault(chain.shard, {})
            for row in chain.responses:
                if row["is_aggregate"] or drop_reason(self.run, chain, row):
                    continue
                aggregate = chain.aggregate(row)
                if scorer not in scorers(section.scorer, row["peer"], aggregate["peer"], names):
                    continue
                target = self.target(scorer, aggregate)
                span = self.span(scorer, aggregate, target)
                given = self.prompts[scorer].solve(chain.question, (row["response"],))
                shard[chain.id, row["peer"]] = Pair(given, target), span
                if (chain.id, None) not in shard:
                    shard[chain.id, None] = Pair(self.prompts[scorer].solve(chain.question), target), span
        return jobs

    def measure(self) -> int:
        """Do all passes that are not on disk yet; returns how many tokens went through a model in this call."""
        config, tokens = self.run.config, 0
        for scorer in config.peer_names:
            jobs = self.passes(scorer)
            todo = {shard: job for shard, job in jobs.items() if not self.path(scorer, shard).is_file()}
            if any(todo.values()):
                directory, adapter = policy(self.run, self.round - 1, scorer)
                console.print(f"  loading {scorer}")
                lm = load_language_model(directory, compute_dtype(config.peer(scorer), config.runtime), adapter)
                total = sum(len(job) for job in todo.values())
                with task(f"{self.stage.title}, {scorer}", total, "passes") as line:
                    for shard, job in todo.items():
                        self.measure_shard(lm, scorer, shard, job, line.advance)
                    tokens += line.tokens
                del lm
            for shard in jobs:
                path = self.path(scorer, shard)
                for row in shards.read_rows(path, PASSES) if path.is_file() else []:
                    self.measured[scorer, row["prompt_id"], row["peer"]] = row["logp"], row["n_tokens"]
        return tokens

    def measure_shard(self, lm: Any, scorer: str, shard: int, job: dict[Any, Any], advance: Any) -> None:
        """One shard's passes of one scorer, written as one file."""
        pairs = [pair for pair, _ in job.values()]
        scores = score_pairs(lm, pairs, self.run.config.runtime.score_tokens, advance)
        rows = []
        for ((prompt_id, peer), (_, span)), logprobs in zip(job.items(), scores, strict=True):
            summed = logprobs[span]
            rows.append({"prompt_id": prompt_id, "peer": peer, "logp": sum(summed), "n_tokens": len(summed)})
        shards.write_rows(rows, self.path(scorer, shard), PASSES)

    def path(self, scorer: str, shard: int) -> Path:
        """Where a scorer's passes of a shard are kept until the stage is closed."""
        return self.stage.work / f"passes-{shard:05d}.{scorer}.parquet"

    def rows(self) -> list[Row]:
        """The scores of the round, weights included."""
        agreement = self.agreement()
        rows = [self.row(chain, row, agreement) for chain in self.chains for row in chain.responses]
        for peer in self.run.config.peer_names:
            mine = [row for row in rows if row["peer"] == peer and row["pmi"] is not None]
            seed = request_seed(self.run.config.run.seed, self.round, peer, "weights")
            values = weights(
                [row["pmi_per_token"] for row in mine],
                [row["agrees"] for row in mine],
                self.run.config.score,
                seed,
            )
            for row, weight in zip(mine, values, strict=True):
                row["weight"] = weight
        return rows

    def agreement(self) -> dict[tuple[str, str], bool]:
        """{(prompt, peer): the answer is equivalent to the aggregate's}; a comparison that times out is a no."""
        keys, pairs = [], []
        for chain in self.chains:
            for row in chain.responses:
                aggregate = chain.aggregate(row)
                if row["answer"] is not None and aggregate["answer"] is not None:
                    keys.append((chain.id, row["peer"]))
                    pairs.append((row["answer"], aggregate["answer"]))
        timeout, workers = (
            self.run.config.evaluate.answer_timeout_seconds,
            self.run.config.runtime.grader_workers,
        )
        with Grader(timeout, workers) as grader:
            same = grader.equivalent(pairs, "math")
        return {key: bool(answer) for key, answer in zip(keys, same, strict=True)}

    def row(self, chain: Chain, row: Row, agreement: dict[tuple[str, str], bool]) -> Row:
        """One row of the scores, before the weights of PMI; a trained aggregate's author has weight 1 at once."""
        aggregate = chain.aggregate(row)
        peer, author = row["peer"], aggregate["peer"]
        section = self.run.config.score
        dropped = drop_reason(self.run, chain, row)
        trained_text = row if section.target == "own" else aggregate
        pmi = None
        if dropped is None and not row["is_aggregate"]:
            by = scorers(section.scorer, peer, author, self.run.config.peer_names)
            pmi = combine([self.measurement(scorer, chain.id, peer) for scorer in by])
        return {
            "prompt_id": chain.id, "peer": peer, "position": row["position"], "aggregate_peer": author,
            "logp_given_response": pmi and pmi.logp_given_response, "logp_alone": pmi and pmi.logp_alone,
            "n_target_tokens": pmi and pmi.n_target_tokens, "pmi": pmi and pmi.pmi,
            "pmi_per_token": pmi and pmi.pmi_per_token,
            "weight": 1.0 if dropped is None and row["is_aggregate"] else None, "drop_reason": dropped,
            "agrees": agreement.get((chain.id, peer), False), "question": chain.question,
            "target": trained_text["response"], "target_token_ids": self.target(peer, trained_text),
        }  # fmt: skip

    def measurement(self, scorer: str, prompt_id: str, peer: str) -> Measured:
        """Both passes of one scorer for one response."""
        given, _ = self.measured[scorer, prompt_id, peer]
        alone, n_tokens = self.measured[scorer, prompt_id, None]
        return Measured(given, alone, n_tokens)

    def write(self, rows: list[Row]) -> list[Path]:
        """Shards that mirror those of the chains."""
        shard_of = {chain.id: chain.shard for chain in self.chains}
        files = []
        for number in sorted(set(shard_of.values())):
            files.append(self.stage.folder / f"part-{number:05d}.parquet")
            shards.write_rows([row for row in rows if shard_of[row["prompt_id"]] == number], files[-1], SCORES)
        return files
