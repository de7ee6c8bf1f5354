"""The gate stage: is a new adapter used?

In round 0 every untouched peer answers the gate's questions k times and once greedily; the samples vote, each peer's
weighted by how often they agree with each other (data/answers/votes.py). In a later round each new adapter answers
greedily, and must agree with the votes about as often (rule.py) as the policy that it would replace, and as the
untouched peer. One that does not is refused: peers/policy.py goes on with the last accepted one.

The questions are unlabelled, and no gold answer is read. The unit of work is one peer on one shard of questions, a file
under `.work/` once it is done. All of the gate's questions are in memory at once: there are hundreds, not millions.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from data import gate, quarantine, shards
from data.answers import kinds, own
from data.answers.clusters import compare_all
from data.answers.grader import Grader, find_all
from data.answers.votes import consistency, reliability, voting_answer, weighted_vote
from data.console import console
from data.errors import UserError
from data.gate import Decision
from data.hashing import digest, draw_key, request_seed
from data.quarantine import Quarantine
from data.run import Run
from data.schema import GATE, GateResponseRow, GateRow, PromptRow, QuarantineRow, schema_of
from data.stage import Stage
from data.task import Advance, task
from peers import policy_cache
from peers.engines.protocol import Sampling, complete, engine_kind
from peers.lengths import check_questions, max_prompt_tokens
from peers.policy import Policy, prompts_of, resolve_all, resolve_trained
from peers.source import check_peers
from peers.workers import Workers
from train.gate.rule import DISCORDANT, compare_agreement, non_inferiority, power

GATE_COLUMNS = ("prompt_id", "peer", "sample", "vote", "vote_share", "agrees")
RESPONSES = schema_of(GateResponseRow)
# an answer of the winning cluster (None: no sample states one), its share of the votes
GateVote = tuple[str | None, float]
AgreementByQuestion = dict[str, bool]  # by question; those without a vote are left out


def main(run: Run, round_: int, workers: Workers) -> None:
    """Collect the votes (round 0) or judge the round's adapters, or go on where an earlier command stopped."""
    check_peers(run.config)
    engine_kind(run.config.generate)  # fails before the config is frozen
    stage, policies = prepared(run, round_)
    run.freeze(lambda: check_questions(run, prompts_of(policies)))
    if not stage.begin():
        return
    if round_ == 0:
        print_power(run)
    judging = Gate(run, round_, policies, stage)
    judging.respond(workers)
    with Grader(run.config.evaluate.answer_timeout_seconds, run.config.runtime.grader_workers) as grader:
        if round_ == 0:
            judging.vote(grader)
        else:
            judging.judge(grader)


def prepared(run: Run, round_: int) -> tuple[Stage, dict[str, Policy]]:
    """The stage, and the policies that answer in it. Raises UserError if the questions or the votes are missing."""
    folder = run.stage_dir(round_, gate.FOLDER)
    if shards.read_manifest(run.gate_dir) is None:
        raise UserError(f"{run.gate_dir}, the questions of the gate, is missing: begin a run under another name")
    if round_ == 0:
        policies = resolve_all(run, 0)
        return Stage("gate", 0, folder, fingerprint(run, policies)), policies
    votes = shards.read_manifest(run.stage_dir(0, gate.FOLDER))
    if votes is None:
        raise UserError("the untouched peers have not voted yet: run `make gate ROUND=0` first")
    policies, before = resolve_trained(run, round_), resolve_all(run, round_ - 1)
    known = {
        **fingerprint(run, policies),
        "votes": digest(votes["files"]),
        "before": [p.identity for p in before.values()],
    }
    return Stage("gate", round_, folder, known), policies


def fingerprint(run: Run, policies: dict[str, Policy]) -> dict[str, Any]:
    """What all rounds' gates depend on; `candidates` are the policies that answer."""
    limits = {"max_new_tokens", "context_tokens", "engine"}  # how the chains are made does not matter here
    sections: dict[str, Any] = {
        **dict.fromkeys(("run", "templates", "wordings", "peers", "gate"), True),
        "generate": limits,
    }
    config = run.config.model_dump(mode="json", include=sections)
    del config["gate"]["patience"]
    return {
        "config": digest(config),
        "questions": digest((shards.read_manifest(run.gate_dir) or {}).get("files")),
        "candidates": {name: policy.identity for name, policy in policies.items()},
        **own.kinds_fingerprint(run.config.prompts.answers),
    }


