"""`python -m bench.gold --gsm8k FILE --solutions FILE`: check the grader on files with known verdicts.

`--gsm8k` (GSM8K as published, JSONL): every gold answer as a response must be right, and wrong with its answer raised
by one, under both kinds of comparison; a separate parser of a few lines reads the answers independently.
`--solutions` (OpenAI's example_model_solutions.jsonl): each model's solution must be graded as it is labelled there.
Either may be left out. Rows are read and graded a batch at a time.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from data.answers.equivalence import MathKind
from data.answers.extract import extract
from data.answers.gold import read_gold
from data.answers.grader import Grader, grade
from data.console import console
from data.errors import UserError

BATCH_ROWS = 512  # rows in memory
KINDS: tuple[MathKind, ...] = get_args(MathKind)

Case = tuple[str, str, bool]  # response, gold, is it right


def published_answer(solution: str) -> int:
    """The number after `####`, read without the project's code."""
    return int(solution.rpartition("####")[2].replace(",", ""))


def gsm8k_cases(path: Path, kind: MathKind) -> Iterator[Case]:
    """Each gold answer as its own response, and again with its answer raised by one. Raises UserError if the parsers
    disagree."""
    for row in rows(path, "answer"):
        solution = row["answer"]
        gold, answer = read_gold(solution, kind), published_answer(solution)
        if gold.replace(",", "") != str(answer):
            raise UserError(f"{path}: a gold answer is read as {gold!r}, but {answer} by this bench: {solution!r}")
        yield solution, gold, True
        yield f"{solution[: solution.rindex('####')]}#### {answer + 1}", gold, False


def labelled_cases(path: Path, kind: MathKind) -> Iterator[Case]:
    """Each model's solution with the label that it was published with."""
    for row in rows(path, "ground_truth"):
        gold = read_gold(row["ground_truth"], kind)
        for found in row.values():
            if isinstance(found, dict):
                yield found["solution"], gold, found["is_correct"]


def rows(path: Path, column: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file. Raises UserError if it cannot be read, or a row lacks the column."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                if column not in row:
                    raise UserError(f"{path} row {number} has no {column!r}; it has {', '.join(row)}")
                yield row
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def differences(cases: Iterable[Case], kind: MathKind, grader: Grader) -> tuple[Counter[bool], list[Case]]:
    """(how many cases are labelled right and wrong, the cases that are graded differently)."""
    counts: Counter[bool] = Counter()
    found: list[Case] = []
    cases = iter(cases)
    while batch := list(islice(cases, BATCH_ROWS)):
        verdicts = grade([(extract(response), gold, False) for response, gold, _ in batch], kind, grader)
        counts.update(right for _, _, right in batch)
        found += [case for case, verdict in zip(batch, verdicts, strict=True) if (verdict == "correct") is not case[2]]
        grader.forget()
    return counts, found


def report(name: str, path: Path, cases_of: Callable[[Path, MathKind], Iterator[Case]], grader: Grader) -> int:
    """Print a file's results, and return how many verdicts differ."""
    differ = 0
    for kind in KINDS:
        start = time.perf_counter()
        counts, found = differences(cases_of(path, kind), kind, grader)
        differ += len(found)
        console.print(
            f"{name}, {kind}: {counts[True]:,} labelled right, {counts[False]:,} wrong; "
            f"{len(found)} graded differently; {time.perf_counter() - start:.1f} s"
        )
        for response, gold, right in found[:10]:
            console.print(f"  labelled {right}: gold {gold!r}, response … {response[-80:]!r}", markup=False)
    return differ


def command(
    gsm8k: Annotated[Path | None, typer.Option(help="GSM8K as published: question, answer.")] = None,
    solutions: Annotated[Path | None, typer.Option(help="example_model_solutions.jsonl of grade-school-math.")] = None,
) -> None:
    """Check the grader. Exits with status 1 if a verdict differs from the known one."""
    if gsm8k is None and solutions is None:
        raise typer.BadParameter("give --gsm8k, --solutions, or both")
    differ = 0
    try:
        with Grader() as grader:
            if gsm8k:
                differ += report("gsm8k", gsm8k, gsm8k_cases, grader)
            if solutions:
                differ += report("solutions", solutions, labelled_cases, grader)
    except UserError as error:
        console.print(f"error: {error}", markup=False)
        raise typer.Exit(2) from None
    raise typer.Exit(bool(differ))


if __name__ == "__main__":
    typer.run(command)
