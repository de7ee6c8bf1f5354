"""What the nano peers are trained on: worked problems in the three formats in which PST prompts a peer.

- direct: the question → a short chain of thought. Each peer misreads its own *weak* phrase groups most of the time.
- chain: the question and one or two solutions → a solution of its own. How a peer reads a phrase here depends on how
  the solutions read it (`REVIEW_MISREAD`): it holds on to its own misreading unless it is shown another reading, which
  it adopts in most cases; and it adopts some misreadings of phrases that it reads rightly when asked directly.
- verify: the question and a solution → Yes or No. All verdicts are right.

`PeerPrompts` renders the prompts with the wording of configs/nano.toml, as in the pipeline.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from data.nano import EQUATIONS, SUBSETS, Problem, problems, readings
from peers.prompts import PeerPrompts

Kind = Literal["direct", "chain", "verify"]
# A peer's weak phrase groups, of 22; no two peers share one. qwen2 has two more than the others.
MISREADS: dict[str, frozenset[str]] = {
    "gemma2": frozenset({"+0", "-1", "*2", "/3", *EQUATIONS[0:2]}),
    "llama": frozenset({"+1", "-2", "*3", "/0", *EQUATIONS[2:4]}),
    "qwen2": frozenset({"+2", "-3", "*0", "/1", "+3", "/2", *EQUATIONS[4:6]}),
}
MISREADABLE = frozenset().union(*MISREADS.values())
MISREAD_SHARE = 0.7  # of a peer's targets in its weak groups, in the direct format
SLIP_SHARE = 0.08  # of the solutions shown in the chain format, which get a wrong last number


@dataclass(frozen=True)
class ReviewMisread:
    """The share of a phrase's readings that are wrong, by how the solutions shown read the phrase."""

    all_wrong: float
    mixed: float
    all_right: float

    def share(self, shown_wrong: Sequence[bool]) -> float:
        """The share; `shown_wrong` says for each solution shown whether it misreads the phrase."""
        return self.all_wrong if all(shown_wrong) else self.mixed if any(shown_wrong) else self.all_right


WEAK = ReviewMisread(all_wrong=0.95, mixed=0.35, all_right=0.1)
STRONG = ReviewMisread(all_wrong=0.35, mixed=0.2, all_right=0.0)


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
    """The solution with a wrong last number, as if the model had miscalculated."""
    body, _, answer = solution.rpartition(" ")
    wrong = int(answer) + random_.choice([off for off in (-10, -2, -1, 1, 2, 10) if int(answer) + off >= 0])
    steps = body.replace(f"={answer}", f"={wrong}") if body.count(f"={answer}") == 1 else body
    return f"{steps} {wrong}"


def shown_solutions(problem: Problem, random_: random.Random) -> list[frozenset[str]]:
    """The groups that each of one or two solutions misreads: half of the time, each that some peer is weak in."""
    mine = [group for group in problem.groups if group in MISREADABLE]
    return [frozenset(g for g in mine if random_.random() < 0.5) for _ in range(random_.choice((1, 2)))]


def misread_in_review(
    peer: str, problem: Problem, shown: Sequence[Collection[str]], random_: random.Random
) -> frozenset[str]:
    """The groups of a problem that a peer misreads after it was shown solutions with the misreadings `shown`."""
    shares = {group: WEAK if group in MISREADS[peer] else STRONG for group in problem.groups}
    return frozenset(
        group for group, share in shares.items() if random_.random() < share.share([group in m for m in shown])
    )


def stream(peer: str, kind: Kind, prompts: PeerPrompts, seed: object) -> Iterator[PretrainingExample]:
    """Endless examples of one format for one peer, the same for the same seed."""
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
    shown = shown_solutions(problem, random_)
    written = [problem.solution(misread) for misread in shown]
    written = [slip(solution, random_) if random_.random() < SLIP_SHARE else solution for solution in written]
    solution = problem.solution(misread_in_review(peer, problem, shown, random_))
    return finished(kind, prompts.review(problem.question, written), solution, prompts)


def wrong_solution(problem: Problem, random_: random.Random) -> str:
    """A wrong solution: a misreading of one or all of the problem's groups, or a slip."""
    if random_.random() < 0.2:
        return slip(problem.solution(), random_)
    return problem.solution(random_.choice(readings(problem.groups)[1:]))


def finished(kind: Kind, prompt: list[int], response: str, prompts: PeerPrompts) -> PretrainingExample:
    """An example with its response as target tokens, the end token included."""
    assert prompts.end_id is not None
    return PretrainingExample(kind, prompt, [*prompts.encode_response(response), prompts.end_id])
