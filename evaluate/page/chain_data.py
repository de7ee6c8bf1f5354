"""The chains of a round as plain data: what the page and the terminal show of a question (chains.py).

A chain has the question, all responses to it, the label and where it comes from, and for each peer what it trains on,
with PMI and weight, or why it does not train. Gold answers say what is right, if the run's source has any
(`evaluate.gold_column`); `right` is None if that is not known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from data import shards
from data.answers.votes import reliability
from data.errors import UserError
from data.keep import read_keep
from data.run import Run
from data.schema import CHAINS, SCORES
from data.shards import Row

CHAIN_COLUMNS = [name for name in CHAINS.names if name != "token_ids"]
SCORE_COLUMNS = [name for name in SCORES.names if name not in ("target_token_ids", "question")]

UNFINISHED = {
    "length": "cut off at the token limit",
    "context": "the prompt did not fit into the context",
    "error": "the engine failed on this request",
}
LABELS = {  # by score.label
    "aggregate": "the answer of the aggregate",
    "sample-vote": "a vote of all samples",
    "own-vote": "the most frequent answer of the peer's own samples",
    "teacher-vote": "the most frequent answer of the teacher's samples",
    "none": "any answer counts",
}
DROPPED = {  # by drop_reason
    "is_aggregate": "it wrote the aggregate itself",
    "label_no_votes": "there is no label: no response states an answer",
    "label_share_too_small": "there is no label: the winner's share of the votes is too small",
    "no_solution": "no finished sample has the label, or, where all samples are texts, none is finished",
    "is_teacher": "it is the teacher, which does not train",
    "aggregate_not_the_label": "the aggregate's answer is not the label",
    "aggregate_empty": "the aggregate is empty",
    "aggregate_truncated": "the aggregate was cut off",
    "aggregate_no_answer": "the aggregate states no answer",
    "response_empty": "its own response is empty",
    "response_truncated": "its own response was cut off",
    "response_no_answer": "its own response states no answer",
    "target_not_separable": "its tokenizer joins the end of the prompt and the beginning of the text",
    "score_not_finite": "a log-probability was not a finite number",
}


class ResponseView(TypedDict):
    """One response. `unfinished`: why it is, in words, or None; `logprob` in nats."""

    role: str
    position: int | None
    sample: int | None
    peer: str
    is_aggregate: bool
    text: str
    answer: str | None
    right: bool | None
    n_tokens: int
    unfinished: str | None
    logprob: float | None


class LabelView(TypedDict):
    """The answer that counts, and for which peers; `share` of the votes, 0 to 1, None without a vote."""

    answer: str | None
    share: float | None
    right: bool | None
    peers: list[str]


class VoteView(TypedDict):
    """Equivalent answers in a vote, named by the first; `by` counts the votes of each rater."""

    answer: str
    by: dict[str, int]
    right: bool | None


class TrainingView(TypedDict):
    """What a peer trains on. PMI and log-probabilities in nats; `text_from` and `measured` are indices of responses;
    `dropped`: why it does not train, in words; `kept`: whether the arm `oracle` chose it, None in other runs."""

    peer: str
    number: int
    label: str | None
    label_right: bool | None
    agrees: bool | None
    text: str | None
    text_by: str | None
    text_from: int | None
    measured: int | None
    pmi: float | None
    pmi_per_token: float | None
    n_target_tokens: int | None
    logp_given_response: float | None
    logp_alone: float | None
    weight: float | None
    dropped: str | None
    kept: bool | None


class ChainView(TypedDict):
    """All that a round did with a question; `training` is empty if the round has no scores yet.

    `votes`: the answers of the samples, or of the chain's responses, if the label comes from their vote; `entropy`: of
    the answers, in nats.
    """

    round: int
    id: str
    question: str
    gold: str | None
    responses: list[ResponseView]
    label_from: str
    labels: list[LabelView]
    votes: list[VoteView]
    entropy: float | None
    training: list[TrainingView]


def ids_of(run: Run, round_: int) -> list[str]:
    """Ids of the questions that have a chain, in the order of the files. Raises UserError for unfinished chains."""
    tables = stage_tables(run, round_, "chains", CHAINS, ["prompt_id"])
    return list(dict.fromkeys(id_ for table in tables for id_ in pc.unique(table["prompt_id"]).to_pylist()))


def chains_of(run: Run, round_: int, ids: Collection[str]) -> Iterator[ChainView]:
    """The chains of some questions, in the order of the files, not judged yet; without scores if the round has none. At
    most one shard of chains is in memory. Raises UserError for unfinished chains or damaged files."""
    training = defaultdict(list)
    if (run.stage_dir(round_, "scores") / shards.SUCCESS).is_file():
        for row in stage_rows(run, round_, "scores", SCORES, SCORE_COLUMNS, ids):
            training[row["prompt_id"]].append(row)
    kept = _kept(run, round_)
    label_from = _label_words(run, round_)
    for id_, rows in groupby(
        stage_rows(run, round_, "chains", CHAINS, CHAIN_COLUMNS, ids), key=lambda row: str(row["prompt_id"])
    ):
        yield _chain(round_, id_, list(rows), training[id_], label_from, kept)


def stage_rows(
    run: Run, round_: int, kind: str, schema: pa.Schema, columns: list[str], ids: Collection[str] | None = None
) -> Iterator[Row]:
    """The rows of `stage_tables`, of some questions or of all. Raises the same UserError."""
    wanted = None if ids is None else pa.array(sorted(ids), pa.string())
    for table in stage_tables(run, round_, kind, schema, columns):
        found = table if wanted is None else table.filter(pc.is_in(table["prompt_id"], wanted))
        yield from found.to_pylist()


def stage_tables(run: Run, round_: int, kind: str, schema: pa.Schema, columns: list[str]) -> Iterator[pa.Table]:
    """The shards of a finished stage, one at a time. Raises UserError if the stage is not finished, or a shard is
    damaged."""
    folder = run.stage_dir(round_, kind)
    manifest = shards.read_manifest(folder)
    if manifest is None:
        stage = {"chains": "generate", "scores": "score"}[kind]
        raise UserError(f"{folder} is not finished: run `make {stage} RUN={run.name} ROUND={round_}` first")
    for path in shards.shard_paths(folder):
        yield shards.read_table(path, schema, columns)


def _kept(run: Run, round_: int) -> set[tuple[str, str, int]] | None:
    """(prompt id, peer, number) of the examples that an arm with `oracle = true` trains on; None in any other run."""
    table = read_keep(run, round_)
    return None if table is None else {(r["prompt_id"], r["peer"], r["number"]) for r in table.to_pylist()}


def _label_words(run: Run, round_: int) -> str:
    """Where the labels of a round come from, in words."""
    section = run.config.score
    words = LABELS[section.label]
    if section.label == "aggregate" and run.config.generate.aggregate == "vote":
        words += ", which a vote of the chain chose"
    manifest = run.stage_dir(round_, "scores") / shards.SUCCESS
    if section.label == "sample-vote" and manifest.is_file():
        if section.reliability == "self-consistency":
            shares = shards.read_json(manifest).get("self_consistency", {})
            weights = ", ".join(f"{rater} {reliability(share):.2f}" for rater, share in shares.items())
            words += ", each weighted by how often its rater agrees with itself" + (f" ({weights})" if weights else "")
        elif section.reliability == "verifier":
            words += ", each weighted by its author's verifier score"
    return words


def _chain(
    round_: int, id_: str, rows: list[Row], scores: list[Row], label_from: str, kept: set[tuple[str, str, int]] | None
) -> ChainView:
    responses = [_response(row) for row in rows]
    labels: dict[tuple[str | None, float | None], LabelView] = {}
    for row in scores:
        new: LabelView = {"answer": row["label"], "share": row["label_share"], "right": None, "peers": []}
        label = labels.setdefault((row["label"], row["label_share"]), new)
        if row["peer"] not in label["peers"]:
            label["peers"].append(row["peer"])
    return {
        "round": round_,
        "id": id_,
        "question": rows[0]["question"],
        "gold": None,
        "responses": responses,
        "label_from": label_from,
        "labels": list(labels.values()),
        "votes": [],
        "entropy": scores[0]["answer_entropy"] if scores else None,
        "training": [_training(row, responses, kept) for row in scores],
    }


def _response(row: Row) -> ResponseView:
    names = ("role", "position", "sample", "peer", "is_aggregate", "answer", "n_tokens", "logprob")
    reason = row["finish_reason"]
    unfinished = None if reason == "stop" else UNFINISHED.get(reason, reason)
    found: Any = {"text": row["response"], "right": None, "unfinished": unfinished}
    for name in names:
        found[name] = row[name]
    return found  # type: ignore[no-any-return]


def _training(row: Row, responses: list[ResponseView], kept: set[tuple[str, str, int]] | None) -> TrainingView:
    key = (row["peer"], row["role"], row["position"], row["sample"])
    keys = [(each["peer"], each["role"], each["position"], each["sample"]) for each in responses]
    texts = [(each["peer"], each["text"]) for each in responses]
    text, reason = (row["target_peer"], row["target"]), row["drop_reason"]
    names = ("pmi", "pmi_per_token", "n_target_tokens", "logp_given_response", "logp_alone", "weight")
    found: Any = {
        "peer": row["peer"],
        "number": row["number"],
        "label": row["label"],
        "label_right": None,
        "agrees": row["agrees"],
        "text": row["target"],
        "text_by": row["target_peer"],
        "text_from": texts.index(text) if text in texts else None,
        "measured": keys.index(key) if row["role"] and key in keys else None,
        "dropped": None if reason is None else DROPPED.get(reason, reason.replace("_", " ")),
        "kept": None if kept is None else (row["prompt_id"], row["peer"], row["number"]) in kept,
    }
    for name in names:
        found[name] = row[name]
    return found  # type: ignore[no-any-return]
