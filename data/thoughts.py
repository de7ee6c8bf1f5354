"""Where a response's thought ends: what reasoning models write between `<think>` and `</think>` before they answer.

A response is stored with its thought, and with the `<think>` that begins it where the prompt wrote that
(peers/prompts.py). What is shown to other peers, and trained on, is what follows the thought.
"""

from __future__ import annotations

OPENS, CLOSES = "<think>", "</think>"


def after_thought(text: str) -> int:
    """Where what follows the thought begins, the white space after it left out; 0 without a thought.

    The thought ends with the last `</think>`, whether the text has a `<think>` for it or not. One that begins the text
    and is never closed (cut off at the limit) is followed by nothing: the length of the text.
    """
    end = text.rfind(CLOSES)
    if end >= 0:
        rest = text[end + len(CLOSES) :]
        return len(text) - len(rest.lstrip())
    return len(text) if text.lstrip().startswith(OPENS) else 0


def without_thought(text: str) -> str:
    """What follows the thought; "" where it is never closed."""
    return text[after_thought(text) :]
