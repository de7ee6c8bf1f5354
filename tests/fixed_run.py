"""A small run made of fixed rows, for code that reads finished runs: three peers, twelve questions, two rounds.

Nothing is drawn and no model is loaded: who is right, cut off or refused follows from numbers by simple rules.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from math import exp
from pathlib import Path
from typing import Any

from data import shards
from data.config.load import parse_config
from data.config.sections import Config
from data.hashing import question_id
from data.schema import CHAINS, EVALS, GATE, METRICS, PROMPTS, SCORES
from data.shards import Row
from data.stage import FORMAT
from evaluate.metrics import metrics_row
from tests.conftest import questions, write_jsonl

PEERS = ("ada", "ben", "cyd")
N = 12  # questions to learn from, and again on the benchmark
K = 2  # samples
ROUNDS = 2


def config_of(gold: bool = True, benchmarks: bool = True) -> Config:
    """Its config; without `gold`, it names no column of answers."""
    raw: dict[str, Any] = {
        "prompts": {"source": "questions.jsonl"},
        "peers": [{"name": name, "model": f"./models/{name}"} for name in PEERS],
        "evaluate": {"samples": K, "bootstrap": 200, "gold_answers": "numbers"},
        "gate": {"questions": 4},
    }
    if gold:
        raw["evaluate"]["gold_column"] = "answer"
    if benchmarks:
        raw["benchmarks"] = [{"name": "sums_1", "source": "test.jsonl", "answers": "numbers"}]
    return parse_config(raw, "the fixed run")


def make(root: Path, gold: bool = True, benchmarks: bool = True) -> Path:
    """Write runs/demo and its source files into `root`; returns the run's folder."""
    shutil.copytree(_made(gold, benchmarks), root, dirs_exist_ok=True)
    return root / "runs" / "demo"


@cache
def _made(gold: bool, benchmarks: bool) -> Path:
    """The run, made once."""
    root = Path(tempfile.mkdtemp(prefix="fixed-run-"))
    atexit.register(shutil.rmtree, root)
    config, run = config_of(gold, benchmarks), root / "runs" / "demo"
    write_jsonl(root / "questions.jsonl", questions(0, N))
    write_jsonl(root / "test.jsonl", questions(100, N))
    shards.write_json(config.model_dump(mode="json"), run / "config.json")
    ids = [question_id(row["question"]) for row in questions(0, N)]
    prompts = [{"id": id_, "question": q["question"], "source": "questions.jsonl"}
               for id_, q in zip(ids, questions(0, N), strict=True)]  # fmt: skip
    close(run / "prompts", "prompts", 0, {"part-00000.parquet": (prompts, PROMPTS)}, source={"files": []})
    for round_ in range(ROUNDS + 1):
        folder = run / f"round={round_}"
        if round_:
            chains = [row for i in range(N) for row in chain(round_, i)]
            close(folder / "chains", "generate", round_, {"part-00000.parquet": (chains, CHAINS)})
            scores = [row for i in range(N) for row in scored(round_, i, chain(round_, i))]
            close(folder / "scores", "score", round_, {"part-00000.parquet": (scores, SCORES)})
            train(folder / "adapters", round_)
        decisions = {peer: decided(round_, p) for p, peer in enumerate(PEERS)} if round_ else {}
        close(folder / "gate", "gate", round_, {"part-00000.parquet": ([], GATE)}, decisions=decisions)
        if benchmarks:
            rows = [row for p in range(3) for i in range(N) for row in evaluated(round_, i, p)]
            close(folder / "evals", "evaluate", round_, {"part-00000.parquet": (rows, EVALS)})
            metrics = [metrics_row([row for row in rows if row["peer"] == peer], config.evaluate, 17) for peer in PEERS]
            shards.write_rows(metrics, folder / "metrics.parquet", METRICS)
    return root


def close(folder: Path, stage: str, round_: int, files: dict[str, tuple[Sequence[Any], Any]], **summary: Any) -> None:
    """Write a finished stage."""
    for file, (rows, schema) in files.items():
        shards.write_rows(rows, folder / file, schema)
    manifest = {
        "stage": stage, "round": round_, "format": FORMAT, "rows": sum(len(rows) for rows, _ in files.values()),
        "seconds": 1.0, "fingerprint": {"benchmarks": "b"}, "versions": {}, **summary,
    }  # fmt: skip
    shards.write_manifest(folder, manifest, [folder / file for file in files])


def right(round_: int, i: int, p: int, sample: int = 0) -> bool:
    """Whether peer p is right on question i: more often in later rounds and at later positions."""
    return (7 * i + 5 * p + 3 * sample) % 10 < 4 + 2 * p + round_


def said(i: int, is_right: bool, first: int = 0) -> tuple[str, str]:
    """A response and its answer."""
    row = questions(first + i, 1)[0]
    answer = row["answer"] if is_right else str(int(row["answer"]) + 1 + i % 2)
    return f"The answer is {answer}.", answer


