"""The score stage: chains → scores, one row per (prompt, peer).

Each scorer is loaded once and does all its passes, shard by shard; `log p(a | x)` is computed once per (scorer,
prompt), however many responses it is compared with. Then each shard's rows are made but for the weights of PMI, which
need the whole round: of it, three compact arrays per peer are in memory, and the shards are written at the end, one
after the other. All pieces are files under `.work/`, so each step goes on where it stopped.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from data import shards
from data.answers.clusters import clusters, compare_all, entropy
from data.answers.extract import extract
from data.answers.grader import Grader
from data.console import task
from data.errors import UserError
from data.finite import known
from data.hashing import digest, request_seed
from data.run import Run
from data.schema import SCORES, ChainRow, ScoreRow, schema_of
from data.stage import Stage
from peers import policy_cache
from peers.policy import Policy, prompts_of, resolve_all
from peers.prompts import token_identity
from peers.source import check_peers
from peers.workers import Advance, Workers
from score.chains import Chain, read_chains, responses
from score.pmi import Measured, Pmi, combine, scorers
from score.text import NO_CLEAN_CUT, NOT_FINITE, TEXTS, drop_reason
from score.weights import weights

if TYPE_CHECKING:  # for the peers' processes: a stage that is finished needs no torch
    from peers.logprob.model import LanguageModel, Pair


class PassRow(TypedDict):
    """A teacher-forced pass; `peer` is whose response is in the prompt, null: nobody's, log p(a | x). A `logp` that is
    not finite is null."""

    prompt_id: str
    peer: str | None
    logp: float | None
    n_tokens: int


PASSES = schema_of(PassRow)

# The columns of chains that say which passes are needed.
WHO = ("prompt_id", "peer", "role", "position", "is_aggregate", "answer", "finish_reason", "n_tokens")
Passes = dict[tuple[str, str, str | None], tuple[float | None, int]]


def main(run: Run, round_: int, workers: Workers) -> None:
    """Score a round, or go on where an earlier call stopped."""
    check_peers(run.config)
    chains_dir = run.stage_dir(round_, "chains")
    manifest = shards.read_manifest(chains_dir)
    if manifest is None:
        raise UserError(f"{chains_dir} is not finished: run `make generate ROUND={round_}` first")
    config, policies = run.config, resolve_all(run, round_ - 1)
    stage = Stage("score", round_, run.stage_dir(round_, "scores"), {
        "config": digest(config.model_dump(mode="json", include={"run", "score", "templates", "wordings", "peers"})),
        "chains": digest(manifest["files"]),
        "policies": [policy.identity for policy in policies.values()],
    })  # fmt: skip
    run.freeze(lambda: prompts_of(policies))
    if not stage.begin():
        return
    scoring = Scoring(run, round_, policies)
    tokens = scoring.measure(workers)
    scoring.compare()
    rows, counts = scoring.weigh()
    stage.finish(shards.shard_paths(stage.folder), rows, {**counts, "tokens": tokens})


def measure_shards(
    run: Run, round_: int, policies: dict[str, Policy], scorer: str, todo: list[int], advance: Advance
) -> int:
    """A scorer's passes of some shards, in its process; returns how many tokens their sequences have."""
    lm = policy_cache.language_model(policies[scorer], run.config)
    scoring = Scoring(run, round_, policies)
    return sum(
        scoring.measure_shard(lm, scorer, shard, advance, parts=len(todo) - done) for done, shard in enumerate(todo)
    )


