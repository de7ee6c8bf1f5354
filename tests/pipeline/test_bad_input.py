"""Bad input ends with one line that says what was found and what to do, status 2, before a model is loaded."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import shards
from data.config.load import load_config
from data.run import RUNS, open_run
from data.schema import CHAINS, EVALS, PROMPTS, SCORES
from peers.prompts import load_prompts
from peers.source import load_tokenizer
from tests.conftest import ROOT, questions, read_stage, run_module, run_stage, stage, write_jsonl

STAGES = {"generate": "chains", "score": "scores", "train": "adapters", "evaluate": "evals"}
COMMANDS = [*STAGES, "evaluate.report", "pipeline.status"]
REFUSAL_CPU_SECONDS = 6.0
Refuse = Callable[..., str]


def judged(code: object, out: str, err: str, *words: str) -> str:
    """The one line of a refusal, after checking its form and that it has all `words`."""
    assert code == 2, (code, out, err)
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert "Traceback" not in out and "loading" not in out, out
    missing = [word for word in words if word not in lines[0]]
    assert not missing, f"{missing} not in: {lines[0]}"
    return lines[0]


def outputs() -> dict[str, int]:
    """The stages' files, with their times of change."""
    files = [path for path in RUNS.glob("*/round=*/**/*") if path.is_file()]
    mine = [path for path in files if path.parent.name != "logs" and path.name != shards.STARTED]
    return {str(path): path.stat().st_mtime_ns for path in mine}


def edit(path: Path, old: str, new: str) -> None:
    """Replace text that must occur."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def local(project: Path, tiny_models: dict[str, Path]) -> Path:
    """`project` with its own copies of the models under models/, which a test may spoil."""
    load_tokenizer.cache_clear()  # it goes by relative paths, which are others in each test
    for name, path in tiny_models.items():
        shutil.copytree(path, project / "models" / name)
        edit(project / "tiny.toml", f'"{path}"', f'"./models/{name}"')
    return project


@pytest.fixture
def trained(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`local` with a finished round 1 of run t; made once, then copied."""
    kept = tmp_path_factory.getbasetemp() / "bad-input-trained"
    if not kept.exists():
        for name in ("generate", "score", "train"):
            run_stage(name, "t", 1, Path("tiny.toml"), [])
        shutil.copytree("runs", kept)
        return local
    shutil.copytree(kept, "runs")
    return local


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """refused("score", 1, "key=value", has=[...]): the stage refuses, loads no model, changes no output."""

    def call(
        name: str = "generate", round_: int = 1, *overrides: str, has: tuple[str, ...] = (),
        config: str | None = "tiny.toml", run: str = "t",
    ) -> str:  # fmt: skip
        import transformers

        def load(*_: object, **__: object) -> None:
            raise AssertionError("a model is loaded")

        before = outputs()
        capfd.readouterr()
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
            patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
            run_stage(name, run, round_, Path(config) if config else None, list(overrides))
        out, err = capfd.readouterr()
        assert outputs() == before
        return judged(stop.value.code, out, err, *has)

    return call


# --- through the command line -----------------------------------------------------------------------------------


def test_the_command_line_refuses(trained: Path) -> None:
    """Seven refusals as a user meets them: one line, status 2, and too little CPU time to have loaded models."""
    chains = Path("runs/t/round=1/chains/part-00000.parquet")
    cases: list[tuple[str, int, tuple[str, ...], str, tuple[str, ...]]] = [
        ("generate", 1, ("--set", "prompts.source=none.jsonl"), "new", ("none.jsonl does not exist", "prompts.source")),
        ("generate", 1, ("--set", "train.learning_rate=1"), "new", ("unknown key 'train.learning_rate'", "config.md")),
        ("generate", 1, ("--set", "peers.0.model=nowhere/tiny"), "new", ("peer chatty", "'nowhere/tiny'", "hub")),
        ("train", 1, ("--set", "train.lr=0.5"), "t", ("train.lr: 0.001 -> 0.5", "runs/t/config.json", "--run")),
        ("generate", 3, (), "t", ("round 2 has not been trained", "make train ROUND=2")),
        ("score", 1, (), "t", ("part-00000.parquet is damaged", "delete runs/t/round=1/chains")),
    ]
    chains.write_bytes(chains.read_bytes()[:-100])
    before = outputs()
    for name, round_, arguments, run, has in cases:
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = stage(name, round_, trained, *arguments, run=run)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        judged(done.returncode, done.stdout, done.stderr, *has)
        assert end.ru_utime - start.ru_utime < REFUSAL_CPU_SECONDS, name
    assert outputs() == before


