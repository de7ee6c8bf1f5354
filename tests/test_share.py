"""Sharing a run: checksums of all its files, archives, exports that others can load."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data import shards, sums
from data.errors import UserError
from data.locks import locked
from data.run import RUNS, load_frozen, open_run
from evaluate.report import write_report
from peers import policy_cache
from pipeline.share.export import export
from pipeline.share.files import PACKED
from pipeline.share.needs import not_here
from pipeline.share.pack import pack, unpack
from pipeline.share.verify import verify_archive, verify_run
from tests.conftest import questions, write_jsonl
from tests.fake_engine import Inline

Models = dict[str, Path]
FIRST = (("evaluate", 0), ("generate", 1), ("score", 1), ("train", 1), ("evaluate", 1))
SECOND = (*FIRST, ("generate", 2), ("score", 2), ("train", 2), ("evaluate", 2))
CONFIG = """
[[peers]]
name = "chatty"
model = "./models/chatty"
[[peers]]
name = "plain"
model = "MODELS/plain"
[run]
shard_questions = 8
[prompts]
source = "train.jsonl"
[[benchmarks]]
name = "sums"
source = "test.jsonl"
answers = "numbers"
[templates]
instruction = "Solve."
review = "Solve."
[generate]
max_new_tokens = 8
context_tokens = 256
engine = "transformers"
[train]
batch_size = 4
lr = 1e-3
[evaluate]
samples = 2
bootstrap = 100
"""


def stages(steps: tuple[tuple[str, int], ...], config: Path | None = None, name: str = "t") -> None:
    """Some stages of a run, in this very process."""
    with open_run(name, config, []) as run:
        try:
            for stage, round_ in steps:
                main: Any = importlib.import_module(stage).main
                main(run, round_, Inline(run))
        finally:
            policy_cache.drop_all()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_models: Models) -> Path:
    """A folder with run t of one round; one peer is named by a path from there, one by an absolute one."""
    folder = tmp_path_factory.mktemp("made")
    write_jsonl(folder / "train.jsonl", questions(0, 12))
    write_jsonl(folder / "test.jsonl", questions(100, 4))
    (folder / "models").mkdir()
    (folder / "models/chatty").symlink_to(tiny_models["chatty"])
    (folder / "tiny.toml").write_text(CONFIG.replace("MODELS", str(tiny_models["plain"].parent)), encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        stages(FIRST, folder / "tiny.toml")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, in which the test is; the run's folder is returned."""
    shutil.copytree(made, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return RUNS / "t"


@pytest.fixture
def elsewhere(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Goes to another checkout, which has the questions and the models of the project, and no runs."""

    def go() -> None:
        other = tmp_path / "other" / "checkout"
        shutil.copytree(Path.cwd(), other, symlinks=True, ignore=shutil.ignore_patterns("runs"))
        monkeypatch.chdir(other)

    return go


def refused(body: Callable[[], object], *words: str, output: str = "") -> None:
    """The body raises a UserError; each of the words is in it or in `output`."""
    with pytest.raises(UserError) as caught:
        body()
    for word in words:
        assert word in str(caught.value) + output


# --- checksums and verify ---------------------------------------------------------------------------------------


def test_a_run_is_as_it_was_written(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sums.read_sums(root / "round=1").keys() == {"metrics.parquet", "guard.json"}
    assert sums.read_sums(root).keys() == {"config.json"}
    verify_run("t")
    files = [path for path in root.rglob("*") if path.is_file() and ".checkpoints" not in path.parts]
    assert f"run t: {len(files) - 1} files read, all as they were written" in capsys.readouterr().out  # all but .lock


DAMAGE = {
    "config.json": "sums.json",
    "prompts/part-00000.parquet": "prompts/_SUCCESS.json",
    "round=0/metrics.parquet": "round=0/sums.json",
    "round=1/guard.json": "round=1/sums.json",
    "round=1/chains/part-00001.parquet": "round=1/chains/_SUCCESS.json",
    "round=1/adapters/plain/adapter_model.safetensors": "round=1/adapters/_SUCCESS.json",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_changed_and_a_missing_file_are_named(name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(lambda: verify_run("t"), "1 of its files")
    assert f"{name}: its checksum is not the one in {DAMAGE[name]}" in capsys.readouterr().out
    if name != "config.json":  # without which it is no run
        path.unlink()
        refused(lambda: verify_run("t"), "1 of its files")
        assert f"{name}: is missing, and {DAMAGE[name]} lists it" in capsys.readouterr().out


def test_what_no_manifest_knows_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "round=1/scores/part-00009.parquet").write_bytes(b"")
    (root / "notes.txt").symlink_to("nowhere")
    (root / "round=1/chains/_SUCCESS.json").write_text("{")
    refused(lambda: verify_run("t"), "of its files do not fit")
    out = capsys.readouterr().out
    assert "round=1/scores/part-00009.parquet: no manifest knows it" in out
    assert "notes.txt: no manifest knows it" in out and "round=1/chains/_SUCCESS.json: is damaged" in out


def test_an_unfinished_stage_is_no_damage(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chains = root / "round=2/chains"
    shards.write_json({}, chains / shards.STARTED)
    (chains / "part-00000.parquet").write_bytes(b"half")
    (chains / ".work").mkdir()
    (chains / ".work/piece").write_bytes(b"half")
    verify_run("t")
    assert "round=2/chains: begun and not finished" in capsys.readouterr().out


def test_a_run_in_use_is_left_alone(root: Path) -> None:
    with locked(root):
        for body in (
            lambda: verify_run("t"),
            lambda: pack("t", None),
            lambda: export("t", 1, None, False, 0, None, []),
        ):
            refused(body, "runs/t is in use by another process")
    assert not (RUNS / "t.tar.gz").exists() and not (root / "export").exists()


def test_checksums_survive_resume_kills_and_older_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in root.glob("**/sums.json"):
        path.unlink()  # as an earlier version left it
    refused(lambda: verify_run("t"), "5 of its files")
    assert "round=1/metrics.parquet: has no checksum" in capsys.readouterr().out
    stages((("evaluate", 0), ("evaluate", 1)))
    verify_run("t")
    (root / "round=1/metrics.parquet").unlink()  # it is made again, and so is its checksum
    stages((("evaluate", 1),))
    verify_run("t")
    with pytest.raises(RuntimeError), sums.noted(root / "round=1/guard.json"):
        (root / "round=1/guard.json").write_text("{}")
        raise RuntimeError("killed")
    assert "guard.json" not in sums.read_sums(root / "round=1")


# --- archives ---------------------------------------------------------------------------------------------------


def members(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


def test_an_archive_is_the_same_bytes_again(root: Path, tmp_path: Path) -> None:
    write_report("t")
    first = pack("t", None).read_bytes()
    for path in root.rglob("*"):
        os.utime(path, (1, 1))
    (root / "round=1/chains/.work").mkdir()
    (root / "round=1/chains/.work/left").write_text("over")
    (root / ".checkpoints/round=1").mkdir(parents=True, exist_ok=True)
    assert pack("t", tmp_path / "again.tar.gz").read_bytes() == first
    found = members(tmp_path / "again.tar.gz")
    assert list(found) == sorted(found) and f"t/{PACKED}" in found and "t/report.html" in found
    assert not [name for name in found if re.search(r"checkpoints|\.work|\.lock|logs|\.\.|^/", name)]
    assert {(m.uid, m.uname, m.mtime, m.mode) for m in found.values()} == {(0, "", 0, 0o644)}
    verify_archive(tmp_path / "again.tar.gz")
    about = json.loads(tarfile.open(tmp_path / "again.tar.gz").extractfile(f"t/{PACKED}").read())  # type: ignore[union-attr]
    assert [model["peer"] for model in about["models"]] == ["chatty", "plain"]
    pst = shards.read_json(root / "round=1/adapters/plain/pst.json")
    assert about["models"][1]["weights"] == pst["base_fingerprint"]


def test_without_gold_nothing_tells_an_answer(
    root: Path, tmp_path: Path, elsewhere: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_report("t")
    (root / "round=1/logs").mkdir()
    for name in ("generate", "evaluate"):
        (root / f"round=1/logs/{name}.log").write_text("printed")
    with sums.noted(root / "round=1/keep.parquet"):
        shutil.copy(root / "prompts/part-00000.parquet", root / "round=1/keep.parquet")
    path = pack("t", tmp_path / "t.tar.gz", gold=False, logs=True)
    assert "cannot be trained again" in capsys.readouterr().out
    names = [name.removeprefix("t/") for name in members(path)]
    assert "round=1/logs/generate.log" in names and "round=1/chains/part-00000.parquet" in names
    told = r"evals|metrics|cross|guard|keep|report|evaluate\.log|round=\d/sums"
    assert not [name for name in names if re.search(told, name)]
    elsewhere()
    unpack(path, "u")
    verify_run("u")
    for shard in (RUNS / "u").rglob("*.parquet"):
        assert not {"gold", "correct", "verdict"} & set(pq.read_schema(shard).names), shard
    refused(lambda: write_report("u"), "has no evaluated round yet")


def test_a_damaged_run_is_not_packed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "round=1/adapters/plain/adapter_model.safetensors").write_bytes(b"")
    refused(lambda: pack("t", None), "1 of its files")
    assert not list(RUNS.glob("*.tar.gz*"))


def tar(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as out:
        for info, content in entries:
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def entry(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> Any:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, content


UNSAFE = {
    "an absolute path": entry("/t/config.json"),
    "a path upwards": entry("t/../../config.json"),
    "a link out": entry("t/config.json", b"", tarfile.SYMTYPE, "/etc/passwd"),
    "a link within": entry("t/config.json", b"", tarfile.SYMTYPE, "_PACKED.json"),
    "a hard link": entry("t/config.json", b"", tarfile.LNKTYPE, "t/_PACKED.json"),
    "a device": entry("t/config.json", b"", tarfile.CHRTYPE),
    "no folder": entry("config.json"),
    "another folder": entry("u/config.json"),
    "what is not listed": entry("t/more.json"),
    "other bytes": entry("t/config.json", b"y"),
    "a list that leaves the folder": entry("t/_PACKED.json", b'{"files": {"../x": "0"}}'),
    "no list of files": entry("t/_PACKED.json", b"[]"),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_nothing_of_an_unsafe_archive_is_unpacked(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RUNS.mkdir()
    listing = json.dumps({"files": {"config.json": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}})
    good = [entry("t/_PACKED.json", listing.encode()), entry("t/config.json")]
    bad = UNSAFE[kind]
    others = [each for each in good if each[0].name != bad[0].name and kind != "other bytes"]
    others = good[:1] if kind == "other bytes" else others
    path = tar(tmp_path / "bad.tar.gz", *others, bad)
    refused(lambda: unpack(path, None))
    refused(lambda: verify_archive(path))
    assert (not list(RUNS.iterdir()) and [each.name for each in tmp_path.iterdir()] == ["runs", "bad.tar.gz"]) or (
        sorted(each.name for each in tmp_path.iterdir()) == ["bad.tar.gz", "runs"]
    )


def test_an_archive_that_was_cut_off_or_changed_is_named(root: Path, tmp_path: Path) -> None:
    whole = pack("t", None).read_bytes()
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    refused(lambda: verify_archive(cut), "cannot be read as a gzipped tar archive")
    refused(lambda: unpack(cut, "u"), "copy it again")
    cut.write_bytes(b"no archive")
    refused(lambda: unpack(cut, "u"), "cannot be read as a gzipped tar archive")
    refused(lambda: unpack(tmp_path / "none.tar.gz", "u"), "there is no file")
    refused(lambda: unpack(RUNS / "t.tar.gz", None), "runs/t is there already")
    assert sorted(path.name for path in RUNS.iterdir()) == ["t", "t.tar.gz"]


def test_a_packed_run_goes_on_in_another_checkout(root: Path, tmp_path: Path, elsewhere: Callable[[], None]) -> None:
    path = pack("t", tmp_path / "t.tar.gz")
    shutil.rmtree(root)
    elsewhere()
    unpack(path, None)
    verify_run("t")
    before = {file: file.stat().st_mtime_ns for file in root.rglob("part-*.parquet")}
    write_report("t")
    stages(SECOND)
    assert (root / "round=2/metrics.parquet").is_file()
    assert {file: file.stat().st_mtime_ns for file in before} == before, "what was finished is not made again"
    verify_run("t")


def test_what_a_run_needs_and_is_not_here_is_told(root: Path, made: Path) -> None:
    config = load_frozen("t")
    assert not_here(config, []) == []
    Path("models/chatty").unlink()
    Path("test.jsonl").unlink()
    moved = config.model_copy(
        update={"peers": (config.peers[0], config.peers[1].model_copy(update={"model": "/no/p"}))}
    )
    lines = not_here(moved, [{"peer": "plain", "weights": "abc", "local": True}])
    assert lines == [
        "peer chatty: its model is not at models/chatty: put them there, or a link (ln -s PLACE models/chatty)",
        "peer plain: its model (weights abc) is not at /no/p: put them there, or a link (ln -s PLACE /no/p)",
        "benchmark sums: its questions are not at test.jsonl: put them there, or a link (ln -s PLACE test.jsonl)",
    ]