class Scoring:
    """One score stage: of the chains, which files they are in."""

    def __init__(self, run: Run, round_: int, policies: dict[str, Policy]) -> None:
        self.run, self.round, self.policies = run, round_, policies
        self.folder = run.stage_dir(round_, "scores")
        self.sources = shards.shard_paths(run.stage_dir(round_, "chains"))
        self.prompts = prompts_of(policies)
        self.identity = {name: token_identity(prompts) for name, prompts in self.prompts.items()}

    def responses(self, chain: Chain) -> list[ChainRow]:
        """The response of each peer that is measured."""
        return responses(chain, self.run.config.score.y_source)

    # --- passes through the scorers ---

    def measure(self, workers: Workers) -> int:
        """Have all passes done that are not on disk yet; returns how many tokens their sequences have."""
        total = 0
        for scorer in self.run.config.peer_names:
            todo = [shard for shard in range(len(self.sources)) if not self.path(scorer, shard).is_file()]
            passes = sum(self.count(scorer, shard) for shard in todo)
            if passes:
                workers.submit(scorer, measure_shards, self.round, self.policies, scorer, todo)
            total += passes
        with task(f"score round {self.round}", total, "passes") as line:
            return sum(tokens for _, tokens in workers.results(line))

    def count(self, scorer: str, shard: int) -> int:
        """How many passes a scorer has to do for a shard."""
        needed = [len(self.asked_of(scorer, chain)) for chain in read_chains(self.sources[shard], WHO)]
        return sum(n + 1 for n in needed if n)

    def asked_of(self, scorer: str, chain: Chain) -> list[ChainRow]:
        """The responses whose PMI with the aggregate takes passes of a scorer."""
        names, kind = self.run.config.peer_names, self.run.config.score.scorer
        return [
            row
            for row in self.responses(chain)
            if not row["is_aggregate"]
            and not drop_reason(chain, row, self.run.config.score)
            and scorer in scorers(kind, row["peer"], chain.aggregate(row)["peer"], names)
        ]

    def measure_shard(self, lm: LanguageModel, scorer: str, shard: int, advance: Advance, parts: int = 1) -> int:
        """One shard's passes of one scorer, the first of `parts` to do, written as one file; returns their tokens."""
        from peers.logprob.scoring import score_pairs

        keys, pairs, spans = self.passes(scorer, shard)
        scores = score_pairs(lm, pairs, self.run.config.runtime.score_tokens, advance, parts)
        rows = []
        for (prompt_id, peer), span, logprobs in zip(keys, spans, scores, strict=True):
            summed = logprobs[span]
            logp = known(sum(summed))
            rows.append({"prompt_id": prompt_id, "peer": peer, "logp": logp, "n_tokens": len(summed)})
        shards.write_rows(rows, self.path(scorer, shard), PASSES)
        advance(self.count(scorer, shard) - len(pairs), 0)  # without those whose target has no clean cut
        return sum(map(len, pairs))

    def passes(self, scorer: str, shard: int) -> tuple[list[tuple[str, str | None]], list[Pair], list[slice]]:
        """What a scorer has to pass through its model: (prompt, whose response or None), the pair, what is summed."""
        from peers.logprob.model import Pair

        keys: list[tuple[str, str | None]] = []
        asked: list[tuple[str, tuple[str, ...]]] = []
        targets: list[list[int]] = []
        spans: list[slice] = []
        chains = [(chain, self.asked_of(scorer, chain)) for chain in read_chains(self.sources[shard])]
        chains = [(chain, rows) for chain, rows in chains if rows]
        aggregates = [chain.aggregate(rows[0]) for chain, rows in chains]
        for (chain, rows), aggregate, target in zip(chains, aggregates, self.targets(scorer, aggregates), strict=True):
            if target is None:
                continue
            span = self.span(scorer, aggregate, target)
            for row in (rows[0], None, *rows[1:]):
                keys.append((chain.id, row["peer"] if row else None))
                asked.append((chain.question, (row["response"],) if row else ()))
                targets.append(target)
                spans.append(span)
        prompts = self.prompts[scorer].all_of("solve", asked)
        return keys, [Pair(prompt, target) for prompt, target in zip(prompts, targets, strict=True)], spans

    def targets(self, scorer: str, rows: list[ChainRow]) -> list[list[int] | None]:
        """Responses as target tokens of `scorer`, with its end token: from the file where the author shares the
        tokenizer, else re-encoded; None where that has no clean cut."""
        prompts = self.prompts[scorer]
        kept = [self.shares_tokens(scorer, row["peer"]) for row in rows]
        others = [(row["question"], row["response"]) for row, keep in zip(rows, kept, strict=True) if not keep]
        encoded = iter(prompts.encode_responses(others))
        found = [row["token_ids"] if keep else next(encoded) for row, keep in zip(rows, kept, strict=True)]
        return [None if ids is None else [*ids, prompts.end_id] for ids in found]

    def shares_tokens(self, scorer: str, author: str) -> bool:
        """Whether a peer's token ids mean the same to a scorer."""
        return self.identity[scorer] == self.identity[author]

    def span(self, scorer: str, row: ChainRow, target: list[int]) -> slice:
        """Which target tokens are summed."""
        if self.run.config.score.pmi_target == "response":
            return slice(0, len(target))
        from peers.logprob.scoring import span_of

        found = extract(row["response"])
        assert found is not None, "a response without an answer was dropped before"
        return span_of(self.prompts[scorer].decode, target[:-1], found.start, found.end)

    def path(self, scorer: str, shard: int) -> Path:
        """Where a scorer's passes of a shard are kept until the stage is closed."""
        return self.folder / ".work" / f"passes-{shard:05d}.{scorer}.parquet"

    # --- rows without their weights ---

    def compare(self) -> None:
        """Make the rows of all shards that are not on disk yet, with PMI and agreement but without weights."""
        section, workers = self.run.config.evaluate, self.run.config.runtime.grader_workers
        with (
            Grader(section.answer_timeout_seconds, workers) as grader,
            task(f"score round {self.round}, PMI", len(self.sources), "shards") as line,
        ):
            for shard in range(len(self.sources)):
                if not self.unweighted(shard).is_file():
                    shards.write_rows(self.rows(shard, grader), self.unweighted(shard), SCORES)
                    grader.forget()
                line.advance(1)

    def unweighted(self, shard: int) -> Path:
        """Where a shard's rows are kept until the whole round's are there."""
        return self.folder / ".work" / f"unweighted-{shard:05d}.parquet"

    def rows(self, shard: int, grader: Grader) -> list[ScoreRow]:
        """The scores of a shard, the weights of PMI still null."""
        chains = list(read_chains(self.sources[shard]))
        agreement, measured = agreements([(c, self.responses(c)) for c in chains], grader), self.measured(shard)
        entropies = answer_entropies(chains, grader)
        both = [(chain, row) for chain in chains for row in self.responses(chain)]
        targets = self.trained(both)
        return [
            self.row(chain, row, agreement, measured, entropies[chain.id, row["peer"]], targets[chain.id, row["peer"]])
            for chain, row in both
        ]

    def trained(self, both: list[tuple[Chain, ChainRow]]) -> dict[tuple[str, str], list[int] | None]:
        """{(prompt, peer): target tokens of the text that the peer is trained on}; None where it has no clean cut."""
        found: dict[tuple[str, str], list[int] | None] = {}
        for peer in self.run.config.peer_names:
            mine = [(chain, row) for chain, row in both if row["peer"] == peer]
            texts = [self.trained_text(chain, row) for chain, row in mine]
            for (chain, _), target in zip(mine, self.targets(peer, texts), strict=True):
                found[chain.id, peer] = target
        return found

    def trained_text(self, chain: Chain, row: ChainRow) -> ChainRow:
        """The response whose text is trained on."""
        return TEXTS[self.run.config.score.target].of(row, chain.aggregate(row))

    def measured(self, shard: int) -> Passes:
        """{(scorer, prompt, whose response or None): (log-probability, tokens)} of a shard."""
        found: Passes = {}
        for scorer in self.run.config.peer_names:
            path = self.path(scorer, shard)
            for row in shards.rows_of(path, PassRow) if path.is_file() else []:
                found[scorer, row["prompt_id"], row["peer"]] = row["logp"], row["n_tokens"]
        return found

    def row(
        self,
        chain: Chain,
        row: ChainRow,
        agreement: dict[tuple[str, str], bool],
        measured: Passes,
        entropy: float,
        target: list[int] | None,
    ) -> ScoreRow:
        """One row of the scores, before the weights of PMI; a trained aggregate's author has weight 1."""
        aggregate = chain.aggregate(row)
        peer, author = row["peer"], aggregate["peer"]
        section = self.run.config.score
        dropped = drop_reason(chain, row, section) or (NO_CLEAN_CUT if target is None else None)
        pmi = None
        if dropped is None and not row["is_aggregate"]:
            by = scorers(section.scorer, peer, author, self.run.config.peer_names)
            pmi, dropped = pmi_of(measured, by, chain.id, peer)
        return {
            "prompt_id": chain.id, "peer": peer, "role": row["role"], "position": row["position"],
            "aggregate_peer": author,
            "logp_given_response": pmi.logp_given_response if pmi else None,
            "logp_alone": pmi.logp_alone if pmi else None,
            "n_target_tokens": pmi.n_target_tokens if pmi else None,
            "pmi": pmi.pmi if pmi else None, "pmi_per_token": pmi.pmi_per_token if pmi else None,
            "weight": 1.0 if dropped is None and row["is_aggregate"] else None, "drop_reason": dropped,
            "agrees": agreement.get((chain.id, peer), False), "answer_entropy": entropy,
            "question": chain.question,
            "target": self.trained_text(chain, row)["response"], "target_token_ids": target or [],
        }  # fmt: skip

    # --- weights ---

    def weigh(self) -> tuple[int, dict[str, Any]]:
        """Give every row its weight and write the shards that are not there yet, which mirror those of the chains.

        Returns the number of rows, and what the summary tells of them.
        """
        values, medians = self.round_weights()
        rows, counts = 0, Counter[str]()
        reasons: Counter[str] = Counter()
        for shard in range(len(self.sources)):
            table = with_weights(shards.read_table(self.unweighted(shard), SCORES), values)
            part = self.folder / f"part-{shard:05d}.parquet"
            if len(table) and not part.is_file():  # chains has no rows where all questions were too long
                shards.write_table(table, part)
            rows += len(table)
            trained = table["weight"].drop_null().to_numpy()
            counts["to_train"] += int((trained > 0).sum())
            counts["zero_weight"] += int((trained == 0).sum())
            reasons.update(table["drop_reason"].drop_null().to_pylist())
            others = pc.not_equal(table["peer"], table["aggregate_peer"])
            counts["re_encoded"] += self.re_encoded(table)
            counts["agree_with_others"] += len(table.filter(pc.and_(table["agrees"], others)))
        return rows, {
            "to_train": counts["to_train"], "dropped": dict(reasons), "zero_weight": counts["zero_weight"],
            "median_pmi_nats_per_token": medians, "agree_with_others": counts["agree_with_others"],
            "re_encoded": counts["re_encoded"],
        }  # fmt: skip

    def re_encoded(self, table: pa.Table) -> int:
        """How many rows of the scores have a target of another tokenizer, re-encoded for the peer."""
        if self.run.config.score.target == "own":
            return 0
        who = table.filter(table["drop_reason"].is_null()).select(["peer", "aggregate_peer"]).to_pylist()
        return sum(not self.shares_tokens(row["peer"], row["aggregate_peer"]) for row in who)

    def round_weights(self) -> tuple[dict[str, Iterator[float]], dict[str, float]]:
        """{peer: weights of its rows that have a PMI, in the order of the shards}, {peer: its median PMI per token}.

        Of the round, only PMI per token, agreement and entropy of each row are in memory.
        """
        pmi = {peer: array("d") for peer in self.run.config.peer_names}
        agrees = {peer: array("b") for peer in pmi}
        entropies = {peer: array("d") for peer in pmi}
        columns = ["peer", "pmi_per_token", "agrees", "answer_entropy"]
        for shard in range(len(self.sources)):
            table = shards.read_table(self.unweighted(shard), SCORES, columns)
            for row in table.filter(table["pmi_per_token"].is_valid()).to_pylist():
                pmi[row["peer"]].append(row["pmi_per_token"])
                agrees[row["peer"]].append(row["agrees"])
                entropies[row["peer"]].append(row["answer_entropy"])
        values = {}
        for peer in pmi:
            seed = request_seed(self.run.config.run.seed, self.round, peer, "weights")
            found = weights(pmi[peer], agrees[peer], entropies[peer], self.run.config.score, seed)
            values[peer] = iter(array("d", found))
        return values, {peer: round(median(found), 4) for peer, found in pmi.items() if found}


