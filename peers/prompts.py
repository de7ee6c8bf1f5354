"""Prompts in tokens: the one place that applies a chat template and that re-encodes a response.

A prompt is a question, optionally with earlier solutions, under one of five requests (solve, review, synthesis,
verify, verify_cot). Two kinds of peers:

- chat: the tokenizer's own template; worked examples are earlier turns; the end-of-turn token ends a response;
- plain (base models): `Question: … / Answer: …` blocks after the request; a stop string or EOS ends a response.

The **target** of scoring and training is the response's tokens and then the end token of the *scoring* peer. Every
pass includes that token in the target, so differences compare the same targets, and a trained peer learns to stop.
`token_ids` in chains are without it.

Two rules about tokens:

- a response is encoded **in context**: prompt and response together, then the prompt is cut off. Encoded alone, its
  first token differs under a tokenizer that marks the beginning of a text, as SentencePiece's do;
- **text is data**: the spelling of a control token (`<|im_end|>`) is a control token only where the template writes it.
  Inside a question, a solution, an example or a response it is encoded like any other text (peers/controls.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from data.answers.thoughts import CLOSES, OPENS, without_thoughts
from data.config.sections import Config, Example, PeerSection, TemplateSection
from data.errors import UserError
from peers.controls import Controls
from peers.source import load_tokenizer, model_directory
from peers.template import ChatTemplate, TurnMarkup, end_of_turn, message
from peers.weights import read_model_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptKind = Literal["solve", "review", "synthesis", "verify", "verify_cot"]
PLAIN_STOP = ("\nQuestion:",)
PROBE = "What is 1 + 1, and is 2 < 3 & 3 > 2?"  # stands for any question; its signs show a template that escapes HTML
SOLUTION = "It is 2, and so it is."


class PeerPrompts:
    """Prompts, stop conditions and response encoding of one peer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, peer: PeerSection, wording: TemplateSection) -> None:
        has_template = bool(tokenizer.chat_template)
        if peer.template == "chat" and not has_template:
            raise UserError(f"peer {peer.name}: template = 'chat' but its tokenizer has no chat template; use 'plain'")
        self.tokenizer, self.peer, self.wording = tokenizer, peer, wording
        self.is_chat = has_template and peer.template != "plain"
        self.stop_strings = list(peer.stop if peer.stop is not None else () if self.is_chat else PLAIN_STOP)
        if peer.template_arguments and not self.is_chat:
            raise UserError(f"peer {peer.name}: template_arguments is set, but it has no chat template; leave it out")
        if self.is_chat:
            self.template = ChatTemplate(tokenizer, peer)
        self.turn = turn = self.template.turn() if self.is_chat else TurnMarkup()
        self.controls = Controls(tokenizer, "".join(turn))
        # the marks of thoughts, which decoding would drop if the tokenizer calls them special
        self.marks = {token: name for token, name in self.controls.added.items() if name in (OPENS, CLOSES)}
        eos = tokenizer.eos_token_id
        end = end_of_turn(turn, self.controls) if self.is_chat else None
        end = eos if end is None else end
        if end is None:
            raise UserError(f"peer {peer.name}: its tokenizer has no EOS token, so nothing can end a response")
        self.end_id: int = end
        self.stop_ids = sorted({self.end_id, eos} - {None})
        if self.is_chat:
            self._check_template()
        self.yes_id, self.no_id = self._first_token("Yes"), self._first_token("No")
        if self.yes_id == self.no_id:
            raise UserError(f"peer {peer.name}: 'Yes' and 'No' begin with the same token; it cannot be a verifier")

    def solve(self, question: str, solutions: Sequence[str] = ()) -> list[int]:
        """Prompt for x alone, or for x with solutions under the same request (the PMI compares the two)."""
        return self.all_of("solve", [(question, solutions)])[0]

    def review(self, question: str, solutions: Sequence[str]) -> list[int]:
        """Prompt of chain positions 2 and later; position 1 has no solutions and is `solve`."""
        return self.all_of("review", [(question, solutions)])[0]

    def synthesis(self, question: str, solutions: Sequence[str]) -> list[int]:
        """Prompt of the extra response of aggregate = 'synthesis'."""
        return self.all_of("synthesis", [(question, solutions)])[0]

    def verify(self, question: str, solution: str) -> list[int]:
        """Prompt whose next token is Yes or No."""
        return self.all_of("verify", [(question, (solution,))])[0]

    def all_of(
        self, kind: PromptKind, asked: Iterable[tuple[str, Sequence[str]]], answers: Sequence[str] | None = None
    ) -> list[list[int]]:
        """Prompts of one kind for many (question, solutions), tokenised in one call, which halves the time.

        `answers` are the texts that are scored after the prompts (`encode_responses`): if the peer's template writes
        thoughts, an answer without one follows an empty thought.
        """
        texts = [self._text(kind, question, tuple(map(self.shown, solutions))) for question, solutions in asked]
        if answers is not None:
            texts = [text + self._closing(answer) for text, answer in zip(texts, answers, strict=True)]
        elif kind == "verify":
            texts = [text + self.turn.closing for text in texts]
        return self._encode(texts)

    def shown(self, response: str) -> str:
        """A response as this peer is shown it: without its thought, unless `show_thoughts` is set."""
        return response if self.peer.show_thoughts else without_thoughts(response)

    def learnt(self, response: str) -> str:
        """A response as this peer learns and scores it: without its thought, unless `train_thoughts` is set."""
        return response if self.peer.train_thoughts else without_thoughts(response)

    def _closing(self, answer: str) -> str:
        return "" if answer.startswith(OPENS) else self.turn.closing

    def continuation(self, answer: str) -> str:
        """The part of a text that follows the prompt, which may have begun the text's thought."""
        if not self.turn.opening or not answer.startswith(OPENS):
            return answer
        if answer.startswith(self.turn.opening):
            return answer[len(self.turn.opening) :]
        return answer[len(OPENS) :].lstrip()  # from another peer, whose template begins a thought differently

    def encode_responses(self, asked: Sequence[tuple[str, str]]) -> list[list[int] | None]:
        """Tokens of each (question, response)'s response as it follows the prompt, without the end token; None if one
        token spans the end of the prompt and the beginning of the response.

        Every response is re-encoded for this peer here.
        """
        texts = [self._text("solve", question, ()) + self._closing(response) for question, response in asked]
        return self._continuations(texts, [self.continuation(response) for _, response in asked])

    def encode_response(self, text: str) -> list[int]:
        """`encode_responses` of one response, for any question. Raises ValueError where that gives None."""
        found = self.encode_responses([(PROBE, text)])[0]
        if found is None:
            raise ValueError(f"a token spans the end of the prompt and the beginning of {text!r}")
        return found

    def _first_token(self, answer: str) -> int:
        """The first token of an answer to the verifier's prompt. Raises UserError if it is joined to the prompt."""
        prompt = self._text("verify", PROBE, (SOLUTION,)) + self.turn.closing
        found = self._continuations([prompt], [answer])[0]
        if not found:
            raise UserError(
                f"peer {self.peer.name}: its tokenizer joins the end of the prompt and the beginning of a response "
                "into one token, so responses cannot be scored; use a chat template that does not end in white space"
            )
        return found[0]

    def _continuations(self, prompts: list[str], responses: list[str]) -> list[list[int] | None]:
        """Tokens of responses after rendered prompts; None where one token spans both."""
        escape, space = self.controls.escape_response, self.turn.separator
        after = [escape(space + response) if response else "" for response in responses]
        wholes = self._encode([prompt + text for prompt, text in zip(prompts, after, strict=True)])
        pairs = zip(self._encode(prompts), wholes, strict=True)
        return [whole[len(before) :] if whole[: len(before)] == before else None for before, whole in pairs]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Tokens of rendered texts."""
        found = self.controls.encode(texts)
        bos = None if self.is_chat else self.tokenizer.bos_token_id  # a chat template writes its own
        return found if bos is None else [[bos, *ids] for ids in found]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of response tokens, without special tokens, with the marks of thoughts and all white space."""
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}  # cleaning turns " ." into "."
        marks = [i for i, token in enumerate(token_ids) if token in self.marks]
        starts, ends = [0, *(i + 1 for i in marks)], [*marks, len(token_ids)]
        parts = [str(self.tokenizer.decode(list(token_ids[a:b]), **options)) for a, b in zip(starts, ends, strict=True)]
        after = (self.marks[token_ids[i]] + part for i, part in zip(marks, parts[1:], strict=True))
        return "".join([parts[0], *after])

    def cut(self, token_ids: Sequence[int]) -> list[int]:
        """Response tokens up to the last visible character before any stop string or end token."""
        ids = list(token_ids)
        ends = [i for i, token in enumerate(ids) if token in self.stop_ids]
        ids = ids[: ends[0]] if ends else ids
        text = self._before_stop(self.decode(ids)).rstrip()
        low, high = 0, len(ids)
        while low < high:  # the shortest prefix that decodes to all of the text
            middle = (low + high) // 2
            low, high = (low, middle) if self.decode(ids[:middle]).startswith(text) else (middle + 1, high)
        return ids[:low]

    def text(self, token_ids: Sequence[int]) -> str:
        """A cut response as stored: without the stop string and without white space at its ends; if the prompt began
        the thought, with that beginning."""
        text = self._before_stop(self.decode(token_ids)).strip()
        return text and self.turn.opening + text

    def _before_stop(self, text: str) -> str:
        return text[: min([text.find(stop) for stop in self.stop_strings if stop in text], default=len(text))]

    def _examples_of(self, kind: PromptKind) -> Sequence[Example]:
        """The worked examples in a kind of prompt."""
        if kind == "verify":
            return self.wording.verify_examples
        if kind == "verify_cot":  # the verifier's examples end in a bare Yes or No
            return ()
        plain = [example for example in self.wording.examples if not example.solutions]
        with_solutions = [example for example in self.wording.examples if example.solutions]
        return plain if kind == "solve" else with_solutions or plain

    def _text(self, kind: PromptKind, question: str, solutions: Sequence[str]) -> str:
        examples = self._examples_of(kind)
        if kind in ("verify", "verify_cot"):
            closing = self.wording.verify if kind == "verify" else self.wording.verify_cot
            return self._render("", question, solutions, examples, closing)
        if kind == "solve" or (kind == "review" and not solutions):
            return self._render(self.wording.instruction, question, solutions, self._examples_of("solve"))
        request = self.wording.review if kind == "review" else self.wording.synthesis
        return self._render(request, question, solutions, examples)

    def _render(
        self,
        request: str,
        question: str,
        solutions: Sequence[str],
        examples: Sequence[Example],
        closing: str = "",
    ) -> str:
        """A prompt as text for `Controls.encode`, in which everything but the template is escaped."""
        if self.is_chat:
            return self._render_chat(request, question, solutions, examples, closing)
        parts = [request] if request else []
        parts += [f"{_body(e.question, e.solutions, closing)}\nAnswer: {e.response}" for e in examples]
        parts.append(f"{_body(question, solutions, closing)}\nAnswer:")
        return self.controls.escape("\n\n".join(parts))

    def _render_chat(
        self, request: str, question: str, solutions: Sequence[str], examples: Sequence[Example], closing: str
    ) -> str:
        head, escape = f"{request}\n\n" if request else "", self.controls.escape
        messages = []
        for example in examples:
            asked = escape(head + _body(example.question, example.solutions, closing))
            messages += [message("user", asked), message("assistant", escape(example.response))]
        messages.append(message("user", escape(head + _body(question, solutions, closing))))
        return self.template.apply(messages, add_generation_prompt=True)

    def _check_template(self) -> None:
        """Raises UserError if the chat template drops or changes its input, or renders it differently each time."""
        for kind in get_args(PromptKind):
            once, again = (self._text(kind, PROBE, (SOLUTION,)) for _ in range(2))
            examples = self._examples_of(kind)
            given = [PROBE, SOLUTION, *(text for e in examples for text in (e.question, *e.solutions, e.response))]
            lost = [text for text in given if self.controls.escape(text.strip()) not in once]
            if lost or once != again:
                what = f"leaves out or changes {lost[0][:60]!r}" if lost else "writes a different prompt at each call"
                raise UserError(
                    f"peer {self.peer.name}: its chat template {what} in a prompt of the kind {kind!r}; fix "
                    "chat_template, or use template = 'plain'"
                )


