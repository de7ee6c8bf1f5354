"""Whole rounds on two tiny models: what they leave on disk, how it fits together, and every way to make it."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib import util
from pathlib import Path

import polars as pl
import pytest

from data import shards
from data.answers.extract import extract
from data.config.load import load_config
from data.config.sections import GateSection
from data.run import RUNS
from data.schema import CHAINS, EVALS, METRICS, SCORES
from data.shards import Row
from peers.engines.protocol import Request, Sampling
from peers.engines.transformers import TransformersEngine
from peers.engines.vllm import VllmEngine
from peers.placement import runtime_here
from peers.prompts import load_prompts
from pipeline.round import plan
from tests.conftest import ROOT, questions, read_stage, run_module, run_stage, stage
from tests.conftest import _make_model as make_model

FOLDERS = {"generate": "chains", "score": "scores", "train": "adapters", "evaluate": "evals"}
PEERS = ("chatty", "plain")
ADAPTER = "adapter_model.safetensors"
VLLM_STAGES = """
from pathlib import Path
from tests.conftest import run_stage
if __name__ == "__main__":
    run_stage("evaluate", "v", 0, Path("tiny.toml"), ["generate.engine=vllm"])
    run_stage("generate", "v", 1, Path("tiny.toml"), ["generate.engine=vllm"])
"""


@pytest.fixture
def one_process(project: Path) -> Path:
    """`project` in which arithmetic is float32 on every machine, so that engines can be compared."""
    config = project / "tiny.toml"
    config.write_text(config.read_text(encoding="utf-8") + 'compute = "float32"\nkv_cache_gib = 1\n', encoding="utf-8")
    return project


@pytest.fixture
def rounds(one_process: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with rounds 0 and 1 of run t, made by the command lines, and 2, in one process; made once, then
    copied."""
    kept = tmp_path_factory.getbasetemp() / "rounds"
    if not kept.exists():
        for round_, name in ((0, "evaluate"), *((1, name) for name in FOLDERS)):
            done = stage(name, round_, one_process)
            assert done.returncode == 0, done.stderr
            assert f"{name} round {round_}" in done.stdout and not done.stderr
        for name in FOLDERS:
            run_stage(name, "t", 2, Path("tiny.toml"), [])
        shutil.copytree("runs", kept)
    else:
        shutil.copytree(kept, "runs")
    return one_process


def read(name: str, round_: int, run: str = "t") -> list[Row]:
    """All rows of a finished stage."""
    schema = {"generate": CHAINS, "score": SCORES, "evaluate": EVALS}[name]
    folder = RUNS / run / f"round={round_}" / FOLDERS[name]
    manifest = shards.read_manifest(folder)
    rows = read_stage(folder, schema)
    assert manifest is not None and manifest["rows"] == len(rows) > 0
    return rows


def check_chains(rows: list[Row], n_questions: int = 24, extra: int = 0) -> dict[str, Row]:
    """Every question has one response per peer (and `extra` syntheses), one of them the aggregate: {question: it}."""
    by_question: dict[str, list[Row]] = {}
    for row in rows:
        by_question.setdefault(row["prompt_id"], []).append(row)
        assert row["n_tokens"] == len(row["token_ids"]) <= 16
        assert row["finish_reason"] in ("stop", "length")
        assert row["logprob"] < 0 and math.isfinite(row["logprob"])
        assert bool(row["response"]) == bool(row["token_ids"]) and row["response"] == row["response"].strip()
    assert len(by_question) == n_questions
    for chain in by_question.values():
        assert [row["position"] for row in chain] == [*range(1, len(PEERS) + 1), *[None] * extra]
        assert [row["role"] for row in chain] == ["chain"] * len(PEERS) + ["synthesis"] * extra
        assert {row["peer"] for row in chain[: len(PEERS)]} == set(PEERS)
        assert sum(row["is_aggregate"] for row in chain) == 1
    return {id_: next(row for row in chain if row["is_aggregate"]) for id_, chain in by_question.items()}


