"""The generate stage: prompts → chains.

The unit of work is one peer's requests at one position for one shard of questions, done in the peer's process. Each
finished unit is a small Parquet file under `.work/`; a shard's units of a position are asked for when all of the
position before are there, and when all positions are, it becomes `part-*.parquet`.

Memory holds one shard at a time, however many there are: a unit reads the questions and the earlier responses of its
own shard alone, and the summary is counted from a few columns of one shard after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from data import shards
from data.answers.clusters import compare_all
from data.answers.extract import extract
from data.answers.grader import Grader
from data.console import console, task
from data.hashing import digest, request_seed
from data.run import Run
from data.schema import CHAINS, PROMPTS
from data.shards import Row
from data.stage import Stage
from generate.aggregate import synthesiser, vote
from generate.chain import peer_order
from peers import policy_cache
from peers.engines.protocol import Advance, Completion, Engine, Sampling, complete, engine_kind
from peers.lengths import check_questions, room, too_long
from peers.policy import policy_identity
from peers.prompts import PeerPrompts, load_all_prompts, load_prompts
from peers.source import check_peers
from peers.workers import Workers

TOO_LONG_SHOWN = 100  # in the manifest, which is read whole


@dataclass(frozen=True)
class Question:
    """An unlabelled question with its order of peers."""

    id: str
    text: str
    number: int
    order: list[str]


@dataclass(frozen=True)
class Unit:
    """One peer's requests at one position for one shard.

    Positions count from 1; N + 1 is the synthesis, and 0 the question alone for those who do not come first. Under
    `self-vote` a position is a sample, which all peers draw.
    """

    shard: int
    position: int
    peer: str

    def path(self, work: Path) -> Path:
        """Where its rows are kept until the shard is complete."""
        return work / f"shard-{self.shard:05d}~position-{self.position}~{self.peer}.parquet"  # no name has a ~


def main(run: Run, round_: int, workers: Workers) -> None:
    """Generate the chains of a round, or go on where an earlier call stopped."""
    check_peers(run.config)
    engine_kind(run.config.generate)  # for its error, before the config is frozen
    stage = Stage("generate", round_, run.stage_dir(round_, "chains"), fingerprint(run, round_))
    run.freeze(lambda: check_questions(run, load_all_prompts(run.config)))
    if not stage.begin():
        return
    plan = Generation(run, round_, load_all_prompts(run.config))
    n_too_long, shown = plan.check_lengths()
    if n_too_long:
        some = "; ".join(f"{id_} ({why})" for id_, why in list(shown.items())[:3])
        console.print(f"  {n_too_long} questions are longer than the context and are skipped: {some}")
    kept = plan.n_questions - n_too_long
    generate(plan, stage, kept, workers)
    rows, counts = count_chains(stage.folder)
    stage.finish(shards.shard_paths(stage.folder), rows, {
        "questions": kept, "questions_too_long": n_too_long, **counts, "skipped": {"too_long": shown},
    })  # fmt: skip


def generate(plan: Generation, stage: Stage, n_questions: int, workers: Workers) -> None:
    """Do all units that are not done, and assemble each shard once its last one is."""
    config, peers = plan.run.config, plan.peers
    left = {(shard, position): set(peers) for shard in range(plan.n_shards) for position in plan.positions}

    def ask(shard: int, position: int) -> None:
        for peer in peers:
            workers.submit(peer, do_unit, plan.round, Unit(shard, position, peer), plan.first)

    with (
        Grader(config.evaluate.answer_timeout_seconds, config.runtime.grader_workers) as grader,
        task(stage.title, n_questions * plan.responses, "responses") as line,
    ):
        for shard in range(plan.n_shards):
            if plan.part(shard).is_file():
                line.advance(len(plan.questions(shard)) * plan.responses)
                continue
            for position in plan.positions:
                if position <= 1 or plan.alone:
                    ask(shard, position)
        for job, _ in workers.results(line):
            unit: Unit = job.arguments[1]
            left[unit.shard, unit.position].discard(unit.peer)
            if left[unit.shard, unit.position]:
                continue
            if 0 < unit.position < plan.positions[-1] and not plan.alone:
                ask(unit.shard, unit.position + 1)
            elif not any(left[unit.shard, position] for position in plan.positions):
                plan.assemble(unit.shard, grader)


def do_unit(run: Run, round_: int, unit: Unit, first: list[int], advance: Advance) -> None:
    """`Generation.do` in the process of the unit's peer."""
    plan = Generation(run, round_, {unit.peer: load_prompts(run.config, unit.peer)}, first)
    plan.do(unit, lambda: policy_cache.engine(run, round_ - 1, unit.peer), advance)