def _body(question: str, solutions: Sequence[str], closing: str) -> str:
    blocks = [f"Question: {question}"]
    blocks += [f"Solution {number}: {solution}" for number, solution in enumerate(solutions, start=1)]
    return "\n".join([*blocks, closing] if closing else blocks)


def load_prompts(config: Config, name: str) -> PeerPrompts:
    """Prompts of a peer, with the tokenizer of its model directory. Raises UserError."""
    peer = config.peer(name)
    directory = model_directory(peer, config)
    return prompts_for(directory, load_tokenizer(directory), peer, config.templates_of(peer))


def prompts_for(
    directory: Path, tokenizer: PreTrainedTokenizerBase, peer: PeerSection, wording: TemplateSection
) -> PeerPrompts:
    """Prompts of a peer for the model in a directory. Raises UserError if a token that they need has no embedding."""
    prompts, config = PeerPrompts(tokenizer, peer, wording), read_model_json(peer, directory / "config.json")
    rows = (config.get("text_config") or config).get("vocab_size")
    written = {token for kind in get_args(PromptKind) for token in prompts.all_of(kind, [(PROBE, (SOLUTION,))])[0]}
    beyond = sorted(token for token in written | {*prompts.stop_ids} if rows is not None and token >= rows)
    if beyond:
        raise UserError(
            f"peer {peer.name}: its chat template writes {tokenizer.convert_ids_to_tokens(beyond[0])!r}, or responses "
            f"end with it; its id is {beyond[0]}, but the model in {directory} has embeddings for {rows} ids only; "
            "use the tokenizer that belongs to the model, or resize its embeddings"
        )
    return prompts


def load_all_prompts(config: Config) -> dict[str, PeerPrompts]:
    """`load_prompts` of every peer, by name."""
    return {name: load_prompts(config, name) for name in config.peer_names}


def token_identity(prompts: PeerPrompts) -> str:
    """Identity of a peer's tokens: peers with equal ones (same tokenizer, same beginning of a response) may exchange
    token ids."""
    tokenizer: Any = prompts.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    about = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    begins = prompts.turn.separator + prompts.turn.opening
    return hashlib.sha256(f"{prompts.is_chat}/{begins}/{about}".encode()).hexdigest()[:16]
