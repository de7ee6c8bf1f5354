"""`python -m data.config.docs`: the table of every key in docs/config.md."""

from __future__ import annotations

import json
from typing import Any, Literal

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


def table() -> str:
    """The Markdown table of every key: default, meaning."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    sections: list[tuple[str, type[Section]]] = [
        ("run", RunSection), ("prompts", PromptsSection), ("templates", TemplateSection),
        ("templates.examples[]", Example), ("wording", WordingSection), ("peers[]", PeerSection),
        ("voters[]", VoterSection),
        ("generate", GenerateSection), ("score", ScoreSection), ("train", TrainSection), ("evaluate", EvaluateSection),
        ("benchmarks[]", BenchmarkSection), ("gate", GateSection), ("guard", GuardSection), ("runtime", RuntimeSection),
        ("executor", ExecutorSection), ("tracking", TrackingSection),
    ]  # fmt: skip
    for prefix, section in sections:
        for name, field in section.model_fields.items():
            default = "(required)" if field.is_required() else f"`{json.dumps(field.default)}`"
            meaning = f"{field.description}{_choices(field.annotation)}"
            lines.append(f"| `{prefix}.{name}` | {default} | {meaning} |".replace("\\n", "\\\\n"))
    return "\n".join(lines) + "\n"


def _choices(annotation: Any) -> str:
    values = getattr(annotation, "__args__", ())
    if getattr(annotation, "__origin__", None) is Literal:
        return " One of " + ", ".join(f"`{value}`" for value in values) + "."
    return ""


if __name__ == "__main__":
    print(table(), end="")
