"""Thoughts of a model that reasons before it responds; they are not part of its answer.

A response is stored with its thought, and with the opening `<think>` even where the prompt wrote that
(peers/prompts.py). Answers are searched outside the thought; other peers see, and train on, only the rest.
"""

from __future__ import annotations

import re

OPENS, CLOSES = "<think>", "</think>"  # as chat templates write them
_OPENING = r"<(?:think|thinking|thought|reasoning|seed:think)>|\[THINK\]|<\|begin_of_thought\|>|\u25c1think\u25b7"
_CLOSING = r"</(?:think|thinking|thought|reasoning|seed:think)>|\[/THINK\]|<\|end_of_thought\|>|\u25c1/think\u25b7"
_MARK = re.compile(rf"(?P<open>{_OPENING})|(?P<close>{_CLOSING})", re.I)


def spans(response: str) -> list[tuple[int, int]]:
    """The spans of a response's thoughts, marks included, in order.

    A closing mark without an opening one ends a thought that the prompt's template opened. A thought that is never
    closed runs to the end: the response was cut off in it.
    """
    if not ("think" in response or "THINK" in response or "hought" in response or "eason" in response):
        return []
    found: list[tuple[int, int]] = []
    opened = None
    for mark in _MARK.finditer(response):
        if mark["open"]:
            opened = mark.start() if opened is None else opened
        elif opened is None:
            found = [(0, mark.end())]
        else:
            found.append((opened, mark.end()))
            opened = None
    return found if opened is None else [*found, (opened, len(response))]


def hidden(response: str) -> str:
    """The response with its thoughts replaced by as many spaces, so that places in it stay the same."""
    return _without(response, " ")


def without_thoughts(response: str) -> str:
    """The response without its thoughts; "" if nothing is left."""
    found = _without(response, "")
    return response if found == response else found.strip()


def _without(response: str, instead: str) -> str:
    """The response with `instead` for each character of a thought."""
    parts, shown = [], 0
    for start, end in spans(response):
        parts += [response[shown:start], instead * (end - start)]
        shown = end
    return "".join(parts) + response[shown:]
