"""`python -m bench score|train|generate|limit|all|table`: PST and other systems on the same inputs."""

from __future__ import annotations

from typing import Annotated

import typer

from bench import parts
from bench import table as tables
from bench.inputs import PEERS
from bench.measure import RESULTS, Session
from data.console import console

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)
session = Session()

Model = Annotated[str, typer.Option(help=f"One of {', '.join(PEERS)}.")]
Repeats = Annotated[int, typer.Option(min=1, help="Alternating repeats.")]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens to score, prompts and targets together.")]
TheirTokens = Annotated[int, typer.Option(min=0, help="Tokens for the others, then extrapolated; 0: all.")]
Examples = Annotated[int, typer.Option(min=1, help="Examples to train on.")]
TheirExamples = Annotated[int, typer.Option(min=0, help="Examples for the others, then extrapolated; 0: all.")]
BatchSize = Annotated[str, typer.Option(help="lm-eval's batch size: a number or auto.")]
Worked = Annotated[
    bool, typer.Option("--worked-examples", help="Keep the config's worked examples: all prompts then begin alike.")
]


@app.command()
def score(
    model: Model = "nano",
    tokens: Tokens = 500_000,
    their_tokens: TheirTokens = 0,
    repeats: Repeats = 3,
    batch_size: BatchSize = "8",
    vllm: bool = True,
    worked_examples: Worked = False,
) -> None:
    """Score with PST, lm-evaluation-harness and vLLM's prompt_logprobs; on nano also compare with float64."""
    parts.Bench(session, model, worked_examples).score(tokens, their_tokens, repeats, batch_size, vllm)


@app.command()
def train(
    model: Model = "nano",
    examples: Examples = 2_000,
    their_examples: TheirExamples = 0,
    repeats: Repeats = 3,
    packing: bool = True,
    worked_examples: Worked = False,
) -> None:
    """Train with PST and with TRL's SFTTrainer, without and with packing; then compare the losses in float32."""
    parts.Bench(session, model, worked_examples).train(examples, their_examples, repeats, packing)


@app.command()
def generate(questions: Annotated[int, typer.Option(min=1, max=2000)] = 1_000, repeats: Repeats = 3) -> None:
    """The generate stage of a nano run, and a bare LLM.generate over the prompts of its chains."""
    parts.generate(session, questions, repeats)


@app.command()
def limit(model: Model = "nano", tokens: Tokens = 500_000, examples: Examples = 2_000) -> None:
    """This machine's GEMM rate at a model's shapes, and the time of these workloads at that rate. Not recorded."""
    bench = parts.Bench(session, model)
    bench.limit("score", bench.maker.score(tokens), record=False)
    bench.limit("train", bench.maker.train(examples), record=False)


@app.command()
def table() -> None:
    """Write the tables of docs/performance.md from the last session of every part and model."""
    tables.write(RESULTS)
    console.print(f"  wrote the tables of {RESULTS} into {tables.PAGE}")


@app.command("all")
def everything(
    repeats: Repeats = 3,
    tokens: Tokens = 500_000,
    their_tokens: TheirTokens = 60_000,
    examples: Examples = 2_000,
    their_examples: TheirExamples = 128,
    questions: int = 1_000,
) -> None:
    """Every part with every model, then the tables. On the quick nano peer the others get the whole workload, too."""
    for model in PEERS:
        bench = parts.Bench(session, model)
        small = model != "nano"
        bench.score(tokens, their_tokens if small else 0, repeats, "8", vllm=True)
        bench.train(examples, their_examples if small else 0, repeats, packing=True)
    parts.generate(session, questions, repeats)
    table()


if __name__ == "__main__":
    app(prog_name="python -m bench")
