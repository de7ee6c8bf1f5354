"""Thoughts of a model that reasons before it responds: they are no part of the response."""

from __future__ import annotations

import re

_OPENING = r"<(?:think|thinking|thought|reasoning|seed:think)>|\[THINK\]|<\|begin_of_thought\|>|\u25c1think\u25b7"
_CLOSING = r"</(?:think|thinking|thought|reasoning|seed:think)>|\[/THINK\]|<\|end_of_thought\|>|\u25c1/think\u25b7"
_MARK = re.compile(rf"(?P<open>{_OPENING})|(?P<close>{_CLOSING})", re.I)


def hidden(response: str) -> str:
    """The response with spaces in place of its thoughts, so that places in it stay the same.

    A closing mark that nothing opened ends a thought that the prompt's template opened. A thought that is never closed
    runs to the end: the response was cut off in it.
    """
    if not ("think" in response or "THINK" in response or "hought" in response or "eason" in response):
        return response
    parts: list[str] = []
    shown, opened = 0, None
    for mark in _MARK.finditer(response):
        if mark["open"]:
            opened = mark.start() if opened is None else opened
        elif opened is None:
            parts = [" " * mark.end()]
            shown = mark.end()
        else:
            parts += [response[shown:opened], " " * (mark.end() - opened)]
            shown, opened = mark.end(), None
    if opened is not None:
        parts += [response[shown:opened], " " * (len(response) - opened)]
        shown = len(response)
    return "".join(parts) + response[shown:]
