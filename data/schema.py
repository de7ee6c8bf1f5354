"""One row type per hand-off, and the Parquet schema that follows from it.

A `TypedDict` lists the columns of a row, so that mypy finds a misspelt one. `schema_of` makes the Arrow schema from it,
which is checked when a shard is written and again when it is read: `str` is string, `int` int32, `float` float64, and
`| None` is nullable. No schema that generate, score or train uses has a gold answer. columns.py says what every column
means.
"""

from __future__ import annotations

import types
from functools import cache
from typing import Any, Literal, TypedDict, get_args, get_origin, get_type_hints

import pyarrow as pa

Role = Literal["chain", "synthesis", "solo", "sample"]  # of a response to an unlabelled question
TOKENS = pa.list_(pa.int32())
ARROW: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int32(),
    float: pa.float64(),
    bool: pa.bool_(),
    list[int]: TOKENS,
}


@cache
def schema_of(row: Any) -> pa.Schema:
    """The Arrow schema of a TypedDict's rows. Raises KeyError for a type that is not in ARROW."""
    fields = []
    for name, hint in get_type_hints(row).items():
        nullable = get_origin(hint) is types.UnionType
        kind = next(part for part in get_args(hint) if part is not types.NoneType) if nullable else hint
        kind = str if get_origin(kind) is Literal else kind
        fields.append(pa.field(name, ARROW[kind], nullable=nullable))
    return pa.schema(fields)


class PromptRow(TypedDict):
    """An unlabelled question."""

    id: str
    question: str
    source: str


class ChainRow(TypedDict):
    """A response to an unlabelled question; written by generate."""

    prompt_id: str
    question: str
    role: Role
    position: int | None
    sample: int | None
    peer: str
    is_aggregate: bool
    response: str
    answer: str | None
    finish_reason: str
    n_tokens: int
    logprob: float | None
    token_ids: list[int]


class ScoreRow(TypedDict):
    """What a peer would train on for a question, and with which weight; written by score."""

    prompt_id: str
    peer: str
    number: int
    label: str | None
    label_share: float | None
    role: str | None
    position: int | None
    sample: int | None
    target_peer: str | None
    logp_given_response: float | None
    logp_alone: float | None
    n_target_tokens: int | None
    pmi: float | None
    pmi_per_token: float | None
    weight: float | None
    drop_reason: str | None
    agrees: bool | None
    answer_entropy: float
    question: str
    target: str | None
    target_token_ids: list[int]


class KeepRow(TypedDict):
    """An example to train on, where an ablation lists them; written by `make ablate`."""

    prompt_id: str
    peer: str
    number: int


class QuarantineRow(TypedDict):
    """What went wrong with one question in a stage; written by generate, score, gate, evaluate if anything did."""

    stage: str
    peer: str | None
    benchmark: str | None
    question_id: str
    reason: str
    detail: str | None


class GateResponseRow(TypedDict):
    """A response to a question of the gate; sample 0 is greedy."""

    prompt_id: str
    question: str
    peer: str
    sample: int
    response: str
    answer: str | None
    finish_reason: str
    n_tokens: int


class GateRow(GateResponseRow):
    """A response to a question of the gate, with the vote of the untouched peers; written by train/gate/."""

    vote: str | None
    vote_share: float
    agrees: bool | None
    agrees_before: bool | None
    agrees_untouched: bool | None


class EvalRow(TypedDict):
    """A graded response to a benchmark's question; written by evaluate."""

    benchmark: str
    item_id: str
    peer: str
    sample: int
    question: str
    response: str
    answer: str | None
    gold: str
    correct: bool
    verdict: str
    finish_reason: str
    n_tokens: int
    cluster: int | None
    verifier_score: float | None
    verifier_score_frozen: float | None
    critique: str | None
    critique_frozen: str | None
    peer_agreement: float | None
    extract_status: str


class MetricsRow(TypedDict):
    """The numbers of a peer on a benchmark; written by evaluate."""

    benchmark: str
    peer: str
    n: int
    k: int
    em: float | None
    em_lo: float | None
    em_hi: float | None
    sample_accuracy: float | None
    gv_gap: float | None
    gv_gap_lo: float | None
    gv_gap_hi: float | None
    gv_gap_frozen: float | None
    gv_gap_70: float | None
    gv_gap_global: float | None
    gv_gap_rel: float | None
    n_none_kept: int
    n_gap_rel: int
    verifier_auroc: float | None
    verifier_accuracy: float | None
    verifier_undecided: float | None
    verifier_undecided_frozen: float | None
    abs_v_minus_g: float | None
    pass_at_k: float | None
    maj_at_k: float | None
    no_answer_rate: float | None
    truncated_rate: float | None
    mean_tokens: float | None
    unanswered_rate: float | None
    distinct_answers: float | None
    answer_entropy: float | None
    peer_agreement: float | None


class AblationRow(TypedDict):
    """A mean, or a difference of two, in an ablation's table; written by `make ablate`."""

    arm: str
    reads_gold: bool
    peer: str
    metric: str
    minus: str | None
    mean: float
    low: float | None
    high: float | None
    seeds: list[int]


class CrossRow(TypedDict):
    """How one peer's verifier does on another's samples; written by evaluate."""

    benchmark: str
    peer: str
    verifier: str
    gv_gap: float | None
    gv_gap_lo: float | None
    gv_gap_hi: float | None
    verifier_auroc: float | None
    verifier_accuracy: float | None
    verifier_undecided: float | None


PROMPTS = schema_of(PromptRow)
CHAINS = schema_of(ChainRow)
SCORES = schema_of(ScoreRow)
KEEP = schema_of(KeepRow)
GATE = schema_of(GateRow)
QUARANTINE = schema_of(QuarantineRow)
EVALS = schema_of(EvalRow)
METRICS = schema_of(MetricsRow)
ABLATION = schema_of(AblationRow)
CROSS = schema_of(CrossRow)
