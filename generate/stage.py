"""The generate stage: prompts → chains.

The unit of work is one peer's requests of one turn (generate/asking.py) for one shard of questions, done in the peer's
process. Each finished unit is a small Parquet file under `.work/`. A shard's units of a turn are submitted once the
turns whose responses it shows are finished; when all turns are, the units become a `part-*.parquet`.

Memory holds the shards of one call of the Pool at a time, not all shards of the round: a unit reads only the
questions and earlier responses of its own shard, and the summary counts a few columns of one shard after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from data import quarantine, shards
from data.answers import kinds, own
from data.answers.clusters import compare_all
from data.answers.grader import Grader, find_all
from data.console import console
from data.finite import finite_or_none
from data.hashing import digest, draw_key, request_seed
from data.quarantine import Quarantine
from data.run import Run
from data.schema import CHAINS, ChainRow, PromptRow, QuarantineRow
from data.stage import Stage
from data.task import Advance, task
from generate.aggregate import AGGREGATES, voting
from generate.asking import Question, Turn, asking_of, peer_order
from peers import policy_cache
from peers.engines.protocol import Completion, Engine, Sampling, complete, engine_kind
from peers.lengths import check_questions, max_prompt_tokens, too_long
from peers.policy import Policy, prompts_of, resolve_all, with_voters
from peers.prompts import PeerPrompts, PromptKind
from peers.source import check_peers
from peers.workers import Workers

SECTIONS = {"run", "generate", "templates", "wordings", "peers", "voters"}  # what chains depend on
TOO_LONG_SHOWN = 100  # questions named in the manifest, which must stay small


@dataclass(frozen=True)
class GenerationUnit:
    """The requests of one peer or voter in one turn for one shard."""

    shard: int
    turn: Turn
    peer: str

    def path(self, work: Path) -> Path:
        """Where its rows are kept until the shard is complete."""
        turn = f"{self.turn.role}-{self.turn.position}"
        return work / f"shard-{self.shard:05d}~{turn}~{self.peer}.parquet"  # names contain no ~


def main(run: Run, round_: int, workers: Workers) -> None:
    """Generate the chains of a round, or go on where an earlier call stopped."""
    check_peers(run.config)
    engine = engine_kind(run.config.generate)  # fails before the config is frozen
    policies = resolve_all(run, round_ - 1)
    stage = Stage("generate", round_, run.stage_dir(round_, "chains"), fingerprint(run, policies))
    run.freeze(lambda: check_questions(run, prompts_of(policies)))
    if not stage.begin():
        return
    plan = Generation(run, round_, with_voters(policies, run.config))
    n_too_long, shown = plan.check_lengths()
    if n_too_long:
        some = "; ".join(f"{id_} ({why})" for id_, why in list(shown.items())[:3])
        console.print(f"  {n_too_long} questions are longer than the context and are skipped: {some}")
    kept = plan.n_questions - n_too_long
    lost = Quarantine(run, stage, kept, plan.files_of_unit)
    generate(plan, stage, workers, lost)
    rows, counts = count_chains(stage.folder)
    stage.finish(
        shards.shard_paths(stage.folder),
        rows,
        {
            "questions": kept,
            "questions_too_long": n_too_long,
            **counts,
            **lost.close(plan.too_long()),
            "engine": engine,
            "skipped": {"too_long": shown},
        },
    )


def generate(plan: Generation, stage: Stage, workers: Workers, lost: Quarantine) -> None:
    """Do all unfinished units, and assemble each shard after its last unit."""
    config, turns = plan.run.config, plan.asking.turns
    left = {(shard, turn): set(plan.who(turn)) for shard in range(plan.n_shards) for turn in turns}
    waiting = {shard: list(turns) for shard in range(plan.n_shards)}

    def ask(shard: int) -> None:
        """Submit the turns of a shard that wait for no other turn."""
        for turn in list(waiting[shard]):
            if not any(left[shard, earlier] for earlier in plan.asking.shown(turn)):
                waiting[shard].remove(turn)
                for rater in plan.who(turn):
                    policy, unit = plan.policies[rater], GenerationUnit(shard, turn, rater)
                    requests = plan.requests(unit)
                    workers.submit(
                        policy.name, do_units, plan.round, policy, plan.first, units=[unit], requests=requests
                    )

    with (
        Grader(config.evaluate.answer_timeout_seconds, config.runtime.grader_workers) as grader,
        task(stage.title, sum(map(plan.to_ask, range(plan.n_shards)), Counter()), "responses") as line,
    ):
        for shard in range(plan.n_shards):
            if plan.part(shard).is_file():
                for peer, responses in plan.to_ask(shard).items():
                    line.advance(responses, 0, peer)
            else:
                ask(shard)
        for job, _ in workers.results(line):
            lost.look(unit.path(plan.work) for unit in job.units)
            for unit in job.units:
                left[unit.shard, unit.turn].discard(unit.peer)
                ask(unit.shard)
                if not any(left[unit.shard, turn] for turn in turns):
                    plan.assemble(unit.shard, grader)


def do_units(
    run: Run, round_: int, policy: Policy, first: list[int], units: list[GenerationUnit], advance: Advance
) -> None:
    """`Generation.do` in the process of the units' peer."""
    plan = Generation(run, round_, {unit.peer: policy for unit in units}, first)
    plan.do(units, lambda: policy_cache.engine(policy, run.config), advance)


