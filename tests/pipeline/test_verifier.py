"""The verifier that writes a critique, and peers that verify each other, from verdicts to whole stages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data import shards
from data.config.load import load_config
from data.config.sections import Config
from data.hashing import digest
from data.quarantine import Quarantine
from data.run import RUNS, Run, open_run
from data.schema import CROSS, EVALS, METRICS
from data.shards import Row
from data.stage import Stage
from evaluate import stage as evaluate
from evaluate import verifier
from evaluate.benchmarks import load_benchmarks
from evaluate.verifier import cot_critiques, cot_verdict, verdict_score
from peers.engines.protocol import Completion
from peers.policy import Policy, resolve_all
from peers.prompts import PeerPrompts, load_prompts
from tests.conftest import ROOT, read_stage, run_module, run_stage
from tests.fake_engine import FakeEngine, Inline

SHARED = (
    "gv_gap",
    "gv_gap_lo",
    "gv_gap_hi",
    "verifier_auroc",
    "verifier_accuracy",
    "verifier_undecided",
)  # by metrics and cross
NANO = """
import sys
from pathlib import Path
from tests.conftest import run_stage
if __name__ == "__main__":
    few = ["prompts.limit=16", "benchmarks.0.limit=6", "benchmarks.1.limit=6", "evaluate.samples=2"]
    few += ["evaluate.verifier=cot", "evaluate.verifier_tokens=24", "evaluate.cross_verify=true", "train.batch_size=8"]
    for name, round_ in (("evaluate", 0), ("generate", 1), ("score", 1), ("train", 1), ("evaluate", 1)):
        run_stage(name, "n", round_, Path(sys.argv[1]), few)
"""


@pytest.mark.parametrize(
    ("critique", "score"),
    [
        ("3 + 4 is 7. Yes", 1),
        ("It should be 8.\nNO.", -1),
        ("No step is wrong, so **yes**", 1),  # the last one counts
        ("Yes? It adds up to 8, not 7: no!", -1),
        ("I know nothing about yesterday.", 0),  # neither word stands alone
        ("", 0),
    ],
)
def test_a_critiques_last_verdict_is_its_score(critique: str, score: float) -> None:
    assert verdict_score(Completion([], critique, 0.0, "stop")) == score


def test_verdicts_of_an_engine(tiny_models: dict[str, Path], project: Path) -> None:
    """In the order asked; what does not fit is not asked and undecided; the critique is greedy and limited."""
    prompts = load_prompts(load_config(Path("tiny.toml"), []), "plain")
    asked = [("1 + 1?", "2"), ("1 + 1? " * 60, "3"), ("2 + 2?", "5")]

    def respond(prompt: Sequence[int], seed: int) -> list[int]:
        text = "That is right: Yes" if "1 + 1?" in prompts.decode(prompt) else "Wrong. No"
        return prompts.encode_response(text)

    engine = FakeEngine(prompts, respond)
    heard: list[int] = []
    max_prompt_tokens = max(
        len(prompts.all_of("verify_cot", [(question, (a,))])[0]) for question, a in (asked[0], asked[2])
    )
    found = cot_critiques(lambda: engine, prompts, asked, 40, max_prompt_tokens, lambda items, _: heard.append(items))
    assert list(map(cot_verdict, found)) == [(1, "That is right: Yes"), (0, None), (-1, "Wrong. No")]
    assert engine.batches == [2] and sum(heard) == 3
    cut = list(map(cot_verdict, cot_critiques(lambda: engine, prompts, asked, 4, max_prompt_tokens, lambda *_: None)))
    assert [score for score, _ in cut] == [0, 0, 0] and "Wrong. No".startswith(cut[2][1] or "?")  # before the verdict


# --- peers that verify each other ---


def nothing_lost(run: Run) -> Quarantine:
    """Of round 1's evaluate."""
    return Quarantine(run, Stage("evaluate", 1, run.stage_dir(1, "evals"), {}), 8)


def scored(lm: Any, prompts: PeerPrompts, asked: list[tuple[str, str]], *_: object) -> list[float]:
    """Instead of a model: a score that depends on the verifier and on what it is asked."""
    return [float(int(digest([prompts.peer.name, *pair]), 16) % 7 - 3) for pair in asked]


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run in which peers verify each other, without models: half of their samples are right."""

    def engine(policy: Policy, config: Config) -> FakeEngine:
        prompts = policy.prompts

        def respond(prompt: Sequence[int], seed: int) -> list[int]:
            pens = int(prompts.decode(prompt).split("Tom has ")[-1].split(" ")[0])
            return prompts.encode_response(f"The answer is {pens + pens % 7 + 1 + seed % 2}.")

        return FakeEngine(prompts, respond)

    monkeypatch.setattr("peers.policy_cache.engine", engine)
    monkeypatch.setattr("peers.policy_cache.language_model", lambda *_: None)
    monkeypatch.setattr(verifier, "logit_scores", scored)
    with open_run("t", Path("tiny.toml"), ["evaluate.cross_verify=true", "run.shard_questions=4"]) as opened:
        yield opened


def trained(run: Run) -> dict[str, Policy]:
    """Policies of round 1 with the base's weights."""
    return {name: replace(policy, round=1) for name, policy in resolve_all(run, 0).items()}


