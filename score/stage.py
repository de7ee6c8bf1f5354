"""The score stage: chains → scores: per (prompt, peer) the texts to train on, each with its PMI and weight.

Four steps, shard by shard, each a set of files under `.work/`, so each goes on where it stopped:

1. if the run has samples: how reliable each rater is (score/raters.py);
2. the examples: label, texts, and which response is measured with them (score/examples.py);
3. the teacher-forced passes (score/passes.py); each scorer is loaded once;
4. the rows without weights. Weights need the whole round, of which a few compact arrays per peer are in memory.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data import quarantine, shards
from data.answers import own
from data.answers.grader import Grader
from data.errors import UserError
from data.hashing import digest, request_seed
from data.quarantine import Quarantine
from data.run import Run
from data.schema import SCORES, QuarantineRow, ScoreRow
from data.stage import Stage
from data.task import task
from peers.policy import Policy, prompts_of, resolve_all
from peers.source import check_peers
from peers.workers import Workers
from score.chains import Chain, read_chains
from score.examples import EXAMPLES, ExampleChooser, ExampleRow, row_at
from score.passes import Measurements, Passes, measure_shards
from score.pmi import Measured, Pmi, combine, scorers
from score.raters import Raters
from score.text import NO_CLEAN_CUT, NOT_FINITE
from score.weights import round_weights

SECTIONS = {"run", "score", "templates", "wordings", "peers", "voters"}  # what scores depend on


def main(run: Run, round_: int, workers: Workers) -> None:
    """Score a round, or go on where an earlier command stopped."""
    check_peers(run.config)
    chains_dir = run.stage_dir(round_, "chains")
    manifest = shards.read_manifest(chains_dir)
    if manifest is None:
        raise UserError(f"{chains_dir} is not finished: run `make generate ROUND={round_}` first")
    policies = resolve_all(run, round_ - 1)
    stage = Stage("score", round_, run.stage_dir(round_, "scores"), fingerprint(run, policies, manifest))
    run.freeze(lambda: prompts_of(policies))
    if not stage.begin():
        return
    scoring = Scoring(run, round_, policies)
    lost = Quarantine(run, stage, manifest.get("questions", 0), scoring.files_of_unit)
    section = run.config.evaluate
    with Grader(section.answer_timeout_seconds, run.config.runtime.grader_workers) as grader:
        scoring.choose(workers, grader, lost)
    tokens = scoring.measure(workers, lost)
    scoring.join()
    rows, counts = scoring.assign_weights()
    stage.finish(shards.shard_paths(stage.folder), rows, {**counts, "tokens": tokens, **lost.close()})


def fingerprint(run: Run, policies: dict[str, Policy], chains: dict[str, Any]) -> dict[str, Any]:
    """What the scores depend on; `chains` is the manifest of the round's chains."""
    return {
        "config": digest(run.config.model_dump(mode="json", include=SECTIONS)),
        "chains": digest(chains["files"]),
        "policies": [policy.identity for policy in policies.values()],
        **own.kinds_fingerprint(run.config.prompts.answers),
    }


