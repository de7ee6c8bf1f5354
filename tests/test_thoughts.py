"""Thoughts: where they end, what is shown, scored and trained of a response that has one."""

from __future__ import annotations

import pytest

from data.thoughts import after_thought, without_thought


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("", ""),
        ("It is 7.", "It is 7."),
        ("<think>\n3 + 4\n</think>\n\nIt is 7.", "It is 7."),
        ("3 + 4\n</think>\n\nIt is 7.", "It is 7."),  # opened by the prompt, as other programs store it
        ("<think></think>It is 7.", "It is 7."),
        ("<think>a</think> No. <think>b</think> It is 7.", "It is 7."),
        ("<think>\n3 + 4 is", ""),  # cut off
        ("\n <think>3 + 4 is", ""),
        ("<think>7</think>", ""),
        ("A thought is written <think>.", "A thought is written <think>."),
    ],
)
def test_what_follows_a_thought(text: str, rest: str) -> None:
    assert without_thought(text) == rest == text[after_thought(text) :]
