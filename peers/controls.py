"""Control tokens are the template's alone: in text they are encoded like any other text.

A tokenizer looks for the spellings of its control tokens (`<|im_end|>`, `</s>`) wherever they stand, so a question that
quotes one would end the turn it stands in. Here each text is *escaped* before it is put into a template: the first
character of each spelling is replaced by a stand-in. What still reads as a control token in the rendered prompt is
the template's own. Such a prompt is encoded by a copy of the tokenizer that knows the control tokens by names that
nobody can write, and to which their spellings mean nothing.
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

STAND_IN = "\ufdd0"  # a noncharacter of Unicode, followed by one of the private characters from FIRST on
FIRST = 0xE000


class Controls:
    """The control tokens of a tokenizer, and encoding that heeds them in a template's own words alone.

    They are the tokens that the tokenizer calls special, and those added ones that occur in `markup`, which is what a
    template writes around the texts: some checkpoints do not call the tokens of their turns special.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, markup: str = "") -> None:
        self.tokenizer = tokenizer
        self.added = {token: about.content for token, about in tokenizer.added_tokens_decoder.items()}
        special = {about.content for about in tokenizer.added_tokens_decoder.values() if about.special}
        named = special | set(tokenizer.all_special_tokens) | {text for text in self.added.values() if text in markup}
        self.names = sorted((name for name in named if name.strip()), key=len, reverse=True)
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        # a spelling that only the tokenizer's normal form makes a control token (＜|im_end|＞, <|IM_END|>)
        self.normalised = getattr(backend, "normalizer", None) is not None and any(
            about.normalized for about in tokenizer.added_tokens_decoder.values() if about.content in named
        )
        self.firsts = sorted({STAND_IN, *(name[0] for name in self.names)})
        spelt = "|".join(map(re.escape, self.names)) or r"(?!)"
        first = f"(?=[{re.escape(''.join(self.firsts))}])"  # Gemma has 6,249 names, which most characters begin none of
        self._spelt = re.compile(f"{first}(?:{spelt})")
        self._begins = re.compile(rf"{first}(?={spelt}).|{STAND_IN}", re.DOTALL)

    def escape(self, text: str) -> str:
        """A text in which no control token can be read."""
        return self._begins.sub(lambda found: STAND_IN + chr(FIRST + self.firsts.index(found[0])), text)

    def escape_response(self, text: str) -> str:
        """The same, but for the marks of the thought that a response has: they are what they are in what a peer writes.

        Within the thought and after it they are text.
        """
        before, closes, after = text.rpartition(CLOSES)
        thought, rest = (before, after) if closes else (after, "")
        bare = thought.lstrip()
        blanks, opens = thought[: len(thought) - len(bare)], OPENS if bare.startswith(OPENS) else ""
        return blanks + opens + self.escape(bare[len(opens) :]) + closes + self.escape(rest)

    def added_in(self, markup: str) -> list[int]:
        """Ids of the added tokens that a template writes in `markup`, in order."""
        ids = {name: token for token, name in self.added.items() if name.strip()}
        return [ids[name] for name in re.findall("|".join(map(re.escape, sorted(ids, key=len, reverse=True))), markup)]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Tokens of rendered texts, in one call, which takes half the time of many. Raises UserError for an escaped
        text if the tokenizer has no copy that can read it."""
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
        """A rendered text in which control tokens have the copy's names, and texts their own characters."""
        renamed = self._spelt.sub(lambda found: self._renamed[found[0]], rendered)
        return re.sub(f"{STAND_IN}(.)", lambda found: self.firsts[ord(found[1]) - FIRST], renamed, flags=re.DOTALL)

    @cached_property
    def _renamed(self) -> dict[str, str]:
        """Names that are in no text, since they are drawn anew in each process; they have no influence on the ids."""
        return {name: f"<{secrets.token_hex(16)}>" for name in self.names}

    @cached_property
    def _copy(self) -> tuple[Tokenizer, dict[int, int]]:
        """The tokenizer with renamed control tokens, and the ids of the original by its own."""
        from tokenizers import Tokenizer

        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"{self.tokenizer.name_or_path}: a text spells a control token ({', '.join(self.names[-3:])} …), "
                "which this tokenizer cannot read as text; use a model with a tokenizer.json"
            )
        about = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
        for token in about["added_tokens"]:
            token["content"] = self._renamed.get(token["content"], token["content"])
        if about["model"]["type"] == "Unigram":  # which would take the spelling for one piece
            about["model"]["vocab"] = [
                [self._renamed.get(piece, piece), score] for piece, score in about["model"]["vocab"]
            ]
        copy: Any = Tokenizer.from_str(json.dumps(about))
        return copy, {copy.token_to_id(token["content"]): token["id"] for token in about["added_tokens"]}
