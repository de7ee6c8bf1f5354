"""The chains as the page carries them: an index to filter by, and blocks of chains that the browser unpacks when it
shows a chain. Both are JSON, compressed with gzip and written in base64, which needs no escaping in HTML."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from evaluate.page.chain_data import ChainView, ResponseView
from evaluate.page.maths import Formulas

PREVIEW = 90  # characters of a question or a label in the list


def packed(value: Any) -> Markup:
    """JSON as base64 of gzip. Raises ValueError for a number that is not finite."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(b64encode(gzip.compress(text.encode("utf-8"), 6, mtime=0)).decode("ascii"))


def block(chains: Iterable[ChainView | None], formulas: Formulas) -> Markup:
    """Some chains of a round with their formulas; None for a question without a chain in this round."""
    shown = [None if chain is None else _typeset(chain, formulas) for chain in chains]
    return packed({"chains": shown, "formulas": formulas.next_part()})


def _typeset(chain: ChainView, formulas: Formulas) -> dict[str, Any]:
    def answered(row: Any) -> dict[str, Any]:
        return {**row, "answer": formulas.of_answer(row["answer"])}

    def said(row: ResponseView) -> dict[str, Any]:
        return answered(row) | {"text": formulas.of_text(row["text"])}

    training = [
        {**row, "text": None if row["text"] is None or row["text_from"] is not None else formulas.of_text(row["text"])}
        for row in chain["training"]
    ]
    return {
        **chain,
        "question": formulas.of_text(chain["question"]),
        "gold": formulas.of_answer(chain["gold"]),
        "responses": [said(row) for row in chain["responses"]],
        "labels": [answered(row) for row in chain["labels"]],
        "votes": [answered(row) for row in chain["votes"]],
        "training": training,
    }


def index_row(chain: ChainView, peers: Sequence[str]) -> dict[str, Any]:
    """What the browser filters and sorts a question's chain by. `peers`, in the order given: [weight, PMI per token,
    whether the label is right] of the text with the largest weight; None for a peer without a row.

    `differ`: not all answers are equivalent; `cut`: a response of the chain is unfinished.
    """
    labels = [label for label in chain["labels"] if label["answer"] is not None]
    first = labels[0]["answer"] or "" if labels else None
    in_chain = [row for row in chain["responses"] if row["role"] != "sample"] or chain["responses"]
    return {
        "label": None if first is None else first[:PREVIEW],
        "labels": len({label["answer"] for label in labels}),
        "right": _all_right([label["right"] for label in labels]),
        "differ": bool(chain["entropy"]),
        "cut": any(row["unfinished"] for row in in_chain),
        "peers": [_of_peer(chain, peer) for peer in peers],
    }


def _of_peer(chain: ChainView, peer: str) -> list[Any] | None:
    rows = [row for row in chain["training"] if row["peer"] == peer]
    if not rows:
        return None
    row = max(rows, key=lambda row: abs(row["weight"] or 0.0))
    return [_short(row["weight"]), _short(row["pmi_per_token"]), row["label_right"]]


def _all_right(known: list[bool | None]) -> bool | None:
    """Whether the labels of several peers are all right: False if one is wrong, None if one is unknown."""
    return False if False in known else None if None in known or not known else True


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
