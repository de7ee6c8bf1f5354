"""Gold answers other than mathematics: an option, a text with its aliases, any text for a custom function."""

from __future__ import annotations

import json
import re
from typing import Any

from data.answers import choice, texts

MISSING_CELLS = {"", "nan", "null", "n/a", "#n/a", "<na>", "nat", "n.a.", "n.a"}  # None may be an answer


class Unreadable(ValueError):
    """A gold answer that cannot be read; the message says why and follows "a gold answer that"."""


def read_choice(text: str, question: str, first: int | None) -> str:
    """The letter of the option that a cell names by its letter, its text or, counted from `first`, its number."""
    options = choice.options_of(question)
    if not options:
        raise Unreadable("belongs to a question without options")
    if first is not None:
        place = int(text) - first if re.fullmatch(r"-?\d{1,9}(?:\.0)?", text) else -1
        if not 0 <= place < len(options):
            raise Unreadable(f"is not an option's number: expected {first} to {first + len(options) - 1}")
        return list(options)[place]
    same = [letter for letter, other in options.items() if texts.normal_form(other) == texts.normal_form(text)]
    letter = choice.read(text, options)
    if letter is None or letter == choice.NONE:
        found = next(
            (each for each in texts.answer_candidates(text, texts.ANSWER_OR_OPTION) if each.rule != "last_line"), None
        )
        letter = choice.read(found.answer, options) if found else None
    if not letter:
        if re.fullmatch(r"\d{1,2}", text):
            raise Unreadable(
                f"is none of the options' texts ({_listing(options)}); if it is an option's number, set where counting "
                "starts: answer_index = 0, or 1 (for evaluate.gold_column: gold_index)"
            )
        raise Unreadable(f"is none of the options: {_listing(options)}")
    if same and same != [letter]:
        raise Unreadable(f"is the letter of one option and the text of another ({same[0]}); write (A), (B), …")
    return letter


def _listing(options: dict[str, str]) -> str:
    return "; ".join(f"({letter}) {text[:20]}" for letter, text in list(options.items())[:6])


def read_exact(value: Any) -> str:
    """The text of a cell; for a list of texts, any of which is right, the list as JSON."""
    listed = _listed(value)
    if listed is not None:
        if not listed:
            raise Unreadable("is an empty list")
        return json.dumps([_text(each) for each in listed], ensure_ascii=False)
    return _text(value)


def _text(value: Any) -> str:
    """The answer that a text announces; else the whole text."""
    text = "" if value is None else str(value).strip()
    found = next((each for each in texts.answer_candidates(text) if each.rule in ("tagged", "boxed", "hashes")), None)
    answer = found.answer if found else text
    if text.casefold() in MISSING_CELLS or not texts.normal_form(answer):
        raise Unreadable("is a missing value, not an answer; fill it in or remove the row" if text else "is empty")
    if "\n" in answer:
        raise Unreadable("has several lines and states no answer; expected a text, '#### x' or <answer>x</answer>")
    return answer


def read_own(value: Any) -> str:
    """The cell as text. Raises Unreadable if it is empty."""
    text = "" if value is None else str(value).strip()
    if not text:
        raise Unreadable("is empty; fill it in or remove the row")
    return text


def _listed(value: Any) -> list[Any] | None:
    if isinstance(value, (list, tuple)):
        return list(value)
    text = "" if value is None else str(value).strip()
    if not text.startswith(('["', "['", "[null")) and text != "[]":
        return None
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise Unreadable("is a list written as text; write a JSON list") from None
    if not isinstance(found, list) or any(isinstance(part, (list, dict)) for part in found):
        raise Unreadable("is a nested list")
    return found
