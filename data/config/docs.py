"""`python -m data.config.docs`: prints the list of all keys for docs/config.md."""

from __future__ import annotations

import json
import textwrap
from typing import Any, Literal

from pydantic.fields import FieldInfo

from data.config.sections import (
    BenchmarkSection,
    EvaluateSection,
    Example,
    ExecutorSection,
    GateSection,
    GenerateSection,
    GuardSection,
    PeerSection,
    PromptsSection,
    RunSection,
    RuntimeSection,
    ScoreSection,
    Section,
    TemplateSection,
    TrackingSection,
    TrainSection,
    VoterSection,
    WordingSection,
)

SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("run", RunSection),
    ("prompts", PromptsSection),
    ("templates", TemplateSection),
    ("templates.examples[]", Example),
    ("wording", WordingSection),
    ("peers[]", PeerSection),
    ("voters[]", VoterSection),
    ("generate", GenerateSection),
    ("score", ScoreSection),
    ("train", TrainSection),
    ("evaluate", EvaluateSection),
    ("benchmarks[]", BenchmarkSection),
    ("gate", GateSection),
    ("guard", GuardSection),
    ("runtime", RuntimeSection),
    ("executor", ExecutorSection),
    ("tracking", TrackingSection),
)


DEFAULTS = dict.fromkeys(("evaluate.gold_answers", "wording.answers"), "default: that of `prompts.answers`")


def key_list() -> str:
    """A Markdown heading for each section and an item for each key: default, meaning."""
    parts = []
    for prefix, section in SECTIONS:
        items = [_item(f"{prefix}.{name}", field) for name, field in section.model_fields.items()]
        parts.append(f"## {prefix}\n\n" + "\n".join(items) + "\n")
    return "\n".join(parts)


def _item(key: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else DEFAULTS.get(key, f"default `{json.dumps(field.default)}`")
    text = f"- `{key}` ({default}): {field.description}{_choices(field.annotation)}".replace("\\n", "\\\\n")
    return textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _choices(annotation: Any) -> str:
    values = getattr(annotation, "__args__", ())
    if getattr(annotation, "__origin__", None) is Literal:
        return " One of " + ", ".join(f"`{value}`" for value in values) + "."
    return ""


if __name__ == "__main__":
    print(key_list(), end="")
