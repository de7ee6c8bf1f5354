"""The generate stage: prompts → chains.

The unit of work is one peer's requests at one position for one shard of questions. Each finished unit is a small
Parquet file under `.work/`; when all positions of a shard are there it becomes `part-*.parquet`. With all engines in
memory the shards are done one after the other; with one at a time each peer does its requests of all shards
at a position before the next is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data import shards
from data.answers import compare_all, extract
from data.config import digest
from data.console import console, task
from data.equivalence import Grader
from data.errors import UserError
from data.peers import check_peers
from data.prompts import PeerPrompts, load_all_prompts
from data.run import Run
from data.schema import CHAINS, PROMPTS
from data.shards import Row
from data.stage import Stage
from generate.aggregate import synthesiser, vote
from generate.chain import peer_order, request_seed
from generate.engine import NOT_GENERATED, Advance, Completion, Engine, Request, Sampling, engine_kind
from generate.pool import open_pool
from train.checkpoint import policy_identity


@dataclass(frozen=True)
class Question:
    """An unlabelled question with its order of peers."""

    id: str
    text: str
    number: int
    order: list[str]


@dataclass(frozen=True)
class Unit:
    """One peer's requests at one position (1-based; N + 1 is the synthesis) for one shard."""

    shard: int
    position: int
    peer: str

    def path(self, work: Path) -> Path:
        """Where its rows are kept until the shard is complete."""
        return work / f"shard-{self.shard:05d}~position-{self.position}~{self.peer}.parquet"  # no name has a ~


def units(n_shards: int, positions: int, peers: list[str], keep_all: bool, alone: bool = False) -> list[Unit]:
    """All units in an order that respects the positions (not if all answer `alone`) and loads few engines."""
    if alone:
        return [Unit(s, k, p) for p in peers for k in range(1, positions + 1) for s in range(n_shards)]
    if keep_all:
        return [Unit(s, k, p) for s in range(n_shards) for k in range(1, positions + 1) for p in peers]
    return [Unit(s, k, p) for k in range(1, positions + 1) for p in peers for s in range(n_shards)]


def main(run: Run, round_: int) -> None:
    """Generate the chains of a round, or go on where an earlier call stopped."""
    check_peers(run.config)
    engine_kind(run.config.generate)  # for its error, before the config is frozen
    stage = Stage("generate", round_, run.stage_dir(round_, "chains"), fingerprint(run, round_))
    run.freeze(lambda prompts: readable_questions(run, round_, prompts))
    if not stage.begin():
        return
    prompts = load_all_prompts(run.config)
    questions, too_long = readable_questions(run, round_, prompts)
    if too_long:
        some = "; ".join(f"{id_} ({why})" for id_, why in list(too_long.items())[:3])
        console.print(f"  {len(too_long)} questions are longer than the context and are skipped: {some}")
    alone = run.config.generate.aggregate == "self"
    positions = len(prompts) + (run.config.generate.aggregate == "synthesis")
    plan = Generation(run, round_, stage, prompts, questions)
    with open_pool(run, round_ - 1) as pool:
        todo = units(len(questions), positions, list(prompts), pool.keep_all, alone)
        total = sum(len(shard) for shard in questions) * positions
        with task(stage.title, total, "responses") as line:
            for unit in todo:
                plan.do(unit, pool.get, line.advance)
                if all(u.path(stage.work).is_file() for u in todo if u.shard == unit.shard):
                    plan.assemble(unit.shard, [u for u in todo if u.shard == unit.shard])
    files = shards.shard_paths(stage.folder)
    rows = list(shards.read_stage(stage.folder, CHAINS))
    aggregates = [row for row in rows if row["is_aggregate"]]
    stage.finish(files, len(rows), {
        "questions": sum(len(shard) for shard in questions),
        "questions_too_long": len(too_long),
        "tokens": sum(row["n_tokens"] for row in rows),
        "finish_reasons": dict(Counter(row["finish_reason"] for row in rows)),
        "aggregates_without_answer": sum(row["answer"] is None for row in aggregates),
        "skipped": {"too_long": too_long},
    })  # fmt: skip


