"""The evaluate stage: exact match and generator-verifier gap of every peer on every benchmark.

First come the responses, then verifier scores (by the peer's round-0 policy for `verifier_score_frozen`, by its current
policy, and with `evaluate.cross_verify` by those of the other peers), each peer in its own process; then grading, the
shards, metrics.parquet and cross.parquet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any

from data import quarantine, shards, sums
from data.answers import own
from data.answers.clusters import clusters, compare_all
from data.answers.grader import Grader, grade
from data.console import console
from data.hashing import digest, draw_key, request_seed
from data.quarantine import Quarantine
from data.run import Run
from data.schema import CROSS, EVALS, METRICS, CrossRow, EvalRow, MetricsRow, QuarantineRow
from data.stage import Stage
from data.task import Advance, task
from evaluate.benchmarks import Item, digests, load_benchmarks
from evaluate.checks import check_before_freezing, check_room, check_same_benchmarks
from evaluate.guard import decide
from evaluate.metrics import by_question, metrics_row, verifier_metrics
from evaluate.tracking import track
from evaluate.unit import RESPONSES, EvaluationUnit, ResponseRow, key_of
from evaluate.verifier import CURRENT, FROZEN, cross_kind, verify_all
from peers import policy_cache
from peers.engines.protocol import Sampling, complete, engine_kind
from peers.lengths import max_prompt_tokens
from peers.policy import Policy, prompts_of, resolve_all
from peers.source import check_peers
from peers.workers import Workers

METRIC_COLUMNS = (  # the columns of evals that metrics need
    "benchmark",
    "item_id",
    "peer",
    "sample",
    "answer",
    "correct",
    "verdict",
    "finish_reason",
    "n_tokens",
    "cluster",
    "verifier_score",
    "verifier_score_frozen",
    "peer_agreement",
)
SECTIONS: dict[str, Any] = {  # what evals depend on; how the chains are made does not matter here
    **dict.fromkeys(("run", "evaluate", "templates", "wordings", "peers"), True),
    "generate": {"max_new_tokens", "context_tokens", "engine"},
}
CROSS_COLUMNS = ("item_id", "sample", "response", "correct")  # the columns of evals that cross.parquet needs
RESPONSE_COLUMNS = ("item_id", "sample", "response")  # the columns of responses that peers' agreement needs


def main(run: Run, round_: int, workers: Workers) -> None:
    """Evaluate a round, or go on where an earlier command stopped; then update the run's tracker, if it has one."""
    measure(run, round_, workers)
    track(run)


def measure(run: Run, round_: int, workers: Workers) -> None:
    """Evaluate a round without the tracker."""
    check_peers(run.config)
    engine = engine_kind(run.config.generate)  # fails before the config is frozen
    benchmarks, policies = load_benchmarks(run.config), resolve_all(run, round_)
    if not benchmarks:
        run.freeze(lambda: check_before_freezing(run, policies))
        console.print(f"evaluate round {round_}: there are no benchmarks, so nothing is measured by gold answers")
        return
    stage = Stage("evaluate", round_, run.stage_dir(round_, "evals"), fingerprint(run, policies, benchmarks))
    metrics_path = run.round_dir(round_) / "metrics.parquet"
    cross_path = metrics_path.with_name("cross.parquet")
    if not (stage.folder / shards.SUCCESS).is_file():
        check_room(run, prompts_of(policies), benchmarks)
    run.freeze(lambda: check_before_freezing(run, policies))
    check_same_benchmarks(run, stage, benchmarks)
    work_to_do = stage.begin(also=metrics_path)
    if not work_to_do and metrics_path.is_file():
        sums.note_missing(metrics_path, cross_path)
        decide(run, round_)  # the thresholds of [guard] may have changed since the first command
        return
    evaluation = Evaluation(run, round_, benchmarks)
    lost = Quarantine(run, stage, sum(map(len, benchmarks.values())), evaluation.files_of_unit)
    if work_to_do:
        evaluation.respond(workers, policies, lost)
        evaluation.verify(workers, policies, lost)
        evaluation.assemble()
    with sums.noted(metrics_path):
        shards.write_rows(evaluation.metrics(), metrics_path, METRICS)
    if work_to_do:
        if run.config.evaluate.cross_verify:
            with sums.noted(cross_path):
                shards.write_rows(evaluation.cross(), cross_path, CROSS)
        rows, counts = count_evals(stage.folder)
        if unscored := evaluation.unscored():
            counts["scores_not_finite"] = unscored
        items = {name: len(items) for name, items in benchmarks.items()}
        summary = {"items": items, "benchmarks": digests(benchmarks), **counts, **lost.close(), "engine": engine}
        stage.finish(shards.shard_paths(stage.folder), rows, summary)
    from evaluate.tables import metrics_table

    console.print(metrics_table(run.name, [round_]))
    found = decide(run, round_)
    if run.config.guard.action != "ignore":
        for line in found:
            console.print(f"[bold]collapse?[/bold] {line}")