def check_scores(rows: list[Row], chains: list[Row], own_text: bool = False) -> None:
    """One row per question and peer; PMI, weight and reason fit together; the weights of each peer have mean 1."""
    responses = {(row["prompt_id"], row["peer"]): row for row in reversed(chains)}  # a synthesis comes last
    assert Counter((row["prompt_id"], row["peer"]) for row in rows) == Counter(responses.keys())
    aggregates = {row["prompt_id"]: row for row in chains if row["is_aggregate"]}
    for row in rows:
        response, aggregate = responses[row["prompt_id"], row["peer"]], aggregates[row["prompt_id"]]
        assert row["question"] == response["question"] and row["position"] == response["position"]
        assert row["target_peer"] == (row["peer"] if own_text else aggregate["peer"])
        assert (row["drop_reason"] is None) == (row["weight"] is not None)
        if row["pmi"] is None:
            assert row["drop_reason"] is not None or response["is_aggregate"]
        else:
            assert row["pmi"] == pytest.approx(row["logp_given_response"] - row["logp_alone"], abs=1e-9)
            assert row["logp_given_response"] < 0 and row["logp_alone"] < 0 and row["n_target_tokens"] > 0
    weighed = 0
    for peer in PEERS:
        weights = [row["weight"] for row in rows if row["peer"] == peer and row["weight"] is not None]
        weighed += len(weights)
        assert not weights or math.fsum(weights) / len(weights) == pytest.approx(1, abs=1e-9)
    assert weighed > 20


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, the lock aside."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_a_round_is_four_stages_after_those_of_the_rounds_before() -> None:
    config = load_config(ROOT / "configs" / "nano.toml", [])
    gated = config.model_copy(update={"gate": GateSection(questions=10)})
    rounds = [(name, number) for number in (1, 2) for name in FOLDERS]
    assert [(step.stage, step.round) for step in plan(2) if step.is_part_of(config)] == [("evaluate", 0), *rounds]
    stages = ("generate", "score", "train", "gate", "evaluate")
    rounds = [("evaluate", 0), ("gate", 0), *((name, number) for number in (1, 2) for name in stages)]
    assert [(step.stage, step.round) for step in plan(2) if step.is_part_of(gated)] == rounds


# --- rounds 0, 1 and 2 by the command line ----------------------------------------------------------------------


@pytest.mark.slow
def test_every_file_of_the_layout_is_there(rounds: Path) -> None:
    root = RUNS / "t"
    expected = {"config.json", "sums.json", "report.html", "prompts/_SUCCESS.json"}
    expected |= {f"prompts/part-{n:05d}.parquet" for n in range(3)}
    for round_ in (0, 1, 2):
        expected |= {f"round={round_}/{name}" for name in ("metrics.parquet", "sums.json", "evals/_SUCCESS.json")}
        expected |= {f"round={round_}/evals/part-{n:05d}.parquet" for n in range(2)}  # one shard per peer
        names = FOLDERS if round_ else ("evaluate",)
        expected |= {f"round={round_}/logs/{name}.{end}" for name in names for end in ("log", "json")}
    for round_ in (1, 2):
        expected.add(f"round={round_}/guard.json")
        for folder in ("chains", "scores"):
            expected |= {f"round={round_}/{folder}/part-{n:05d}.parquet" for n in range(3)}
        expected |= {f"round={round_}/{folder}/_SUCCESS.json" for folder in ("chains", "scores", "adapters")}
        for peer in PEERS:
            for file in (ADAPTER, "adapter_config.json", "pst.json", "training.json"):
                expected.add(f"round={round_}/adapters/{peer}/{file}")
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    extra = {name for name in found - expected if not name.startswith(".") and not name.endswith("README.md")}
    assert not expected - found and not extra

    done = run_module("evaluate.report", "--run", "t", cwd=rounds)
    assert done.returncode == 0 and "report: runs/t/report.html" in done.stdout, done.stderr
    html = (root / "report.html").read_text(encoding="utf-8")
    assert "GV-Gap" in html and "sums" in html and "transductive" not in html.lower().split("choices")[0]
    table = [line.split() for line in done.stdout.splitlines() if line.split()[:1] in (["sums"], ["1"], ["2"], ["0"])]
    assert len(table) >= 6

    done = run_module("pipeline.status", "--run", "t", cwd=rounds)
    assert done.returncode == 0 and done.stdout.count("finished") == 9 and "started" not in done.stdout