def quarantine_entries(rows: list[ChainRow], errors: list[str | None]) -> list[QuarantineRow]:
    """An entry for each response of a unit that went wrong; `errors` has the engine's error, or None, per response."""
    found = []
    for row, error in zip(rows, errors, strict=True):
        if error is not None or row["logprob"] is None:
            reason = "logprob_not_finite" if error is None else "engine_error"
            found.append(quarantine.entry(row["prompt_id"], reason, error, row["peer"]))
    return found


def count_chains(folder: Path) -> tuple[int, dict[str, Any]]:
    """The number of rows of a finished round of chains, and the counts for its summary."""
    rows = tokens = unanswered = unknown = 0
    reasons: Counter[str] = Counter()
    for path in shards.shard_paths(folder):
        table = shards.read_table(path, CHAINS, ["is_aggregate", "answer", "finish_reason", "n_tokens", "logprob"])
        rows += len(table)
        tokens += sum(table["n_tokens"].to_pylist())
        reasons.update(table["finish_reason"].to_pylist())
        unknown += table["logprob"].null_count
        unanswered += table.filter(table["is_aggregate"])["answer"].null_count
    counts = {"tokens": tokens, "finish_reasons": dict(reasons), "aggregates_without_answer": unanswered}
    return rows, counts | ({"logprob_not_finite": unknown} if unknown else {})


def fingerprint(run: Run, policies: dict[str, Policy]) -> dict[str, object]:
    """What the chains depend on."""
    # they depend on the keys label, text, weighting and y_source of score
    roles = sorted({turn.role for turn in asking_of(run.config, 1).turns})
    return {
        "config": digest([run.config.model_dump(mode="json", include=SECTIONS), roles]),
        "prompts": digest((shards.read_manifest(run.prompts_dir) or {}).get("files")),
        "policies": [policy.identity for policy in policies.values()],
        **own.kinds_fingerprint(run.config.prompts.answers),
    }