def chain(round_: int, i: int) -> list[Row]:
    """The responses to question i: peers take turns at who begins, and the last one is the aggregate."""
    rows: list[Row] = []
    question = questions(i, 1)[0]["question"]
    for position in (1, 2, 3):
        p = (i + position) % 3
        text, answer = said(i, right(round_, i, p + (position > 1)))
        cut = (i, p) == (5, 1)
        rows.append({
            "prompt_id": question_id(question), "question": question, "role": "chain", "position": position,
            "sample": None, "peer": PEERS[p], "is_aggregate": position == 3,
            "response": text[:9] if cut else text, "answer": None if cut else answer,
            "finish_reason": "length" if cut else "stop", "n_tokens": 16 if cut else 6 + i % 3,
            "logprob": -0.5 * position, "token_ids": [7] * (16 if cut else 6 + i % 3),
        })  # fmt: skip
    return rows


def scored(round_: int, i: int, rows: list[Row]) -> list[Row]:
    """A row for each peer."""
    aggregate = rows[2]
    found: list[Row] = []
    for row in rows:
        reason = "is_aggregate" if row is aggregate else None if row["answer"] else "response_truncated"
        if aggregate["answer"] is None:
            reason = "aggregate_truncated"
        agrees, kept = row["answer"] == aggregate["answer"], reason is None
        pmi = (1.5 if agrees else -2.0) + 0.25 * (i % 4) + 0.1 * round_ if kept else None
        tokens = aggregate["n_tokens"] + 1
        found.append({
            "prompt_id": row["prompt_id"], "peer": row["peer"], "number": 1, "label": aggregate["answer"],
            "label_share": None, "role": "chain", "position": row["position"], "sample": None,
            "target_peer": aggregate["peer"], "logp_given_response": None if pmi is None else pmi - 3.0,
            "logp_alone": None if pmi is None else -3.0, "n_target_tokens": tokens if kept else None, "pmi": pmi,
            "pmi_per_token": None if pmi is None else pmi / tokens,
            "weight": None if pmi is None else round(2 / (1 + exp(pmi)), 4), "drop_reason": reason,
            "agrees": agrees, "answer_entropy": 0.0 if agrees else 0.6365, "question": row["question"],
            "target": aggregate["response"], "target_token_ids": [7] * tokens,
        })  # fmt: skip
    return found


def train(folder: Path, round_: int) -> None:
    """Finished adapters, without weights."""
    reports = {}
    for p, peer in enumerate(PEERS):
        losses = [round((2.0 - 0.2 * p) / (round_ + step), 4) for step in range(1, 5)]
        shown = f"{losses[0]:.3f} → {losses[-1]:.3f}"
        reports[peer] = {"examples": 8, "tokens": 96, "losses": losses, "loss": shown}
        shards.write_json(reports[peer], folder / peer / "training.json")
    files = [folder / peer / "training.json" for peer in PEERS]
    manifest = {"stage": "train", "round": round_, "format": FORMAT, "rows": 24, "seconds": 1.0, "fingerprint": {},
                "versions": {}, "peers": reports}  # fmt: skip
    shards.write_manifest(folder, manifest, files)


def decided(round_: int, p: int) -> dict[str, Any]:
    """The gate's decision: it refuses ben in round 2."""
    refused = (round_, p) == (2, 1)
    difference = -0.25 if refused else 0.25
    comparison = {
        "against": round_ - 1, "n": 4, "before": 0.5, "after": 0.5 + difference, "gained": int(not refused),
        "lost": int(refused), "difference": difference, "low": difference - 0.2, "high": difference + 0.2,
        "passed": not refused,
    }  # fmt: skip
    return {"in_use": round_ - 1 if refused else round_, "comparisons": [comparison]}


def evaluated(round_: int, i: int, p: int) -> list[Any]:
    """The greedy response and the samples of a peer to question i of the benchmark."""
    rows = []
    item = questions(100 + i, 1)[0]
    for sample in range(K + 1):
        is_right = right(round_, i, p, sample)
        text, answer = said(i, is_right, 100)
        score = None if sample == 0 else (1.0 if is_right else -1.0) + 0.1 * sample
        rows.append({
            "benchmark": "sums_1", "item_id": question_id(item["question"]), "peer": PEERS[p], "sample": sample,
            "question": item["question"], "response": text, "answer": answer, "gold": item["answer"],
            "correct": is_right, "verdict": "correct" if is_right else "wrong", "finish_reason": "stop",
            "n_tokens": 6, "cluster": None if sample == 0 else 0, "verifier_score": score,
            "verifier_score_frozen": score, "critique": None, "critique_frozen": None,
            "peer_agreement": 0.5 if sample == 0 else None, "extract_status": "phrase",
        })  # fmt: skip
    return rows
