"""`python -m pipeline.first_look --config FILE`: ask the peers eight of a run's questions before the run starts.

It trains nothing, freezes no config and leaves no run; converted models stay in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.filesize import decimal
from rich.table import Table

from data.answers.extract import Extracted
from data.answers.grader import Grader
from data.cli import guarded, quiet_environment, start
from data.config.form import form_warnings
from data.config.load import load_config
from data.config.sections import Config
from data.console import console
from data.run import Run
from data.selection import choose_prompts
from data.task import task
from evaluate.benchmarks import load_benchmarks
from evaluate.tables import points
from generate.asking import Question, asking_of
from peers.engines.protocol import Completion
from peers.placement import Placement, placement_of
from pipeline.probe import Probe, probe
from pipeline.projection import COMMAND, Cost, RoundWork, project
from pipeline.unrecorded import untouched_peers

ENDED = {
    "stop": "ended by itself",
    "length": "cut off by the token limit",
    "context": "not asked: the prompt is too long",
}

FURTHER_QUESTIONS = 512  # further questions, not shown, to measure large batches


def probe_peers(
    config: Config, questions: list[str], timing_questions: list[str], what: str = "try"
) -> tuple[dict[str, Probe], Placement]:
    """Each peer's probe, and the placement used."""
    k = config.evaluate.samples
    placement = placement_of(Run(what, config))
    total = dict.fromkeys(config.peer_names, len(questions) * (1 + k))
    with untouched_peers(config, what) as (workers, policies):
        for name in config.peer_names:
            workers.submit(name, probe, policies[name], questions, timing_questions, k, peers_at_once(placement, name))
        with task(what, total, "responses") as line:
            found = {job.peer: result for job, result in workers.results(line)}
        return {name: found[name] for name in config.peer_names}, placement


def peers_at_once(placement: Placement, peer: str) -> int:
    """How many peers work on this peer's device at the same time, including itself."""
    mine = placement.slots_of(peer)[0]
    here = {slot.peer for slot in placement.slots if slot.device == mine.device and slot.replica == 0}
    return 1 if placement.takes_turns(mine) else len(here)


def devices_of(placement: Placement) -> dict[str, list[str]]:
    """{peer: the devices of its replicas}."""
    return {slot.peer: [each.device.name for each in placement.slots_of(slot.peer)] for slot in placement.slots}


def work_of(config: Config, questions: int, items: int) -> RoundWork:
    """The most work that round 1 gives each peer: rows that score may drop are included."""
    peers, asking, score = config.peer_names, asking_of(config, 1), config.score
    any_question = Question("", "", 0, peers)
    responses = sum(asking.asks(turn, rater, any_question) for turn in asking.turns for rater in config.raters)
    others = 0.0 if config.generate.alone else 1 - 1 / len(peers)  # share of aggregates that another peer wrote
    passes, examples = 2 * others, 1.0 if config.generate.alone or score.train_final else others
    if score.trains_on_samples:
        most = config.generate.samples
        examples = float(most if score.text == "samples" else min(score.solutions, most))
        passes = 2 * examples * score.needs_solo
    return RoundWork(
        questions=questions,
        responses=responses / len(peers),
        passes=passes,
        examples=examples,
        epochs=config.train.epochs,
        items=items,
        samples=config.evaluate.samples,
        gate=config.gate.questions,
        votes=config.gate.samples,
    )


def answers_of(
    config: Config, questions: Sequence[str], probes: Mapping[str, Probe]
) -> dict[str, list[Extracted | None]]:
    """The answers in each peer's responses: greedy ones first, then k samples per question."""
    kind, k = config.prompts.answers, config.evaluate.samples
    repeated = [*questions, *(question for question in questions for _ in range(k))]
    with Grader(config.evaluate.answer_timeout_seconds, config.runtime.grader_workers) as grader:
        texts = {name: [each.text for each in (*found.greedy, *found.samples)] for name, found in probes.items()}
        return {name: grader.find(list(zip(mine, repeated, strict=True)), kind) for name, mine in texts.items()}


def print_probes(
    name: str, questions: Sequence[str], found: Probe, answers: Sequence[Extracted | None], every: bool
) -> None:
    """Print a peer's prompts, responses and their answers; `every`: all prompts and a review."""
    console.print(f"\n[bold]peer {name}[/bold]")
    for number, prompt in enumerate(found.prompts[: None if every else 1], start=1):
        _block(f"prompt {number}, as the model reads it", prompt)
    if every:
        _block("a review of question 1, with its own response in view", found.review)
    for number, (question, response) in enumerate(zip(questions, found.greedy, strict=True), start=1):
        answer = answers[number - 1]
        _block(f"question {number}", question)
        _block("response", response.text)
        shown = f"answer {answer.answer!r} (rule {answer.rule})" if answer else "no answer found"
        _say(f"{shown}; {len(response.token_ids)} tokens, {ENDED[response.finish_reason]}")


