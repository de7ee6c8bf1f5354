"""Runs made without models, for tests of the page: the files of every stage, of any size, in a second.

`python -m tests.page_runs 100000` measures the page of a run with as many questions: seconds, memory, size.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data import shards
from data.config.load import parse_config
from data.gate import FOLDER as GATE_FOLDER
from data.hashing import question_id
from data.run import Run
from data.schema import CHAINS, EVALS, GATE, METRICS, PROMPTS, SCORES
from data.selection import write_prompts
from data.shards import Row
from data.stage import FORMAT
from evaluate.metrics import metrics_row

EVIL = "</script><script>alert(1)</script><b>&amp;\u2028\u202e\x1b[31mred"
SHARD = 4096


@dataclass(frozen=True)
class Shape:
    """The size and parts of a run."""

    rounds: int = 2
    questions: int = 30
    peers: Sequence[str] = ("p", "q")
    benchmarks: Sequence[str] = ("a", "b")
    items: int = 12
    gold: bool = True
    gate: bool = False
    refused: bool = False
    samples: int = 0
    alone: bool = False
    better: float = 0.25
    spent: bool = True


def write_run(name: str, shape: Shape, **sections: Any) -> Run:
    """A run of the current folder, finished up to its last round; `sections` are more of its config."""
    source, bench = Path("train.jsonl"), Path("bench.jsonl")
    write_lines(source, shape.questions, "Tom has {} pens & <b>{}</b>. How many?")
    write_lines(bench, shape.items, "Bench {} and {}?")
    write_lines(Path("gate.jsonl"), 4, "Gate {} and {}?")
    raw: Row = {
        "prompts": {"source": str(source)},
        "peers": [{"name": peer, "model": f"models/{peer}"} for peer in shape.peers],
        "benchmarks": [{"name": each, "source": str(bench), "answers": "numbers"} for each in shape.benchmarks],
        "evaluate": {"samples": 2, "bootstrap": 100, "gold_answers": "numbers",
                     **({"gold_column": "answer"} if shape.gold else {})},
    }  # fmt: skip
    for key, value in sections.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    if shape.samples:
        raw["score"] = {"label": "sample-vote", "text": "solution", **raw.get("score", {})}
    if shape.alone:
        raw["generate"] = {"aggregate": "self", **raw.get("generate", {})}
    if shape.gate:
        raw["gate"] = {"questions": 4}
        raw["prompts"]["limit"] = shape.questions - 4
    run = Run(name, parse_config(raw, "test"))
    shards.write_json(run.config.model_dump(mode="json"), run.root / "config.json")
    write_prompts(run.config, run.prompts_dir, run.gate_dir)
    ids = prompts_of(run.prompts_dir)
    for round_ in range(shape.rounds + 1):
        if round_:
            write_chains(run, round_, ids, shape)
            write_scores(run, round_, ids, shape)
            write_training(run, round_, shape)
        if shape.gate:
            write_gate(run, round_, shape)
        if shape.benchmarks:
            write_evals(run, round_, shape)
    return run


def write_lines(path: Path, n: int, form: str) -> None:
    """Questions with their answers."""
    lines = ({"question": form.format(i, i % 7), "answer": str(i + i % 7)} for i in range(n))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def prompts_of(folder: Path) -> list[tuple[str, str]]:
    """(id, question)"""
    tables = [shards.read_table(path, PROMPTS) for path in shards.shard_paths(folder)]
    table = pa.concat_tables(tables)
    return list(zip(table["id"].to_pylist(), table["question"].to_pylist(), strict=True))


def answer_of(question: str, right: bool) -> str:
    """The gold answer of a training question, or another."""
    i = int(question.split("has ")[1].split()[0])
    return str(i + i % 7 + (0 if right else 1))


def close(run: Run, folder: str, round_: int, shape: Shape, **more: Any) -> None:
    """Finish a stage."""
    path = run.stage_dir(round_, folder)
    files = sorted(each for each in path.rglob("*") if each.is_file())
    time_ = {"peer_seconds": dict.fromkeys(shape.peers, 6.0), "devices": 1} if shape.spent else {}
    shards.write_manifest(path, {"format": FORMAT, "rows": 1, "seconds": 10.0, **time_, **more}, files)


def write_columns(run: Run, folder: str, round_: int, schema: pa.Schema, columns: dict[str, list[Any]]) -> None:
    """Shards of columns; those not given are null, or empty."""
    n = len(next(iter(columns.values())))
    blank = {pa.string(): "", pa.int32(): 0, pa.float64(): 0.0, pa.bool_(): False}
    for field in schema:
        if field.name not in columns:
            value = None if field.nullable else blank.get(field.type, [])
            columns[field.name] = [value] * n
    table = pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    for number, start in enumerate(range(0, n, SHARD)):
        shards.write_table(table.slice(start, SHARD), run.stage_dir(round_, folder) / f"part-{number:05d}.parquet")


def write_chains(run: Run, round_: int, ids: list[tuple[str, str]], shape: Shape) -> None:
    """Each peer in turn; the last one is the aggregate, and right three times in four."""
    names = ("prompt_id", "question", "role", "position", "sample", "peer", "is_aggregate", "response", "answer",
             "finish_reason", "n_tokens")  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    for i, (id_, question) in enumerate(ids):
        for place, peer in enumerate(turned(shape.peers, i), 1):
            right = (i * 7 + place * 3 + round_) % 4 > (1 if place == 1 else 0)
            answer = answer_of(question, right)
            text = f"{EVIL} It is {answer}."
            last = place == len(shape.peers) or shape.alone
            role = "solo" if shape.alone else "chain"
            where = None if shape.alone else place
            rows.append((id_, question, role, where, None, peer, last, text, answer, "stop", 20 + i % 5))
            for sample in range(1, shape.samples + 1):
                mine = answer_of(question, (i + sample) % 3 > 0)
                rows.append((id_, question, "sample", None, sample, peer, False, text, mine, "stop", 21))
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    write_columns(run, "chains", round_, CHAINS, columns)
    close(run, "chains", round_, shape, tokens=sum(columns["n_tokens"]), stage="generate", round=round_)


def write_scores(run: Run, round_: int, ids: list[tuple[str, str]], shape: Shape) -> None:
    """A row per question and peer; the author of the text has none to train on."""
    names = ("prompt_id", "peer", "number", "label", "label_share", "role", "position", "target_peer", "pmi",
             "pmi_per_token", "n_target_tokens", "weight", "drop_reason", "agrees", "answer_entropy", "question",
             "target")  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    for i, (id_, question) in enumerate(ids):
        order = turned(shape.peers, i)
        label = answer_of(question, (i * 7 + len(order) * 3 + round_) % 4 > 0)
        for place, peer in enumerate(order, 1):
            last = place == len(order) and len(order) > 1
            agrees = (i + place) % 3 > 0
            pmi = (0.4 if agrees else -0.2) + ((i * 13 + place) % 10) / 20
            measured = (None, None, None, None, "is_aggregate") if last else (pmi * 9, pmi, 9, 1.5 - pmi, None)
            rows.append((
                id_, peer, 1, label, 1.0, "chain", place, order[-1], *measured, agrees, 0.3, question,
                f"It is {label}.",
            ))  # fmt: skip
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    write_columns(run, "scores", round_, SCORES, columns)
    asked = {"self_consistency": {peer: 0.6 + n / 10 for n, peer in enumerate(shape.peers)}} if shape.samples else {}
    close(run, "scores", round_, shape, tokens=900, to_train=len(ids), **asked)


def turned(peers: Sequence[str], i: int) -> list[str]:
    """The peers, beginning with another one for each question."""
    start = i % len(peers)
    return [*peers[start:], *peers[:start]]


def write_training(run: Run, round_: int, shape: Shape) -> None:
    """Only losses; nothing here loads an adapter."""
    report = {"examples": 9, "tokens": 300, "losses": [1 / (step + round_) for step in range(20)], "loss": "1 → 0.1"}
    for peer in shape.peers:
        shards.write_json(report, run.stage_dir(round_, "adapters") / peer / "training.json")
    close(run, "adapters", round_, shape, tokens=600, peers=dict.fromkeys(shape.peers, report))


def write_gate(run: Run, round_: int, shape: Shape) -> None:
    """All adapters accepted, or the first peer's refused."""
    asked = [(id_, question) for id_, question in prompts_of(run.gate_dir) for _ in shape.peers]
    n = len(asked)
    write_columns(run, GATE_FOLDER, round_, GATE, {
        "prompt_id": [id_ for id_, _ in asked], "question": [question for _, question in asked],
        "peer": list(shape.peers) * (n // len(shape.peers)), "sample": [0] * n,
        "answer": [answer_of(question, True) for _, question in asked], "finish_reason": ["stop"] * n,
    })  # fmt: skip
    share = dict.fromkeys(shape.peers, 0.5)
    more: Row = {"rule": "harm stop", "questions": 4, "questions_with_a_vote": 4, "agreement": share,
                 "self_consistency": share, "fingerprint": {"candidates": {}},
                 "power": {"n": 4, "discordant": 0.2, "assumed": True, "probabilities": {"x": 0.5}}}  # fmt: skip
    if round_:
        more["decisions"] = {}
        for n, peer in enumerate(shape.peers):
            no = shape.refused and n == 0
            one = {"against": 0, "n": 4, "before": 0.5, "after": 0.25 if no else 0.75, "gained": 0, "lost": 1,
                   "difference": -0.25 if no else 0.25, "low": -0.5, "high": 0.5, "passed": not no}  # fmt: skip
            more["decisions"][peer] = {"in_use": 0 if no else round_, "comparisons": [one]}
    close(run, GATE_FOLDER, round_, shape, **more)


def write_evals(run: Run, round_: int, shape: Shape) -> None:
    """Exact match rises by `better` with every round."""
    rows: list[Any] = []
    for benchmark in shape.benchmarks:
        for n, peer in enumerate(shape.peers):
            for item in range(shape.items):
                for sample in range(3):
                    bound = 0.3 + n / 10 + shape.better * round_
                    correct = ((item * 5 + sample * 3 + n) % 10) / 10 < bound
                    score = None if sample == 0 else (1.0 if correct else -1.0) + sample / 10
                    rows.append({
                        "benchmark": benchmark, "item_id": question_id(f"i{item}"), "peer": peer, "sample": sample,
                        "question": "q", "response": EVIL, "answer": "1", "gold": "1", "correct": correct,
                        "verdict": "correct" if correct else "wrong", "finish_reason": "stop", "n_tokens": 20 + round_,
                        "cluster": None if sample == 0 else 0, "peer_agreement": 1.0 if sample == 0 else None,
                        "extract_status": "boxed", "verifier_score": score, "verifier_score_frozen": score,
                        "critique": None, "critique_frozen": None,
                    })  # fmt: skip
    folder = run.stage_dir(round_, "evals")
    shards.write_rows(rows, folder / "part-00000.parquet", EVALS)
    close(run, "evals", round_, shape, tokens=sum(row["n_tokens"] for row in rows))
    groups = [
        [row for row in rows if (row["benchmark"], row["peer"]) == key]
        for key in dict.fromkeys((row["benchmark"], row["peer"]) for row in rows)
    ]
    found = [metrics_row(group, run.config.evaluate, 17) for group in groups]
    shards.write_rows(found, folder.parent / "metrics.parquet", METRICS)


def measure(questions: int) -> None:
    """Print the time, memory and size of the page for so many questions."""
    import os
    import resource

    from evaluate.page.write import write_page

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        peers = ("p", "q", "r")
        child = os.fork()  # writing the run takes memory, too
        if child == 0:
            write_run("big", Shape(3, questions, peers, ("a",), samples=4 if questions <= 20_000 else 0))
            os._exit(0)
        os.waitpid(child, 0)
        start = time.monotonic()
        path = write_page("big")
        seconds, peak = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{questions:,} questions: {seconds:.1f} s, {peak:.2f} GiB at most, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    measure(int(sys.argv[1]))