def test_a_run_in_use_is_refused(trained: Path) -> None:
    before = outputs()
    with Path("runs/t/.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write("4711")
        lock.flush()
        done = stage("evaluate", 1, trained)
    judged(done.returncode, done.stdout, done.stderr, "runs/t is in use by another process", "pid 4711", "--run")
    assert outputs() == before


def test_report_and_status_refuse_an_unknown_run(project: Path) -> None:
    for module, has in (
        ("evaluate.report", ("'nothing'", "make")),
        ("pipeline.status", ("no run 'nothing'", "none yet")),
    ):
        done = run_module(module, "--run", "nothing", cwd=project)
        judged(done.returncode, done.stdout, done.stderr, *has)


@pytest.mark.parametrize(
    ("name", "arguments", "has"),
    [
        ("generate", ("--run", "t", "--round", "0"), ("round", "1")),
        ("evaluate", ("--run", "t", "--round", "one"), ("round",)),
        ("score", ("--round", "1"), ("--run",)),
    ],
)
def test_bad_options_are_refused(name: str, arguments: tuple[str, ...], has: tuple[str, ...], project: Path) -> None:
    done = run_module(name, *arguments, cwd=project)
    judged(done.returncode, done.stdout, done.stderr, *has)


@pytest.mark.parametrize("module", COMMANDS)
def test_help_imports_nothing_heavy(module: str, tmp_path: Path) -> None:
    """Which libraries are imported, not how long it takes: that depends on the machine."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"}
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "--run" in done.stdout
    found = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "typer" in found and not found & {"torch", "transformers", "vllm", "peft", "scipy", "datasets", "sympy"}
    if module in STAGES:
        assert not found & {"polars", "pyarrow", "pydantic"}


# --- config and questions ---------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "missing prompt file": (("prompts.source=none.jsonl",), ("prompts: file none.jsonl does not exist",)),
    "empty prompt file": (("prompts.source=empty.jsonl",), ("prompts: file empty.jsonl is empty", "'question'")),
    "blank prompt file": (("prompts.source=blank.jsonl",), ("blank.jsonl",)),
    "no JSON": (("prompts.source=garbage.jsonl",), ("garbage.jsonl cannot be read",)),
    "empty question": (("prompts.source=hole.jsonl",), ("hole.jsonl row 3 has an empty 'question'",)),
    "missing dataset folder": (("prompts.source=./none",), ("prompts: ./none does not exist", ".jsonl")),
    "no Parquet": (("prompts.source=garbage.parquet",), ("garbage.parquet cannot be read",)),
    "no questions": (("prompts.limit=0",), ("prompts.limit", "greater than or equal to 1", "0")),
    "no such rows": (("prompts.rows=[100, 200]",), ("train.jsonl has no rows in [100, 200]",)),
    "rows the wrong way": (("prompts.rows=[9, 3]",), ("prompts.rows", "first < end", "[9, 3]")),
    "missing column": (("prompts.question_column=problem",), ("no column 'problem'", "has question, answer")),
    "missing benchmark": (("benchmarks.0.source=none.csv",), ("benchmarks.0: file none.csv does not exist",)),
    "same name": (("peers.1.name=chatty",), ("peers: the name 'chatty' is used more than once",)),
    "same model": (
        ("peers.1.model=./models/chatty",),
        ("'chatty' and 'plain' use the model", "differ only by name"),
    ),
    "bad name": (("peers.1.name=../x",), ("peers.1.name", "'../x'")),
    "unknown key": (("generate.temprature=1",), ("unknown key 'generate.temprature'", "docs/config.md")),
    "unknown section": (("sampling.top_p=1",), ("unknown key 'sampling'",)),
    "out of bounds": (("generate.top_p=1.5",), ("generate.top_p", "less than or equal to 1", "1.5")),
    "unknown choice": (("score.weighting=best",), ("score.weighting", "'sigmoid'", "'best'")),
    "wrong type": (("train.lr=fast",), ("train.lr", "number", "'fast'")),
    "section as value": (("train=3",), ("train", "3")),
    "no room": (("generate.max_new_tokens=512",), ("max_new_tokens 512 must be below context_tokens 512",)),
    "empty clip": (("score.weight_min=30",), ("weight_min 30.0 must be below weight_max 20.0",)),
    "two errors": (("train.rank=0", "train.x=1"), ("train.rank", "unknown key 'train.x'")),
    "no equals sign": (("train.lr",), ("--set 'train.lr'", "section.key=value")),
    "no key": (("=3",), ("--set '=3'", "section.key=value")),
    "no such entry": (("peers.7.name=x",), ("'7' is not an index into a list of 2",)),
    "list without index": (("peers.name=x",), ("peers.0.name",)),
    "through a value": (("train.lr.x=1", "train.lr=1"), ("train.lr.x",)),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_bad_config_is_refused(case: str, local: Path, refused: Refuse) -> None:
    (local / "empty.jsonl").touch()
    (local / "blank.jsonl").write_text("\n\n", encoding="utf-8")
    (local / "garbage.jsonl").write_text("What is 1 + 1?\n", encoding="utf-8")
    (local / "garbage.parquet").write_bytes(b"PAR1")
    write_jsonl(local / "hole.jsonl", [*questions(0, 2), {"question": " ", "answer": "1"}])
    overrides, has = CONFIGS[case]
    refused("generate", 1, *overrides, has=has)
    assert not (local / "runs/t/config.json").exists()
    if case == "missing prompt file":  # a refused start leaves nothing that conflicts with the corrected one
        with open_run("t", Path("tiny.toml"), []) as run:
            assert len(read_stage(run.prompts_dir, PROMPTS)) == 24


def test_one_peer_is_refused(project: Path, refused: Refuse) -> None:
    text = (project / "tiny.toml").read_text(encoding="utf-8")
    first, second = text.index("[[peers]]"), text.rindex("[[peers]]")
    (project / "tiny.toml").write_text(text[:first] + text[second:], encoding="utf-8")
    refused(has=("peers: found 1, expected at least 2",))


def test_a_missing_or_broken_config_is_refused(project: Path, refused: Refuse) -> None:
    (project / "broken.toml").write_text("[run\n", encoding="utf-8")
    (project / "bare.toml").write_text("[run]\nseed = 1\n", encoding="utf-8")
    refused(config="none.toml", has=("none.toml does not exist", "--config"))
    refused(config="broken.toml", has=("broken.toml is not valid TOML", "line 1"))
    refused(config="bare.toml", has=("missing key 'prompts'", "missing key 'peers'"))
    refused(config=None, has=("run 't' does not exist yet", "--config FILE"))


def test_a_conflicting_config_is_refused(trained: Path, refused: Refuse) -> None:
    changes = ("train.lr=0.5", "peers.1.dtype=float32", "prompts.limit=3")
    has = ("train.lr: 0.001 -> 0.5", 'peers.1.dtype: "bfloat16" -> "float32"', "prompts.limit: null -> 3")
    refused("score", 1, *changes, has=(*has, "runs/t/config.json", "delete runs/t"))
    refused("score", 1, "train.lr=0.5", config=None, has=has[:1])
    run_stage("score", "t", 1, Path("tiny.toml"), ["runtime.score_tokens=99"])  # runtime alone may change


def test_an_overlap_with_a_benchmark_is_refused_unless_the_config_says_what_to_do(
    project: Path, refused: Refuse
) -> None:
    shared = [{**row, "question": f" {row['question'].upper()}"} for row in questions(100, 2)]
    write_jsonl(project / "train.jsonl", [*questions(0, 24), *shared])
    has = ("2 of 26 questions are also in a benchmark", "TOM HAS 100 PENS", "'sums'", "'drop'", "'transductive'")
    refused(has=has)
    expected = {"drop": 24, "transductive": 26}
    for rule, count in expected.items():
        with open_run(rule, Path("tiny.toml"), [f"prompts.overlap={rule}"]) as run:
            rows = read_stage(run.prompts_dir, PROMPTS)
            manifest = shards.read_manifest(run.prompts_dir)
        assert len(rows) == count and len({row["id"] for row in rows}) == count
        assert manifest is not None and (manifest["overlap"], manifest["overlap_rule"]) == (2, rule)
    write_jsonl(project / "train.jsonl", shared)
    refused("generate", 1, "prompts.overlap=drop", run="nothing-left", has=("nothing is left to train on",))
    run_stage("evaluate", "transductive", 0, Path("tiny.toml"), ["prompts.overlap=transductive"])
    report = run_module("evaluate.report", "--run", "transductive", cwd=project)
    assert report.returncode == 0
    assert "Transductive" in (project / "runs/transductive/report.html").read_text(encoding="utf-8").split("GV-Gap")[0]


def test_two_gold_answers_are_refused(project: Path, refused: Refuse) -> None:
    rows = questions(100, 8)
    write_jsonl(project / "test.jsonl", [*rows, {**rows[3], "answer": "7"}])
    refused("evaluate", 0, has=("benchmarks.0", "Tom has 103 pens", "again", "'7'", "remove one"))


def test_one_column_for_question_and_answer_is_refused(project: Path, refused: Refuse) -> None:
    refused("evaluate", 0, "benchmarks.0.answer_column=question", has=("benchmarks.0", "are both 'question'"))


def test_a_benchmark_that_changed_is_refused(trained: Path, refused: Refuse) -> None:
    run_stage("evaluate", "t", 0, Path("tiny.toml"), [])
    write_jsonl(trained / "test.jsonl", questions(100, 9))
    refused(
        "evaluate", 1, has=("benchmark sums (test.jsonl) changed since round 0", "restore what", "another run name")
    )


# --- models -----------------------------------------------------------------------------------------------------


def _pickled(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def _without_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def _without_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001.safetensors")
    index = {"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _nan(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][-1] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


MODELS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing": (shutil.rmtree, ("models/plain does not exist", "model directory")),
    "pickled": (_pickled, ("only pickled weights (pytorch_model.bin)", "*.safetensors")),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ("no weights", "*.safetensors")),
    "missing shard": (_without_a_shard, ("has no model-00002.safetensors",)),
    "no config": (lambda folder: (folder / "config.json").unlink(), ("has no config.json",)),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), ("config.json",)),
    "another task": (
        lambda folder: _config(folder, architectures=["BertModel"]),
        ("is a BertModel", "ForCausalLM"),
    ),
    "short context": (
        lambda folder: _config(folder, max_position_embeddings=100),
        ("its context is 100 tokens", "is 528", "lower one of them"),
    ),
    "no tokenizer": (_without_tokenizer, ("tokenizer",)),
    "cut off": (lambda folder: _truncate(folder / "model.safetensors"), ("model.safetensors",)),
    "untied": (lambda folder: _config(folder, tie_word_embeddings=False), ("Qwen2ForCausalLM wants lm_head.weight",)),
    "NaN": (_nan, ("model.safetensors: model.embed_tokens.weight", "not finite")),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_bad_model_is_refused(case: str, local: Path, refused: Refuse) -> None:
    spoil, has = MODELS[case]
    spoil(local / "models/plain")
    refused("evaluate", 0, has=("peer plain", *has))
    assert not list(Path(".cache").glob("models/*")), "something is cached"


def test_a_missing_gguf_file_is_refused(local: Path, refused: Refuse) -> None:
    refused("evaluate", 0, "peers.1.model=none.gguf", has=("peer plain: file none.gguf does not exist",))
    (local / "garbage.gguf").write_bytes(b"GGUF" + bytes(1000))
    refused("evaluate", 0, "peers.1.model=garbage.gguf", run="g", has=("peer plain: garbage.gguf",))
    refused("evaluate", 0, "peers.1.model=package:no_such/x.gguf", run="u", has=("package no_such is not installed",))


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("generate", "peers.0.model=./none"),
        ("generate", "peers.0.model=none.gguf"),
        ("evaluate", "benchmarks.0.answer_column=gold"),
    ],
)
def test_a_refused_start_leaves_nothing_to_conflict_with(
    name: str, override: str, project: Path, refused: Refuse
) -> None:
    """The corrected config must not be refused because the wrong one was frozen."""
    refused(name, 1 if name == "generate" else 0, override)
    with open_run("t", Path("tiny.toml"), []):
        pass


# --- earlier stages' output -------------------------------------------------------------------------------------


def test_a_stage_before_its_input_is_refused(trained: Path, refused: Refuse) -> None:
    refused("score", 1, run="new", has=("runs/new/round=1/chains is not finished", "make generate ROUND=1"))
    refused("train", 1, run="new", has=("runs/new/round=1/scores is not finished", "make score ROUND=1"))
    refused("evaluate", 1, run="new", has=("round 1 has not been trained", "make train ROUND=1"))
    refused("generate", 2, run="new", has=("round 1 has not been trained", "make train ROUND=1"))
    refused("score", 2, has=("runs/t/round=2/chains is not finished", "make generate ROUND=2"))


@pytest.mark.parametrize("spoil", [_truncate, _flip, Path.unlink])
def test_a_corrupted_file_is_refused(spoil: Callable[[Path], None], trained: Path, refused: Refuse) -> None:
    found = "missing" if spoil is Path.unlink else "damaged"
    for name, round_, folder, file in (
        ("score", 1, "chains", "part-00001.parquet"),
        ("train", 1, "scores", "part-00002.parquet"),
        ("generate", 2, "adapters", "chatty/adapter_model.safetensors"),
    ):
        path = Path("runs/t/round=1") / folder / file
        spoil(path)
        refused(name, round_, has=(f"{path} is {found}", f"delete runs/t/round=1/{folder}"))


def test_a_shard_of_another_version_is_refused(trained: Path) -> None:
    path = Path("runs/t/round=1/chains/part-00000.parquet")
    with pytest.raises(Exception, match=r"written by another version .* delete runs/t/round=1/chains"):
        shards.read_rows(path, SCORES)


def test_an_adapter_of_another_base_is_refused(trained: Path, refused: Refuse) -> None:
    from safetensors.torch import load_file, save_file

    weights = Path("models/chatty/model.safetensors")
    tensors = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    has = ("peer chatty: the adapter in runs/t/round=1/adapters/chatty", "another base", "Restore the base")
    refused("generate", 2, has=has)
    refused("evaluate", 1, has=has)
    refused("score", 1, has=("policies changed", "delete runs/t/round=1/scores"))


def test_an_adapter_of_another_peer_is_refused(trained: Path, refused: Refuse) -> None:
    adapters = Path("runs/t/round=1/adapters")
    for file in (adapters / "plain").iterdir():
        shutil.copyfile(file, adapters / "chatty" / file.name)
    refused("generate", 2, has=("runs/t/round=1/adapters/chatty/", "damaged"))


# --- questions longer than the context --------------------------------------------------------------------------


def _sized(tokens: int) -> str:
    """A question whose longest prompt has at most, and nearly, so many tokens."""
    config = load_config(Path("tiny.toml"), [])
    prompts = [load_prompts(config, name) for name in config.peer_names]
    words = 1
    while max(len(p.solve("pens " * (words + 1))) for p in prompts) <= tokens:
        words += 1
    return "pens " * words


def test_long_questions_are_skipped(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A whole shard is too long, one question more, and one leaves no room for a second response."""
    long = [{"question": f"{i} " + "How many pens? " * 300, "answer": "1"} for i in range(9)]
    full = {"question": _sized(512 - 16), "answer": "1"}
    write_jsonl(project / "train.jsonl", [*long[:8], long[8], *questions(0, 14), full])
    write_jsonl(project / "test.jsonl", [*questions(100, 7), {"question": "How many pens? " * 600, "answer": "1"}])
    for name, round_ in (("generate", 1), ("score", 1), ("train", 1), ("evaluate", 0)):
        run_stage(name, "t", round_, Path("tiny.toml"), ["prompts.shuffle=false"])
        if name == "generate":
            out, _ = capfd.readouterr()
    assert "9 questions are longer than the context and are skipped" in out and "room for 496" in out
    chains = Path("runs/t/round=1/chains")
    manifest = shards.read_manifest(chains)
    prompts = [row["id"] for row in read_stage(Path("runs/t/prompts"), PROMPTS)]
    assert manifest is not None and list(manifest["skipped"]["too_long"]) == prompts[:9]
    assert prompts[0] in out and manifest["questions"] == 15
    rows = read_stage(chains, CHAINS)
    assert {row["prompt_id"] for row in rows} == set(prompts[9:]) and len(rows) == 30
    last = [row for row in rows if row["prompt_id"] == prompts[-1]]
    assert [row["finish_reason"] for row in last][1] == "context" and last[1]["n_tokens"] == 0
    scores = read_stage(Path("runs/t/round=1/scores"), SCORES)
    assert len(scores) == 30 and {row["drop_reason"] for row in scores[-2:]} == {"aggregate_empty"}
    evals = [row for row in read_stage(Path("runs/t/round=0/evals"), EVALS) if len(row["question"]) > 2000]
    assert len(evals) == 2 * 3 and {(row["finish_reason"], row["correct"]) for row in evals} == {("context", False)}
    assert "not fitting the context 6" in capfd.readouterr().out


def test_only_long_questions_are_refused(project: Path, refused: Refuse) -> None:
    has = ("all 24 questions are longer than the context", "context_tokens 20", "max_new_tokens 16", "4 tokens")
    refused("generate", 1, "generate.context_tokens=20", has=has)
    refused("evaluate", 0, "generate.context_tokens=20", has=("benchmark sums: no question fits", "leaves 4 tokens"))
    long = [{**row, "question": row["question"] * 90} for row in questions(100, 3)]
    write_jsonl(project / "test.jsonl", long)
    refused("evaluate", 0, has=("benchmark sums: no question fits the context of peer", "leaves 496 tokens"))
    assert not Path("runs/t/config.json").exists()
