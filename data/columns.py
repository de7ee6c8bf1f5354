"""What every column means, for the lists of data/README.md and for `python -m data schema`.

A meaning gives units and, for a nullable column, says when it is null. Columns that share a meaning share a key.
`python -m data.columns` writes the lists of data/README.md.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import schema
from data.errors import UserError

README = Path(__file__).with_name("README.md")
TYPES = {"double": "float64", "list<element: int32>": "list<int32>", "list<item: int32>": "list<int32>"}


@dataclass(frozen=True)
class Column:
    """One line of a table: columns with the same meaning; the type of each, and whether it may be null."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    nullable: tuple[bool, ...]
    meaning: str


def columns_of(table: str) -> list[Column]:
    """The columns of a table. Raises UserError for an unknown name."""
    if table not in TABLES:
        raise UserError(f"there is no table {table!r}; expected one of {', '.join(TABLES)}")
    arrow, found = schema.schema_of(TABLES[table].row), []
    for key, meaning in MEANINGS[table].items():
        names = tuple(key.split(", "))
        fields = [arrow.field(name) for name in names]
        types = tuple(TYPES.get(str(field.type), str(field.type)) for field in fields)
        found.append(Column(names, types, tuple(field.nullable for field in fields), meaning))
    return found


def list_markdown(table: str) -> str:
    """The Markdown list of data/README.md: an item for each meaning, with the names and types of its columns."""
    items = []
    for each in columns_of(table):
        names, types = (", ".join(texts) for texts in ([f"`{name}`" for name in each.names], dict.fromkeys(each.types)))
        text = f"- {names} ({types}): {each.meaning}".replace("<int32>", "&lt;int32&gt;")
        items.append(textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    return "\n".join(items) + "\n"


def with_lists(readme: str) -> str:
    """data/README.md with its lists of columns made again. Raises ValueError for a table without a section."""
    for name, table in TABLES.items():
        begin = rf"^## {re.escape(table.section)}[^\n]*\n(?:(?!## |- `)[^\n]*\n)*"
        parts = re.split(rf"({begin})(?:- `[^\n]*\n(?:  [^\n]*\n)*)+", readme, flags=re.M)
        if len(parts) != 3:
            raise ValueError(f"data/README.md has {len(parts) // 2} lists under `## {table.section}`, expected 1")
        readme = parts[0] + parts[1] + list_markdown(name) + parts[2]
    return readme


@dataclass(frozen=True)
class Table:
    """A kind of file: its rows, where it is, and how its section in data/README.md begins."""

    row: Any
    files: str
    section: str


TABLES = {
    "prompts": Table(schema.PromptRow, "runs/<run>/prompts/part-*.parquet", "prompts"),
    "chains": Table(schema.ChainRow, "runs/<run>/round=<R>/chains/part-*.parquet", "chains"),
    "scores": Table(schema.ScoreRow, "runs/<run>/round=<R>/scores/part-*.parquet", "scores"),
    "keep": Table(schema.KeepRow, "runs/<run>/round=<R>/keep.parquet", "keep.parquet"),
    "quarantine": Table(schema.QuarantineRow, "runs/<run>/round=<R>/quarantine.parquet", "quarantine.parquet"),
    "gate": Table(schema.GateRow, "runs/<run>/round=<R>/gate/part-*.parquet", "gate "),
    "evals": Table(schema.EvalRow, "runs/<run>/round=<R>/evals/part-*.parquet", "evals"),
    "metrics": Table(schema.MetricsRow, "runs/<run>/round=<R>/metrics.parquet", "metrics.parquet"),
    "ablation": Table(schema.AblationRow, "runs/<run>.ablation.round=<R>.parquet", "runs/<run>.ablation"),
    "cross": Table(schema.CrossRow, "runs/<run>/round=<R>/cross.parquet", "cross.parquet"),
}

MEANINGS: Mapping[str, Mapping[str, str]] = {
    "prompts": {
        "id": "content hash of the question",
        "question": "the unlabelled question",
        "source": "where it came from",
    },
    "chains": {
        "prompt_id": "id in prompts",
        "question": "the question's text",
        "role": (
            "`chain`: a response in the chain; `synthesis`: one more response, in view of all of them; `solo`: a "
            "response to the question alone, drawn like the chain's, of every peer (beside a chain not of its first "
            "peer, whose response in the chain is one); `sample`: one of k samples of the question alone, drawn with "
            "`generate.sample_temperature`, where `score.label` or `score.text` needs them"
        ),
        "position": "1-based place in the chain; null for the other roles",
        "sample": "which of the k samples, from 1; null for the other roles",
        "peer": "who answered: a peer or, for samples, also a voter",
        "is_aggregate": (
            'true in one row per prompt; with `generate.aggregate = "self"` in every row; in none where label and '
            "text need no aggregate"
        ),
        "response": (
            "text, white space trimmed, without stop string or end token; empty if nothing was generated; it includes "
            "a thought, with its `<think>` even where that was in the prompt"
        ),
        "answer": "extracted answer; null: none found",
        "finish_reason": (
            "`stop`, `length` (token limit), `context` (the prompt did not fit), `error` (the engine failed on it; see "
            "quarantine.parquet)"
        ),
        "n_tokens": "tokens in `token_ids`",
        "logprob": (
            "nats, summed over `token_ids`, at temperature 1; null: it was not finite (counted as "
            "`logprob_not_finite` in the manifest), and the response wins no tie in a vote"
        ),
        "token_ids": (
            "the response in its author's tokens, up to the one with the last visible character (which may run into a "
            "stop string), without end token"
        ),
    },
    "scores": {
        "prompt_id, peer": "the question, and the peer that would train on it",
        "number": 'which of the peer\'s texts for the question, from 1 (`score.solutions`, `score.text = "samples"`)',
        "label": "the answer that counts, found from the peers alone (`score.label`); null: none",
        "label_share": (
            "the winning answer's share of the weight of all votes, 0 to 1, also where it is too small to make a "
            "label; null: there was no vote, or no vote states an answer"
        ),
        "role, position, sample": (
            "as in chains, of the peer's response that is measured with the text, or would be if there were no "
            "`drop_reason` and it were not the text itself; null: there is no such response"
        ),
        "target_peer": "who wrote the text to train on; null: there is no text",
        "logp_given_response": "log p(a given x, y), nats; null where the row has no PMI",
        "logp_alone": "log p(a given x), nats; null where the row has no PMI",
        "n_target_tokens": "number of tokens in those sums; null where the row has no PMI",
        "pmi": (
            "`logp_given_response` − `logp_alone`, nats; null: `drop_reason` says why, or nothing is measured: the row "
            "is the aggregate author's own (`train_final`, `self`), the weighting needs no PMI of a sample, or no "
            "response of the peer differs from the text"
        ),
        "pmi_per_token": "nats per token; null where `pmi` is",
        "weight": (
            "training weight; its absolute value has mean 1 over the rows of a peer's round whose weight is not 0; "
            "negative only under `signed`; 0 or null: not trained on"
        ),
        "drop_reason": (
            "`is_aggregate`, `label_no_votes`, `label_share_too_small`, `no_solution` (no eligible sample has the "
            "label), `is_teacher`, `aggregate_not_the_label`, `aggregate_empty`, `aggregate_truncated`, "
            "`aggregate_no_answer`, `response_*`, `target_not_separable` (the scorer's tokenizer joins the end of the "
            "prompt and the beginning of the target), `score_not_finite` (a log-probability was not finite); null: "
            "kept"
        ),
        "agrees": (
            "whether the answer of the measured response (if none is, of the text) is equivalent to the label; null: "
            "there is no text"
        ),
        "answer_entropy": (
            "nats, over the clusters of equivalent answers to the question: under `own-vote` those of the peer's own "
            "samples; otherwise those of all samples, if label or text needs samples; else those of the chain (under "
            '`generate.aggregate = "self"` the peer\'s own); responses '
            "that were cut off or have no answer do not count"
        ),
        "question": "the prompt's question",
        "target": "text to train on, without a thought unless `peers[].train_thoughts` is set; null: no text",
        "target_token_ids": (
            "the target in this peer's tokens, end token included; train reads these; empty without a text, or where "
            "this peer's tokenizer joins the end of the prompt and the beginning of the target"
        ),
    },
    "keep": {
        "prompt_id, peer, number": "as in scores",
    },
    "quarantine": {
        "stage": "the stage in which it went wrong: generate, score, gate or evaluate",
        "peer": "the peer in whose process it went wrong; null: in none",
        "benchmark": "which benchmark, in evaluate; else null",
        "question_id": "id in prompts or in the questions of the gate; in evaluate, `item_id` of evals",
        "reason": (
            "`engine_error` (the engine failed on this request alone: an empty response with `finish_reason` "
            "`error`), `logprob_not_finite` (of a response; it wins no tie), `score_error`, `score_not_finite` (a pass "
            "failed, or its log-probability was not finite: the rows that need it are dropped as `score_not_finite`), "
            "`verifier_error`, `verifier_not_finite` (the same for a verifier's score: it counts as undecided in "
            "score and is null in evaluate, where only `scores_not_finite` in the manifest counts those that are not "
            "finite). Two outcomes do not count towards `runtime.quarantine_share`: `too_long` (the question is "
            "longer than the context: no rows in chains), `not_compared` (comparing two answers to it timed out or "
            "failed: they count as different)"
        ),
        "detail": "the error in one line, or how long the question is; null where the reason says it all",
    },
    "gate": {
        "prompt_id, question": "as in prompts; the questions of `runs/<run>/gate/`",
        "peer": (
            "who answered: in round 0 the untouched peer, later the peer with the adapter that the round trained, "
            "whether it is used or not"
        ),
        "sample": "0: greedy; 1..k: the samples that vote (only in round 0)",
        "response, finish_reason, n_tokens": "as in chains",
        "answer": (
            "extracted; null: none found. One that was cut off (`finish_reason` is not `stop`) does not vote and "
            "agrees with nothing"
        ),
        "vote": (
            "an answer of the cluster that won the vote of all untouched peers' samples, weighted by self-consistency; "
            "null: no sample states one"
        ),
        "vote_share": "its share of the weight of all votes; 0 where there is no vote",
        "agrees": "whether `answer` is equivalent to `vote`; null where there is no vote",
        "agrees_before": (
            "the same for the greedy answer of the policy that the peer used before the round; null in round 0 and "
            "where there is no vote"
        ),
        "agrees_untouched": "the same for the untouched peer's greedy answer; null where `agrees_before` is",
    },
    "evals": {
        "benchmark, item_id, peer": "which benchmark, which of its questions, who answered",
        "sample": "0: greedy; 1..k: sampled",
        "question, response": "their texts",
        "answer": "extracted; null: none found",
        "gold": (
            "the benchmark's answer as it was read ([below](#gold-answers)): `18` where the source has a solution that "
            "ends in `#### 18`"
        ),
        "correct": '`verdict == "correct"`',
        "verdict": (
            "`correct`, `wrong`, `no_answer`, `timeout` (the comparison took too long), `truncated` (token limit, no "
            "explicit answer)"
        ),
        "finish_reason, n_tokens": "as in chains",
        "cluster": (
            "number of its cluster of equivalent answers among the item's samples; null: greedy, no answer, or "
            "`truncated`"
        ),
        "verifier_score": (
            'log p(Yes) − log p(No) under the current policy, nats; with `evaluate.verifier = "cot"` 1 (Yes), −1 '
            "(No), or 0 (neither could be read, or the prompt did not fit); null for greedy, and where it was not "
            "finite"
        ),
        "verifier_score_frozen": "the same under the untouched peer; null in the same cases",
        "critique": (
            'what the current policy wrote before its Yes or No, with `evaluate.verifier = "cot"`; null for greedy, '
            "where the prompt did not fit, and under `logit`"
        ),
        "critique_frozen": "the same by the untouched peer; null in the same cases",
        "peer_agreement": (
            "share of the other peers whose greedy answer to the item is equivalent; a missing answer agrees with "
            "nothing; null for samples"
        ),
        "extract_status": (
            "which rule found `answer`: `tagged` (`<answer>x</answer>`), `boxed`, `hashes` (`#### x`), `phrase` "
            '("the answer is x"), `last_formula`, `last_number`, `none`; for kinds other than mathematics also '
            "`last_line`, `own`"
        ),
    },
    "metrics": {
        "benchmark, peer": "which benchmark, which peer",
        "n, k": "number of questions, and of samples per question",
        "em, em_lo, em_hi": (
            "exact match of the greedy response, with its 95 % bootstrap interval over questions (null: fewer than two)"
        ),
        "sample_accuracy": "mean accuracy of the samples",
        "gv_gap, gv_gap_lo, gv_gap_hi": (
            "accuracy of the better-scored samples (the share `evaluate.keep`, by default half) minus that of all "
            "samples, with its interval"
        ),
        "gv_gap_frozen": "the same with the untouched peer as verifier",
        "gv_gap_70": "the same with the better-scored 70 % kept",
        "gv_gap_global, n_none_kept": (
            "the same with one threshold for all questions of the benchmark, which keeps the better-scored "
            "share `evaluate.keep` of this peer's samples; `n_none_kept` questions keep no sample and count with gap 0"
        ),
        "gv_gap_rel, n_gap_rel": (
            "the gap as a share of 1 − u, where u is the accuracy of the question's samples: mean over the `n_gap_rel` "
            "questions with u < 1; null if there are none"
        ),
        "verifier_auroc": "AUROC of the score for correct against wrong samples, ties half; null unless there are both",
        "verifier_undecided": (
            'share of samples with score exactly 0: with `evaluate.verifier = "cot"` those without a readable '
            "Yes or No; where it is 1, the report shows neither gap nor AUROC"
        ),
        "verifier_undecided_frozen": "the same with the untouched peer as verifier",
        "verifier_accuracy, abs_v_minus_g": (
            "share of samples where (score > 0) is right, a score of 0 counting half; its absolute difference from "
            "`sample_accuracy`"
        ),
        "pass_at_k, maj_at_k": (
            "any of k correct (with k samples, the unbiased estimate of pass@k); the most frequent "
            "answer correct, even if fewer than half give it (ties: share of the tied; `truncated` samples do not vote)"
        ),
        "no_answer_rate, truncated_rate, mean_tokens": (
            "of the greedy responses; `truncated_rate`: all that reached the token limit (`finish_reason` `length`), "
            "also with an answer"
        ),
        "unanswered_rate": "share of greedy responses without an answer, `truncated` ones included",
        "distinct_answers": (
            "different answers (as normalised text) among the greedy ones, divided by n: 1 / n where all questions get "
            "the same answer"
        ),
        "answer_entropy": "nats, over the clusters of equivalent answers among an item's samples; mean over items",
        "peer_agreement": "mean over items of that column of evals",
    },
    "ablation": {
        "arm, reads_gold": (
            "name of the arm, or `round 0` for the untouched models; whether gold answers chose its examples, or those "
            "of `minus` (arms with `oracle = true`)"
        ),
        "peer, metric": "a peer, or `mean` over all; `em` or `gap`",
        "minus": "null: the value itself; else the arm that is subtracted, for a paired difference",
        "mean, low, high": (
            "mean over seeds, benchmarks and questions, with its 95 % interval; `low` and `high` are null if a "
            "benchmark has fewer than two questions"
        ),
        "seeds": "the seeds in that mean",
    },
    "cross": {
        "benchmark, peer": "whose samples, on which benchmark",
        "verifier": "the peer whose current policy scores them; for the peer itself the numbers are those of metrics",
        "gv_gap, gv_gap_lo, gv_gap_hi, verifier_auroc, verifier_accuracy, verifier_undecided": (
            "as in metrics, under that verifier; null in the same cases"
        ),
    },
}


if __name__ == "__main__":
    README.write_text(with_lists(README.read_text(encoding="utf-8")), encoding="utf-8")