def count_chains(folder: Path) -> tuple[int, dict[str, Any]]:
    """Rows of a finished round of chains, and what its summary tells of them."""
    rows = tokens = unanswered = 0
    reasons: Counter[str] = Counter()
    for path in shards.shard_paths(folder):
        table = shards.read_table(path, CHAINS, ["is_aggregate", "answer", "finish_reason", "n_tokens"])
        rows += len(table)
        tokens += sum(table["n_tokens"].to_pylist())
        reasons.update(table["finish_reason"].to_pylist())
        unanswered += table.filter(table["is_aggregate"])["answer"].null_count
    return rows, {"tokens": tokens, "finish_reasons": dict(reasons), "aggregates_without_answer": unanswered}


def fingerprint(run: Run, round_: int) -> dict[str, object]:
    """What the chains depend on."""
    config = run.config
    sections: dict[str, Any] = dict.fromkeys(("run", "generate", "templates", "peers"), True)
    if config.score.y_source == "alone":  # asks for more
        sections["score"] = {"y_source"}
    return {
        "config": digest(config.model_dump(mode="json", include=sections)),
        "prompts": digest((shards.read_manifest(run.prompts_dir) or {}).get("files")),
        "policies": [policy_identity(run, round_ - 1, name) for name in config.peer_names],
    }