class Scoring:
    """One score stage; it holds the paths of the chains' shards, not the chains."""

    def __init__(self, run: Run, round_: int, policies: dict[str, Policy]) -> None:
        self.run, self.round, self.policies = run, round_, policies
        self.section, self.peers = run.config.score, run.config.peer_names
        self.folder = run.stage_dir(round_, "scores")
        self.work = self.folder / ".work"
        self.sources = shards.shard_paths(run.stage_dir(round_, "chains"))

    @cached_property
    def passes(self) -> Passes:
        """The round's passes; loads all tokenizers."""
        return Passes(self.run, self.round, self.policies)

    @cached_property
    def raters(self) -> Raters:
        """The round's raters, with the weights of their votes."""
        return Raters(self.run, self.round, self.passes)

    def files_of_unit(self, unit: Path) -> list[Path]:
        """The files to delete if a unit is redone: its own, and those made from it."""
        later = "*.parquet" if unit.name.startswith("verified-") else "unweighted-*.parquet"
        return [unit, *self.work.glob(later), *shards.shard_paths(self.folder)]

    # --- which examples ---

    def choose(self, workers: Workers, grader: Grader, lost: Quarantine) -> None:
        """Write the examples of all shards that are not on disk yet."""
        self.raters.measure(workers, grader, lost)
        seed, kind = f"{self.run.config.run.seed}/{self.round}", self.run.config.prompts.answers
        with task(f"score round {self.round}, labels", len(self.sources), "shards") as line:
            for shard, source in enumerate(self.sources):
                path = self.passes.examples_path(shard)
                if not path.is_file():
                    choosing = ExampleChooser(self.section, self.peers, self.raters.votes(shard), seed)
                    rows, failed = [], list[QuarantineRow]()
                    for chains in _batches(read_chains(source)):
                        rows += choosing.examples(chains, grader)
                        failed += [
                            quarantine.entry(chain.id, "not_compared")
                            for chain in chains
                            if grader.failed_on((row["answer"] for row in chain.rows), kind)
                        ]
                    quarantine.note(path, failed)
                    shards.write_rows(rows, path, EXAMPLES)
                    grader.forget()
                line.advance(1)

    # --- passes through the scorers ---

    def measure(self, workers: Workers, lost: Quarantine) -> int:
        """Have the peers do all passes that are not on disk yet; returns the number of their tokens."""
        total, done = dict[str, int](), dict[str, int]()
        for scorer in self.peers:
            passes = [self.passes.count(scorer, shard) for shard in range(len(self.sources))]
            todo = [shard for shard in range(len(self.sources)) if not self.passes.path(scorer, shard).is_file()]
            total[scorer] = sum(passes)
            done[scorer] = total[scorer] - sum(passes[shard] for shard in todo)
            if done[scorer] < total[scorer]:
                workers.submit(scorer, measure_shards, self.round, self.policies, scorer, units=todo)
        with task(f"score round {self.round}", total, "passes", done) as line:
            tokens = 0
            for job, read in workers.results(line):
                lost.look(self.passes.path(job.peer, shard) for shard in job.units)
                tokens += read
            return tokens

    # --- rows without their weights ---

    def join(self) -> None:
        """Write the rows of all shards that are not on disk yet, with PMI but without weights."""
        with task(f"score round {self.round}, PMI", len(self.sources), "shards") as line:
            for shard in range(len(self.sources)):
                if not self.unweighted(shard).is_file():
                    shards.write_rows(self.rows(shard), self.unweighted(shard), SCORES)
                line.advance(1)

    def unweighted(self, shard: int) -> Path:
        """File of a shard's rows until those of the whole round exist; `weight` is still the example's factor."""
        return self.work / f"unweighted-{shard:05d}.parquet"

    def rows(self, shard: int) -> list[ScoreRow]:
        """The scores of a shard, with the factor in place of the weight."""
        chains = {chain.id: chain for chain in read_chains(self.sources[shard])}
        examples = list(shards.rows_of(self.passes.examples_path(shard), ExampleRow))
        measured, targets = self.passes.measured(shard), self.targets(chains, examples)
        return [
            self.row(chains[example["prompt_id"]], example, measured, targets[n]) for n, example in enumerate(examples)
        ]

    def targets(self, chains: dict[str, Chain], examples: list[ExampleRow]) -> dict[int, list[int] | None]:
        """{place of the example: tokens of the text that its peer trains on}; None where it has no clean cut."""
        found: dict[int, list[int] | None] = dict.fromkeys(range(len(examples)))
        for peer in self.peers:
            mine = [n for n, example in enumerate(examples) if example["peer"] == peer]
            texts = {n: row_at(chains[examples[n]["prompt_id"]], examples[n]["trained"]) for n in mine}
            there = {n: row for n, row in texts.items() if row is not None}
            found |= dict(zip(there, self.passes.targets(peer, list(there.values())), strict=True))
        return found

    def row(self, chain: Chain, example: ExampleRow, measured: Measurements, target: list[int] | None) -> ScoreRow:
        """One row of the scores."""
        peer, dropped = example["peer"], example["drop_reason"]
        text, response = row_at(chain, example["trained"]), row_at(chain, example["measured"])
        if dropped is None and target is None:
            dropped = NO_CLEAN_CUT
        pmi = None
        place, shown = example["against"], example["measured"]
        if dropped is None and place is not None and shown is not None and shown != place:
            author = self.run.config.model_of(chain.rows[place]["peer"])
            by = scorers(self.section.scorer, peer, author, self.peers)
            pmi, dropped = pmi_of(measured, by, (chain.id, place), shown)
        return {
            "prompt_id": chain.id,
            "peer": peer,
            "number": example["number"],
            "label": example["label"],
            "label_share": example["label_share"],
            "role": response["role"] if response else None,
            "position": response["position"] if response else None,
            "sample": response["sample"] if response else None,
            "target_peer": text["peer"] if text else None,
            "logp_given_response": pmi.logp_given_response if pmi else None,
            "logp_alone": pmi.logp_alone if pmi else None,
            "n_target_tokens": pmi.n_target_tokens if pmi else None,
            "pmi": pmi.pmi if pmi else None,
            "pmi_per_token": pmi.pmi_per_token if pmi else None,
            "weight": example["factor"] if dropped is None else None,
            "drop_reason": dropped,
            "agrees": example["agrees"],
            "answer_entropy": example["answer_entropy"],
            "question": chain.question,
            "target": self.passes.prompts[peer].learnt(text["response"]) if text else None,
            "target_token_ids": target or [],
        }

    # --- weights ---

    def assign_weights(self) -> tuple[int, dict[str, Any]]:
        """Give every row its weight, and write the missing shards, which mirror those of the chains.

        Returns the number of rows, and the counts for the summary.
        """
        values, medians = self.round_weights()
        rows, counts = 0, Counter[str]()
        reasons: Counter[str] = Counter()
        for shard in range(len(self.sources)):
            table = with_weights(shards.read_table(self.unweighted(shard), SCORES), values)
            part = self.folder / f"part-{shard:05d}.parquet"
            if len(table) and not part.is_file():  # without rows: all its questions were too long
                shards.write_table(table, part)
            rows += len(table)
            reasons.update(table["drop_reason"].drop_null().to_pylist())
            counts.update(self.counted(table))
        summary = {
            "to_train": counts["to_train"],
            "dropped": dict(reasons),
            "zero_weight": counts["zero_weight"],
            "median_pmi_nats_per_token": medians,
            "agree_with_others": counts["agree_with_others"],
            "re_encoded": counts["re_encoded"],
        }
        if self.section.needs_samples:
            summary |= {
                "own_texts": counts["own_texts"],
                "texts_of_others": counts["texts_of_others"],
                "self_consistency": {rater: round(share, 3) for rater, share in self.raters.shares().items()},
            }
        if self.section.trains_on_samples and self.section.needs_solo:
            summary["without_pmi"] = counts["without_pmi"]
        return rows, summary

    def counted(self, table: pa.Table) -> dict[str, int]:
        """The summary's counts of one shard."""
        trained = table["weight"].drop_null().to_numpy()
        kept = table.filter(table["drop_reason"].is_null())
        own = pc.equal(kept["peer"], kept["target_peer"])
        others = pc.not_equal(table["peer"], table["target_peer"])
        who = kept.filter(pc.invert(own)).select(["peer", "target_peer"]).to_pylist()
        return {
            "to_train": int((trained != 0).sum()),
            "zero_weight": int((trained == 0).sum()),
            "re_encoded": sum(not self.passes.shares_tokens(row["peer"], row["target_peer"]) for row in who),
            "agree_with_others": len(table.filter(pc.and_(table["agrees"], others))),
            "own_texts": len(kept.filter(own)),
            "texts_of_others": len(who),
            "without_pmi": kept["pmi"].null_count,
        }

    def round_weights(self) -> tuple[dict[str, Iterator[float]], dict[str, float]]:
        """{peer: weights of its rows that are not dropped, in the shards' order}, {peer: its median PMI per token}.

        Only PMI per token, agreement, entropy and factor of each row of the round are in memory.
        """
        pmi, entropies, factors = ({peer: array("d") for peer in self.peers} for _ in range(3))
        agrees = {peer: array("b") for peer in self.peers}
        columns = ["peer", "pmi_per_token", "agrees", "answer_entropy", "weight"]
        for shard in range(len(self.sources)):
            table = shards.read_table(self.unweighted(shard), SCORES, columns)
            for row in table.filter(table["weight"].is_valid()).to_pylist():
                value = row["pmi_per_token"]
                pmi[row["peer"]].append(math.nan if value is None else value)
                agrees[row["peer"]].append(bool(row["agrees"]))
                entropies[row["peer"]].append(row["answer_entropy"])
                factors[row["peer"]].append(row["weight"])
        values: dict[str, Iterator[float]] = {}
        medians: dict[str, float] = {}
        for peer in self.peers:
            seed = request_seed(self.run.config.run.seed, self.round, peer, "weights")
            found = round_weights(pmi[peer], agrees[peer], entropies[peer], factors[peer], self.section, seed)
            values[peer] = iter(array("d", found))
            known = [value for value in pmi[peer] if not math.isnan(value)]
            medians |= {peer: round(median(known), 4)} if known else {}
        return values, medians


