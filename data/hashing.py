"""Hashes of contents, for ids and fingerprints, and of what identifies a request, for its seed."""

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
    """The text that identifies a question: NFC, runs of white space as one space. All other differences count:
    3² is not 32, a Mb is not a MB, and A - a is not a - A.
    """
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


def loose_form(text: str) -> str:
    """Text for comparisons where a false match is better than a missed one, as between training questions and
    benchmarks: NFKC, case-folded, runs of white space as one space. It takes 3² for 32.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()  # folding may undo the normalisation
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", folded)).strip()


def question_id(question: str) -> str:
    """Content hash of the normalised question, 16 hex digits."""
    return _short_hash(normalise_question(question))


def draw_key(question: str) -> str:
    """Key of a question in shuffles and sampling seeds, 16 hex digits: a hash of the loose form.

    It keeps draws as they were: the same config still draws the same questions and responses. It is not an id (up to
    format 2 it was).
    """
    return _short_hash(loose_form(question))


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def request_seed(*parts: object) -> int:
    """Sampling seed of a request, from what identifies it: a resumed run draws what the first one would have drawn."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4]) >> 1