def print_power(run: Run) -> None:
    """Print the rule's power with the configured number of questions, before anything is spent on it."""
    section = run.config.gate
    found = power(section.questions, DISCORDANT, section)
    shares = ", ".join(f"{what} {100 * value:.0f} %" for what, value in found.items())
    console.print(
        f"  gate: {rule_name(run)} on {section.questions} questions; probabilities if {100 * DISCORDANT:g} % of "
        f"the answers differ (assumed): {shares}"
    )


def rule_name(run: Run) -> str:
    """The rule in force, for people."""
    section = run.config.gate
    return f"non-inferiority by {100 * section.margin:g} points" if non_inferiority(section) else "harm stop"


def answer_all(run: Run, round_: int, policy: Policy, units: list[int], advance: Advance) -> None:
    """Have a peer answer some shards of questions, in its process: greedily; in round 0 also with k samples. The
    responses to a shard are written as one file."""
    section, chain, sources = run.config.gate, run.config.generate, shards.shard_paths(run.gate_dir)
    questions = [(shard, row) for shard in units for row in shards.rows_of(sources[shard], PromptRow)]
    tokens = policy.prompts.all_of("solve", [(row["question"], ()) for _, row in questions])
    rows: dict[int, list[GateResponseRow]] = {shard: [] for shard in units}
    lost: dict[int, list[QuarantineRow]] = {shard: [] for shard in units}
    ways = [([0], Sampling(0.0, 1.0, chain.max_new_tokens, logprobs=False))]
    if round_ == 0:
        sampling = Sampling(section.temperature, section.top_p, chain.max_new_tokens, logprobs=False)
        ways.append((list(range(1, section.samples + 1)), sampling))
    for numbers, sampling in ways:
        requests = [(*each, ids, number) for each, ids in zip(questions, tokens, strict=True) for number in numbers]
        seeds = [
            request_seed(run.config.run.seed, round_, "gate", policy.name, draw_key(row["question"]), number)
            for _, row, _, number in requests
        ]
        engine = partial(policy_cache.engine, policy, run.config)
        faults = quarantine.allowed(run.config.runtime.quarantine_share, len(requests))
        completions = complete(
            engine, [ids for *_, ids, _ in requests], seeds, sampling, max_prompt_tokens(chain), advance, faults
        )
        for (shard, row, _, number), completion in zip(requests, completions, strict=True):
            found = kinds.of(run.config.prompts.answers).find(completion.text, row["question"])
            rows[shard].append(
                {
                    "prompt_id": row["id"],
                    "question": row["question"],
                    "peer": policy.name,
                    "sample": number,
                    "response": completion.text,
                    "answer": found.answer if found else None,
                    "finish_reason": completion.finish_reason,
                    "n_tokens": len(completion.token_ids),
                }
            )
            if completion.error is not None:
                lost[shard].append(quarantine.entry(row["id"], "engine_error", completion.error, policy.name))
    for shard, answered in rows.items():
        quarantine.note(unit_path(run, round_, policy.name, shard), lost[shard])
        shards.write_rows(answered, unit_path(run, round_, policy.name, shard), RESPONSES)


def unit_path(run: Run, round_: int, peer: str, shard: int) -> Path:
    """File of a peer's responses to a shard until the stage is finished."""
    return run.stage_dir(round_, gate.FOLDER) / ".work" / f"responses~{peer}~{shard:05d}.parquet"  # names contain no ~


