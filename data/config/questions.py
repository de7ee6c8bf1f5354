"""Sections that say where questions come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from data.config.base import MAX_COUNT, Name, PlacedSection, Text, ValidAnswerKind

INDEX = (
    "With answers = choice: gold answers are option numbers, counted from this; null: letters, or the options' texts."
)


def check_index(index: int | None, answers: str, key: str) -> None:
    """Raises ValueError for an index where the answers are not options."""
    if index is not None and answers != "choice":
        raise ValueError(f"{key} needs answers = 'choice', found {answers!r}")


class SourceSection(PlacedSection):
    """Where questions come from."""

    source: Text = Field(
        description="A .jsonl, .csv (also with .gz or .zst) or .parquet file, a folder (all such files in it), a "
        "pattern such as folder/**/*.jsonl, hf://datasets/..., the name of a dataset on the Hugging Face hub, or nano: "
        "the project's own questions (data/nano.py).",
    )
    split: Text | None = Field(
        None,
        description="Split. null: train for a hub name and for nano (which also has validation, test, and pretrain, "
        "which its peers were made from), else all files. Of files, a split takes those with this word in their path "
        "(data/test-1.parquet); each file must have exactly one such word.",
    )
    subset: Text | None = Field(
        None, description="Configuration (subset) of the dataset, for a hub name; arith or simul of nano."
    )
    revision: Text | None = Field(None, description="Revision of the dataset, for a hub name.")
    question_column: Text = Field("question", description="Column that holds the question.")
    options: Text | None = Field(
        None,
        exclude_if=lambda column: column is None,
        description="Column that holds a question's options (a list, or an object with their letters, also as JSON "
        "text), which are written below the question: (A) …; null: any options are in the question's text.",
    )
    rows: tuple[int, int] | None = Field(
        None,
        strict=False,
        description="Only rows [first, end) of the source, before the shuffle: to split one file in two.",
    )
    limit: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="At most this many questions, after the shuffle (of a benchmark: the same in all runs).",
    )

    @field_validator("rows")
    @classmethod
    def _rows_ascend(cls, rows: tuple[int, int] | None) -> tuple[int, int] | None:
        if rows is not None and not 0 <= rows[0] < rows[1] <= MAX_COUNT:
            raise ValueError(
                f"rows must be [first, end) with 0 <= first < end, found {list(rows)} (at most {MAX_COUNT})"
            )
        return rows


class PromptsSection(SourceSection):
    """The unlabelled questions to train on."""

    answers: ValidAnswerKind = Field(
        "math",
        exclude_if=lambda kind: kind == "math",
        description="Kind of their answers: how to find one in a response and when two agree, for votes, labels, "
        "agreement, entropy and the gate. Values as in a benchmark.",
    )
    shuffle: bool = Field(True, strict=False, description="Shuffle (seeded) before the limit is applied.")
    overlap: Literal["refuse", "drop", "transductive"] = Field(
        "refuse",
        description="What to do with training questions that a benchmark also has (ignoring case and typography: 3² "
        "matches 32, and both texts are shown): stop, drop them, or keep them (every report then says 'transductive').",
    )


class BenchmarkSection(SourceSection):
    """Questions with gold answers, read by evaluate alone."""

    name: str = Name
    answer_column: Text = Field(
        "answer", description="Column that holds the gold answer: the answer alone, or a solution that states it."
    )
    answers: ValidAnswerKind = Field(
        "math",
        description="Kind of answers: `math` (compared by math-verify), `numbers` (unordered lists of numbers), "
        "`choice` (one of the question's options), `exact` (a text), or `module:function` for a custom kind "
        "(docs/answers.md).",
    )
    answer_index: Literal[0, 1] | None = Field(None, exclude_if=lambda index: index is None, description=INDEX)

    @model_validator(mode="after")
    def _options_are_numbered(self) -> BenchmarkSection:
        check_index(self.answer_index, self.answers, "answer_index")
        return self


class WordingSection(SourceSection):
    """The dev set on which `make wording` tries the wordings: questions neither trained on nor tested on."""

    answer_column: Text | None = Field(
        None,
        description="Column that holds the gold answer, as in a benchmark, to compare wordings by accuracy; null: "
        "unlabelled, so wordings are compared by self-consistency.",
    )
    answers: ValidAnswerKind = Field("math", description="Kind of answers, as in a benchmark.")
    answer_index: Literal[0, 1] | None = Field(None, exclude_if=lambda index: index is None, description=INDEX)
    samples: int = Field(
        4, ge=2, le=MAX_COUNT, description="Samples per question for self-consistency, where there are no gold answers."
    )
    overlap: Literal["refuse", "drop"] = Field(
        "refuse", description="What to do with questions that are also among the prompts or in a benchmark."
    )

    @model_validator(mode="after")
    def _options_are_numbered(self) -> WordingSection:
        check_index(self.answer_index, self.answers, "answer_index")
        return self
