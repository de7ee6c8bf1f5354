"""A tokenizer's chat template, explored by applying it: what it writes around a response, and around a thought.

Templates differ without declaring it: some demand a system turn, some begin a thought for the model (`<think>` at the
end of the prompt, as DeepSeek-R1's), some write an empty thought before an answer that has none (Qwen 3's).
"""

from __future__ import annotations

import inspect
import re
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

from data.answers.thoughts import CLOSES, OPENS
from data.config.sections import PeerSection
from data.errors import UserError
from peers.bounded import bounded
from peers.controls import Controls

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
# a fixed date for templates that would put today's into every prompt (Llama 3, SmolLM 3), so that rounds do not differ
TODAY: dict[str, Any] = {"date_string": "26 Jul 2024", "strftime_now": date(2024, 7, 26).strftime}
QUIET = ("enable_thinking", "thinking")  # templates' names for the argument that, if false, turns thoughts off
EMPTY_THOUGHT = re.compile(rf"{re.escape(OPENS)}\s*{re.escape(CLOSES)}\s*$")


class TurnMarkup(NamedTuple):
    """What a template writes around a response to a question."""

    prompt: str = ""  # up to where the response begins
    separator: str = " "  # the white space before it
    after: str = ""  # after the last response
    between: str = ""  # between a response and the next question
    opening: str = ""  # the beginning of a thought, if the prompt ends with one
    closing: str = ""  # follows the prompt before a response without a thought: makes or completes an empty thought


def message(role: str, content: str) -> Message:
    """One turn of a conversation."""
    return {"role": role, "content": content}


class ChatTemplate:
    """A peer's template with the peer's arguments. Raises UserError if it cannot be used."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, peer: PeerSection) -> None:
        self.tokenizer, self.peer = tokenizer, peer
        self.arguments: dict[str, Any] = dict(peer.template_arguments)
        self.system: list[Message] = []
        self._check_arguments()
        self._try()

    def apply(self, messages: list[Message], add_generation_prompt: bool, **more: Any) -> str:
        """A conversation as text. Raises UserError, with the template's own message, if it fails."""
        try:
            return self._render([*self.system, *messages], add_generation_prompt, **more)
        except Exception as error:  # jinja's, or anything else that a template may raise
            raise self._refusal(error) from error

    def _render(self, messages: list[Message], add_generation_prompt: bool, **more: Any) -> str:
        options: dict[str, Any] = {**TODAY, **self.arguments, **more}
        with bounded():
            found = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, tokenize=False, **options
            )
        return str(found)

    def _refusal(self, error: Exception) -> UserError:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return UserError(
            f"peer {self.peer.name}: its chat template cannot be applied to a question and its answer ({first}); "
            "fix chat_template, or use template = 'plain'"
        )

    def _check_arguments(self) -> None:
        """Raises UserError for an argument that the template does not mention, and so would have no effect."""
        templates = self.tokenizer.chat_template
        text = " ".join(templates.values()) if isinstance(templates, dict) else str(templates)
        own = {"messages", *inspect.signature(self.tokenizer.apply_chat_template).parameters}
        for name in self.arguments:
            if name in own or not re.search(rf"\b{re.escape(name)}\b", text):
                why = "which PST sets itself" if name in own else "which its chat template does not use"
                raise UserError(
                    f"peer {self.peer.name}: template_arguments has {name!r}, {why}; correct the name or leave it out"
                )

    def _try(self) -> None:
        """Use an empty system turn if the template refuses a question without one. Raises UserError."""
        asked = [message("user", "x")]
        try:
            self._render(asked, add_generation_prompt=True)
        except Exception as error:  # as in `apply`
            empty = [message("system", "")]
            try:
                self._render([*empty, *asked], add_generation_prompt=True)
            except Exception:
                raise self._refusal(error) from error
            self.system = empty

    def turn(self) -> TurnMarkup:
        """What the template writes around a response. Raises UserError if it leaves out what an assistant says."""
        asked, answer = [message("user", "x")], "Yes"
        prompt = self.apply(asked, add_generation_prompt=True)
        whole = self.apply([*asked, message("assistant", answer)], add_generation_prompt=False)
        before, found, after = whole.rpartition(answer)
        if not found:
            raise UserError(
                f"peer {self.peer.name}: its chat template leaves out what an assistant says; use template = 'plain'"
            )
        space = before.removeprefix(prompt) if before.startswith(prompt) else ""
        more = self.apply([*asked, message("assistant", answer), *asked], add_generation_prompt=False)
        between = more[len(before) + len(answer) :] if more.startswith(before + answer) else ""
        opening = prompt[prompt.rfind(OPENS) :] if prompt.rstrip().endswith(OPENS) else ""
        closing = self._closing(prompt, opening, space)
        return TurnMarkup(prompt, "" if space.strip() else space, after, between, opening, closing)

    def _closing(self, prompt: str, opening: str, written: str) -> str:
        """The text that makes an empty thought after the prompt, as the template itself writes it before an answer in a
        conversation, or with thinking turned off; "" for a template without thoughts."""
        if EMPTY_THOUGHT.search(prompt):
            return ""
        if CLOSES in written:
            return written
        source = str(self.tokenizer.chat_template)
        for name in QUIET:
            if name in source:
                quiet = self.apply([message("user", "x")], True, **{name: False})
                if found := EMPTY_THOUGHT.search(quiet):
                    return found[0].removeprefix(opening)
        return f"\n{CLOSES}\n\n" if opening else ""


def end_of_turn(turn: TurnMarkup, controls: Controls) -> int | None:
    """The first token that the template writes after a response. Some templates write none after the last response,
    only between it and the next question: then that token, unless a question begins with it. None without one."""
    bos = controls.tokenizer.bos_token_id
    begins = [token for token in controls.added_in(turn.prompt) if token != bos][:1]
    between = [token for token in controls.added_in(turn.between)[:1] if token not in begins]
    ends = controls.added_in(turn.after) or between
    return ends[0] if ends else None