def fingerprint(run: Run, policies: dict[str, Policy], benchmarks: dict[str, list[Item]]) -> dict[str, Any]:
    """What the evals depend on."""
    return {
        "config": digest(run.config.model_dump(mode="json", include=SECTIONS)),
        "benchmarks": digest({name: [vars(item) for item in items] for name, items in benchmarks.items()}),
        "policies": [policy.identity for policy in policies.values()],
        # "numbers" is older than fingerprints of kinds
        **own.kinds_fingerprint(*(b.answers for b in run.config.benchmarks if b.answers != "numbers")),
    }


def count_evals(folder: Path) -> tuple[int, dict[str, Any]]:
    """The number of rows of a finished stage, and the counts for its summary."""
    rows = tokens = not_fitting = 0
    verdicts: Counter[str] = Counter()
    for path in shards.shard_paths(folder):
        table = shards.read_table(path, EVALS, ["verdict", "finish_reason", "n_tokens"])
        rows += len(table)
        tokens += sum(table["n_tokens"].to_pylist())
        verdicts.update(table["verdict"].to_pylist())
        not_fitting += table["finish_reason"].to_pylist().count("context")
    return rows, {"tokens": tokens, "verdicts": dict(verdicts), "not_fitting_the_context": not_fitting}


def respond_to_all(run: Run, round_: int, policy: Policy, units: list[EvaluationUnit], advance: Advance) -> None:
    """Have a peer respond, in its process; its policy may be that of an earlier round (data/gate.py)."""
    Evaluation(run, round_, {}).respond_to(units, policy, advance)


