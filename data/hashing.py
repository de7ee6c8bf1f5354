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


def normalise(text: str) -> str:
    """Text as compared for duplicates: NFKC, case-folded, runs of white space as one blank."""
    folded = unicodedata.normalize("NFKC", text).casefold()  # which may undo the first normalisation
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", folded)).strip()


def question_id(question: str) -> str:
    """Content hash of the normalised question, 16 hex digits."""
    return hashlib.sha256(normalise(question).encode()).hexdigest()[:16]


def request_seed(*parts: object) -> int:
    """Sampling seed of one request from what identifies it, so that a resumed run draws what the first one would."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4]) >> 1