@pytest.mark.slow
def test_tables_read_as_partitions_and_join_by_id(rounds: Path) -> None:
    chains = pl.scan_parquet("runs/t/round=*/chains/*.parquet", hive_partitioning=True).collect()
    scores = pl.scan_parquet("runs/t/round=*/scores/*.parquet", hive_partitioning=True).collect()
    evals = pl.scan_parquet("runs/t/round=*/evals/*.parquet", hive_partitioning=True).collect()
    metrics = pl.scan_parquet("runs/t/round=*/metrics.parquet", hive_partitioning=True).collect()
    prompts = pl.read_parquet("runs/t/prompts/*.parquet")
    assert chains["round"].unique().sort().to_list() == [1, 2]
    assert evals["round"].unique().sort().to_list() == metrics["round"].unique().sort().to_list() == [0, 1, 2]
    assert len(chains) == len(scores) == 2 * 24 * len(PEERS)
    keys = ["round", "prompt_id", "peer"]
    joined = chains.join(scores, on=keys, how="inner", validate="1:1")
    assert len(joined) == len(chains)
    assert joined.select(pl.col("question") == pl.col("question_right")).to_series().all()
    assert set(prompts["id"]) == set(chains["prompt_id"]) and not set(evals["item_id"]) & set(prompts["id"])
    assert "gold" not in {*chains.columns, *scores.columns, *prompts.columns, *(c for c in ("answer_column",))}
    for round_ in (1, 2):
        rows = read("generate", round_)
        check_chains(rows)
        check_scores(read("score", round_), rows)
        first = Counter(row["peer"] for row in rows if row["position"] == 1)
        assert first == dict.fromkeys(PEERS, 12)  # rotation
    assert len(evals) == 3 * len(PEERS) * 8 * 3  # rounds, peers, items, greedy + 2 samples
    for row in evals.iter_rows(named=True):
        assert (row["verifier_score"] is None) == (row["verifier_score_frozen"] is None) == (row["sample"] == 0)
        assert row["correct"] == (row["verdict"] == "correct") and row["gold"].isdigit()
        found = extract(row["response"])
        assert (row["extract_status"], row["answer"]) == ((found.rule, found.answer) if found else ("none", None))
    untouched = evals.filter((pl.col("round") == 0) & (pl.col("sample") > 0))
    assert untouched["verifier_score"].to_list() == untouched["verifier_score_frozen"].to_list()
    moved = evals.filter((pl.col("round") == 2) & (pl.col("sample") > 0))
    assert moved["verifier_score"].to_list() != moved["verifier_score_frozen"].to_list()
    for round_ in (0, 1, 2):
        rows = shards.read_rows(RUNS / "t" / f"round={round_}" / "metrics.parquet", METRICS)
        assert [(row["benchmark"], row["peer"], row["n"], row["k"]) for row in rows] == [
            ("sums", p, 8, 2) for p in PEERS
        ]


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS)
def test_adapters_load_and_go_on_from_the_round_before(peer: str, rounds: Path, tiny_models: dict[str, Path]) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    first, second = (RUNS / "t" / f"round={n}" / "adapters" / peer for n in (1, 2))
    one, two = load_file(first / ADAPTER), load_file(second / ADAPTER)
    assert one.keys() == two.keys() and len(one) == 2 * 2 * 7  # A and B, two layers, seven linear maps each
    for name, before in one.items():
        assert not torch.equal(before, two[name]), name
        if "lora_A" in name:  # a fresh one would be another random draw, at a distance of about 1.4
            assert (two[name] - before).norm() < 0.3 * before.norm(), name
        else:
            assert before.norm() > 0
    base = AutoModelForCausalLM.from_pretrained(tiny_models[peer], dtype=torch.float32).eval()
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        logits = [base(ids).logits]
        for folder in (first, second):
            adapted = PeftModel.from_pretrained(base, str(folder)).eval()
            logits.append(adapted(ids).logits)
            base = adapted.unload()
    assert not torch.allclose(logits[0], logits[1], atol=1e-4) and not torch.allclose(logits[1], logits[2], atol=1e-4)
    for folder, round_ in ((first, 1), (second, 2)):
        about = json.loads((folder / "pst.json").read_text(encoding="utf-8"))
        assert about["peer"] == peer and about["base"] == str(tiny_models[peer]) and about["round"] == round_