def fingerprint(run: Run, round_: int) -> dict[str, object]:
    """What the chains depend on."""
    config = run.config
    return {
        "config": digest(config.model_dump(mode="json", include={"run", "generate", "templates", "peers"})),
        "prompts": digest((shards.read_manifest(run.prompts_dir) or {}).get("files")),
        "policies": [policy_identity(run, round_ - 1, name) for name in config.peer_names],
    }


def readable_questions(
    run: Run, round_: int, prompts: dict[str, PeerPrompts]
) -> tuple[list[list[Question]], dict[str, str]]:
    """The questions by shard, without those that do not fit some peer's context; those as {id: reason}.

    Raises UserError if none fits.
    """
    section = run.config.generate
    room = section.context_tokens - section.max_new_tokens
    kept: list[list[Question]] = []
    too_long: dict[str, str] = {}
    number = 0
    for path in shards.shard_paths(run.prompts_dir):
        shard = []
        for row in shards.read_rows(path, PROMPTS):
            lengths = {name: len(p.solve(row["question"])) for name, p in prompts.items()}
            longest = max(lengths, key=lambda name: lengths[name])
            if lengths[longest] > room:
                too_long[row["id"]] = f"{lengths[longest]} tokens for {longest}, room for {room}"
            else:
                order = peer_order(list(prompts), section.order, number, round_, run.config.run.seed, row["id"])
                shard.append(Question(row["id"], row["question"], number, order))
            number += 1
        kept.append(shard)
    if not any(kept):
        raise UserError(
            f"all {number} questions are longer than the context: generate.context_tokens {section.context_tokens} "
            f"less max_new_tokens {section.max_new_tokens} leaves {room} tokens for a prompt; raise the one or lower "
            "the other"
        )
    return kept, too_long


