"""A run that begins after another run's round: what is linked, what is refused, and that the other run is unchanged."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import pipeline.fork
from data import gate, shards
from data.config.load import load_config
from data.errors import UserError
from data.fork import fork_notice, origin_of
from data.guard import write_decision
from data.hours import Hours, hours_of
from data.keep import keep_path
from data.run import OUTPUT, RUNS, Run, check_run, load_frozen, metrics_path, open_run
from data.schema import METRICS
from evaluate.tables import metrics_table
from peers.command import StageStep, do_step
from pipeline.fork import fork
from pipeline.reuse import TABLES, fingerprint
from tests.conftest import read_stage, run_module
from tests.pipeline.test_gate import adapters

STEPS = [("evaluate", 0)] + [(stage, n) for n in (1, 2, 3) for stage in ("generate", "score", "train", "evaluate")]
ADAPTERS = "adapters of rounds 1 to 2 and the stages behind them: linked from run t"


def make(run: Run, stage: str, round_: int) -> None:
    """A finished stage without rows, under the fingerprint that it would have."""
    if stage == "train":
        adapters(run, round_)
        return
    folder = run.stage_dir(round_, OUTPUT[stage])
    part = folder / "part-00000.parquet"
    shards.write_table(TABLES[stage].empty_table(), part)
    about = {"stage": stage, "rows": 0, "seconds": 3600.0, "fingerprint": fingerprint(run, stage, round_)}
    shards.write_manifest(folder, about, [part])
    if stage == "evaluate":
        shards.write_table(METRICS.empty_table(), metrics_path(run.name, round_))
        if round_:
            write_decision(run, round_, [])


@pytest.fixture
def made(project: Path) -> Run:
    """Run t with three rounds."""
    with open_run("t", Path("tiny.toml"), []) as run:
        run.freeze(lambda: None)
        for stage, round_ in STEPS:
            make(run, stage, round_)
        (run.round_dir(1) / "logs").mkdir()
        (run.round_dir(1) / "logs" / "train.log").write_text("of t")
        keep_path("t", 1).write_text("of an oracle")
    return run


def state(root: Path) -> dict[str, tuple[str, int]]:
    """What is in a folder, and when it was written."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(root)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


def same(*names: str) -> bool:
    """Whether two names are one file."""
    return os.path.samefile(*names)


