"""The teacher-forced passes of a round: which are needed, how peers do them, and their files until the stage is done.

A pass is log p(text | question, response) under a scorer, or log p(text | question) without a response; the latter is
done once per (scorer, text), however many responses it is compared with. If votes are weighted by the verifier, each
peer also computes log p(Yes) - log p(No) of its own samples and its voters'.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from data import quarantine, shards
from data.answers import kinds
from data.finite import finite_or_none
from data.run import Run
from data.schema import ChainRow, QuarantineRow, schema_of
from data.task import Advance
from peers import budget, policy_cache
from peers.faults import Fault
from peers.policy import Policy, prompts_of
from peers.prompts import token_identity
from peers.verify import logit_scores, longest_prompt
from score.chains import read_chains
from score.examples import ExampleRow
from score.pmi import scorers

if TYPE_CHECKING:  # imported in the peers' processes only: a finished stage needs no torch
    from peers.logprob.model import LanguageModel, Pair


class PassRow(TypedDict):
    """A teacher-forced pass of the text at index `text`; `response` is the index of the response in the prompt, null
    for log p(a | x). `logp` is in nats, null if it is not finite."""

    prompt_id: str
    text: int
    response: int | None
    logp: float | None
    n_tokens: int


class VerifiedRow(TypedDict):
    """A peer's verifier score of the sample at index `place`, its own or its voter's: log p(Yes) - log p(No), null if
    it is not finite."""

    prompt_id: str
    place: int
    score: float | None


PASSES, VERIFIED = schema_of(PassRow), schema_of(VerifiedRow)
# {(scorer, prompt id, index of the text, index of the response or None): (log-probability, tokens)}
Measurements = dict[tuple[str, str, int, int | None], tuple[float | None, int]]
EXAMPLE_COLUMNS = ("prompt_id", "peer", "against", "measured", "drop_reason")  # they decide what is needed


class Passes:
    """The passes of one score stage."""

    def __init__(self, run: Run, round_: int, policies: dict[str, Policy]) -> None:
        self.run, self.round, self.policies = run, round_, policies
        self.work = run.stage_dir(round_, "scores") / ".work"
        self.sources = shards.shard_paths(run.stage_dir(round_, "chains"))
        self.prompts = prompts_of(policies)
        self.model_of = run.config.model_of
        self.identity = {name: token_identity(prompts) for name, prompts in self.prompts.items()}

    def path(self, scorer: str, shard: int) -> Path:
        """File of a scorer's passes of a shard."""
        return self.work / f"passes-{shard:05d}.{scorer}.parquet"

    def verified_path(self, peer: str, shard: int) -> Path:
        """File of a peer's verifier scores of its own and its voters' samples of a shard."""
        return self.work / f"verified-{shard:05d}.{peer}.parquet"

    def examples_path(self, shard: int) -> Path:
        """File of the examples of a shard."""
        return self.work / f"examples-{shard:05d}.parquet"

    def count(self, scorer: str, shard: int) -> int:
        """How many passes a scorer has to do for a shard."""
        authors = self.authors(shard)
        return sum(len(shown) for _, shown in self.needed(scorer, shard, authors))

    def authors(self, shard: int) -> dict[str, list[str]]:
        """{prompt id: for each row of its chain, the peer whose model wrote it}."""
        chains = read_chains(self.sources[shard], ["prompt_id", "peer"])
        return {chain.id: [self.model_of(row["peer"]) for row in chain.rows] for chain in chains}

    def needed(
        self, scorer: str, shard: int, authors: dict[str, list[str]]
    ) -> Iterator[tuple[tuple[str, int], list[int | None]]]:
        """For each text, ((prompt id, its index), indices of the responses that it is measured with, and None)."""
        names, kind = self.run.config.peer_names, self.run.config.score.scorer
        rows = shards.rows_of(self.examples_path(shard), ExampleRow, EXAMPLE_COLUMNS)
        for prompt_id, group in groupby(rows, key=lambda row: row["prompt_id"]):
            found: dict[int, list[int | None]] = {}
            for row in group:
                text, response = row["against"], row["measured"]
                if row["drop_reason"] or text is None or response is None or response == text:
                    continue
                if scorer in scorers(kind, row["peer"], authors[prompt_id][text], names):
                    shown = found.setdefault(text, [])
                    shown += [response] if response not in shown else []
            for text, shown in found.items():
                yield (prompt_id, text), [shown[0], None, *shown[1:]]

    def measure_shard(self, lm: LanguageModel, scorer: str, shard: int, advance: Advance, parts: int = 1) -> int:
        """Do a scorer's passes of one shard and write them as one file; returns their number of tokens. `parts` counts
        the shards left to do, this one included. Passes that fail or are not finite are quarantined."""
        from peers.logprob.scoring import score_pairs

        keys, pairs, spans = self.pairs(scorer, shard)
        scores = budget.one_by_one(
            self.run,
            f"score round {self.round}",
            scorer,
            pairs,
            lambda: max(map(len, pairs)),
            lambda batch, tokens, report: score_pairs(lm, batch, tokens, report, parts),
            advance,
        )
        rows: list[PassRow] = []
        lost: list[QuarantineRow] = []
        for (prompt_id, text, response), pair, span, found in zip(keys, pairs, spans, scores, strict=True):
            logp = None if isinstance(found, Fault) else finite_or_none(sum(found[span]))
            rows.append(
                {
                    "prompt_id": prompt_id,
                    "text": text,
                    "response": response,
                    "logp": logp,
                    "n_tokens": len(pair.target[span]),
                }
            )
            if isinstance(found, Fault):
                lost.append(quarantine.entry(prompt_id, "score_error", found.reason, scorer))
            elif logp is None:
                lost.append(quarantine.entry(prompt_id, "score_not_finite", peer=scorer))
        quarantine.note(self.path(scorer, shard), lost)
        shards.write_rows(rows, self.path(scorer, shard), PASSES)
        advance(self.count(scorer, shard) - len(pairs), 0)  # those that were skipped: their target has no clean cut
        return sum(map(len, pairs))

    def pairs(self, scorer: str, shard: int) -> tuple[list[tuple[str, int, int | None]], list[Pair], list[slice]]:
        """A scorer's passes of a shard, as three lists: (prompt id, index of the text, index of the response or None);
        prompt and target; the span of the target whose log-probabilities are summed."""
        from peers.logprob.model import Pair

        keys: list[tuple[str, int, int | None]] = []
        asked: list[tuple[str, tuple[str, ...]]] = []
        answers: list[str] = []
        targets: list[list[int]] = []
        spans: list[slice] = []
        chains = {chain.id: chain for chain in read_chains(self.sources[shard])}
        needed = list(self.needed(scorer, shard, self.authors(shard)))
        texts = [chains[id_].rows[text] for (id_, text), _ in needed]
        for ((id_, text), shown), row, target in zip(needed, texts, self.targets(scorer, texts), strict=True):
            if target is None:
                continue
            span = self.span(scorer, row, target)
            for place in shown:
                keys.append((id_, text, place))
                asked.append((row["question"], () if place is None else (chains[id_].rows[place]["response"],)))
                answers.append(self.prompts[scorer].learnt(row["response"]))
                targets.append(target)
                spans.append(span)
        prompts = self.prompts[scorer].all_of("solve", asked, answers)
        return keys, [Pair(prompt, target) for prompt, target in zip(prompts, targets, strict=True)], spans

    def targets(self, scorer: str, rows: list[ChainRow]) -> list[list[int] | None]:
        """Responses as target tokens of `scorer`, with its end token: from the file if the author has the same
        tokenizer, else re-encoded; None where the tokenizer joins the prompt's end and the target's beginning."""
        prompts = self.prompts[scorer]
        texts = [prompts.learnt(row["response"]) for row in rows]  # without thoughts, unless the scorer trains on them
        whole = [text == row["response"] for text, row in zip(texts, rows, strict=True)]
        kept = [same and self.shares_tokens(scorer, row["peer"]) for row, same in zip(rows, whole, strict=True)]
        others = [(row["question"], text) for row, text, keep in zip(rows, texts, kept, strict=True) if not keep]
        encoded = iter(prompts.encode_responses(others))
        found = [row["token_ids"] if keep else next(encoded) for row, keep in zip(rows, kept, strict=True)]
        return [None if ids is None else [*ids, prompts.end_id] for ids in found]

    def shares_tokens(self, scorer: str, author: str) -> bool:
        """Whether a peer's token ids mean the same to a scorer."""
        return self.identity[scorer] == self.identity[self.model_of(author)]

    def span(self, scorer: str, row: ChainRow, target: list[int]) -> slice:
        """The target tokens whose log-probabilities are summed."""
        if self.run.config.score.pmi_target == "response":
            return slice(0, len(target))
        from peers.logprob.scoring import span_of

        prompts = self.prompts[scorer]
        text = prompts.continuation(prompts.learnt(row["response"]))
        kind = self.run.config.prompts.answers
        found = kinds.of(kind).find(text, row["question"])
        if kinds.is_own(kind):  # a custom `extract` runs only in the grader's processes
            found = kinds.placed(row["answer"] or "", text)
        assert found is not None, "a response without an answer was dropped before"
        return span_of(prompts.decode, target[:-1], found.start, found.end)

    def measured(self, shard: int) -> Measurements:
        """All passes of a shard."""
        found: Measurements = {}
        for scorer in self.run.config.peer_names:
            path = self.path(scorer, shard)
            for row in shards.rows_of(path, PassRow) if path.is_file() else []:
                found[scorer, row["prompt_id"], row["text"], row["response"]] = row["logp"], row["n_tokens"]
        return found

    def verify_shard(self, lm: LanguageModel, peer: str, shard: int, advance: Advance, parts: int = 1) -> None:
        """Have a peer verify its own samples of one shard and those of its voters, and write the scores as one file.
        Equal samples are verified once."""
        samples = [
            (chain.id, place, (chain.question, chain.rows[place]["response"]))
            for chain in read_chains(self.sources[shard])
            for place in chain.samples()
            if self.model_of(chain.rows[place]["peer"]) == peer
        ]
        distinct = list(dict.fromkeys(pair for *_, pair in samples))
        prompts = self.prompts[peer]
        scores = budget.one_by_one(
            self.run,
            f"score round {self.round}",
            peer,
            distinct,
            lambda: longest_prompt(prompts, distinct),
            lambda batch, tokens, report: logit_scores(lm, prompts, list(batch), tokens, report, parts),
            advance,
        )
        found = dict(zip(distinct, scores, strict=True))
        score = {pair: None if isinstance(each, Fault) else finite_or_none(each) for pair, each in found.items()}
        rows = [{"prompt_id": id_, "place": place, "score": score[pair]} for id_, place, pair in samples]
        lost: list[QuarantineRow] = []
        for id_, _, pair in samples:
            if isinstance(each := found[pair], Fault):
                lost.append(quarantine.entry(id_, "verifier_error", each.reason, peer))
            elif score[pair] is None:
                lost.append(quarantine.entry(id_, "verifier_not_finite", peer=peer))
        quarantine.note(self.verified_path(peer, shard), lost)
        shards.write_rows(rows, self.verified_path(peer, shard), VERIFIED)
        advance(len(samples) - len(distinct), 0)


def measure_shards(
    run: Run, round_: int, policies: dict[str, Policy], scorer: str, todo: list[int], advance: Advance
) -> int:
    """Do a scorer's passes of some shards, in its process; returns their number of tokens."""
    lm = policy_cache.language_model(policies[scorer], run.config)
    passes = Passes(run, round_, policies)
    return sum(
        passes.measure_shard(lm, scorer, shard, advance, parts=len(todo) - done) for done, shard in enumerate(todo)
    )


def verify_shards(
    run: Run, round_: int, policies: dict[str, Policy], peer: str, todo: list[int], advance: Advance
) -> None:
    """Have a peer verify its own samples of some shards, in its process."""
    lm = policy_cache.language_model(policies[peer], run.config)
    passes = Passes(run, round_, policies)
    for done, shard in enumerate(todo):
        passes.verify_shard(lm, peer, shard, advance, parts=len(todo) - done)
