"""What the gate decided, for reports: its table, the best round, its power, and, with gold answers, its errors.

Gold answers of the gate's questions (evaluate.gold_column) are read here, after the fact; the gate itself, in
train/gate/, never sees any.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from rich import box
from rich.markup import escape
from rich.table import Table

from data import gate, shards
from data.answers.grader import Grader
from data.answers.votes import voting_answer
from data.config.sections import Config
from data.console import console
from data.errors import UserError
from data.gate import Decision
from data.run import RUNS, Run, load_frozen
from data.schema import GateRow
from evaluate.labels import gold_by_id, source_has_changed

GATE_COLUMNS = ("prompt_id", "peer", "sample", "answer", "finish_reason")


def gate_rounds(run: str) -> list[int]:
    """Rounds whose gate stage is finished, in order; none if the run has no gate."""
    found = (RUNS / run).glob(f"round=*/{gate.FOLDER}/{shards.SUCCESS}")
    return sorted(int(path.parent.parent.name.split("=")[1]) for path in found)


def all_decisions(run: str) -> dict[int, dict[str, Decision]]:
    """{round ≥ 1: {peer: decision}} of the rounds that the gate has judged."""
    opened = Run(run, load_frozen(run))
    return {n: gate.decisions(opened, n) or {} for n in gate_rounds(run) if n}


def refused_notice(run: str) -> str:
    """The note in tables of metrics about refused adapters: the policy in use was evaluated instead."""
    lines = [
        f"round {n}: the gate refused {peer}'s adapter, so the figures are of its policy in use "
        + (f"(round {decision.in_use})" if decision.in_use else "(untouched)")
        for n, found in all_decisions(run).items()
        for peer, decision in found.items()
        if not decision.accepted
    ]
    return "".join(f"\n[bold]{escape(line)}[/bold]" for line in lines)


def gate_table(run: str) -> Table:
    """round × peer × compared policy: agreement with the votes before → after, its paired interval, the decision; with
    `evaluate.gold_column` also the share right by gold answers."""
    config = load_frozen(run)
    votes = shards.read_json(RUNS / run / "round=0" / gate.FOLDER / shards.SUCCESS)
    shares = ", ".join(f"{peer} {100 * share:.1f}" for peer, share in votes["self_consistency"].items())
    section, gold = config.gate, _gold_changes(run, config)
    sides = "two-sided" if votes["rule"] == "harm stop" else "whose lower end is the one-sided bound"
    level = 1 - section.level * (1 if votes["rule"] == "harm stop" else 2)
    title = (
        f"gate: agreement of greedy answers with the votes of the untouched peers, in %, on "
        f"{votes['questions_with_a_vote']} questions with a vote (of {votes['questions']}), without gold answers\n"
        f"rule: {votes['rule']}; change in points with the {100 * level:g} % paired interval ({sides})\n"
        f"the samples' agreement with each other in round 0, which weights the votes, in %: {shares}"
    )
    if gold:
        title += (
            "\nright by gold (evaluate.gold_column), on the same questions: a false accept is an accepted adapter "
            f"that loses more than {100 * section.margin:g} points, a false reject a refused one that does not"
        )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("round", "peer", "compared with"):
        table.add_column(name)
    for name in ("agreement", "change", "decision", *(("right by gold", "") if gold else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for peer, share in votes["agreement"].items():
        table.add_row("0", peer, "", _percent(share), "", "", *([""] * 2 if gold else []))
    for n, found in all_decisions(run).items():
        table.add_section()
        for peer, decision in found.items():
            for number, each in enumerate(decision.comparisons):
                change = f"{_points(each.difference)} ({_points(each.low)} to {_points(each.high)})"
                decided = "accepted" if decision.accepted else "refused" if not each.passed else "passed"
                right = gold.get((n, peer), ("", "")) if gold and number == 0 else ("", "") if gold else ()
                table.add_row(
                    str(n) if not number else "",
                    peer if not number else "",
                    f"round {each.against}",
                    f"{_percent(each.before)} → {_percent(each.after)}",
                    change,
                    decided,
                    *right,
                )
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0: no -0.0


def gate_notes(run: str) -> str:
    """Which round to ship, and the rule's power with that many questions."""
    lines = [best_round(run)]
    manifest = shards.read_json(RUNS / run / f"round={gate_rounds(run)[-1]}" / gate.FOLDER / shards.SUCCESS)
    power = manifest["power"]
    shares = ", ".join(f"{what} {100 * value:.0f} %" for what, value in power["probabilities"].items())
    known = "assumed" if power["assumed"] else "as in the last round"
    lines.append(
        f"probabilities of one comparison on {power['n']} questions, of which {100 * power['discordant']:.1f} % differ "
        f"({known}), by the normal approximation: {shares}"
    )
    return escape("\n".join(lines))


