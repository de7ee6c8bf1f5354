"""The inputs of all systems: prompts and targets in tokens, made from the project's own questions and templates.

Deterministic by seed. A question gets a right solution and two more that may misread a phrase, as in a real round. For
the nano peers solutions are in the nano notation; for real models the same lines are put into words.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.config.load import load_config
from data.config.sections import Config
from data.nano import Problem, problems, readings
from peers.prompts import PeerPrompts

Tokens = tuple[list[int], list[int]]  # prompt, target

PEERS = {"nano": ("nano", "llama"), "smollm2": ("pocket", "smollm2"), "gemma3": ("pocket", "gemma3")}
RESPONSES = 2  # per question, compared with the aggregate
WORDS = {
    "+": "Adding {b} to {a} gives {a} + {b} = {c}.",
    "-": "Taking {b} away from {a} leaves {a} - {b} = {c}.",
    "*": "{b} times {a} makes {a} * {b} = {c}.",
    "/": "{a} divided into {b} equal parts is {a} / {b} = {c}.",
}
CHECK = " We check it: {a} {op} {b} is {c}."


def configuration(model: str, worked_examples: bool) -> tuple[Config, str]:
    """The config and the peer's name for a model; without worked examples unless requested."""
    name, peer = PEERS[model]
    config = load_config(Path("configs") / f"{name}.toml", [])
    if not worked_examples:
        templates = config.templates.model_copy(update={"examples": (), "verify_examples": ()})
        config = config.model_copy(update={"templates": templates})
    return config, peer


def stream(seed: int) -> Iterator[Problem]:
    """Endless nano questions of the training split, from both subsets in turn."""
    both = problems("arith", "train", seed), problems("simul", "train", seed)
    while True:
        yield from map(next, both)


def in_words(problem: Problem, misread: Sequence[str], check: bool) -> str:
    """A solution in sentences; `check` says every line twice, which makes it about as long as a model's."""
    lines, answer = problem.worked(misread)
    text = ""
    for line in lines:
        left, _, c = line.partition("=")
        op = next(sign for sign in WORDS if sign in left)
        a, b = left.split(op)
        text += (WORDS[op] + (CHECK if check else "")).format(a=a, b=b, c=c, op=op) + "\n"
    return f"{text}The answer is {', '.join(map(str, answer))}."


class Maker:
    """Makes the inputs of one peer; `words`: solutions in words, for a real model."""

    def __init__(self, prompts: PeerPrompts, words: bool, seed: int) -> None:
        self.prompts, self.words, self.seed = prompts, words, seed

    def solution(self, problem: Problem, misread: Sequence[str], check: bool) -> str:
        """A solution's text."""
        return in_words(problem, misread, check) if self.words else problem.solution(misread)

    def target(self, text: str) -> list[int]:
        """A solution as target tokens, with the end token."""
        end = self.prompts.end_id
        assert end is not None
        return [*self.prompts.encode_response(text), end]

    def score(self, tokens: int) -> list[Tokens]:
        """Pairs with `tokens` tokens or a few more: the aggregate after x alone, and after x and each response."""
        random_ = random.Random(f"bench/{self.seed}")
        pairs: list[Tokens] = []
        total = 0
        for problem in stream(self.seed):
            target = self.target(self.solution(problem, (), check=True))
            shown = [random_.choice(readings(problem.groups)) for _ in range(RESPONSES)]
            solutions = [(), *((self.solution(problem, misread, check=True),) for misread in shown)]
            pairs += [(self.prompts.solve(problem.question, given), target) for given in solutions]
            total += sum(len(p) + len(t) for p, t in pairs[-len(solutions) :])
            if total >= tokens:
                break
        return pairs

    def train(self, examples: int) -> list[Tokens]:
        """Training examples: the right solution after x alone."""
        chosen = [problem for problem, _ in zip(stream(self.seed), range(examples), strict=False)]
        return [(self.prompts.solve(p.question), self.target(self.solution(p, (), check=False))) for p in chosen]

    def train_alike(self, examples: int) -> list[Tokens]:
        """Training examples with targets of one length: a mean over examples is then a mean over tokens."""
        made = self.train(examples * 12)
        (length, n), *_ = Counter(len(target) for _, target in made).most_common(1)
        assert n >= examples, f"only {n} of {len(made)} targets have {length} tokens"
        return [pair for pair in made if len(pair[1]) == length][:examples]