def _block(title: str, text: str) -> None:
    console.print(f"[dim]{title}:[/dim]")
    _say(text)


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def rates_table(probes: Mapping[str, Probe], answers: Mapping[str, Sequence[Extracted | None]], k: int) -> Table:
    """Per peer: loading, speed, lengths, shares of responses that were cut off or have no answer."""
    title = f"measured on greedy responses and k = {k} samples a question; tokens/s as if alone, loading not counted"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("peer")
    for name in ("loading", "tokens/s", "read, tokens/s", "prompt", "response", "cut off", "no answer"):
        table.add_column(name, justify="right")
    for name, found in probes.items():
        rates, every = found.rates, [*found.greedy, *found.samples]
        table.add_row(
            name,
            f"{rates.engine_seconds:.0f} + {rates.model_seconds:.0f} s",
            f"{rates.decode_rate:,.0f}",
            f"{rates.forward_rate:,.0f}",
            f"{rates.prompt_tokens:.0f} tokens",
            f"{rates.response_tokens:.0f} tokens",
            f"{points(_share(every, 'length'))} %",
            f"{points(sum(each is None for each in answers[name]) / len(every))} %",
        )
    return table


def _share(responses: Sequence[Completion], reason: str) -> float:
    return sum(each.finish_reason == reason for each in responses) / len(responses)


def projection_table(work: RoundWork, costs: Mapping[str, Cost], turns: bool) -> Table:
    """Time and disk per stage, then of round 1 and of each further round."""
    title = (
        f"projected for {work.questions:,} questions, {work.items:,} benchmark questions with k = {work.samples}, "
        f"peers {'in turns' if turns else 'side by side'}"
    )
    console.print(title)  # rich wraps a table's own title to its width
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("stage")
    for name in ("time", "disk", "and for a while"):
        table.add_column(name, justify="right")
    names = {"baseline": "evaluate, round 0", "votes": "gate, round 0"}
    for stage, cost in costs.items():
        while_ = decimal(round(cost.temporary)) if cost.temporary else ""
        table.add_row(names.get(stage, stage), short_duration(cost.seconds), decimal(round(cost.bytes)), while_)
    table.add_section()
    for name, left_out in (("make round ROUND=1", ()), ("each further round", ("baseline", "votes"))):
        counted = [cost for stage, cost in costs.items() if stage not in left_out]
        table.add_row(
            name,
            short_duration(sum((cost.seconds for cost in counted), COMMAND if not left_out else 0.0)),
            decimal(round(sum(cost.bytes for cost in counted))),
            decimal(round(max(cost.temporary for cost in counted))),
        )
    return table


def short_duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if 0 < seconds < 1:
        return "< 1 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    help="Ask each peer some of the run's questions: print exact prompts, responses, speed, and the time and disk of "
    "a round. Nothing is trained or frozen."
)
def command(
    config: Annotated[Path, typer.Option(help="TOML config.")],
    questions: Annotated[int, typer.Option(min=1, max=1000, help="How many of the run's first questions.")] = 8,
    every: Annotated[bool, typer.Option("--all", help="Print all prompts, and one of a review.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override; repeatable.")] = None,
) -> None:
    """`python -m pipeline.first_look --config FILE`."""
    quiet_environment()

    def body() -> None:
        resolved = load_config(config, set_ or [])
        all_questions = list(choose_prompts(resolved).questions.values())
        items = sum(map(len, load_benchmarks(resolved).values()))
        shown = all_questions[:questions]
        probes, placement = probe_peers(resolved, shown, all_questions[questions : questions + FURTHER_QUESTIONS])
        answers = answers_of(resolved, shown, probes)
        for name, found in probes.items():
            print_probes(name, shown, found, answers[name], every)
        console.print()
        for line in form_warnings(resolved):
            _say(f"warning: {line}")
        work = work_of(resolved, len(all_questions), items)
        console.print(rates_table(probes, answers, resolved.evaluate.samples))
        costs = project(work, {name: each.rates for name, each in probes.items()}, devices_of(placement))
        console.print(projection_table(work, costs, bool(placement.turns)))

    guarded(body)


if __name__ == "__main__":
    start(app, "pipeline.first_look")
