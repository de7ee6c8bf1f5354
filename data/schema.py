"""One Parquet schema per hand-off, checked when a shard is written and again when it is read.

No schema that generate, score or train touches has a gold answer; data/README.md explains every column.
"""

import pyarrow as pa

TOKENS = pa.list_(pa.int32())


def _schema(*fields: tuple[str, pa.DataType, bool]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=nullable) for name, kind, nullable in fields])


PROMPTS = _schema(
    ("id", pa.string(), False),
    ("question", pa.string(), False),
    ("source", pa.string(), False),
)

CHAINS = _schema(
    ("prompt_id", pa.string(), False),
    ("question", pa.string(), False),
    ("role", pa.string(), False),
    ("position", pa.int32(), True),
    ("sample", pa.int32(), True),
    ("peer", pa.string(), False),
    ("is_aggregate", pa.bool_(), False),
    ("response", pa.string(), False),
    ("answer", pa.string(), True),
    ("finish_reason", pa.string(), False),
    ("n_tokens", pa.int32(), False),
    ("logprob", pa.float64(), False),
    ("token_ids", TOKENS, False),
)

SCORES = _schema(
    ("prompt_id", pa.string(), False),
    ("peer", pa.string(), False),
    ("role", pa.string(), False),
    ("position", pa.int32(), True),
    ("aggregate_peer", pa.string(), False),
    ("logp_given_response", pa.float64(), True),
    ("logp_alone", pa.float64(), True),
    ("n_target_tokens", pa.int32(), True),
    ("pmi", pa.float64(), True),
    ("pmi_per_token", pa.float64(), True),
    ("weight", pa.float64(), True),
    ("drop_reason", pa.string(), True),
    ("agrees", pa.bool_(), True),
    ("answer_entropy", pa.float64(), False),
    ("question", pa.string(), False),
    ("target", pa.string(), False),
    ("target_token_ids", TOKENS, False),
)

KEEP = _schema(
    ("prompt_id", pa.string(), False),
    ("peer", pa.string(), False),
)

EVALS = _schema(
    ("benchmark", pa.string(), False),
    ("item_id", pa.string(), False),
    ("peer", pa.string(), False),
    ("sample", pa.int32(), False),
    ("question", pa.string(), False),
    ("response", pa.string(), False),
    ("answer", pa.string(), True),
    ("gold", pa.string(), False),
    ("correct", pa.bool_(), False),
    ("verdict", pa.string(), False),
    ("finish_reason", pa.string(), False),
    ("n_tokens", pa.int32(), False),
    ("cluster", pa.int32(), True),
    ("verifier_score", pa.float64(), True),
    ("verifier_score_frozen", pa.float64(), True),
    ("critique", pa.string(), True),
    ("critique_frozen", pa.string(), True),
    ("peer_agreement", pa.float64(), True),
    ("extract_status", pa.string(), False),
)

METRICS = _schema(
    ("benchmark", pa.string(), False),
    ("peer", pa.string(), False),
    ("n", pa.int32(), False),
    ("k", pa.int32(), False),
    *[
        (name, pa.float64(), True)
        for name in (
            "em", "em_lo", "em_hi", "sample_accuracy", "gv_gap", "gv_gap_lo", "gv_gap_hi", "gv_gap_frozen",
            "gv_gap_70", "gv_gap_global", "gv_gap_rel",
        )
    ],
    ("n_none_kept", pa.int32(), False),
    ("n_gap_rel", pa.int32(), False),
    *[
        (name, pa.float64(), True)
        for name in (
            "verifier_auroc", "verifier_accuracy", "verifier_undecided", "verifier_undecided_frozen", "abs_v_minus_g",
            "pass_at_k", "maj_at_k", "no_answer_rate", "truncated_rate", "mean_tokens", "unanswered_rate",
            "distinct_answers", "answer_entropy", "peer_agreement",
        )
    ],
)  # fmt: skip

ABLATION = _schema(
    ("arm", pa.string(), False),
    ("reads_gold", pa.bool_(), False),
    ("peer", pa.string(), False),
    ("metric", pa.string(), False),
    ("minus", pa.string(), True),
    ("mean", pa.float64(), False),
    ("low", pa.float64(), True),
    ("high", pa.float64(), True),
    ("seeds", pa.list_(pa.int32()), False),
)

CROSS = _schema(
    ("benchmark", pa.string(), False),
    ("peer", pa.string(), False),
    ("verifier", pa.string(), False),
    *[
        (name, pa.float64(), True)
        for name in (
            "gv_gap", "gv_gap_lo", "gv_gap_hi", "verifier_auroc", "verifier_accuracy", "verifier_undecided",
        )
    ],
)  # fmt: skip
