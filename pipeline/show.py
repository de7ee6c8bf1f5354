"""`python -m pipeline show RUN`: what a round did with a question, in the terminal.

Models may write anything: control characters are shown by name (data/visible.py), and no text is read as markup.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from data import shards
from data.cli import guarded, start
from data.console import console
from data.errors import UserError
from data.run import OUTPUT, Run, check_run, load_frozen
from data.visible import visible
from evaluate.page.chain_data import ChainView, LabelView, ResponseView, TrainingView
from evaluate.page.chains import one_chain, ordering, some_chains

VERDICT_STYLES = {True: ("right", "green"), False: ("wrong", "red")}


def view(chain: ChainView, run: str) -> Iterator[RenderableType]:
    """The parts of a chain, from top to bottom."""
    yield Text(f"run {run}, round {chain['round']}, question {chain['id']}", style="bold")
    yield _body(chain["question"])
    if chain["gold"] is not None:
        yield Text.assemble(("gold answer: ", "bold"), visible(chain["gold"]))
    for number, response in enumerate(chain["responses"], start=1):
        yield Text()
        yield _head_of_response(number, response)
        yield _body(response["text"] or "(nothing)")
    yield Text()
    if not chain["training"]:
        yield Text(f"round {chain['round']} is not scored yet: no label, no PMI, no weight")
        return
    yield from _labels(chain)
    yield from _training(chain)


def _body(text: str) -> RenderableType:
    return Padding(Text(visible(text), overflow="fold"), (0, 0, 0, 4), expand=False)


def _head_of_response(number: int, response: ResponseView) -> Text:
    head = Text.assemble((f"[{number}] ", "bold"), (response["peer"], "bold"), f", {_place(response)}: ")
    head.append_text(_answer(response["answer"], response["right"]))
    head.append(f"; {response['n_tokens']} tokens")
    if response["unfinished"]:
        head.append(f"; {response['unfinished']}")
    if response["is_aggregate"]:
        head.append("; the aggregate", style="bold")
    return head


def _place(response: ResponseView) -> str:
    if response["role"] == "chain":
        return f"position {response['position']}"
    if response["role"] == "sample":
        return f"sample {response['sample']}"
    return {"synthesis": "after all others", "solo": "asked alone"}.get(response["role"], response["role"])


def _answer(answer: str | None, right: bool | None) -> Text:
    found = Text("no answer" if answer is None else visible(answer))
    if answer is not None and right is not None:
        word, style = VERDICT_STYLES[right]
        found.append(" (").append(word, style=style).append(")")
    return found


def _labels(chain: ChainView) -> Iterator[Text]:
    for label in chain["labels"]:
        whose = "" if len(chain["labels"]) == 1 else f" of {', '.join(label['peers'])}"
        line = Text.assemble((f"label{whose}: ", "bold"))
        yield line.append_text(_label(label)).append(f": {chain['label_from']}")
    for vote in chain["votes"]:
        voters = ", ".join(f"{peer} {count}" for peer, count in vote["by"].items())
        votes = sum(vote["by"].values())
        line = Text(f"    {votes} vote{'' if votes == 1 else 's'} for ")
        yield line.append_text(_answer(vote["answer"], vote["right"])).append(f": {voters}")
    if chain["entropy"] is not None:
        yield Text(f"entropy of the answers: {chain['entropy']:.2f} nats")


def _label(label: LabelView) -> Text:
    if label["answer"] is None:
        return Text("none")
    found = _answer(label["answer"], label["right"])
    return found if label["share"] is None else found.append(f", {100 * label['share']:.0f} % of the votes")


def _training(chain: ChainView) -> Iterator[RenderableType]:
    """What each peer trains on; shows a text that several peers share once."""
    last: tuple[str | None, str] | None = None
    yield Text()
    for row in chain["training"]:
        if row["text"] is not None and last != (row["text_by"], row["text"]):
            if last:
                yield Text()
            where = "" if row["text_from"] is None else f" [{row['text_from'] + 1}]"
            yield Text.assemble(("text to train on", "bold"), f", of {row['text_by']}{where}:")
            yield _body(row["text"])
            last = (row["text_by"], row["text"])
        yield _head_of_training(row)
        if row["pmi"] is not None:
            yield _body(f"PMI {_nats(row['pmi'], '+')} nats{_measured(row)}")


def _head_of_training(row: TrainingView) -> Text:
    number = "" if row["number"] == 1 else f", text {row['number']}"
    line = Text.assemble((f"{row['peer']}{number}: ", "bold"))
    if row["dropped"] is not None:
        line.append(f"not trained on, since {row['dropped']}")
    elif row["weight"] is not None:
        line.append(f"weight {row['weight']:.2f}", style="bold")
    if row["kept"] is not None:
        line.append("; the oracle takes it, at weight 1" if row["kept"] else "; the oracle does not take it")
    if row["agrees"] is not None:
        line.append("; agrees with the label" if row["agrees"] else "; does not agree with the label")
    return line


def _measured(row: TrainingView) -> str:
    """How the PMI was computed: log p of the text with the peer's own response in view, and without it."""
    shown = ""
    if row["pmi_per_token"] is not None:
        shown += f", {_nats(row['pmi_per_token'], '+', 3)} for each of {row['n_target_tokens']} tokens"
    if row["logp_given_response"] is not None and row["logp_alone"] is not None:
        which = "" if row["measured"] is None else f" [{row['measured'] + 1}]"
        given, alone = _nats(row["logp_given_response"]), _nats(row["logp_alone"])
        shown += f": log p is {given} after its own response{which} and {alone} without it"
    return shown


