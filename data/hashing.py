"""Hashes: of contents, for ids and fingerprints, and of what identifies a request, for its seed."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from typing import Any


def digest(value: Any) -> str:
    """A short content hash of anything JSON can express."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def normalise_question(text: str) -> str:
    """Text as it identifies a question: NFC, runs of white space as one blank. Nothing else is the same question:
    3² is not 32, a Mb is not a MB, and A - a is not a - A.
    """
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


def loose_form(text: str) -> str:
    """Text as compared where a question too many is better than one too few, as between training questions and
    benchmarks: NFKC, case-folded, runs of white space as one blank. It takes 3² for 32.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()  # which may undo the first normalisation
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", folded)).strip()


def question_id(question: str) -> str:
    """Content hash of the normalised question, 16 hex digits."""
    return _short_hash(normalise_question(question))


def draw_key(question: str) -> str:
    """What shuffles and sampling seeds go by, 16 hex digits: a hash of the loose form, which was the id up to format 2.

    It makes the same config draw the same questions and the same responses as before; it identifies nothing.
    """
    return _short_hash(loose_form(question))


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def request_seed(*parts: object) -> int:
    """Sampling seed of one request from what identifies it, so that a resumed run draws what the first one would."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4]) >> 1
