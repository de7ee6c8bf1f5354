"""Runs made of rows, for code that only reads runs: they need no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import shards
from data.config.load import parse_config
from data.hashing import question_id
from data.run import Run
from data.schema import CHAINS, SCORES
from data.shards import Row
from data.stage import FORMAT

PEERS = ("ada", "ben", "cat")


def response(peer: str, text: str, answer: str | None, **more: Any) -> Row:
    """A response, by default of the chain; `question` and `prompt_id` are added later."""
    row = {
        "role": "chain", "position": None, "sample": None, "peer": peer, "is_aggregate": False, "response": text,
        "answer": answer, "finish_reason": "stop", "n_tokens": 3, "logprob": -1.5, "token_ids": [1, 2, 3],
    }  # fmt: skip
    return row | more


def score(peer: str, **more: Any) -> Row:
    """A row of scores, by default with weight 1."""
    row: Row = {
        "peer": peer, "number": 1, "label": None, "label_share": None, "role": None, "position": None, "sample": None,
        "target_peer": None, "logp_given_response": -1.0, "logp_alone": -2.0, "n_target_tokens": 4, "pmi": 1.0,
        "pmi_per_token": 0.25, "weight": 1.0, "drop_reason": None, "agrees": True, "answer_entropy": 0.0,
        "target": None, "target_token_ids": [1, 2],
    }  # fmt: skip
    return row | more


def chain(question: str, answers: Sequence[str], weight: float = 1.0) -> tuple[list[Row], list[Row]]:
    """Chains and scores of a question that each peer answers in turn; the last answer is the aggregate's."""
    who = PEERS[: len(answers)]
    told = [(peer, f"I say {answer}.", answer) for peer, answer in zip(who, answers, strict=True)]
    rows = [response(*each, position=place) for place, each in enumerate(told, start=1)]
    rows[-1]["is_aggregate"] = True
    last = rows[-1]
    spread = 0.0 if len(set(answers)) == 1 else 0.7
    scores = [
        score(
            row["peer"], label=last["answer"], role="chain", position=row["position"], target_peer=last["peer"],
            target=last["response"], agrees=row["answer"] == last["answer"], answer_entropy=spread, weight=weight,
        )
        for row in rows
    ]  # fmt: skip
    nothing = dict.fromkeys(("logp_given_response", "logp_alone", "n_target_tokens", "pmi", "pmi_per_token", "weight"))
    scores[-1] |= {**nothing, "drop_reason": "is_aggregate"}
    return of_question(question, rows, scores)


def of_question(question: str, rows: list[Row], scores: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows with the question and its id."""
    named = {"prompt_id": question_id(question), "question": question}
    return [row | named for row in rows], [row | named for row in scores]


def write_run(
    name: str,
    rounds: dict[int, list[tuple[list[Row], list[Row]]]],
    gold: dict[str, str] | None = None,
    **sections: Any,
) -> Run:
    """A run in ./runs, and its source with gold answers beside it; `sections` of the config beyond its own."""
    rows = [{"question": question, "answer": answer} for question, answer in (gold or {"What?": "1"}).items()]
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "prompts": {"source": f"{name}.jsonl"}, "peers": [{"name": peer, "model": peer} for peer in PEERS],
        "evaluate": {"gold_column": "answer" if gold else None, "gold_answers": "numbers"}, **sections,
    }  # fmt: skip
    run = Run(name, parse_config(config, name))
    shards.write_json(run.config.model_dump(mode="json"), run.root / "config.json")
    for round_, questions in rounds.items():
        write_stage(run, round_, "chains", [row for rows, _ in questions for row in rows])
        write_stage(run, round_, "scores", [row for _, rows in questions for row in rows])
    return run


def write_stage(run: Run, round_: int, kind: str, rows: list[Row], **told: Any) -> None:
    """A finished stage in one shard; no stage without rows."""
    folder = run.stage_dir(round_, kind)
    if rows:
        shards.write_rows(rows, folder / "part-00000.parquet", {"chains": CHAINS, "scores": SCORES}[kind])
        shards.write_manifest(folder, {"format": FORMAT, **told}, shards.shard_paths(folder))