class Generation:
    """Who answers what in one round.

    It holds no questions or responses, so any process that has the policy of a unit's peer can do the unit. A unit
    needs the file that `check_lengths` wrote for its shard, and the shard's units of the turns that it shows.
    """

    def __init__(self, run: Run, round_: int, policies: dict[str, Policy], first: list[int] | None = None) -> None:
        self.run, self.round, self.policies = run, round_, policies
        self.peers, self.answers = run.config.peer_names, run.config.prompts.answers
        self.asking = asking_of(run.config, round_)
        self.aggregate = AGGREGATES[run.config.generate.aggregate]
        self.folder = run.stage_dir(round_, "chains")
        self.work = self.folder / ".work"
        self.sources = shards.shard_paths(run.prompts_dir)
        # number of each shard's first question
        self.first = first or [0, *accumulate(shards.row_count(path) for path in self.sources)]

    def to_ask(self, shard: int) -> Counter[str]:
        """How many responses each peer gives to the questions of a shard, including those of its voters."""
        found: Counter[str] = Counter()
        for question in self.questions(shard):
            for turn in self.asking.turns:
                for rater in self.who(turn):
                    found[self.policies[rater].name] += self.asking.asks(turn, rater, question)
        return found

    @property
    def n_shards(self) -> int:
        """Number of shards of questions."""
        return len(self.sources)

    @property
    def n_questions(self) -> int:
        """Number of questions, including those that are too long."""
        return self.first[-1]

    def check_lengths(self) -> tuple[int, dict[str, str]]:
        """Note for each shard which of its questions are too long for some peer; needs the policies of all peers.

        Returns how many there are, and the first TOO_LONG_SHOWN as {id: reason}.
        """
        count, shown, prompts = 0, dict[str, str](), dict[str, PeerPrompts]()
        for shard, source in enumerate(self.sources):
            path = self.too_long_path(shard)
            if not shards.is_whole(path):
                prompts = prompts or prompts_of(self.policies)
                shards.write_json(too_long(shards.rows_of(source, PromptRow), prompts, self.max_prompt_tokens), path)
                shards.write_sum(path)
            found: dict[str, str] = shards.read_json(path)
            count += len(found)
            shown |= dict(list(found.items())[: TOO_LONG_SHOWN - len(shown)])
        return count, shown

    def too_long(self) -> list[QuarantineRow]:
        """A quarantine entry for each question that is too long."""
        found = [shards.read_json(self.too_long_path(shard)).items() for shard in range(self.n_shards)]
        return [quarantine.entry(id_, "too_long", why) for each in found for id_, why in each]

    def files_of_unit(self, unit: Path) -> list[Path]:
        """The files to delete if a unit is redone: all units of its shard, since they may show its responses."""
        return list(self.work.glob(f"{unit.name.partition('~')[0]}~*.parquet"))

    def too_long_path(self, shard: int) -> Path:
        """The file of the questions of a shard that are too long, as {id: reason}."""
        return self.work / f"shard-{shard:05d}~too-long.json"

    def questions(self, shard: int) -> list[Question]:
        """The questions of a shard that are not too long; `number` is a question's place among those of all shards."""
        skipped = shards.read_json(self.too_long_path(shard))
        order, seed = self.run.config.generate.order, self.run.config.run.seed
        return [
            Question(row["id"], row["question"], n, peer_order(self.peers, order, n, self.round, seed, row["id"]))
            for n, row in enumerate(shards.rows_of(self.sources[shard], PromptRow), start=self.first[shard])
            if row["id"] not in skipped
        ]

    def who(self, turn: Turn) -> list[str]:
        """Who may be asked in a turn; voters only give samples."""
        return self.run.config.raters if turn.role == "sample" else self.peers

    def units(self, shard: int) -> list[GenerationUnit]:
        """All units of a shard, in the order of their rows."""
        return [GenerationUnit(shard, turn, rater) for turn in self.asking.turns for rater in self.who(turn)]

    def place(self, question: Question, row: ChainRow) -> tuple[int, int]:
        """The sort key of a row among those of its question: by turn; solo responses by the question's order."""
        turn = Turn(row["role"], row["position"] or 0)
        return self.asking.turns.index(turn), question.order.index(row["peer"]) if row["role"] == "solo" else 0

    def do(self, units: list[GenerationUnit], engine: Callable[[], Engine], advance: Advance) -> None:
        """Do the units whose files are missing; those with the same sampling in one call of the engine."""
        alike: dict[Sampling, list[GenerationUnit]] = {}
        for unit in units:
            if unit.path(self.work).is_file():
                advance(len(self.asked(unit)), 0)
            else:
                alike.setdefault(self.sampling(unit.turn), []).append(unit)
        for sampling, group in alike.items():
            asked = {unit: self.asked(unit) for unit in group}
            prompts = [ids for unit, each in asked.items() for ids in self.prompts_of(unit, each)]
            seeds = [self.seed(unit, *request) for unit, each in asked.items() for request in each]
            faults = quarantine.allowed(self.run.config.runtime.quarantine_share, len(prompts))
            completions = iter(complete(engine, prompts, seeds, sampling, self.max_prompt_tokens, advance, faults))
            for unit, each in asked.items():
                of_unit = [next(completions) for _ in each]
                rows = [self.row(unit, *request, done) for request, done in zip(each, of_unit, strict=True)]
                quarantine.note(unit.path(self.work), quarantine_entries(rows, [done.error for done in of_unit]))
                shards.write_rows(rows, unit.path(self.work), CHAINS)

    def asked(self, unit: GenerationUnit) -> list[tuple[Question, int]]:
        """The unit's requests, each as (question, its sample, from 1)."""
        return [
            (question, sample)
            for question in self.questions(unit.shard)
            for sample in range(1, self.asking.asks(unit.turn, unit.peer, question) + 1)
        ]

    def requests(self, unit: GenerationUnit) -> int:
        """About how many requests a unit has, without reading a file."""
        questions = self.first[unit.shard + 1] - self.first[unit.shard]
        if unit.turn.role in ("chain", "synthesis"):
            return -(-questions // len(self.peers))
        return questions * self.asking.asks(unit.turn, unit.peer, Question("", "", 0, self.peers))

    def sampling(self, turn: Turn) -> Sampling:
        """How the responses of a turn are sampled."""
        section = self.run.config.generate
        if turn.role == "sample":
            return Sampling(section.sample_temperature, section.sample_top_p, section.max_new_tokens)
        return Sampling(section.temperature, section.top_p, section.max_new_tokens)

    @property
    def max_prompt_tokens(self) -> int:
        """The longest allowed prompt, in tokens."""
        return max_prompt_tokens(self.run.config.generate)

    def seed(self, unit: GenerationUnit, question: Question, sample: int) -> int:
        """Seed of one request."""
        key = self.asking.seed_of(unit.turn, unit.peer, question, sample)
        return request_seed(self.run.config.run.seed, self.round, draw_key(question.text), *key)

    def part(self, shard: int) -> Path:
        """Path of the finished shard."""
        return self.folder / f"part-{shard:05d}.parquet"

    def earlier(self, unit: GenerationUnit) -> dict[str, list[str]]:
        """The responses that a unit shows, as {question id: responses in order}; empty ones are left out."""
        responses: dict[str, list[str]] = {}
        shown = self.policies[unit.peer].prompts.shown
        for turn in self.asking.shown(unit.turn):
            for peer in self.peers:
                path = GenerationUnit(unit.shard, turn, peer).path(self.work)
                for row in shards.rows_of(path, ChainRow, ["prompt_id", "response"]):
                    if shown(row["response"]):  # a thought that was never closed leaves nothing to show
                        responses.setdefault(row["prompt_id"], []).append(row["response"])
        return responses

    def prompts_of(self, unit: GenerationUnit, asked: list[tuple[Question, int]]) -> list[list[int]]:
        """The prompt of each request, in tokens."""
        earlier, questions = self.earlier(unit), list({question.id: question for question, _ in asked}.values())
        texts = [(question.text, earlier.get(question.id, [])) for question in questions]
        kind: PromptKind = "synthesis" if unit.turn.role == "synthesis" else "review"
        tokens = self.policies[unit.peer].prompts.all_of(kind, texts)
        by_id = {question.id: ids for question, ids in zip(questions, tokens, strict=True)}
        return [by_id[question.id] for question, _ in asked]

    def row(self, unit: GenerationUnit, question: Question, sample: int, completion: Completion) -> ChainRow:
        """One row of the chains."""
        found = kinds.of(self.answers).find(completion.text, question.text)
        return {
            "prompt_id": question.id,
            "question": question.text,
            "role": unit.turn.role,
            "position": unit.turn.position if unit.turn.role == "chain" else None,
            "sample": sample if unit.turn.role == "sample" else None,
            "peer": unit.peer,
            "is_aggregate": False,
            "response": completion.text,
            "answer": found.answer if found else None,
            "finish_reason": completion.finish_reason,
            "n_tokens": len(completion.token_ids),
            "logprob": finite_or_none(completion.logprob),
            "token_ids": completion.token_ids,
        }

    def assemble(self, shard: int, grader: Grader) -> None:
        """Join the units of a shard, mark the aggregates, write the shard, remove the units."""
        done = self.units(shard)
        questions = self.questions(shard)
        by_question: dict[str, list[ChainRow]] = {question.id: [] for question in questions}
        for unit in done:
            for row in shards.rows_of(unit.path(self.work), ChainRow):
                by_question[row["prompt_id"]].append(row)
        for question in questions:  # the solo responses go in the order that a chain would have
            by_question[question.id].sort(key=lambda row: self.place(question, row))
        if kinds.is_own(self.answers):  # it runs in the grader's pool, which a peer's process does not have
            find_all(chain.from_iterable(by_question.values()), self.answers, grader)
        if self.run.config.score.needs_aggregate:
            groups = [group for rows in by_question.values() for group in self.aggregate.groups(rows)]
            if self.aggregate.votes:
                compare_all([voting(group) for group in groups], self.answers, grader)
            for group in groups:
                self.aggregate.pick(group, self.answers, grader)["is_aggregate"] = True
        compared = {id_: [row["answer"] for row in rows] for id_, rows in by_question.items()}
        failed = [id_ for id_, answers in compared.items() if grader.failed_on(answers, self.answers)]
        quarantine.note(self.work / self.part(shard).name, [quarantine.entry(id_, "not_compared") for id_ in failed])
        grader.forget()
        shards.write_rows([row for rows in by_question.values() for row in rows], self.part(shard), CHAINS)
        for unit in done:
            unit.path(self.work).unlink()
