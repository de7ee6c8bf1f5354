r"""The form of worked examples: a peer copies the form that a review shows it, so it should be that of solving. Pure.

A form is how a response announces its final answer (\boxed, ####, the words before it), and whether it has one line or
several.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from data.answers import kinds
from data.config.sections import Config, TemplateSection

COMPARED_CHARACTERS = 30  # characters before an answer that are compared


@dataclass(frozen=True)
class Form:
    """How a response announces its answer, and whether it has several lines."""

    announced: str
    several_lines: bool

    def __str__(self) -> str:
        return f"{self.announced}, {'several lines' if self.several_lines else 'one line'}"


def form_of(response: str, kind: kinds.AnswerKindName = "math", question: str = "") -> Form:
    """The form of a response to a question; digits in the words before the answer are masked."""
    several, found = "\n" in response.strip(), kinds.of(kind).find(response, question)
    if found is None:
        return Form("no answer", several)
    if found.rule == "boxed":
        return Form("\\boxed{}", several)
    if found.rule == "hashes":
        return Form("####", several)
    if found.guessed:
        return Form("a last number", several)
    if found.rule == "last_line":
        return Form("a last line", several)
    before = re.split(r"\n|[.!?]\s", response[: found.start])[-1].strip().lower()
    words = before[before.rfind("answer") :] if "answer" in before else before
    return Form(repr(re.sub(r"\d", "#", words)[-COMPARED_CHARACTERS:]), several)


def review_differs(wording: TemplateSection, kind: kinds.AnswerKindName = "math") -> str | None:
    r"""How the form in reviews differs from that in solving: by worked examples, or because only one of the two
    requests asks for \boxed; None if it does not."""
    forms = [(bool(each.solutions), form_of(each.response, kind, each.question)) for each in wording.examples]
    solve, review = ({form for reviews, form in forms if reviews is which} for which in (False, True))
    if solve and review - solve:
        found, expected = (" / ".join(sorted(map(str, some))) for some in (review - solve, solve))
        return f"its worked examples with solutions have another form ({found}) than those without ({expected})"
    boxed = ["\\boxed" in text for text in (wording.instruction, wording.review)]
    if boxed[0] != boxed[1]:
        names = ("instruction", "review") if boxed[0] else ("review", "instruction")
        return f"{names[0]} asks for \\boxed{{}} and {names[1]} does not"
    return None


def form_warnings(config: Config) -> list[str]:
    """A line for each wording in use whose review differs in form; none if no peer reviews."""
    if config.generate.alone or not config.score.needs_aggregate:
        return []
    in_use: dict[str, TemplateSection] = {}
    for peer in config.peers:
        name = f"{peer.name}'s templates" if peer.templates else config.wording_name(peer)
        in_use[name] = config.templates_of(peer)
    differ = {name: review_differs(wording, config.prompts.answers) for name, wording in in_use.items()}
    return [
        f"wording {name}: {how}; a peer copies the form that a review shows it, so make both end alike"
        for name, how in differ.items()
        if how
    ]