def test_a_fork_links_what_its_config_allows(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(made.root)
    fork("t", 2, "u", None, ["score.weighting=rank", "runtime.score_tokens=512"])
    assert capsys.readouterr().out.splitlines() == [
        "reading run t, to find what can be linked",
        f"  {ADAPTERS}",
        "  evaluate rounds 0 to 2: linked from run t",
        "  generate round 3: linked from run t",
        "  score round 3: made again: score.weighting changed",
        "run u begins after round 2 of run t; its config applies from round 3 on: make round RUN=u ROUND=3",
    ]
    assert state(made.root) == before and os.listdir("runs") in (["t", "u"], ["u", "t"])
    config = load_frozen("u")
    assert (config.score.weighting, config.runtime.score_tokens) == ("rank", 512)
    assert same("runs/t/round=2/adapters/plain/pst.json", "runs/u/round=2/adapters/plain/pst.json")
    assert same("runs/t/round=2/metrics.parquet", "runs/u/round=2/metrics.parquet")
    assert same("runs/t/round=3/chains/_SUCCESS.json", "runs/u/round=3/chains/_SUCCESS.json")
    assert same("runs/t/round=2/guard.json", "runs/u/round=2/guard.json")
    assert same("runs/t/round=1/keep.parquet", "runs/u/round=1/keep.parquet")  # gold answers had a part in u, too
    assert not Path("runs/u/round=3/adapters").exists() and not Path("runs/u/round=3/scores").exists()
    assert not Path("runs/u/round=1/logs").exists()  # logs alone are written over in their place
    origin, proof = origin_of("u"), shards.checksum(Path("runs/t/round=2/adapters/_SUCCESS.json"))
    assert origin is not None and (origin.run, origin.round, origin.checksum) == ("t", 2, proof)
    assert shards.read_json(Path("runs/u/forked_from/config.json")) == shards.read_json(Path("runs/t/config.json"))
    changed = shards.read_json(Path("runs/u/forked_from/_SUCCESS.json"))["changed"]
    assert changed == ['score.weighting: "sigmoid" -> "rank"']


FATES = {
    "train.lr=1e-4": {},
    "generate.temperature=0.5": {"generate": "generate.temperature changed", "score": "its chains are made again"},
    "score.label=sample-vote": {"generate": "score.label changed", "score": "its chains are made again"},
    "score.scorer=mean": {"score": "score.scorer changed"},
    "evaluate.samples=3": {"evaluate": "evaluate.samples changed"},
    "benchmarks.0.limit=4": {"evaluate": "benchmarks.0.limit changed"},
    "benchmarks.0.answers=math": {"evaluate": "benchmarks.0.answers changed"},
    "peers.0.template=plain": dict.fromkeys(("evaluate", "generate"), "peers.0.template changed")
    | {"score": "its chains are made again"},
}


@pytest.mark.parametrize("override", FATES)
def test_what_cannot_be_linked_is_said_with_the_key(
    override: str, made: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    fork("t", 2, "u", None, [override])
    told = capsys.readouterr().out.splitlines()
    for stage, rounds in (("evaluate", "rounds 0 to 2"), ("generate", "round 3"), ("score", "round 3")):
        why = FATES[override].get(stage)
        fate = f"made again: {why}" if why else "linked from run t"
        assert f"  {stage} {rounds}: {fate}" in told
        number = 2 if stage == "evaluate" else 3
        assert (RUNS / "u" / f"round={number}" / OUTPUT[stage]).exists() == (why is None)
    assert metrics_path("u", 2).exists() == ("evaluate" not in FATES[override])


def test_the_models_and_versions_count_beside_the_config(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, key in (("round=3/chains", "policies"), ("round=0/evals", "config")):
        path = made.root / folder / shards.SUCCESS
        manifest = shards.read_json(path)
        manifest["fingerprint"][key] = "another"
        shards.write_json(manifest | {shards.SEAL: shards.seal(manifest)}, path)
    (made.root / "round=1/evals/part-00000.parquet").write_bytes(b"")
    fork("t", 2, "u", None, [])
    told = capsys.readouterr().out
    assert "generate round 3: made again: the models have changed" in told
    assert "evaluate round 0: made again: another version of this project made it" in told
    assert "evaluate round 1: made again: its files are damaged" in told
    assert "evaluate round 2: linked from run t" in told


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("run.seed=3", "run.seed: 17 -> 3"),
        ("prompts.limit=8", "prompts.limit: null -> 8"),
        ("peers.0.dtype=float32", 'peers.0.dtype: "bfloat16" -> "float32"'),
        ("train.rank=4", "train.rank: 16 -> 4"),
    ],
)
def test_what_would_make_earlier_rounds_untrue_is_refused(override: str, key: str, made: Run) -> None:
    with pytest.raises(UserError) as error:
        fork("t", 2, "u", None, [override, "train.lr=1e-4"])
    assert str(error.value).startswith(f"{key}: round 2 of run 't' was made under the first value")
    assert os.listdir("runs") == ["t"]


def test_what_a_gates_votes_were_given_under_stays(project: Path) -> None:
    with open_run("t", Path("tiny.toml"), ["prompts.limit=16", "gate.questions=8"]) as run:
        pass

    def told(*overrides: str) -> str:
        given = load_config(Path("tiny.toml"), ["prompts.limit=16", *overrides])
        with pytest.raises(UserError) as error:
            pipeline.fork.check_still_true(run, given, 1)
        return str(error.value)

    assert told("gate.questions=0").startswith("gate.questions: 8 -> 0: ")
    assert told("gate.questions=8", "gate.samples=5").startswith("gate.samples: 4 -> 5: ")
    assert told("gate.questions=8", "generate.max_new_tokens=12").startswith("generate.max_new_tokens: 16 -> 12: ")
    assert told("gate.questions=8", "peers.0.template=plain").startswith("peers.0.template: ")
    rule = ["gate.margin=0.1", "gate.level=0.1", "gate.harm_below=9", "gate.patience=1", "generate.temperature=0.3"]
    given = load_config(Path("tiny.toml"), ["prompts.limit=16", "gate.questions=8", *rule])
    pipeline.fork.check_still_true(run, given, 1)
    assert gate.is_on(given)


def test_wrong_names_and_rounds_are_refused_before_any_work(made: Run) -> None:
    for arguments, says in (
        (("nope", 2, "u"), "there is no run 'nope'"),
        (("t", 2, "t"), "runs/t exists already: give the new run another name"),
        (("t", 2, ""), "--new '': expected a name"),
        (("t", 4, "u"), "round 4 of run 't' is not finished, so no run can begin after round 4"),
    ):
        with pytest.raises(UserError) as error:
            fork(*arguments, None, [])
        assert says in str(error.value)
    part = made.stage_dir(1, "adapters") / "plain" / "adapter_model.safetensors"
    part.write_bytes(b"")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is damaged"):
        fork("t", 2, "u", None, [])
    assert os.listdir("runs") == ["t"]


def test_questions_that_a_new_benchmark_has_are_not_trained_on(made: Run) -> None:
    """Checked as for any run; and if they are dropped, the questions differ."""
    with pytest.raises(UserError, match="24 of 24 questions are also in a benchmark"):
        fork("t", 2, "u", None, ["benchmarks.0.source=train.jsonl"])
    with Path("train.jsonl").open("a") as source:
        source.write('{"question": "new?", "answer": "1"}\n')
    with pytest.raises(UserError, match="the questions of runs/t/prompts would differ: their source has changed"):
        fork("t", 2, "u", None, ["benchmarks.0.limit=4"])
    assert os.listdir("runs") == ["t"]


def test_a_fork_that_is_cut_off_leaves_nothing_that_looks_like_a_run(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.fork, "write_origin", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fork("t", 2, "u", None, [])
    assert os.listdir("runs") == ["t"]
    left = RUNS / ".u.forking" / "run"  # by a kill
    shards.write_json({}, left / "config.json")
    (left / "round=9").mkdir()
    with pytest.raises(UserError, match=r"there is no run 'u' .*; runs: t$"):
        check_run("u")
    fork("t", 2, "u", None, [])
    assert sorted(os.listdir("runs")) == ["t", "u"] and not Path("runs/u/round=9").exists()


def test_the_stages_before_the_fork_are_not_made_again(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    fork("t", 1, "u", None, ["score.weighting=rank", "evaluate.samples=3"])
    run, idle = Run("u", load_frozen("u")), SimpleNamespace(log=None, release=lambda: None)
    called: list[tuple[str, int]] = []

    def note(stage: str, _: Run, number: int, __: object) -> None:
        called.append((stage, number))

    for stage, round_ in (*STEPS[:5], ("score", 2)):
        step = StageStep(stage, round_, partial(note, stage))
        do_step(step, run, idle, Hours(0.0), 2)  # type: ignore[arg-type]
    assert called == [("evaluate", 0), ("evaluate", 1), ("score", 2)]
    assert "train round 1: done in run t, from which this run was forked" in capsys.readouterr().out
    assert hours_of(Run("t", made.config)).before == 3600 * 10 and hours_of(run).before == 0  # those were t's hours


def test_votes_that_were_not_given_yet_are_given_in_the_fork(made: Run) -> None:
    fork("t", 0, "u", None, ["train.rank=4"])  # nothing was trained yet
    origin = origin_of("u")
    assert origin is not None and origin.round == 0
    assert not any(origin.made(stage, n) for stage, n in (("gate", 0), ("evaluate", 0), ("generate", 1)))
    assert Path("runs/u/round=1/scores").exists() and not Path("runs/u/round=1/adapters").exists()


def test_tables_say_where_a_run_comes_from(made: Run) -> None:
    assert fork_notice("t") == ""
    fork("t", 2, "u", None, [])
    adapters(Run("u", made.config), 3)
    fork("u", 3, "v", None, ["evaluate.samples=3"])
    page = Console(file=StringIO(), width=200, record=True)
    page.print(metrics_table("u", [0, 1]))
    assert "forked from run t after round 2: its rounds up to 2 were trained there" in page.export_text()
    assert "forked from run u after round 3, itself forked from run t after round 2: its rounds" in fork_notice("v")


def test_make_gives_the_config_alone_that_is_named(tmp_path: Path) -> None:
    import subprocess

    from tests.conftest import ROOT

    def told(*words: str) -> str:
        make = ["make", "-n", "-f", str(ROOT / "Makefile"), "fork", *words]
        return subprocess.run(make, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    out = told("RUN=t", "ROUND=2", "NEW=u", "SET=train.lr=1e-4")
    assert "--run 't' --round 2 --new 'u'" in out and "--set 'train.lr=1e-4'" in out and "--config" not in out
    assert "--config 'x.toml'" in told("RUN=t", "ROUND=2", "NEW=u", "CONFIG=x.toml")


@pytest.mark.slow
def test_a_forked_run_goes_on(project: Path) -> None:
    """Rounds with tiny models: the fork has the other run's chains of the round after, and adapters of its own."""
    done = run_module("pipeline.round", "--config", "tiny.toml", "--run", "t", "--round", "2", cwd=project)
    assert done.returncode == 0, done.stderr
    before = state(Path("runs/t"))
    fork("t", 1, "u", None, ["score.weighting=uniform"])
    done = run_module("pipeline.round", "--run", "u", "--round", "3", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "generate round 1: done in run t, from which this run was forked" in done.stdout
    assert "generate round 2: finished already" in done.stdout and "evaluate round 1: finished already" in done.stdout
    assert state(Path("runs/t")) == before
    mine, theirs = (
        {(row["prompt_id"], row["peer"]): row for row in read_stage(Path(run, "round=2", "scores"), TABLES["score"])}
        for run in ("runs/u", "runs/t")
    )
    assert mine.keys() == theirs.keys() and {row["weight"] for row in mine.values()} <= {None, 1.0}
    assert all(row["pmi"] == pytest.approx(theirs[key]["pmi"]) for key, row in mine.items() if row["pmi"] is not None)
    assert len({shards.checksum(Path(run, "round=2/adapters/plain/adapter_model.safetensors"))
                for run in ("runs/u", "runs/t")}) == 2  # fmt: skip
    shown: Any = run_module("evaluate.report", "--run", "u", cwd=project).stdout
    assert "forked from run t after round 1" in shown and (Path("runs/u/round=3") / "metrics.parquet").is_file()