@pytest.mark.slow
def test_a_finished_stage_says_so_and_changes_nothing(rounds: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = snapshot(RUNS)
    for round_ in (0, 1, 2):
        for name in FOLDERS if round_ else ("evaluate",):
            capfd.readouterr()
            run_stage(name, "t", round_, Path("tiny.toml"), ["runtime.grader_workers=1"])
            out, err = capfd.readouterr()
            assert out.strip() == f"{name} round {round_}: finished already" and not err
    done = stage("train", 1, rounds)
    assert done.returncode == 0 and done.stdout.strip() == "train round 1: finished already"
    run_stage("score", "t", 2, None, [])  # the frozen config is enough
    assert snapshot(RUNS) == before


@pytest.mark.slow
def test_deleted_chains_come_back_and_scores_stay_valid(rounds: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same rows come back; scores are finished if their checksums do too, and else say what has changed."""
    folder = RUNS / "t" / "round=2" / "chains"
    before, manifest = read("generate", 2), shards.read_manifest(folder)
    shutil.rmtree(folder)
    shutil.rmtree(RUNS / "t" / ".checkpoints")
    scores = snapshot(RUNS / "t" / "round=2" / "scores")
    done = stage("generate", 2, rounds)
    assert done.returncode == 0, done.stderr
    after = read("generate", 2)
    for old, new in zip(before, after, strict=True):
        assert old.pop("logprob") == pytest.approx(new.pop("logprob"), abs=1e-5) and old == new
    again = shards.read_manifest(folder)
    capfd.readouterr()
    if again is not None and manifest is not None and again["files"] == manifest["files"]:
        run_stage("score", "t", 2, Path("tiny.toml"), [])
        assert "finished already" in capfd.readouterr().out
    else:
        with pytest.raises(SystemExit):
            run_stage("score", "t", 2, Path("tiny.toml"), [])
        assert "chains changed" in capfd.readouterr().err
    assert snapshot(RUNS / "t" / "round=2" / "scores") == scores


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_gives_what_transformers_gives(one_process: Path, tiny_models: dict[str, Path]) -> None:
    """Rows are complete, and at least nine of ten greedy responses are the same."""
    # vLLM takes the size of a Qwen 2 head to be hidden size / heads, which the tiny one's is not
    make_model(one_process / "llama", "llama", chat=False, seed=2)
    config = (one_process / "tiny.toml").read_text(encoding="utf-8")
    assert str(tiny_models["plain"]) in config
    (one_process / "tiny.toml").write_text(config.replace(str(tiny_models["plain"]), "./llama"), encoding="utf-8")
    run_stage("evaluate", "t", 0, Path("tiny.toml"), [])
    run_stage("generate", "t", 1, Path("tiny.toml"), [])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", VLLM_STAGES]
    done = subprocess.run(command, cwd=one_process, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows, expected = read("generate", 1, run="v"), read("generate", 1)
    check_chains(rows)
    for position in (1, 2):
        theirs = {row["prompt_id"]: row for row in expected if row["position"] == position}
        ours = {row["prompt_id"]: row for row in rows if row["position"] == position}
        same = [id_ for id_ in ours if ours[id_]["token_ids"] == theirs[id_]["token_ids"]]
        assert len(same) >= 0.9 * len(theirs) == 0.9 * 24
        assert all(ours[id_]["finish_reason"] == theirs[id_]["finish_reason"] for id_ in same)
        off = [abs(ours[id_]["logprob"] - theirs[id_]["logprob"]) for id_ in same]
        assert max(off) < 0.01
    evals, expected = read("evaluate", 0, run="v"), read("evaluate", 0)
    keys = ("benchmark", "item_id", "peer", "sample")
    assert [[row[key] for key in keys] for row in evals] == [[row[key] for key in keys] for row in expected]
    greedy = [(a["response"], b["response"]) for a, b in zip(evals, expected, strict=True) if a["sample"] == 0]
    assert sum(a == b for a, b in greedy) >= 0.9 * len(greedy) == 0.9 * 16
    assert all(row["verifier_score"] is not None for row in evals if row["sample"])


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_serves_an_adapter_beside_the_base(one_process: Path, tiny_models: dict[str, Path]) -> None:
    """run.adapters = "unmerged": the responses of the adapted model, which are not those of the base."""
    for name in ("generate", "score", "train"):
        run_stage(name, "t", 1, Path("tiny.toml"), ["run.adapters=unmerged", "train.lr=3e-2"])
    config = load_config(Path("tiny.toml"), [])
    runtime = runtime_here(config.runtime)
    base, adapter, prompts = tiny_models["chatty"], RUNS / "t/round=1/adapters/chatty", load_prompts(config, "chatty")
    requests = [Request(prompts.solve(row["question"]), 0) for row in questions(200, 20)]
    greedy = Sampling(0.0, 1.0, 16)
    vllm = VllmEngine(base, prompts, config.generate, runtime, "float32", 0, adapter)
    try:
        served = vllm.generate(requests, greedy, lambda *_: None)
    finally:
        vllm.close()
    adapted, untouched = (
        TransformersEngine(base, prompts, runtime, "float32", beside).generate(requests, greedy, lambda *_: None)
        for beside in (adapter, None)
    )
    assert sum(a.token_ids == b.token_ids for a, b in zip(served, adapted, strict=True)) >= 18
    assert sum(a.token_ids == b.token_ids for a, b in zip(served, untouched, strict=True)) <= 10
    same = [(a, b) for a, b in zip(served, adapted, strict=True) if a.token_ids == b.token_ids]
    assert max(abs(a.logprob - b.logprob) for a, b in same) < 0.01


# --- other choices ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_unmerged_adapters_are_sampled_and_scored_without_checkpoints(one_process: Path) -> None:
    for name in FOLDERS:
        run_stage(name, "t", 1, Path("tiny.toml"), ["run.adapters=unmerged"])
    assert not (RUNS / "t" / ".checkpoints").exists()
    rows = read("evaluate", 1)
    assert len(rows) == len(PEERS) * 8 * 3
    sampled = [row for row in rows if row["sample"]]
    assert any(row["verifier_score"] != row["verifier_score_frozen"] for row in sampled)
    run_stage("generate", "t", 2, Path("tiny.toml"), ["run.adapters=unmerged"])
    check_chains(read("generate", 2))


@pytest.mark.slow
def test_without_peers_each_model_trains_on_its_own_answer(one_process: Path) -> None:
    for name in ("generate", "score", "train"):
        run_stage(name, "t", 1, Path("tiny.toml"), ["generate.aggregate=self"])
    run_stage("generate", "fixed", 1, Path("tiny.toml"), ["generate.order=fixed", "prompts.shuffle=false"])
    chains, scores = read("generate", 1), read("score", 1)
    assert len(chains) == len(scores) == 48 and all(row["is_aggregate"] for row in chains)
    own = {(row["prompt_id"], row["peer"]): row for row in chains}
    for row in scores:
        assert row["pmi"] is None and row["target_peer"] == row["peer"]
        assert row["target"] == own[row["prompt_id"], row["peer"]]["response"]
        assert (row["weight"], row["drop_reason"]) == (1.0, None) or row["weight"] is None
    assert sum(row["weight"] == 1.0 for row in scores) > 20
    # a peer that stands first elsewhere has seen nothing there, and says the same
    first = {row["prompt_id"]: row for row in read("generate", 1, run="fixed") if row["position"] == 1}
    alone = [row for row in chains if row["peer"] == PEERS[0]]
    assert sum(row["response"] == first[row["prompt_id"]]["response"] for row in alone) >= 22


@pytest.mark.slow
def test_a_round_without_examples_leaves_adapters_that_change_nothing(one_process: Path) -> None:
    """Two tokens are no answer, so nobody trains: the adapters are there, change nothing, and the next round runs."""
    from safetensors.torch import load_file

    for round_, name in ((0, "evaluate"), *((1, name) for name in FOLDERS), (2, "generate")):
        run_stage(name, "t", round_, Path("tiny.toml"), ["generate.max_new_tokens=2"])
    scores = read("score", 1)
    assert len(scores) == 48 and {row["drop_reason"] for row in scores} == {"aggregate_truncated"}
    assert all(row["weight"] is None and row["pmi"] is None for row in scores)
    for peer in PEERS:
        factors = load_file(RUNS / "t" / "round=1" / "adapters" / peer / ADAPTER)
        assert all(not tensor.any() for name, tensor in factors.items() if "lora_B" in name)
    keys = ("item_id", "peer", "sample", "response", "verdict")
    before, after = ([[row[key] for key in keys] for row in read("evaluate", n) if not row["sample"]] for n in (0, 1))
    assert before == after
    assert len(read("generate", 2)) == 48


VARIANTS = {
    "vote": "generate.aggregate=vote",
    "synthesis": "generate.aggregate=synthesis",
    "fixed": "generate.order=fixed",
    "random": "generate.order=random",
    "mean": "score.scorer=mean",
    "aggregator": "score.scorer=aggregator",
    "answer": "score.pmi_target=answer",
    "own": "score.text=own",
    "final": "score.train_final=true",
    "sampled": "generate.temperature=1.0",
    "entropy": "score.weighting=entropy",
    "alone": "score.y_source=alone",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_give_valid_chains_and_scores(variant: str, one_process: Path) -> None:
    for name in ("generate", "score"):
        run_stage(name, "t", 1, Path("tiny.toml"), [VARIANTS[variant]])
    chains, scores = read("generate", 1), read("score", 1)
    alone = {(row["prompt_id"], row["peer"]): row for row in chains if row["role"] == "solo"}
    chains = [row for row in chains if row["role"] != "solo"]
    aggregates = check_chains(chains, extra=variant == "synthesis")
    check_scores(scores, chains, own_text=variant == "own")
    ordered = [[row["peer"] for row in chains if row["prompt_id"] == id_][: len(PEERS)] for id_ in aggregates]
    positions = Counter(row["position"] for row in aggregates.values())
    if variant == "synthesis":
        assert positions == {None: 24} and len(chains) == 72
        assert Counter(row["peer"] for row in aggregates.values()) == dict.fromkeys(PEERS, 12)
        assert all(row["drop_reason"] != "is_aggregate" for row in scores)
    elif variant != "vote":
        assert positions == {2: 24}
    if variant == "fixed":
        assert all(order == list(PEERS) for order in ordered)
    elif variant == "random":
        assert 3 < sum(order == list(PEERS) for order in ordered) < 21
    own = [row for row in scores if row["position"] == aggregates[row["prompt_id"]]["position"]]
    if variant == "final":
        assert [row["weight"] for row in own if row["drop_reason"] is None] == [1.0] * 24
        assert all(row["pmi"] is None for row in own)
    else:
        assert {row["drop_reason"] for row in own} <= {"is_aggregate", "aggregate_no_answer", "aggregate_truncated"}
    responses = {(row["prompt_id"], row["peer"], row["position"]): row for row in chains}
    for row in scores:
        source = responses[row["prompt_id"], row["peer"], row["position"]] if variant == "own" else None
        assert row["target"] == (source or aggregates[row["prompt_id"]])["response"]
    if variant == "answer":
        sizes = {row["n_target_tokens"] for row in scores if row["pmi"] is not None}
        assert sizes <= {1, 2, 3, 4}  # "The answer is N.": a token per digit
    for row in scores:
        answers = [other["answer"] for other in chains if other["prompt_id"] == row["prompt_id"]]
        differ = len({answer for answer in answers[: len(PEERS)] if answer is not None}) == 2
        if variant != "synthesis":
            assert row["answer_entropy"] == pytest.approx(math.log(2) if differ else 0)
    if variant == "entropy":
        for peer in PEERS:
            kept = [row for row in scores if row["weight"] is not None and row["peer"] == peer]
            scale = [row["weight"] / max(row["answer_entropy"], 0.05) for row in kept]
            assert scale == pytest.approx(scale[:1] * len(kept))
    if variant == "alone":
        assert len(alone) == 24
    if variant == "own":
        run_stage("train", "t", 1, Path("tiny.toml"), [VARIANTS[variant]])


SOLUTION = ("score.label=sample-vote", "score.text=solution", "generate.samples=4", "generate.sample_temperature=1.0")


def test_a_vote_of_samples_is_trained_on_in_the_words_of_a_sample(one_process: Path) -> None:
    overrides = [*SOLUTION, "score.reliability=verifier"]
    for name in ("generate", "score", "train"):
        run_stage(name, "t", 1, Path("tiny.toml"), overrides)
    chains, scores = read("generate", 1), read("score", 1)
    assert Counter(row["role"] for row in chains) == {"solo": 48, "sample": 192}
    samples = {(row["prompt_id"], row["peer"], row["response"]): row for row in chains if row["role"] == "sample"}
    assert not any(row["is_aggregate"] for row in chains)
    trained = [row for row in scores if row["drop_reason"] is None]
    assert len(scores) == 48 and len(trained) > 20
    for row in trained:
        source = samples[row["prompt_id"], row["target_peer"], row["target"]]
        assert source["answer"] is not None and 0 < row["label_share"] <= 1 and row["label"]
        own = [
            each for each in samples.values() if each["prompt_id"] == row["prompt_id"] and each["peer"] == row["peer"]
        ]
        has = [each for each in own if each["answer"] == row["label"] and each["finish_reason"] == "stop"]
        assert (row["target_peer"] == row["peer"]) == bool(has)  # its own words first
        if row["pmi"] is None:
            assert row["weight"] == pytest.approx(1) and row["role"] is None
        else:
            assert row["role"] in ("solo", "sample") and row["logp_alone"] < 0
    for peer in PEERS:
        mine = [row["weight"] for row in trained if row["peer"] == peer]
        assert math.fsum(mine) / len(mine) == pytest.approx(1, abs=1e-9)
    labels = {(row["prompt_id"], row["label"]) for row in trained}
    assert len(labels) == len({id_ for id_, _ in labels})  # one label a question, for all peers


def test_signed_weights_train_on_all_own_samples(one_process: Path) -> None:
    overrides = ["score.label=own-vote", "score.text=samples", "score.weighting=signed", *SOLUTION[2:]]
    for name in ("generate", "score", "train"):
        run_stage(name, "t", 1, Path("tiny.toml"), overrides)
    scores = read("score", 1)
    kept = [row for row in scores if row["weight"] is not None]
    assert {row["target_peer"] == row["peer"] for row in kept} == {True} and all(row["pmi"] is None for row in kept)
    assert any(row["weight"] < 0 for row in kept) and any(row["weight"] > 0 for row in kept)
    for peer in PEERS:
        sizes = [abs(row["weight"]) for row in kept if row["peer"] == peer and row["weight"]]
        assert math.fsum(sizes) / len(sizes) == pytest.approx(1)
    manifest = shards.read_manifest(RUNS / "t" / "round=1" / "adapters")
    assert manifest is not None
    assert sum(manifest["examples"].values()) == sum(row["weight"] not in (None, 0) for row in scores)