def _nats(value: float, sign: str = "", digits: int = 2) -> str:
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no -0.0


def last_round(run: Run) -> int:
    """The last round with finished chains. Raises UserError if there is none."""
    paths = run.root.glob(f"round=*/{OUTPUT['generate']}/{shards.SUCCESS}")
    rounds = [int(path.parent.parent.name.split("=")[1]) for path in paths]
    if not rounds:
        raise UserError(f"run {run.name!r} has no chains yet: run `make generate RUN={run.name} ROUND=1` first")
    return max(rounds)


def chosen_chains(
    run: Run, round_: int, prompt: str | None, worst: bool, random: bool, number: int, seed: int | None
) -> list[ChainView]:
    """The requested chains. Without a choice: the worst if gold answers are known, else random ones. Raises UserError
    for several choices at once."""
    if (prompt is not None) + worst + random > 1:
        raise UserError("--prompt, --worst and --random each choose the questions: give only one of them")
    if prompt is not None:
        return [one_chain(run, round_, prompt)]
    if worst and run.config.evaluate.gold_column is None:
        raise UserError(
            f"--worst needs gold answers, and run {run.name!r} has none (evaluate.gold_column); --random shows some "
            "questions, --prompt one (RANDOM=3, PROMPT=id with make)"
        )
    if not random and (worst or run.config.evaluate.gold_column is not None):
        found = list(islice(ordering(run, round_, "worst"), number))
        if not found:
            raise UserError(f"round {round_} of run {run.name!r} trains on no question whose label is wrong")
    else:
        found = list(islice(ordering(run, round_, "random", seed), number))
    return some_chains(run, round_, found)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    help="Show what a round did with a question: each response, the label and the votes, and for each peer the text to "
    "train on with PMI and weight, or why there is none. Default: --worst if gold answers are known, else --random."
)
def command(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    number: Annotated[int, typer.Argument(min=1, help="How many questions, with --worst or --random.")] = 1,
    round_: Annotated[
        int | None, typer.Option("--round", min=1, help="Number of the round; default: the last one with chains.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The question's id, or its beginning.")] = None,
    worst: Annotated[
        bool, typer.Option("--worst", help="Show wrong labels, highest weight first; needs gold answers.")
    ] = False,
    random: Annotated[bool, typer.Option("--random", help="Show random questions.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of --random; default: the run's.")] = None,
) -> None:
    """`python -m pipeline show RUN --round R --prompt ID`."""

    def body() -> None:
        check_run(run)
        opened = Run(run, load_frozen(run))
        which = round_ or last_round(opened)
        for place, chain in enumerate(chosen_chains(opened, which, prompt, worst, random, number, seed)):
            if place:
                console.rule()
            for part in view(chain, run):
                console.print(part)

    guarded(body)


if __name__ == "__main__":
    start(app, "pipeline.show")