class Evaluation:
    """One evaluate stage."""

    def __init__(self, run: Run, round_: int, benchmarks: dict[str, list[Item]]) -> None:
        self.run, self.round, self.benchmarks = run, round_, benchmarks
        self.folder = run.stage_dir(round_, "evals")
        self.work = self.folder / ".work"

    def units(self) -> Iterator[EvaluationUnit]:
        """All units, peer by peer."""
        size = self.run.config.run.shard_questions
        for peer in self.run.config.peer_names:
            for benchmark, items in self.benchmarks.items():
                for number, first in enumerate(range(0, len(items), size)):
                    yield EvaluationUnit(peer, benchmark, number, items[first : first + size])

    def files_of_unit(self, unit: Path) -> list[Path]:
        """The files to delete if a unit is redone: its own, and those made from its responses."""
        made = self.work.glob(f"*~{unit.name.removeprefix('responses~')}")
        return [unit, *shards.shard_paths(self.folder), *(made if unit.name.startswith("responses~") else ())]

    def respond(self, workers: Workers, policies: dict[str, Policy], lost: Quarantine) -> None:
        """Have every peer write its greedy and sampled responses."""
        k = self.run.config.evaluate.samples
        todo: dict[str, list[EvaluationUnit]] = {}
        total, done = Counter[str](), Counter[str]()
        for unit in self.units():
            total[unit.peer] += (k + 1) * len(unit.items)
            if unit.path(self.work, "responses").is_file():
                done[unit.peer] += (k + 1) * len(unit.items)
            else:
                todo.setdefault(unit.peer, []).append(unit)
        for peer, units in todo.items():
            most = max(len(unit.items) for unit in units)
            workers.submit(peer, respond_to_all, self.round, policies[peer], units=units, requests=(k + 1) * most)
        with task(f"evaluate round {self.round}, responses", total, "responses", done) as line:
            for job, _ in workers.results(line):
                lost.look(unit.path(self.work, "responses") for unit in job.units)

    def respond_to(self, units: list[EvaluationUnit], policy: Policy, advance: Advance) -> None:
        """Write the responses of units, one file per unit: sample 0 is greedy."""
        section, chain = self.run.config.evaluate, self.run.config.generate
        items = [(unit, item) for unit in units for item in unit.items]
        tokens = policy.prompts.all_of("solve", [(item.question, ()) for _, item in items])
        rows: dict[Path, list[ResponseRow]] = {unit.path(self.work, "responses"): [] for unit in units}
        lost: dict[Path, list[QuarantineRow]] = {path: [] for path in rows}
        engine = partial(policy_cache.engine, policy, self.run.config)
        greedy, drawn = [0], list(range(1, section.samples + 1))
        for numbers, sampling in (
            (greedy, Sampling(0.0, 1.0, chain.max_new_tokens, logprobs=False)),
            (drawn, Sampling(section.temperature, section.top_p, chain.max_new_tokens, logprobs=False)),
        ):
            requests = [(*each, ids, n) for each, ids in zip(items, tokens, strict=True) for n in numbers]
            seed = self.run.config.run.seed
            seeds = [request_seed(seed, self.round, u.peer, draw_key(i.question), n) for u, i, _, n in requests]
            faults = quarantine.allowed(self.run.config.runtime.quarantine_share, len(requests))
            completions = complete(
                engine, [ids for *_, ids, _ in requests], seeds, sampling, max_prompt_tokens(chain), advance, faults
            )
            for (unit, item, _, number), completion in zip(requests, completions, strict=True):
                if completion.error is not None:
                    why = quarantine.entry(item.id, "engine_error", completion.error, unit.peer, unit.benchmark)
                    lost[unit.path(self.work, "responses")].append(why)
                rows[unit.path(self.work, "responses")].append(
                    {
                        "benchmark": unit.benchmark,
                        "item_id": item.id,
                        "peer": unit.peer,
                        "sample": number,
                        "response": completion.text,
                        "finish_reason": completion.finish_reason,
                        "n_tokens": len(completion.token_ids),
                    }
                )
        for path, found in rows.items():
            quarantine.note(path, lost[path])
            shards.write_rows(found, path, RESPONSES)

    def verify(self, workers: Workers, policies: dict[str, Policy], lost: Quarantine) -> None:
        """Have all sampled responses scored: by the peer's policy of round 0, by its current one, and with
        `evaluate.cross_verify` by the other peers' current ones.

        The order saves loading: the language model of the current policy, which comes last, stays loaded for the next
        round's score; critiques are written by the engine of the responses, which has the current policy, so it comes
        first.
        """
        section, peers = self.run.config.evaluate, self.run.config.peer_names
        total, done = Counter[str](), Counter[str]()
        own = [FROZEN, CURRENT] if self.round else [CURRENT]  # in round 0 both are the same policy
        jobs = [(peer, kind, [peer]) for kind in own for peer in peers]
        if section.cross_verify:
            jobs += [(peer, cross_kind(peer), [other for other in peers if other != peer]) for peer in peers]
        untouched = resolve_all(self.run, 0)
        if section.verifier == "cot":
            jobs.sort(key=lambda job: job[1] == FROZEN)
        for verifier, kind, of in jobs:
            units = [unit for unit in self.units() if unit.peer in of]
            todo = [unit for unit in units if not unit.path(self.work, kind).is_file()]
            each = section.samples * sum(len(unit.items) for unit in units)
            total[verifier] += each
            done[verifier] += each - section.samples * sum(len(unit.items) for unit in todo)
            if todo:
                policy = untouched[verifier] if kind == FROZEN else policies[verifier]
                workers.submit(verifier, verify_all, self.work, policy, kind, units=todo)
        with task(f"evaluate round {self.round}, verifier", total, "responses", done) as line:
            for job, _ in workers.results(line):
                lost.look(unit.path(self.work, job.arguments[-1]) for unit in job.units)

    def assemble(self) -> None:
        """Grade the responses, join them with their verifier scores, and write the shards."""
        section, runtime = self.run.config.evaluate, self.run.config.runtime
        kinds = {benchmark.name: benchmark.answers for benchmark in self.run.config.benchmarks}
        with (
            Grader(section.answer_timeout_seconds, runtime.grader_workers) as grader,
            task(f"evaluate round {self.round}, grading", sum(1 for _ in self.units()), "shards") as line,
        ):
            for unit, path in self.parts():
                shards.write_rows(self.graded(unit, kinds[unit.benchmark], grader), path, EVALS)
                grader.forget()
                line.advance(1)

    def parts(self) -> Iterator[tuple[EvaluationUnit, Path]]:
        """All units, each with the finished shard that it becomes."""
        for number, unit in enumerate(self.units()):
            yield unit, self.folder / f"part-{number:05d}.parquet"

    def graded(self, unit: EvaluationUnit, kind: Any, grader: Grader) -> list[EvalRow]:
        """The rows of a unit with answers, verdicts, clusters and verifier scores."""
        items = {item.id: item for item in unit.items}
        responses = shards.rows_of(unit.path(self.work, "responses"), ResponseRow)
        current, frozen = (unit.verdicts(self.work, kind) for kind in (CURRENT, FROZEN if self.round else CURRENT))
        found = grader.find([(row["response"], items[row["item_id"]].question) for row in responses], kind)
        verdicts = grade(
            [
                (f, items[row["item_id"]].gold, row["finish_reason"] == "length")
                for f, row in zip(found, responses, strict=True)
            ],
            kind,
            grader,
        )
        rows: list[EvalRow] = []
        for row, extracted, verdict in zip(responses, found, verdicts, strict=True):
            score, critique = current[key_of(row)] if row["sample"] else (None, None)
            score_frozen, critique_frozen = frozen[key_of(row)] if row["sample"] else (None, None)
            rows.append(
                {
                    **row,
                    "question": items[row["item_id"]].question,
                    "answer": extracted.answer if extracted else None,
                    "gold": items[row["item_id"]].gold,
                    "correct": verdict == "correct",
                    "verdict": verdict,
                    "cluster": None,
                    "peer_agreement": None,
                    "verifier_score": score,
                    "verifier_score_frozen": score_frozen,
                    "critique": critique,
                    "critique_frozen": critique_frozen,
                    "extract_status": extracted.rule if extracted else "none",
                }
            )
        drawn: dict[str, list[EvalRow]] = {}
        self.note_agreement(unit, rows, kind, grader)
        for row in rows:
            if row["sample"]:
                drawn.setdefault(row["item_id"], []).append(row)
        # the last number of a calculation that was cut off is no vote
        votes = {
            id_: [None if row["verdict"] == "truncated" else row["answer"] for row in samples]
            for id_, samples in drawn.items()
        }
        compare_all(votes.values(), kind, grader)
        for id_, samples in drawn.items():
            for number, members in enumerate(clusters(votes[id_], kind, grader)):
                for index in members:
                    samples[index]["cluster"] = number
        return rows

    def note_agreement(self, unit: EvaluationUnit, rows: list[EvalRow], kind: Any, grader: Grader) -> None:
        """`peer_agreement` of the greedy rows: the share of the other peers whose greedy answer is equivalent."""
        others: dict[str, list[str | None]] = {}
        questions = {item.id: item.question for item in unit.items}
        for peer in self.run.config.peer_names:
            if peer != unit.peer:
                path = EvaluationUnit(peer, unit.benchmark, unit.shard, unit.items).path(self.work, "responses")
                theirs = [r for r in shards.rows_of(path, ResponseRow, RESPONSE_COLUMNS) if r["sample"] == 0]
                found = grader.find([(row["response"], questions[row["item_id"]]) for row in theirs], kind)
                for response, each in zip(theirs, found, strict=True):
                    others.setdefault(response["item_id"], []).append(each.answer if each else None)
        greedy = [row for row in rows if row["sample"] == 0]
        compare_all([[row["answer"], *others[row["item_id"]]] for row in greedy], kind, grader)
        for row in greedy:
            answers = others[row["item_id"]]
            pairs = [(row["answer"], other) for other in answers if other is not None and row["answer"] is not None]
            row["peer_agreement"] = sum(map(bool, grader.equivalent(pairs, kind))) / len(answers)

    def metrics(self) -> list[MetricsRow]:
        """One row per (benchmark, peer); the evals of one at a time are in memory."""
        section, seed = self.run.config.evaluate, self.run.config.run.seed
        found = []
        for _, parts in self.groups():
            rows = [row for _, path in parts for row in shards.rows_of(path, EvalRow, METRIC_COLUMNS)]
            found.append(metrics_row(rows, section, seed))
        return found

    def cross(self) -> list[CrossRow]:
        """One row per (benchmark, peer, verifier), the peer itself included; needs the units' work files."""
        section, seed = self.run.config.evaluate, self.run.config.run.seed
        found: list[CrossRow] = []
        for (peer, benchmark), parts in self.groups():
            rows = [r for _, path in parts for r in shards.rows_of(path, EvalRow, CROSS_COLUMNS) if r["sample"]]
            for verifier in self.run.config.peer_names:
                kind = CURRENT if verifier == peer else cross_kind(verifier)
                scores = {key: score for unit, _ in parts for key, score in unit.scores(self.work, kind).items()}
                seen: list[EvalRow] = [{**row, "verifier_score": scores[key_of(row)]} for row in rows]
                numbers = verifier_metrics(by_question(seen), section, seed)
                found.append({"benchmark": benchmark, "peer": peer, "verifier": verifier, **numbers})
        return found

    def unscored(self) -> dict[str, int]:
        """How many samples have no finite score, by peer, benchmark and verifier; needs the units' work files."""
        found: Counter[str] = Counter()
        names = {CURRENT: "", FROZEN: ", frozen verifier"}
        names |= {cross_kind(peer): f", verifier {peer}" for peer in self.run.config.peer_names}
        for unit, kind in product(self.units(), names):
            if unit.path(self.work, kind).is_file():
                scores = unit.scores(self.work, kind)
                missing = sum(scores[key] is None for key in unit.sampled(self.work)) if None in scores.values() else 0
                found[f"{unit.peer} on {unit.benchmark}{names[kind]}"] += missing
        return {who: count for who, count in found.items() if count}

    def groups(self) -> Iterator[tuple[tuple[str, str], list[tuple[EvaluationUnit, Path]]]]:
        """The parts of each (peer, benchmark)."""
        for key, parts in groupby(self.parts(), key=lambda part: (part[0].peer, part[0].benchmark)):
            yield key, list(parts)