def matrix(run: Run) -> dict[tuple[str, str], Row]:
    """{(generator, verifier): row} of round 0."""
    rows = shards.read_rows(run.round_dir(0) / "cross.parquet", CROSS)
    assert len(rows) == 4
    return {(row["peer"], row["verifier"]): row for row in rows}


def test_the_diagonal_is_that_of_metrics(run: Run) -> None:
    evaluate.main(run, 0, Inline(run))
    found = matrix(run)
    for row in shards.read_rows(run.round_dir(0) / "metrics.parquet", METRICS):
        assert {name: row[name] for name in SHARED} == {name: found[row["peer"], row["peer"]][name] for name in SHARED}
    # off it, the other's scores: by hand from the shards
    evals = pl.read_parquet(run.stage_dir(0, "evals") / "part-*.parquet").filter(pl.col("sample") > 0)
    for generator, judge in (("chatty", "plain"), ("plain", "chatty")):
        rows = list(evals.filter(pl.col("peer") == generator).iter_rows(named=True))
        asked = [(row["question"], row["response"]) for row in rows]
        scores = scored(None, load_prompts(run.config, judge), asked)
        right = [(score > 0) == row["correct"] if score else 0.5 for score, row in zip(scores, rows, strict=True)]
        assert found[generator, judge]["verifier_accuracy"] == pytest.approx(sum(right) / len(right))
        assert found[generator, judge]["gv_gap"] != found[generator, generator]["gv_gap"]


class Killed(BaseException):
    """Instead of a signal."""


def test_a_kill_goes_on_with_what_is_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate.main(run, 0, Inline(run))
    clean = matrix(run)
    shutil.rmtree(run.stage_dir(0, "evals"))
    (run.round_dir(0) / "cross.parquet").unlink()
    (run.round_dir(0) / "metrics.parquet").unlink()
    made: list[str] = []
    write = shards.write_rows

    def dying(rows: list[Row], path: Path, schema: Any) -> None:
        write(rows, path, schema)
        made.append(path.name)
        if len(made) in (5, 9, 11, 17):  # after responses, own scores, a first crossed one, the matrix
            raise Killed

    monkeypatch.setattr(shards, "write_rows", dying)
    for _ in range(4):
        with pytest.raises(Killed):
            evaluate.main(run, 0, Inline(run))
    evaluate.main(run, 0, Inline(run))
    assert matrix(run) == clean
    crossed = [name for name in made if name.startswith("cross~")]
    assert len(crossed) == len(set(crossed)) == 4  # two shards of two generators, each once


