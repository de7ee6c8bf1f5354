"""Only the template may write control tokens: in a text their spellings are encoded like any other text.

A tokenizer finds the spellings of its control tokens (`<|im_end|>`, `</s>`) anywhere, so a question that quotes one
would end its own turn. Here each text is *escaped* before it is put into a template: the first character of each
spelling is replaced by a stand-in. Control tokens that remain in the rendered prompt are the template's own. Such a
prompt is encoded by a copy of the tokenizer in which the control tokens have names that nobody can guess, and their
spellings mean nothing.
"""

from __future__ import annotations

import json
import re
import secrets
from functools import cached_property
from typing import TYPE_CHECKING, Any

from data.answers.thoughts import CLOSES, OPENS
from data.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

STAND_IN = "\ufdd0"  # a noncharacter of Unicode, followed by one of the private characters from FIRST_PRIVATE on
FIRST_PRIVATE = 0xE000


class Controls:
    """The control tokens of a tokenizer, and an encoding that respects them only where the template wrote them.

    They are the tokens that the tokenizer calls special, and the added ones in `markup`, the template's own text: some
    checkpoints do not call the tokens of their turns special.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, markup: str = "") -> None:
        self.tokenizer = tokenizer
        self.added = {token: about.content for token, about in tokenizer.added_tokens_decoder.items()}
        special = {about.content for about in tokenizer.added_tokens_decoder.values() if about.special}
        named = special | set(tokenizer.all_special_tokens) | {text for text in self.added.values() if text in markup}
        self.names = sorted((name for name in named if name.strip()), key=len, reverse=True)
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        # normalisation may turn another spelling into a control token (＜|im_end|＞, <|IM_END|>)
        self.normalised = getattr(backend, "normalizer", None) is not None and any(
            about.normalized for about in tokenizer.added_tokens_decoder.values() if about.content in named
        )
        self.firsts = sorted({STAND_IN, *(name[0] for name in self.names)})
        spelt = "|".join(map(re.escape, self.names)) or r"(?!)"
        first = f"(?=[{re.escape(''.join(self.firsts))}])"  # for speed: Gemma has 6,249 names
        self._spelt = re.compile(f"{first}(?:{spelt})")
        self._begins = re.compile(rf"{first}(?={spelt}).|{STAND_IN}", re.DOTALL)

    def escape(self, text: str) -> str:
        """The text with a stand-in for the first character of each control token's spelling."""
        return self._begins.sub(lambda found: STAND_IN + chr(FIRST_PRIVATE + self.firsts.index(found[0])), text)

    def escape_response(self, text: str) -> str:
        """`escape` of a response, except for the marks at the beginning and end of its thought, which stay tokens as in
        a peer's own output. Any other mark is text.
        """
        before, closes, after = text.rpartition(CLOSES)
        thought, rest = (before, after) if closes else (after, "")
        bare = thought.lstrip()
        blanks, opens = thought[: len(thought) - len(bare)], OPENS if bare.startswith(OPENS) else ""
        return blanks + opens + self.escape(bare[len(opens) :]) + closes + self.escape(rest)

    def added_in(self, markup: str) -> list[int]:
        """Ids of the added tokens in `markup`, in order."""
        ids = {name: token for token, name in self.added.items() if name.strip()}
        return [ids[name] for name in re.findall("|".join(map(re.escape, sorted(ids, key=len, reverse=True))), markup)]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Tokens of rendered texts, in one call, which halves the time. Raises UserError for an escaped text if the
        tokenizer cannot be copied."""
        quoting = [i for i, text in enumerate(texts) if self._needs_copy(text)]
        plain = [i for i, text in enumerate(texts) if not self._needs_copy(text)]
        encoded: list[list[int]] = [[] for _ in texts]
        if plain:
            found = self.tokenizer([texts[i] for i in plain], add_special_tokens=False)["input_ids"]
            for i, ids in zip(plain, found, strict=True):
                encoded[i] = ids
        if quoting:
            copy, original = self._copy
            raw = copy.encode_batch([self._unescaped(texts[i]) for i in quoting], add_special_tokens=False)
            for i, found in zip(quoting, raw, strict=True):
                encoded[i] = [original.get(token, token) for token in found.ids]
        return encoded

    def _needs_copy(self, rendered: str) -> bool:
        return self.normalised or STAND_IN in rendered

    def _unescaped(self, rendered: str) -> str:
        """A rendered text with the copy's names for control tokens, and without stand-ins."""
        renamed = self._spelt.sub(lambda found: self._renamed[found[0]], rendered)
        return re.sub(
            f"{STAND_IN}(.)", lambda found: self.firsts[ord(found[1]) - FIRST_PRIVATE], renamed, flags=re.DOTALL
        )

    @cached_property
    def _renamed(self) -> dict[str, str]:
        """Random names, drawn in each process, so that no text contains them; they do not influence the ids."""
        return {name: f"<{secrets.token_hex(16)}>" for name in self.names}

    @cached_property
    def _copy(self) -> tuple[Tokenizer, dict[int, int]]:
        """(the tokenizer with renamed control tokens, {its id: the original's id})."""
        from tokenizers import Tokenizer

        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"{self.tokenizer.name_or_path}: a text contains a control token ({', '.join(self.names[-3:])} …), "
                "which this tokenizer cannot encode as text; use a model with a tokenizer.json"
            )
        about = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
        for token in about["added_tokens"]:
            token["content"] = self._renamed.get(token["content"], token["content"])
        if about["model"]["type"] == "Unigram":  # else its vocabulary would still hold the spelling as one piece
            about["model"]["vocab"] = [
                [self._renamed.get(piece, piece), score] for piece, score in about["model"]["vocab"]
            ]
        copy: Any = Tokenizer.from_str(json.dumps(about))
        return copy, {copy.token_to_id(token["content"]): token["id"] for token in about["added_tokens"]}