@dataclass(frozen=True)
class Best:
    """The round whose policies in use agree most with the votes, on average over peers."""

    round: int  # 0: the untouched peers
    agreement: float
    used: dict[str, int]  # {peer: the round whose adapter it has then; 0: none}


def best(run: str) -> Best:
    """The best round; of equal ones the earliest. A round in which nothing was accepted equals the one before it."""
    votes = shards.read_json(RUNS / run / "round=0" / gate.FOLDER / shards.SUCCESS)
    agreement: dict[str, float] = dict(votes["agreement"])  # of each peer's policy in use
    found = Best(0, fmean(agreement.values()), dict.fromkeys(agreement, 0))
    for n, decided in all_decisions(run).items():
        for peer, decision in decided.items():
            if decision.accepted:
                agreement[peer] = decision.comparisons[0].after
        mean = fmean(agreement.values())
        if any(decision.accepted for decision in decided.values()) and mean > found.agreement:
            found = Best(n, mean, {peer: decision.in_use for peer, decision in decided.items()})
    return found


def best_round(run: str) -> str:
    """`best` in words."""
    found = best(run)
    mean = f"{100 * found.agreement:.1f} %"
    if found.round == 0:
        return f"best round by the gate: 0, the untouched peers (mean agreement {mean})"
    where = ", ".join(f"{peer}: round {n}" if n else f"{peer}: untouched" for peer, n in found.used.items())
    return f"best round by the gate: {found.round} (mean agreement {mean}; adapters of {where})"


def _gold_changes(run: str, config: Config) -> dict[tuple[int, str], tuple[str, str]]:
    """{(round, peer): (share of right greedy answers before → after, whether the decision was false)}; empty if the
    gate's questions have no gold answers, or the source has changed."""
    if config.evaluate.gold_column is None:
        return {}
    opened, judged = Run(run, config), all_decisions(run)
    try:
        if source_has_changed(opened):
            raise UserError(f"{config.prompts.source} has changed since the run drew its questions")
        gold = gold_by_id(config)
        with Grader(config.evaluate.answer_timeout_seconds, config.runtime.grader_workers) as grader:
            right = {n: _right(opened, n, gold, grader) for n in (0, *judged)}
    except UserError as error:  # say, a missing source: a report does not need it
        console.print(f"the gate's table has no gold answers: {error}", markup=False, soft_wrap=True)
        return {}
    found = {}
    for n, decisions in judged.items():
        for peer, decision in decisions.items():
            before, after = right[decision.comparisons[0].against][peer], right[n][peer]
            harmed = before - after > config.gate.margin
            false = "false accept" if harmed and decision.accepted else ""
            false = "false reject" if not harmed and not decision.accepted else false
            found[n, peer] = (f"{_percent(before)} → {_percent(after)}", false)
    return found


def _right(run: Run, round_: int, gold: dict[str, str], grader: Grader) -> dict[str, float]:
    """{peer: share of its greedy answers to the gate's questions that are right}."""
    paths = shards.shard_paths(run.stage_dir(round_, gate.FOLDER))
    rows = [row for path in paths for row in shards.rows_of(path, GateRow, GATE_COLUMNS) if row["sample"] == 0]
    if any(row["prompt_id"] not in gold for row in rows):  # a dataset of the hub can change unseen
        raise UserError("prompts.source no longer has all questions of the gate")
    pairs = [(voting_answer(row["answer"], row["finish_reason"]), gold[row["prompt_id"]]) for row in rows]
    stated = [(answer, right) for answer, right in pairs if answer is not None]
    same = grader.matches(stated, run.config.evaluate.gold_answers)
    equal = {pair for pair, verdict in zip(stated, same, strict=True) if verdict}
    peers: dict[str, list[bool]] = {}
    for row, pair in zip(rows, pairs, strict=True):
        peers.setdefault(row["peer"], []).append(pair in equal)
    return {peer: fmean(found) for peer, found in peers.items()}
