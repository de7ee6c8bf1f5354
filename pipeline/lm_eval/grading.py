"""How the harness grades our questions. This file is copied beside the task's YAML and imports nothing of the project:
its rules are independent of data/answers/.

`math`: math-verify reads the whole response, as in the harness's own tasks on MATH. `numbers`: the response must end
with the numbers of the gold answer, in any order.
"""

from __future__ import annotations

import re
from typing import Any

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_ENDS = (  # marks before a final answer, and after it
    (re.compile(r"####"), "\n"),
    (re.compile(r"\\boxed\s*{"), "}"),
    (re.compile(r"(?i)answer(?: is|:)"), "\n"),
)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The harness calls this for each question, with the one response to it."""
    right = same_numbers if doc["kind"] == "numbers" else verified
    return {"exact_match": float(right(results[0], doc["gold"]))}


def same_numbers(response: str, gold: str) -> bool:
    """Whether the response ends with the numbers of the gold answer."""
    stated = numbers(response)[-1:]
    for mark, end in _ENDS:
        if found := list(mark.finditer(response)):
            stated = numbers(response[found[-1].end() :].partition(end)[0])
            break
    return bool(stated) and sorted(stated) == sorted(numbers(gold))


def numbers(text: str) -> list[float]:
    """The numbers in a text."""
    return [float(number.replace(",", "")) for number in _NUMBER.findall(text)]


def verified(response: str, gold: str) -> bool:
    """math-verify's verdict."""
    from math_verify import parse, verify

    return bool(verify(parse(f"\\boxed{{{gold}}}"), parse(response)))