def agreements(chains: list[tuple[Chain, list[ChainRow]]], grader: Grader) -> dict[tuple[str, str], bool]:
    """{(prompt, peer): the answer is equivalent to the aggregate's}; a comparison that times out is a no."""
    keys, pairs = [], []
    for chain, measured in chains:
        for row in measured:
            aggregate = chain.aggregate(row)
            if row["answer"] is not None and aggregate["answer"] is not None:
                keys.append((chain.id, row["peer"]))
                pairs.append((row["answer"], aggregate["answer"]))
    same = grader.equivalent(pairs, "math")
    return {key: bool(answer) for key, answer in zip(keys, same, strict=True)}


def answer_entropies(chains: list[Chain], grader: Grader) -> dict[tuple[str, str], float]:
    """{(prompt, peer): entropy of the answers to the question, in nats}: of the chain, or, in the controls without
    peers, of the peer's own responses. A response without an answer does not count, nor one cut off, as in a vote."""
    groups: dict[tuple[str, str], list[str | None]] = {}
    for chain in chains:
        for peer in dict.fromkeys(row["peer"] for row in chain.rows):
            own = [row for row in chain.rows if row["peer"] == peer]
            rows = own if chain.own_aggregates else chain.with_role("chain", "synthesis")
            groups[chain.id, peer] = [row["answer"] if row["finish_reason"] == "stop" else None for row in rows]
    compare_all(groups.values(), "math", grader)
    return {key: entropy([len(c) for c in clusters(answers, "math", grader)]) for key, answers in groups.items()}