class Gate:
    """One gate stage."""

    def __init__(self, run: Run, round_: int, policies: dict[str, Policy], stage: Stage) -> None:
        self.run, self.round, self.policies, self.stage = run, round_, policies, stage
        self.kind = run.config.prompts.answers
        self.sizes = [shards.row_count(path) for path in shards.shard_paths(run.gate_dir)]
        self.lost = Quarantine(run, stage, sum(self.sizes))

    def respond(self, workers: Workers) -> None:
        """Have the peers answer what they have not answered yet."""
        each = 1 if self.round else self.run.config.gate.samples + 1
        done: dict[str, int] = {}
        for name, policy in self.policies.items():
            todo = [n for n in range(len(self.sizes)) if not unit_path(self.run, self.round, name, n).is_file()]
            done[name] = each * (sum(self.sizes) - sum(self.sizes[n] for n in todo))
            if todo:
                requests = each * max(self.sizes[n] for n in todo)
                workers.submit(name, answer_all, self.round, policy, units=todo, requests=requests)
        total = dict.fromkeys(self.policies, each * sum(self.sizes))
        with task(self.stage.title, total, "responses", done) as line:
            for job, _ in workers.results(line):
                self.lost.look(unit_path(self.run, self.round, job.peer, n) for n in job.units)

    def responses(self, shard: int, grader: Grader) -> list[GateResponseRow]:
        """All peers' responses to a shard."""
        paths = [unit_path(self.run, self.round, name, shard) for name in self.policies]
        rows = [row for path in paths for row in shards.rows_of(path, GateResponseRow)]
        if kinds.is_own(self.kind):  # it runs in the grader's pool, which a peer's process does not have
            find_all(rows, self.kind, grader)
        return rows

    def vote(self, grader: Grader) -> None:
        """Round 0: the weighted vote of all peers' samples on every question."""
        rows = [row for shard in range(len(self.sizes)) for row in self.responses(shard, grader)]
        answers: dict[str, dict[str, list[str | None]]] = {name: defaultdict(list) for name in self.policies}
        for row in rows:
            if row["sample"]:
                answers[row["peer"]][row["prompt_id"]].append(voting_answer(row["answer"], row["finish_reason"]))
        questions = list(dict.fromkeys(row["prompt_id"] for row in rows))
        compare_all([[a for own in answers.values() for a in own[id_]] for id_ in questions], self.kind, grader)
        shares = {name: consistency(list(own.values()), self.kind, grader) for name, own in answers.items()}
        weights = {name: reliability(share) for name, share in shares.items()}
        votes: dict[str, GateVote] = {}
        for id_ in questions:
            ballots = [(answer, weights[name]) for name, own in answers.items() for answer in own[id_]]
            winners, share = weighted_vote([a for a, _ in ballots], [w for _, w in ballots], self.kind, grader)
            votes[id_] = (ballots[winners[0]][0] if winners else None, share)
        if not any(answer is not None for answer, _ in votes.values()):
            raise UserError(
                f"no sample of any peer states an answer to any of the {len(votes)} questions of the gate within "
                f"{self.run.config.generate.max_new_tokens} tokens, so there are no votes: raise "
                "generate.max_new_tokens, configure another kind of answers, or begin a run with gate.questions=0"
            )
        agreement = self.write(votes, {}, grader)
        found = self.counts(votes, agreement)
        self.finish(
            found,
            {
                "self_consistency": rounded(shares),
                "vote_weights": rounded(weights),
                "power": self.power(found["questions_with_a_vote"], DISCORDANT),
            },
        )

    def judge(self, grader: Grader) -> None:
        """A later round: decide which of its adapters are used."""
        section, used = self.run.config.gate, gate.in_use(self.run, self.round - 1)
        untouched, votes = self.earlier(0)
        earlier = {number: self.earlier(number)[0] for number in set(used.values())}
        before = {name: earlier[number][name] for name, number in used.items()}
        after = self.write(votes, {"agrees_before": before, "agrees_untouched": untouched}, grader)
        decisions = []
        for name, number in used.items():
            ids = list(after[name])
            others = {number: before[name], 0: untouched[name]}
            found = tuple(
                compare_agreement([theirs[id_] for id_ in ids], [after[name][id_] for id_ in ids], against, section)
                for against, theirs in others.items()
            )
            accepted = all(comparison.passed for comparison in found)
            decisions.append(Decision(name, self.round, found, self.round if accepted else number))
        counts = self.counts(votes, after)
        last = [decision.comparisons[0] for decision in decisions]
        n, discordant = counts["questions_with_a_vote"], fmean((c.gained + c.lost) / c.n for c in last)
        self.finish(
            counts,
            {
                "accepted": {decision.peer: decision.accepted for decision in decisions},
                "decisions": {decision.peer: decision.manifest() for decision in decisions},
                "power": self.power(n, discordant),
            },
        )
        for decision in decisions:
            if not decision.accepted:
                console.print(f"[bold]refused[/bold] {refusal_line(decision)}")

    def earlier(self, round_: int) -> tuple[dict[str, AgreementByQuestion], dict[str, GateVote]]:
        """A finished round: the agreement of each peer's greedy answers, and the votes."""
        agreement: dict[str, AgreementByQuestion] = {name: {} for name in self.policies}
        votes: dict[str, GateVote] = {}
        for path in shards.shard_paths(self.run.stage_dir(round_, gate.FOLDER)):
            for row in shards.rows_of(path, GateRow, GATE_COLUMNS):
                votes[row["prompt_id"]] = row["vote"], row["vote_share"]
                if row["sample"] == 0 and row["agrees"] is not None:
                    agreement[row["peer"]][row["prompt_id"]] = row["agrees"]
        return agreement, votes

    def write(
        self, votes: dict[str, GateVote], others: dict[str, dict[str, AgreementByQuestion]], grader: Grader
    ) -> dict[str, AgreementByQuestion]:
        """Write the shards; `others` has the agreement of other policies, by column. Returns that of greedy answers."""
        agreement: dict[str, AgreementByQuestion] = {name: {} for name in self.policies}
        for shard in range(len(self.sizes)):
            found, rows = self.responses(shard, grader), []
            pairs = [(voting_answer(row["answer"], row["finish_reason"]), votes[row["prompt_id"]][0]) for row in found]
            both = [(mine, vote) for mine, vote in pairs if mine is not None and vote is not None]
            equal = {pair for pair, same in zip(both, grader.equivalent(both, self.kind), strict=True) if same}
            for row, pair in zip(found, pairs, strict=True):
                vote, share = votes[row["prompt_id"]]
                agrees = None if vote is None else pair in equal
                if row["sample"] == 0 and agrees is not None:
                    agreement[row["peer"]][row["prompt_id"]] = agrees
                columns = {
                    column: others[column][row["peer"]].get(row["prompt_id"]) if column in others else None
                    for column in ("agrees_before", "agrees_untouched")
                }
                rows.append({**row, "vote": vote, "vote_share": share, "agrees": agrees, **columns})
            shards.write_rows(rows, self.stage.folder / f"part-{shard:05d}.parquet", GATE)
        return agreement

    def counts(self, votes: dict[str, GateVote], agreement: dict[str, AgreementByQuestion]) -> dict[str, Any]:
        """For the summary: how many questions, and the agreement of each peer's greedy answers with the votes."""
        return {
            "questions": len(votes),
            "questions_with_a_vote": sum(answer is not None for answer, _ in votes.values()),
            "agreement": rounded({name: fmean(found.values()) for name, found in agreement.items()}),
        }

    def power(self, n: int, discordant: float) -> dict[str, Any]:
        """For the manifest and the report; in round 0 `discordant` is an assumption."""
        found = power(n, discordant, self.run.config.gate)
        return {"n": n, "discordant": round(discordant, 4), "assumed": self.round == 0, "probabilities": found}

    def finish(self, counts: dict[str, Any], more: dict[str, Any]) -> None:
        """Finish the stage."""
        paths = shards.shard_paths(self.stage.folder)
        rows = sum(shards.row_count(path) for path in paths)
        engine = engine_kind(self.run.config.generate)
        self.stage.finish(
            paths, rows, {"rule": rule_name(self.run), **counts, **self.lost.close(), "engine": engine, **more}
        )


def rounded(shares: dict[str, float]) -> dict[str, float]:
    """Shares as manifests and summaries have them."""
    return {name: round(share, 4) for name, share in shares.items()}


def refusal_line(decision: Decision) -> str:
    """Why a peer's new adapter is not used, with the figures."""
    worst = next(comparison for comparison in decision.comparisons if not comparison.passed)
    other = f"round {worst.against}" if worst.against else "the untouched peer"
    goes_on = f"the adapter of round {decision.in_use}" if decision.in_use else "the untouched peer"
    return (
        f"by the gate: the adapter of round {decision.round} of {decision.peer} agrees with the votes in "
        f"{100 * worst.after:.1f} % of {worst.n} questions, {other} in {100 * worst.before:.1f} %: "
        f"{100 * worst.difference:+.1f} points ({100 * worst.low:+.1f} to {100 * worst.high:+.1f}). "
        f"{decision.peer} goes on with {goes_on}"
    )