def _batches(chains: Iterator[Chain], n: int = 64) -> Iterator[list[Chain]]:
    """Chains in batches: large enough to keep the grader's workers busy, small enough for memory."""
    batch: list[Chain] = []
    for chain in chains:
        batch.append(chain)
        if len(batch) == n:
            yield batch
            batch = []
    if batch:
        yield batch


def pmi_of(
    measured: Measurements, by: list[str], text: tuple[str, int], response: int
) -> tuple[Pmi, None] | tuple[None, str]:
    """A response's PMI under some scorers, or why there is none: a mean over fewer of them is another quantity."""
    if any((scorer, *text, None) not in measured for scorer in by):
        return None, NO_CLEAN_CUT
    found = [measurement(measured, scorer, text, response) for scorer in by]
    passes = [each for each in found if each is not None]
    return (combine(passes), None) if len(passes) == len(found) else (None, NOT_FINITE)


def measurement(measured: Measurements, scorer: str, text: tuple[str, int], response: int) -> Measured | None:
    """Both passes of one scorer for one response; None if one of them is not finite."""
    given, _ = measured[scorer, *text, response]
    alone, n_tokens = measured[scorer, *text, None]
    return None if given is None or alone is None else Measured(given, alone, n_tokens)


def with_weights(table: pa.Table, values: dict[str, Iterator[float]]) -> pa.Table:
    """A shard's rows, in which each row that is not dropped gets the next weight of its peer."""
    columns = (table[name].to_pylist() for name in ("peer", "weight"))
    column = [None if factor is None else next(values[peer]) for peer, factor in zip(*columns, strict=True)]
    index = SCORES.get_field_index("weight")
    return table.set_column(index, SCORES.field(index), pa.array(column, SCORES.field(index).type))
