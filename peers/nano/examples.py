"""What the nano peers are made from: worked problems in the three formats in which a PST peer is asked.

- direct: the question → a short chain of thought. Here each peer *misreads* its own six phrase groups most of the time.
- chain: the question and one or two peers' solutions → the right solution. In some the decisive phrase uses a made-up
  verb, so that the solutions can only be weighed and not recomputed.
- verify: the question and a solution → Yes or No.

The prompts are rendered by `PeerPrompts` under the words of configs/nano.toml, as the pipeline renders them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from data.nano import EQUATIONS, MISREAD_AS, SUBSETS, Problem, Step, problems, readings
from peers.prompts import PeerPrompts

Kind = Literal["direct", "chain", "verify"]
# Six of the 22 phrase groups each, no two peers the same: one phrasing of every operation and two kinds of equations.
MISREADS: dict[str, frozenset[str]] = {
    "gemma2": frozenset({"+0", "-1", "*2", "/3", *EQUATIONS[0:2]}),
    "llama": frozenset({"+1", "-2", "*3", "/0", *EQUATIONS[2:4]}),
    "qwen2": frozenset({"+2", "-3", "*0", "/1", *EQUATIONS[4:6]}),
}
MISREAD_SHARE = 0.7  # of what a peer sees of its groups in the direct format
SLIP_SHARE = 0.08  # of candidate solutions, on top of misreadings: one wrong digit
MADE_UP_SHARE = 0.2  # of the chain examples
VERBS = ("glorps", "frindles", "wozzles", "plimmers", "skorbs", "trunkles", "dravels", "quints")


@dataclass(frozen=True)
class PretrainingExample:
    """Prompt and target tokens; the target ends with the end-of-turn token."""

    kind: Kind
    prompt: list[int]
    target: list[int]


def misread_by(peer: str, problem: Problem, random_: random.Random, share: float) -> tuple[str, ...]:
    """The phrase groups of a problem that a peer misreads this time."""
    mine = tuple(group for group in problem.groups if group in MISREADS[peer])
    return mine if random_.random() < share else ()


def slip(solution: str, random_: random.Random) -> str:
    """The solution with a wrong last number, as a model that miscalculates would write it."""
    body, _, answer = solution.rpartition(" ")
    wrong = int(answer) + random_.choice([off for off in (-10, -2, -1, 1, 2, 10) if int(answer) + off >= 0])
    steps = body.replace(f"={answer}", f"={wrong}") if body.count(f"={answer}") == 1 else body
    return f"{steps} {wrong}"


def candidate(problem: Problem, random_: random.Random) -> str:
    """A solution as some peer might propose it."""
    peer = random_.choice(list(MISREADS))
    solution = problem.solution(misread_by(peer, problem, random_, random_.choice((0.3, 1.0))))
    return slip(solution, random_) if random_.random() < SLIP_SHARE else solution


def made_up(problem: Problem, random_: random.Random) -> Problem:
    """The problem with a made-up verb in place of its last phrase: what it does cannot be known."""
    *before, last = problem.steps
    name, things = problem.question.split()[0], problem.question.split()[3].rstrip(".")
    sentences = problem.question.split(". ")
    sentences[2] = f"{name} {random_.choice(VERBS)} {last.n} {things}"
    return replace(problem, question=". ".join(sentences), steps=(*before, Step(last.op, "?", last.n)))


def stream(peer: str, kind: Kind, prompts: PeerPrompts, seed: object) -> Iterator[PretrainingExample]:
    """Endless examples of one format for one peer, the same ones for the same seed."""
    random_ = random.Random(f"{peer}/{kind}/{seed}")
    sources = {subset: problems(subset, "pretrain", f"{kind}/{seed}") for subset in SUBSETS}
    while True:
        yield example(kind, peer, next(sources[random_.choice(SUBSETS)]), prompts, random_)


def example(
    kind: Kind, peer: str, problem: Problem, prompts: PeerPrompts, random_: random.Random
) -> PretrainingExample:
    """One example in one format."""
    if kind == "direct":
        solution = problem.solution(misread_by(peer, problem, random_, MISREAD_SHARE))
        return finished(kind, prompts.solve(problem.question), solution, prompts)
    if kind == "verify":
        right = random_.random() < 0.5
        proposed = problem.solution() if right else wrong_solution(problem, random_)
        return finished(kind, prompts.verify(problem.question, proposed), "Yes" if right else "No", prompts)
    count = random_.choice((1, 2))
    if problem.subset == "arith" and random_.random() < MADE_UP_SHARE:
        problem = made_up(problem, random_)
        first, last = problem.steps
        other = replace(problem, steps=(first, replace(last, op=MISREAD_AS[last.op])))
        proposed_ = [problem.solution() if random_.random() < 0.75 else other.solution() for _ in range(count)]
        if problem.solution() not in proposed_:
            proposed_[random_.randrange(count)] = problem.solution()
    else:
        proposed_ = [candidate(problem, random_) for _ in range(count)]
    return finished(kind, prompts.review(problem.question, proposed_), problem.solution(), prompts)


def wrong_solution(problem: Problem, random_: random.Random) -> str:
    """A wrong solution: a misreading of one or all of the problem's groups, or a slip."""
    if random_.random() < 0.2:
        return slip(problem.solution(), random_)
    return problem.solution(random_.choice(readings(problem.groups)[1:]))


def finished(kind: Kind, prompt: list[int], response: str, prompts: PeerPrompts) -> PretrainingExample:
    """An example with its response as target tokens, the end token included."""
    assert prompts.end_id is not None
    return PretrainingExample(kind, prompt, [*prompts.encode_response(response), prompts.end_id])