def pmi_of(measured: Passes, by: list[str], prompt_id: str, peer: str) -> tuple[Pmi, None] | tuple[None, str]:
    """A response's PMI under some scorers, or why there is none; a mean over part of them is another quantity."""
    if any((scorer, prompt_id, None) not in measured for scorer in by):
        return None, NO_CLEAN_CUT
    found = [measurement(measured, scorer, prompt_id, peer) for scorer in by]
    passes = [each for each in found if each is not None]
    return (combine(passes), None) if len(passes) == len(found) else (None, NOT_FINITE)


def measurement(measured: Passes, scorer: str, prompt_id: str, peer: str) -> Measured | None:
    """Both passes of one scorer for one response; None if one of them is not finite."""
    given, _ = measured[scorer, prompt_id, peer]
    alone, n_tokens = measured[scorer, prompt_id, None]
    return None if given is None or alone is None else Measured(given, alone, n_tokens)


def with_weights(table: pa.Table, values: dict[str, Iterator[float]]) -> pa.Table:
    """Rows of a shard in which each that has a PMI takes the next weight of its peer."""
    columns = (table[name].to_pylist() for name in ("peer", "pmi_per_token", "weight"))
    column = [weight if pmi is None else next(values[peer]) for peer, pmi, weight in zip(*columns, strict=True)]
    index = SCORES.get_field_index("weight")
    return table.set_column(index, SCORES.field(index), pa.array(column, SCORES.field(index).type))