@dataclass
class Generation:
    """The state of one generate stage: what is asked of whom."""

    run: Run
    round: int
    stage: Stage
    prompts: dict[str, PeerPrompts]
    questions: list[list[Question]]

    def peer_at(self, question: Question, position: int) -> str:
        """Who answers at a position; position N + 1 is the synthesis."""
        if position <= len(question.order):
            return question.order[position - 1]
        return synthesiser(list(self.prompts), question.number, self.round)

    def do(self, unit: Unit, engine: Callable[[str], Engine], advance: Advance) -> None:
        """Do one unit unless its file, or its shard's, is there already."""
        mine = [q for q in self.questions[unit.shard] if self.peer_at(q, unit.position) == unit.peer]
        path = unit.path(self.stage.work)
        if self.part(unit.shard).is_file() or path.is_file():
            advance(len(mine), 0)
            return
        earlier = self.earlier(unit)
        prompts = [self.prompt(unit, q, earlier.get(q.id, [])) for q in mine]
        completions = complete(
            engine, unit.peer, prompts, [self.seed(unit, q) for q in mine], self.sampling, self.room, advance
        )
        rows = [self.row(unit, q, c) for q, c in zip(mine, completions, strict=True)]
        shards.write_rows(rows, path, CHAINS)

    @property
    def sampling(self) -> Sampling:
        """Of the chain."""
        section = self.run.config.generate
        return Sampling(section.temperature, section.top_p, section.max_new_tokens)

    @property
    def room(self) -> int:
        """Longest prompt in tokens."""
        section = self.run.config.generate
        return section.context_tokens - section.max_new_tokens

    def seed(self, unit: Unit, question: Question) -> int:
        """Seed of one request."""
        return request_seed(self.run.config.run.seed, self.round, question.id, unit.position)

    def part(self, shard: int) -> Path:
        """The finished shard."""
        return self.stage.folder / f"part-{shard:05d}.parquet"

    def earlier(self, unit: Unit) -> dict[str, list[str]]:
        """Responses of the positions before, per question, in order; empty ones left out. None for `self`."""
        responses: dict[str, list[str]] = {}
        if self.run.config.generate.aggregate == "self":
            return responses
        for position in range(1, unit.position):
            for peer in self.prompts:
                path = Unit(unit.shard, position, peer).path(self.stage.work)
                for row in shards.read_rows(path, CHAINS):
                    if row["response"]:
                        responses.setdefault(row["prompt_id"], []).append(row["response"])
        return responses

    def prompt(self, unit: Unit, question: Question, earlier: list[str]) -> list[int]:
        """Tokens that the peer is given."""
        prompts = self.prompts[unit.peer]
        if unit.position > len(question.order):
            return prompts.synthesis(question.text, earlier)
        return prompts.review(question.text, earlier)

    def row(self, unit: Unit, question: Question, completion: Completion) -> Row:
        """One row of the chains."""
        found = extract(completion.text)
        return {
            "prompt_id": question.id, "question": question.text, "position": unit.position, "peer": unit.peer,
            "is_aggregate": False, "response": completion.text, "answer": found.answer if found else None,
            "finish_reason": completion.finish_reason, "n_tokens": len(completion.token_ids),
            "logprob": completion.logprob, "token_ids": completion.token_ids,
        }  # fmt: skip

    def assemble(self, shard: int, done: list[Unit]) -> None:
        """Join the units of a shard, mark the aggregates, write the shard, remove the units."""
        if self.part(shard).is_file():
            return
        by_question: dict[str, list[Row]] = {q.id: [] for q in self.questions[shard]}
        for unit in done:
            for row in shards.read_rows(unit.path(self.stage.work), CHAINS):
                by_question[row["prompt_id"]].append(row)
        with Grader(self.run.config.evaluate.answer_timeout_seconds, self.run.config.runtime.grader_workers) as grader:
            if self.run.config.generate.aggregate == "vote":
                compare_all([self.votes(rows) for rows in by_question.values()], "math", grader)
            for rows in by_question.values():
                rows.sort(key=lambda row: row["position"])
                for index in self.aggregate_indices(rows, grader):
                    rows[index]["is_aggregate"] = True
        shards.write_rows([row for rows in by_question.values() for row in rows], self.part(shard), CHAINS)
        for unit in done:
            unit.path(self.stage.work).unlink()

    def aggregate_indices(self, rows: list[Row], grader: Grader) -> list[int]:
        """Which of a chain's rows is the aggregate; all of them for `self`."""
        kind = self.run.config.generate.aggregate
        if kind == "self":
            return list(range(len(rows)))
        if kind != "vote":
            return [len(rows) - 1]
        means = [row["logprob"] / max(1, row["n_tokens"]) for row in rows]
        return [vote(self.votes(rows), means, "math", grader)]

    def votes(self, rows: list[Row]) -> list[str | None]:
        """The answers that count in a vote: one cut at the limit does not, since score would drop it if it won."""
        return [row["answer"] if row["finish_reason"] == "stop" else None for row in rows]


def complete(
    engine: Callable[[str], Engine],
    peer: str,
    prompts: list[list[int]],
    seeds: list[int],
    sampling: Sampling,
    room: int,
    advance: Advance,
) -> list[Completion]:
    """Completions of all prompts; those longer than `room` come back empty with finish_reason `context`."""
    fits = [i for i, prompt in enumerate(prompts) if len(prompt) <= room]
    completions = [NOT_GENERATED] * len(prompts)
    if fits:
        requests = [Request(prompts[i], seeds[i]) for i in fits]
        loaded = engine(peer)
        for index, completion in zip(fits, loaded.generate(requests, sampling, advance), strict=True):
            completions[index] = completion
    advance(len(prompts) - len(fits), 0)
    return completions
