"""Every command refuses a run of another version in one line, before it uses any of its files."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data import shards
from data.errors import UserError
from data.run import Run, check_run, load_frozen, open_run
from data.stage import FORMAT
from tests.conftest import questions, write_jsonl

COMMANDS = {
    "pipeline.status": (), "evaluate.report": (), "pipeline.labels": (), "pipeline.plan": (),
    "pipeline.fork": ("--round", "0", "--new", "u"), "pipeline.round": ("--round", "1"),
    "generate.__main__": ("--round", "1"), "score.__main__": ("--round", "1"), "train.__main__": ("--round", "1"),
    "train.gate.__main__": ("--round", "0"), "evaluate.__main__": ("--round", "0"),
}  # fmt: skip
WAYS_OUT = "begin a new run under another name (--run, or RUN= with make), or go on with that version"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with its questions and a finished stage, of this version."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", questions(0, 4))
    peers = "".join(f'[[peers]]\nname = "{name}"\nmodel = "nowhere/{name}"\n' for name in "ab")
    (tmp_path / "x.toml").write_text(f'{peers}[prompts]\nsource = "train.jsonl"\n')
    with open_run("t", Path("x.toml"), []) as opened:
        opened.freeze(lambda: None)
        shards.write_manifest(opened.stage_dir(1, "chains"), {"rows": 0, "seconds": 1.0, "fingerprint": {}}, [])
    return opened


def refusal(module: str) -> str:
    """What a command says of run t; it must be one line and status 2."""
    app: Any = importlib.import_module(module).app
    result = CliRunner().invoke(app, ["--run", "t", *COMMANDS[module]])
    lines = result.stderr.splitlines()
    assert result.exit_code == 2 and len(lines) == 1 and not result.stdout, (module, result.output, result.exception)
    return lines[0]


def renumber(folder: Path, number: int | None, **more: Any) -> None:
    """Give a manifest another format."""
    manifest = shards.read_json(folder / shards.SUCCESS)
    del manifest["format"]
    shards.write_json(manifest | ({} if number is None else {"format": number}) | more, folder / shards.SUCCESS)


@pytest.mark.parametrize(("number", "told"), [(None, 2), (1, 1), (2, 2), (3, 3), (FORMAT + 1, FORMAT + 1)])
def test_a_run_of_another_format_is_refused(number: int | None, told: int, run: Run) -> None:
    renumber(run.prompts_dir, number)
    expected = f"error: runs/t/prompts was made by another version (format {told}; this one has {FORMAT}): {WAYS_OUT}"
    assert {refusal(module) for module in COMMANDS} == {expected}
    assert sorted(path.name for path in Path("runs").iterdir()) == ["t"]
    with pytest.raises(UserError, match="was made by another version"):
        check_run("t")  # all that some commands ask


def test_a_stage_of_another_format_is_refused(run: Run) -> None:
    renumber(run.stage_dir(1, "chains"), None)
    expected = f"error: runs/t/round=1/chains was made by another version (format 1; this one has {FORMAT}): {WAYS_OUT}"
    assert {refusal(module) for module in COMMANDS} == {expected}
    with pytest.raises(UserError, match=r"format 1; this one has"):
        shards.read_manifest(run.stage_dir(1, "chains"))  # for code that has not asked before


def test_a_manifest_of_a_later_format_need_not_look_like_one_of_this(run: Run) -> None:
    folder = run.stage_dir(1, "chains")
    shards.write_json({"format": FORMAT + 1, "parts": []}, folder / shards.SUCCESS)
    with pytest.raises(UserError, match=rf"format {FORMAT + 1}; this one has"):
        shards.read_manifest(folder)
    kinds: tuple[Any, ...] = ([], {"format": FORMAT}, {"format": FORMAT, "files": []})
    for damaged in kinds:
        shards.write_json(damaged, folder / shards.SUCCESS)
        with pytest.raises(
            UserError,
            match=r"_SUCCESS\.json is (damaged|not a manifest): .*; delete runs/t/round=1",
        ):
            shards.read_manifest(folder)


def test_a_config_with_keys_of_another_version_is_refused(run: Run) -> None:
    path = run.root / "config.json"
    config = shards.read_json(path)
    config["score"]["target"] = "aggregate"  # of format 2
    shards.write_json(config, path)
    told = {refusal(module) for module in COMMANDS}
    assert told == {
        "error: runs/t/config.json: unknown key 'score.target' (docs/config.md lists all keys); another version froze "
        f"it, or it was edited: {WAYS_OUT}"
    }
    del config["score"], config["prompts"]
    shards.write_json(config, path)
    assert "runs/t/config.json: missing key 'prompts'; another version froze it" in refusal("pipeline.status")
    shards.write_json([], path)
    assert "runs/t/config.json" in refusal("evaluate.report")


def test_a_key_that_a_config_lacks_has_its_default(run: Run) -> None:
    """Those that came with this format are off by default: [gate], peers[].sha256."""
    path = run.root / "config.json"
    config = shards.read_json(path)
    del config["gate"], config["runtime"]["max_hours"]
    for peer in config["peers"]:
        del peer["sha256"]
    shards.write_json(config, path)
    before = path.read_bytes()
    assert load_frozen("t") == run.config and run.config.gate.questions == 0
    with open_run("t", Path("x.toml"), []) as again:
        assert again.config == run.config
    assert path.read_bytes() == before  # migrated in memory alone
