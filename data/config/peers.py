"""Sections that say who answers, and in which words it is asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from data.config.base import Name, PlacedSection, Section, Text


class Example(Section):
    """One worked example for the prompt."""

    question: Text = Field(description="The question.")
    solutions: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Earlier solutions shown with it (review and verify examples); empty for a plain example.",
    )
    response: Text = Field(description="The response the model is shown as the right way to answer.")


class TemplateSection(Section):
    """Wording of the prompts, and worked examples."""

    instruction: str = Field(
        "Solve the problem step by step. Put the final answer in \\boxed{}.",
        description="Asks for a solution to the question alone.",
    )
    review: str = Field(
        "Others have proposed the solutions below; any of them may be wrong. Judge them, then solve the problem "
        "yourself step by step. Put the final answer in \\boxed{}.",
        description="Asks for an own solution after earlier ones (chain positions 2 and later).",
    )
    synthesis: str = Field(
        "Below are several solutions to the problem; any of them may be wrong. Write the final solution step by "
        "step. Put the final answer in \\boxed{}.",
        description="Asks for the final solution from all of them (aggregate = 'synthesis').",
    )
    verify: Text = Field(
        "Is the proposed solution correct? Answer Yes or No.", description="Asks the verifier for Yes or No."
    )
    verify_cot: Text = Field(
        "Check the proposed solution step by step in a few short sentences: is every step right, and does it answer "
        'the question? Then write a last line that is only "Yes" if it is correct or only "No" if it is not.',
        description="Asks the verifier for a critique that ends in Yes or No (verifier = 'cot').",
    )
    examples: tuple[Example, ...] = Field(
        (),
        strict=False,
        description="Worked examples; those with solutions are shown in review prompts, the others elsewhere.",
    )
    verify_examples: tuple[Example, ...] = Field(
        (),
        strict=False,
        description="Worked examples for the verifier: one solution each, response Yes or No. Not shown where it "
        "writes a critique.",
    )


def _items(value: Any) -> Any:
    """A table as pairs, which can be told apart and hashed."""
    if isinstance(value, Mapping):
        value = tuple(sorted(value.items()))
    if not isinstance(value, tuple) or not all(isinstance(each, (bool, int, float, str)) for _, each in value):
        raise ValueError("must be a table of names with texts, numbers, true or false: { enable_thinking = false }")
    return value


Arguments = Annotated[tuple[tuple[str, Any], ...], BeforeValidator(_items), PlainSerializer(dict)]


class PeerSection(PlacedSection):
    """One peer: a base model and how to talk to it."""

    name: str = Name
    model: Text | Annotated[tuple[Text, ...], Field(min_length=1, strict=False)] = Field(
        description="Hub name, model directory, GGUF file, or package:MODULE/FILE for a file inside an installed "
        "package; a list is one GGUF file in pieces."
    )
    revision: Text | None = Field(None, description="Revision, for a hub name.")
    adapter: Text | None = Field(
        None,
        exclude_if=lambda adapter: adapter is None,
        description="LoRA adapter that the peer starts from: a folder that peft has saved (runs/<run>/round=<R>/"
        "adapters/<peer>, say), or a hub name. It is merged into the model once; the run trains a new one on top.",
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9A-Fa-f]{64}$",
        description="SHA-256 of a GGUF file, of its pieces joined; another file is refused.",
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Type of the weights in use.")
    template: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="The tokenizer's chat template or the plain one; auto: chat where the tokenizer has one.",
    )
    template_arguments: Arguments = Field(
        (),
        exclude_if=lambda given: not given,
        description="Table of what the chat template is told at each call, such as `{ enable_thinking = false }`.",
    )
    show_thoughts: bool = Field(
        False,
        exclude_if=lambda on: not on,
        description="Whether this peer is shown what others wrote in `<think>…</think>` before their answers, too: in "
        "reviews, in the PMI, as verifier.",
    )
    train_thoughts: bool = Field(
        False,
        exclude_if=lambda on: not on,
        description="Whether this peer is trained on the thought of a response, too (and the PMI is of both); else on "
        "what follows it, after an empty thought where its template has one.",
    )
    stop: tuple[str, ...] | None = Field(
        None,
        strict=False,
        description="Strings that end a response; default: none for chat, '\\nQuestion:' for plain.",
    )
    templates: TemplateSection | None = Field(None, description="This peer's own wording, instead of [templates].")
    wording: str | None = Field(
        None,
        exclude_if=lambda name: name is None,
        description="Name of this peer's wording, instead of [templates]: of a table [wordings.NAME] with the same "
        "keys, which have the same defaults where it leaves them out.",
    )

    @model_validator(mode="after")
    def _one_wording(self) -> PeerSection:
        if self.templates is not None and self.wording is not None:
            raise ValueError(
                f"peer {self.name} has both templates and wording {self.wording!r}; expected one of them at most: "
                "leave the other out"
            )
        return self

    @field_validator("stop")
    @classmethod
    def _stops_have_something_to_stop_at(cls, stop: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if any(not text.strip(" \t") for text in stop or ()):  # a line break is no blank: base models may stop at one
            raise ValueError(
                "has a string that is empty or blank, which would end every response at its beginning or after "
                "its first word; leave it out ([] for no stop strings)"
            )
        return stop


class VoterSection(Section):
    """One more wording of a peer: under score.label = "sample-vote" its samples join the vote; it is not trained."""

    name: str = Name
    peer: str = Field(description="Name of the peer whose model it is.")
    wording: str | None = Field(None, description="Name of its wording, a table [wordings.NAME].")
    templates: TemplateSection | None = Field(None, description="Its wording itself, instead of a name.")

    @model_validator(mode="after")
    def _one_wording(self) -> VoterSection:
        if (self.templates is None) == (self.wording is None):
            raise ValueError(f"{self.name} must have either wording or templates, which make it another voice")
        return self


def normal_paths(model: str | tuple[str, ...]) -> str | list[str]:
    """A path, or several, in one spelling."""
    return os.path.normpath(model) if isinstance(model, str) else [os.path.normpath(part) for part in model]