def test_critiques_are_kept_through_a_kill(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample has that of its current verifier and that of the frozen one; none is written twice."""

    def engine(policy: Policy, config: Config) -> FakeEngine:
        prompts = policy.prompts

        def respond(prompt: Sequence[int], seed: int) -> list[int]:
            asked = prompts.decode(prompt)
            answer = "The answer is 7." if "Check" not in asked else f"By {policy.name} of round {policy.round}: Yes"
            return prompts.encode_response(answer)

        return FakeEngine(prompts, respond)

    monkeypatch.setattr("peers.policy_cache.engine", engine)
    section = run.config.evaluate.model_copy(update={"verifier": "cot", "verifier_tokens": 40, "cross_verify": False})
    templates = run.config.templates.model_copy(update={"verify_cot": "Check it."})
    other = Run(run.name, run.config.model_copy(update={"evaluate": section, "templates": templates}))
    made: list[str] = []
    write = shards.write_rows

    def dying(rows: list[Row], path: Path, schema: Any) -> None:
        write(rows, path, schema)
        made.append(path.name)
        if len(made) in (6, 9, 13):  # among the critiques of the current policy, of the frozen one, and the shards
            raise Killed

    def assemble() -> None:
        evaluation = evaluate.Evaluation(other, 1, load_benchmarks(run.config))
        lost = nothing_lost(other)
        evaluation.respond(Inline(other), trained(other), lost)
        evaluation.verify(Inline(other), trained(other), lost)
        evaluation.assemble()

    monkeypatch.setattr(shards, "write_rows", dying)
    for _ in range(3):
        with pytest.raises(Killed):
            assemble()
    assemble()
    for row in read_stage(run.stage_dir(1, "evals"), EVALS):
        found = row["critique"], row["critique_frozen"]
        written = tuple(f"By {row['peer']} of round {n}: Yes" for n in (1, 0))
        assert found == (written if row["sample"] else (None, None))
    in_work = [name for name in made if "~" in name]
    assert len(in_work) == len(set(in_work)) == 12  # responses and two policies' critiques: two shards of two peers


def test_all_policies_are_asked_in_an_order_that_reloads_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each peer's jobs: with logits the current policy last, with critiques first."""
    asked: list[tuple[str, str]] = []

    class Recording(Inline):
        def submit(self, peer: str, work: Any, *arguments: Any, units: Any = None, requests: int = 0) -> None:
            asked.append((peer, arguments[-1]))

    for kind, expected in (
        ("logit", ["frozen", "current", "cross~chatty"]),
        ("cot", ["current", "cross~chatty", "frozen"]),
    ):
        asked.clear()
        section = run.config.evaluate.model_copy(update={"verifier": kind})
        other = Run(run.name, run.config.model_copy(update={"evaluate": section}))
        evaluation = evaluate.Evaluation(other, 1, load_benchmarks(run.config))
        evaluation.verify(Recording(run), trained(other), nothing_lost(other))
        assert [name for peer, name in asked if peer == "chatty"] == expected


# --- with models ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["logit", "cot"])
def test_two_rounds_of_tiny_models(kind: str, project: Path) -> None:
    """The frozen verifier is round 0's, and crossed scores are the other's: the tiny models mostly agree with none."""
    chosen = ["evaluate.cross_verify=true", f"evaluate.verifier={kind}", "evaluate.verifier_tokens=8"]
    for name, round_ in (("evaluate", 0), ("generate", 1), ("score", 1), ("train", 1), ("evaluate", 1)):
        run_stage(name, "t", round_, Path("tiny.toml"), chosen)
    for round_ in (0, 1):
        folder = RUNS / "t" / f"round={round_}"
        found = {(r["peer"], r["verifier"]): r for r in shards.read_rows(folder / "cross.parquet", CROSS)}
        assert len(found) == 4
        for row in shards.read_rows(folder / "metrics.parquet", METRICS):
            diagonal = found[row["peer"], row["peer"]]
            assert {name: row[name] for name in SHARED} == {name: diagonal[name] for name in SHARED}
        evals = pl.read_parquet(folder / "evals" / "*.parquet")
        assert kind == "logit" or set(evals["verifier_score"].drop_nulls()) <= {-1.0, 0.0, 1.0}
        for name in ("critique", "critique_frozen"):
            written = evals.filter(pl.col(name).is_not_null())["sample"]
            assert len(written) == (0 if kind == "logit" else 2 * 2 * 8) and 0 not in written
        assert kind == "cot" or found["chatty", "plain"] != {**found["chatty", "chatty"], "verifier": "plain"}
    done = run_module("evaluate.report", "--run", "t", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "change since round 0" in done.stdout and "cross-verification" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_nano_peers_write_critiques_with_vllm(tmp_path: Path) -> None:
    """They know no such request, so most verdicts are undecided; the path, from engine to matrix, is what is tested."""
    path = tmp_path / "nano.toml"
    text = (ROOT / "configs" / "nano.toml").read_text(encoding="utf-8")
    path.write_text(text.replace('"./peers/', f'"{ROOT}/peers/'), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PST_CACHE": str(ROOT / ".cache")}
    done = subprocess.run(
        [sys.executable, "-c", NANO, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for round_ in (0, 1):
        folder = tmp_path / RUNS / "n" / f"round={round_}"
        rows = shards.read_rows(folder / "cross.parquet", CROSS)
        assert len(rows) == 2 * 3 * 3
        diagonal = {(row["benchmark"], row["peer"]): row for row in rows if row["peer"] == row["verifier"]}
        for row in shards.read_rows(folder / "metrics.parquet", METRICS):
            same = diagonal[row["benchmark"], row["peer"]]
            assert {name: row[name] for name in SHARED} == {name: same[name] for name in SHARED}
        scores = pl.read_parquet(folder / "evals" / "*.parquet")["verifier_score"].drop_nulls()
        assert len(scores) == 2 * 6 * 2 * 3 and set(scores) <= {-1.0, 0.0, 1.0}