class Generation:
    """What is asked of whom in one round.

    It holds no question and no response, so a unit can be done by any process that has the prompts of the unit's peer;
    it needs the file that `check_lengths` has written for its shard, and its shard's units of earlier positions.
    """

    def __init__(self, run: Run, round_: int, prompts: dict[str, PeerPrompts], first: list[int] | None = None) -> None:
        self.run, self.round, self.prompts = run, round_, prompts
        self.peers = run.config.peer_names
        section = run.config.generate
        self.alone, self.self_vote = section.alone, section.aggregate == "self-vote"
        apart = run.config.score.y_source == "alone" and not self.alone
        last = section.votes if self.self_vote else len(self.peers) + (section.aggregate == "synthesis")
        self.positions = range(0 if apart else 1, last + 1)
        # to each question, of all peers
        self.responses = last * (len(self.peers) if self.self_vote else 1) + (len(self.peers) - 1) * apart
        self.folder = run.stage_dir(round_, "chains")
        self.work = self.folder / ".work"
        self.sources = shards.shard_paths(run.prompts_dir)
        # number of each shard's first question
        self.first = first or [0, *accumulate(shards.row_count(path) for path in self.sources)]

    @property
    def n_shards(self) -> int:
        """Shards of questions."""
        return len(self.sources)

    @property
    def n_questions(self) -> int:
        """All questions, with those that are too long."""
        return self.first[-1]

    def check_lengths(self) -> tuple[int, dict[str, str]]:
        """Note for each shard which of its questions are too long for some peer; `prompts` must be those of all peers.

        Returns how many there are, and the first TOO_LONG_SHOWN of them as {id: reason}.
        """
        count, shown = 0, dict[str, str]()
        for shard, source in enumerate(self.sources):
            path = self.too_long_path(shard)
            if not path.is_file():
                shards.write_json(too_long(shards.read_rows(source, PROMPTS), self.prompts, self.room), path)
            found: dict[str, str] = shards.read_json(path)
            count += len(found)
            shown |= dict(list(found.items())[: TOO_LONG_SHOWN - len(shown)])
        return count, shown

    def too_long_path(self, shard: int) -> Path:
        """Which questions of a shard are too long, as {id: reason}."""
        return self.work / f"shard-{shard:05d}~too-long.json"

    def questions(self, shard: int) -> list[Question]:
        """The questions of a shard that fit. A question's number is its place among those of all shards."""
        skipped = shards.read_json(self.too_long_path(shard))
        order, seed = self.run.config.generate.order, self.run.config.run.seed
        return [
            Question(row["id"], row["question"], n, peer_order(self.peers, order, n, self.round, seed, row["id"]))
            for n, row in enumerate(shards.read_rows(self.sources[shard], PROMPTS), start=self.first[shard])
            if row["id"] not in skipped
        ]

    def peer_at(self, question: Question, position: int) -> str:
        """Who answers at a position; position N + 1 is the synthesis."""
        if position <= len(question.order):
            return question.order[position - 1]
        return synthesiser(self.peers, question.number, self.round)

    def units(self, shard: int) -> list[Unit]:
        """All units of a shard."""
        return [Unit(shard, position, peer) for position in self.positions for peer in self.peers]

    def asks(self, unit: Unit, question: Question) -> bool:
        """Whether a unit has a request for a question of its shard."""
        if unit.position == 0:
            return question.order[0] != unit.peer  # who comes first answers the question alone anyway
        return self.self_vote or self.peer_at(question, unit.position) == unit.peer

    def do(self, unit: Unit, engine: Callable[[], Engine], advance: Advance) -> None:
        """Do one unit unless its file is there already."""
        mine = [question for question in self.questions(unit.shard) if self.asks(unit, question)]
        path = unit.path(self.work)
        if path.is_file():
            advance(len(mine), 0)
            return
        prompts = self.prompts_of(unit, mine)
        seeds = [self.seed(unit, question) for question in mine]
        completions = complete(engine, prompts, seeds, self.sampling, self.room, advance)
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
        return room(self.run.config.generate)

    def seed(self, unit: Unit, question: Question) -> int:
        """Seed of one request."""
        who = (unit.peer,) if self.self_vote else ()
        return request_seed(self.run.config.run.seed, self.round, question.id, unit.position, *who)

    def part(self, shard: int) -> Path:
        """The finished shard."""
        return self.folder / f"part-{shard:05d}.parquet"

    def earlier(self, unit: Unit) -> dict[str, list[str]]:
        """Responses of the positions before, per question, in order; empty ones left out. None for `self`."""
        responses: dict[str, list[str]] = {}
        if self.alone:
            return responses
        for position in range(1, unit.position):
            for peer in self.peers:
                path = Unit(unit.shard, position, peer).path(self.work)
                for row in shards.read_rows(path, CHAINS, ["prompt_id", "response"]):
                    if row["response"]:
                        responses.setdefault(row["prompt_id"], []).append(row["response"])
        return responses

    def prompts_of(self, unit: Unit, questions: list[Question]) -> list[list[int]]:
        """Tokens that the peer is given for each question."""
        earlier = self.earlier(unit)
        asked = [(question.text, earlier.get(question.id, [])) for question in questions]
        synthesis = unit.position > len(self.peers) and not self.alone  # of self-vote it is a sample like any other
        return self.prompts[unit.peer].all_of("synthesis" if synthesis else "review", asked)

    def row(self, unit: Unit, question: Question, completion: Completion) -> Row:
        """One row of the chains."""
        found = extract(completion.text)
        return {
            "prompt_id": question.id, "question": question.text, "position": unit.position, "peer": unit.peer,
            "is_aggregate": False, "response": completion.text, "answer": found.answer if found else None,
            "finish_reason": completion.finish_reason, "n_tokens": len(completion.token_ids),
            "logprob": completion.logprob, "token_ids": completion.token_ids,
        }  # fmt: skip

    def assemble(self, shard: int, grader: Grader) -> None:
        """Join the units of a shard, mark the aggregates, write the shard, remove the units."""
        done = self.units(shard)
        by_question: dict[str, list[Row]] = {question.id: [] for question in self.questions(shard)}
        for unit in done:
            for row in shards.read_rows(unit.path(self.work), CHAINS):
                by_question[row["prompt_id"]].append(row)
        if self.run.config.generate.aggregate in ("vote", "self-vote"):
            groups = [group for rows in by_question.values() for group in self.voters(rows)]
            compare_all([votes(group) for group in groups], "math", grader)
        for rows in by_question.values():
            rows.sort(key=lambda row: row["position"])
            for row in self.aggregates(rows, grader):
                row["is_aggregate"] = True
        grader.forget()
        shards.write_rows([row for rows in by_question.values() for row in rows], self.part(shard), CHAINS)
        for unit in done:
            unit.path(self.work).unlink()

    def aggregates(self, rows: list[Row], grader: Grader) -> list[Row]:
        """Which of a chain's rows is the aggregate; all of them for `self`, one of each peer's for `self-vote`."""
        kind = self.run.config.generate.aggregate
        if kind == "self":
            return rows
        if kind in ("last", "synthesis"):
            return rows[-1:]
        found = []
        for group in self.voters(rows):
            means = [row["logprob"] / max(1, row["n_tokens"]) for row in group]
            found.append(group[vote(votes(group), means, "math", grader)])
        return found

    def voters(self, rows: list[Row]) -> list[list[Row]]:
        """The responses that vote together: those of the chain, or each peer's own."""
        if self.self_vote:
            return [[row for row in rows if row["peer"] == peer] for peer in self.peers]
        return [[row for row in rows if row["position"] > 0]]


def votes(rows: list[Row]) -> list[str | None]:
    """The answers that count in a vote: one cut at the limit does not, since score would drop it if it won."""
    return [row["answer"] if row["finish_reason"] == "stop" else None for row in rows]
