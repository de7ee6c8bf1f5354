"""Sections that say who answers, and how the prompts are worded."""

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
        description="Asks for the peer's own solution after earlier ones (chain positions 2 and later).",
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
        description="Worked examples for the verifier: one solution each, response Yes or No. Not shown when it "
        "writes a critique.",
    )


def _items(value: Any) -> Any:
    """A table as sorted pairs, which can be compared and hashed."""
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
        "package; a list gives the pieces of one GGUF file."
    )
    revision: Text | None = Field(None, description="Revision, for a hub name.")
    adapter: Text | None = Field(
        None,
        exclude_if=lambda adapter: adapter is None,
        description="LoRA adapter that the peer starts from: a folder saved by peft (such as runs/<run>/round=<R>/"
        "adapters/<peer>), or a hub name. It is merged into the model once; the run trains a new one on top.",
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9A-Fa-f]{64}$",
        description="SHA-256 of a GGUF file (its pieces joined); a file with another checksum is refused.",
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Type of the weights in use.")
    template: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="The tokenizer's chat template or the plain one; auto: chat where the tokenizer has one.",
    )
    template_arguments: Arguments = Field(
        (),
        exclude_if=lambda given: not given,
        description="Table of arguments for the chat template at each call, such as `{ enable_thinking = false }`.",
    )
    show_thoughts: bool = Field(
        False,
        exclude_if=lambda on: not on,
        description="Whether this peer also sees what others wrote in `<think>…</think>` before their answers: in "
        "reviews, in the PMI, as verifier.",
    )
    train_thoughts: bool = Field(
        False,
        exclude_if=lambda on: not on,
        description="Whether this peer also trains on the thought of a response (and the PMI covers both); else only "
        "on what follows it, after an empty thought if its template has one.",
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
        description="Name of this peer's wording, instead of [templates]: a table [wordings.NAME] with the same keys "
        "and the same defaults.",
    )

    @model_validator(mode="after")
    def _one_wording(self) -> PeerSection:
        if self.templates is not None and self.wording is not None:
            raise ValueError(
                f"peer {self.name} has both templates and wording {self.wording!r}; expected at most one of them: "
                "leave one out"
            )
        return self

    @field_validator("stop")
    @classmethod
    def _stops_have_something_to_stop_at(cls, stop: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if any(not text.strip(" \t") for text in stop or ()):  # a line break will do: base models may stop at one
            raise ValueError(
                "has an empty or blank string, which would end every response at its beginning or after its "
                "first word; leave it out ([] for no stop strings)"
            )
        return stop


class VoterSection(Section):
    """Another wording of a peer: under score.label = "sample-vote" its samples join the vote; it is not trained."""

    name: str = Name
    peer: str = Field(description="Name of the peer whose model it uses.")
    wording: str | None = Field(None, description="Name of its wording, a table [wordings.NAME].")
    templates: TemplateSection | None = Field(None, description="Its wording itself, instead of a name.")

    @model_validator(mode="after")
    def _one_wording(self) -> VoterSection:
        if (self.templates is None) == (self.wording is None):
            raise ValueError(f"{self.name} must have either wording or templates, which set it apart from its peer")
        return self


def normal_paths(model: str | tuple[str, ...]) -> str | list[str]:
    """A path, or several, normalised."""
    return os.path.normpath(model) if isinstance(model, str) else [os.path.normpath(part) for part in model]
