"""Sharing a run: checksums of all its files, archives, exports that others can load."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

import pipeline.share.export
import pipeline.unrecorded
from data import shards, sums
from data.errors import UserError
from data.locks import locked
from data.run import RUNS, Run, load_frozen, open_run
from data.schema import METRICS
from data.stage import FORMAT
from evaluate.report import write_report
from peers import policy_cache
from peers.policy import Policy, resolve
from peers.source import model_directory
from pipeline.share.archive import read_archive
from pipeline.share.check import same_answer
from pipeline.share.choose import choose_round
from pipeline.share.export import export
from pipeline.share.files import PACKED
from pipeline.share.needs import not_here
from pipeline.share.pack import pack, unpack
from pipeline.share.push import push
from pipeline.share.verify import verify_archive, verify_run
from tests.conftest import ROOT, questions, run_module, write_jsonl
from tests.fake_engine import FakeEngine, Here, Inline

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
    """Some stages of a run, in this very process; numbers by seed stand for what an engine would answer."""

    def engine(policy: Policy, _: Any) -> FakeEngine:
        prompts = policy.prompts
        return FakeEngine(
            prompts, lambda _, seed: [*prompts.encode_response(f"The answer is {seed % 3}."), prompts.end_id]
        )

    with open_run(name, config, []) as run, pytest.MonkeyPatch.context() as patched:
        patched.setattr(policy_cache, "engine", engine)
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
    refused(lambda: verify_run("t"), "of its files are not as they were written")
    out = capsys.readouterr().out
    assert "round=1/scores/part-00009.parquet: no manifest lists it" in out
    assert "notes.txt: no manifest lists it" in out and "round=1/chains/_SUCCESS.json: is damaged" in out
    assert "round=1/chains/part-" not in out  # what its list said of them is not known
    shutil.copytree(root / "round=1/scores", root / "round=1/scores.bak")
    refused(lambda: verify_run("t"), "of its files are not as they were written")
    assert "round=1/scores.bak/_SUCCESS.json: no manifest lists it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("rows", 7, "was changed: its own checksum does not match"),
        ("format", 3, "was made by another version (format 3; this one has 4)"),
    ],
)
def test_a_manifest_that_was_changed_is_named(
    key: str, value: int, told: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "round=1/chains/_SUCCESS.json"
    shards.write_json({**shards.read_json(path), key: value}, path)
    refused(lambda: verify_run("t"), "1 of its files")
    assert f"round=1/chains/_SUCCESS.json: {told}" in capsys.readouterr().out


def test_an_unpacked_run_knows_what_its_lost_sums_said(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unpack(pack("t", tmp_path / "t.tar.gz"), "u", [])
    (RUNS / "u/round=1/sums.json").unlink()
    verify_run("u")
    (RUNS / "u/round=1/metrics.parquet").write_bytes(b"other")
    refused(lambda: verify_run("u"), "1 of its files")
    assert "round=1/metrics.parquet: its checksum is not the one in _PACKED.json" in capsys.readouterr().out


def test_an_unfinished_stage_is_no_damage(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chains = root / "round=2/chains"
    shards.write_json({}, chains / shards.STARTED)
    (chains / "part-00000.parquet").write_bytes(b"half")
    (chains / ".work").mkdir()
    (chains / ".work/piece").write_bytes(b"half")
    verify_run("t")
    assert "round=2/chains: not finished" in capsys.readouterr().out


def test_a_run_in_use_is_left_alone(root: Path) -> None:
    with locked(root):
        refused(lambda: verify_run("t"), "runs/t is in use by another process")
        refused(lambda: pack("t", None), "runs/t is in use by another process")
        refused(lambda: export("t", 1, None, False, 0, None, []), "runs/t is in use by another process")
    assert not (RUNS / "t.tar.gz").exists() and not (root / "export").exists()


def test_checksums_survive_resume_kills_and_older_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in root.glob("**/sums.json"):
        path.unlink()  # as an earlier version left it
    verify_run("t")
    out = capsys.readouterr().out
    assert "round=1/metrics.parquet: cannot be checked" in out and "4 could not be checked" in out
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
    about = read_archive(tmp_path / "again.tar.gz").about
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
    unpack(path, "u", [])
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
    "its files in two folders": entry("u/config.json"),
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
    others = [each for each in good if each[0].name != bad[0].name]
    others = good[:1] if kind in ("other bytes", "its files in two folders") else others
    path = tar(tmp_path / "bad.tar.gz", *others, bad)
    refused(lambda: unpack(path, None, []))
    refused(lambda: verify_archive(path))
    assert sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")) == ["bad.tar.gz", "runs"]


def test_an_archive_that_was_cut_off_or_changed_is_named(root: Path, tmp_path: Path) -> None:
    whole = pack("t", None).read_bytes()
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    refused(lambda: verify_archive(cut), "cannot be read as a gzipped tar archive")
    refused(lambda: unpack(cut, "u", []), "copy it again")
    cut.write_bytes(b"no archive")
    refused(lambda: unpack(cut, "u", []), "cannot be read as a gzipped tar archive")
    refused(lambda: unpack(tmp_path / "none.tar.gz", "u", []), "there is no file")
    refused(lambda: unpack(RUNS / "t.tar.gz", None, []), "runs/t exists already")
    assert sorted(path.name for path in RUNS.iterdir()) == ["t", "t.tar.gz"]


def test_a_packed_run_goes_on_in_another_checkout(root: Path, tmp_path: Path, elsewhere: Callable[[], None]) -> None:
    path = pack("t", tmp_path / "t.tar.gz")
    shutil.rmtree(root)
    elsewhere()
    unpack(path, None, [])
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
    plain = config.peers[1].model_copy(update={"model": "/no/p"})
    moved = config.model_copy(update={"peers": (config.peers[0], plain)})
    lines = not_here(moved, [{"peer": "plain", "weights": "abc", "local": True}])
    way = "put it there, or say where it is with `make unpack PLACES={}=/NEW/PLACE`"
    assert lines == [
        f"peer chatty: models/chatty is not here: {way.format('models/chatty')}",
        f"peer plain (weights with the fingerprint abc): /no/p is not here: {way.format('/no/p')}",
        f"benchmark sums: test.jsonl is not here: {way.format('test.jsonl')}",
    ]


def test_a_run_finds_what_is_elsewhere_on_another_machine(
    root: Path, tmp_path: Path, tiny_models: Models, elsewhere: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Both a relative path, of which the whole folder moved, and an absolute one; finished stages stay as they are."""
    frozen = (root / "config.json").read_bytes()
    absolute = str(tiny_models["plain"])
    (root / "config.json").write_bytes(frozen.replace(absolute.encode(), b"/no/such/folder/plain"))
    sums.note(root / "config.json")
    path = pack("t", tmp_path / "t.tar.gz")
    elsewhere()
    Path("models").rename("moved")
    unpack(path, "told", [])
    out = capsys.readouterr().out
    assert "PLACES=models/chatty=/NEW/PLACE" in out and "PLACES=/no/such/folder/plain=/NEW/PLACE" in out
    unpack(path, "t", ["./models=moved", f"/no/such/folder={tiny_models['plain'].parent}"])
    assert "PLACES" not in capsys.readouterr().out
    verify_run("t")
    with open_run("t", None, []) as run:
        assert Path(model_directory(run.config.peer("chatty"), run.config)) == Path("moved/chatty")
        assert model_directory(run.config.peer("plain"), run.config) == tiny_models["plain"]
        found = run.config.model_dump(mode="json", exclude={"runtime"})
    assert found == load_frozen("told").model_dump(mode="json", exclude={"runtime"}), "no fingerprint sees the places"
    refused(lambda: unpack(path, "v", ["/a"]), "expected OLD=NEW")


# --- exports ----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """One peer is exported, and its calls are done in this process."""
    monkeypatch.setattr(pipeline.share.export, "resolve_all", lambda run, n: {"plain": resolve(run, n, "plain")})
    monkeypatch.setattr(pipeline.unrecorded, "Pool", Here)
    monkeypatch.setattr(pipeline.unrecorded, "warm", lambda *_, **__: None)


def code_of(card: Path, **names: str) -> str:
    """The first block of code of a card, with other values for some of its names, run: what it printed."""
    (block, *_) = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    out: list[str] = []
    keys = ", ".join(names)
    block, found = re.subn(rf"(?m)^{keys} = .*$", f"{keys} = {', '.join(map(repr, names.values()))}", block)
    assert found == 1
    exec(block, {"print": out.append})
    return "\n".join(out)


@pytest.mark.usefixtures("here")
def test_an_export_loads_and_says_what_the_run_says(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export("t", None, None, True, 3, None, [])
    out = capsys.readouterr().out
    assert "round 1 of run t: the last trained one" in out
    for way in ("transformers, merged: 3 of 3 texts", "transformers, merged: 3 of 3", "peft, adapter in float32: 3 of"):
        assert way in out
    assert (folder / "plain/README.md").read_text(encoding="utf-8").count("3 of 3 texts") == 1
    merged = root / ".checkpoints/round=1/plain/model.safetensors"
    assert (folder / "plain/merged" / merged.name).read_bytes() == merged.read_bytes()
    base = str(load_frozen("t").peer("plain").model)
    said = code_of(folder / "plain/README.md", BASE=base, ADAPTER=str(folder / "plain"))
    assert said.strip().startswith("The answer is ")


def test_an_export_is_for_strangers(root: Path, made: Path, tmp_path: Path) -> None:
    folder = export("t", 1, None, True, 0, None, ["plain=some/model"])
    for peer, base in (("chatty", "./models/chatty"), ("plain", "some/model")):
        config = shards.read_json(folder / peer / "adapter_config.json")
        assert (config["base_model_name_or_path"], config["peft_type"], config["revision"]) == (base, "LORA", None)
        assert shards.read_json(folder / peer / "pst.json")["base"] == base
        trained = root / "round=1/adapters" / peer / "adapter_model.safetensors"
        assert (folder / peer / trained.name).read_bytes() == trained.read_bytes()
    for text in folder.rglob("*"):
        if text.suffix in (".json", ".md"):
            for path in (tmp_path, made, made.parent):
                assert str(path) not in text.read_text(encoding="utf-8"), f"{text} tells a path of this machine"
    verify_run("t")  # an export's manifest is one, too


def percent(root: Path, round_: int, peer: str) -> str:
    """EM of a peer with its interval, as a card has it."""
    rows = shards.read_rows(root / f"round={round_}/metrics.parquet", METRICS)
    row = next(row for row in rows if row["peer"] == peer)
    return "{:.1f} ({:.1f} to {:.1f})".format(*(100 * row[name] for name in ("em", "em_lo", "em_hi")))


def test_the_card_has_base_data_method_and_intervals(root: Path) -> None:
    from huggingface_hub import ModelCard

    export("t", 1, None, True, 0, None, ["plain=some/model"])
    card = ModelCard.load(root / "export/plain/README.md")
    assert card.data.base_model == "some/model" and card.data.library_name == "peft" and card.data.license == "FILL-IN"
    assert ModelCard.load(root / "export/plain/merged/README.md").data.library_name == "transformers"
    assert ModelCard.load(root / "export/chatty/README.md").data.base_model == "FILL-IN/FILL-IN"
    assert f"| sums | 4 | {percent(root, 0, 'plain')} | {percent(root, 1, 'plain')} | " in card.text
    examples = shards.read_json(root / "round=1/adapters/_SUCCESS.json")["peers"]["plain"]["examples"]
    assert "12 unlabelled questions of `train.jsonl`" in card.text
    assert f"Round 1 trained on {examples} examples" in card.text
    assert "the hub's model of this name may have other weights" in card.text
    assert "`train.rank` | `16`" in card.text and "float32" in card.text and "Checked on" not in card.text


def test_an_export_is_replaced_as_a_whole_or_not_at_all(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export("t", 1, None, False, 0, None, [])
    (folder / "chatty/pst.json").write_text("{}")  # the one before is told by this
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline.share.export, "write_card", killed)
        with pytest.raises(KeyboardInterrupt):
            export("t", 1, None, True, 0, None, [])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in root.glob("*export*")] == ["export"]
    folder.rename(root / ".export.replaced")  # killed between the two renames
    refused(lambda: export("t", 7, None, False, 0, None, []), "round 7 of run 't' has no adapters; trained rounds: 1")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    export("t", 1, None, False, 0, None, [])
    assert (folder / "chatty/pst.json").read_text(encoding="utf-8") != "{}"
    card = folder / "chatty/README.md"
    card.write_text(card.read_text(encoding="utf-8").replace("FILL-IN", "mit"), encoding="utf-8")
    verify_run("t")
    refused(lambda: export("t", 1, None, False, 0, None, []), "runs/t/export/chatty/README.md was edited")
    assert "mit" in card.read_text(encoding="utf-8")
    mine = root.parent / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("my own")
    refused(lambda: export("t", 1, mine, False, 0, None, []), "is no finished export")
    assert (mine / "thesis.tex").read_text() == "my own"


@pytest.mark.usefixtures("here")
def test_an_export_that_says_something_else_is_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(policy: Policy, target: Path) -> None:
        shutil.copytree(policy.base, target)
        weights = load_file(target / "model.safetensors")
        save_file({n: -w for n, w in weights.items()}, target / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(pipeline.share.export, "write_checkpoint", other)
    refused(lambda: export("t", 1, None, True, 1, 4, []), "does not answer like the run's own policy", "CHECK=0")
    assert not list(root.glob("*export*"))


def test_what_counts_as_the_same_answer() -> None:
    assert same_answer("math", "So 3 + 4 = 7. The answer is 7.", "The answer is 7.", "")
    assert not same_answer("math", "The answer is 7.", "The answer is 8.", "")
    assert not same_answer("math", "no", "none", "") and same_answer("math", "no", "no", "")


def gated(root: Path, best: dict[int, tuple[float, bool]]) -> Run:
    """The run as if it had a gate: {round: (agreement of both peers, whether it was accepted)}."""
    config = load_frozen("t")
    run = Run("t", config.model_copy(update={"gate": config.gate.model_copy(update={"questions": 10})}))
    used, before = 0, 0.5
    for number, (agreement, accepted) in {0: (before, True), **best}.items():
        used = number if accepted else used
        compared = {
            "against": 0, "n": 10, "before": before, "after": agreement, "gained": 0, "lost": 0, "difference": 0.0,
            "low": 0.0, "high": 0.0, "passed": accepted,
        }  # fmt: skip
        decisions = {name: {"in_use": used, "comparisons": [compared]} for name in config.peer_names}
        about = {"agreement": dict.fromkeys(config.peer_names, agreement), "decisions": decisions}
        about |= {"files": {}, "format": FORMAT}
        shards.write_json(about, root / f"round={number}/gate/_SUCCESS.json")
        shards.write_json({"files": {}, "format": FORMAT}, root / f"round={max(number, 1)}/adapters/_SUCCESS.json")
    shards.write_json(run.config.model_dump(mode="json"), root / "config.json")
    return run


def test_the_best_round_by_the_gate_is_exported(root: Path) -> None:
    run = gated(root, {1: (0.6, True), 2: (0.8, True), 3: (0.4, False)})
    assert choose_round(run, None)[0] == 2 and choose_round(run, 3) == (3, "as requested")
    run = gated(root, {1: (0.4, False), 2: (0.3, False), 3: (0.3, False)})
    refused(lambda: choose_round(run, None), "is 0, the untouched peers", "ROUND=3")


def test_push_prints_commands_that_the_hub_has(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(lambda: push("t", None, "me"), "there is no export in runs/t/export")
    export("t", 1, None, True, 0, None, [])
    capsys.readouterr()
    push("t", None, "me")
    note, *lines = capsys.readouterr().out.splitlines()
    assert note.startswith("# replace FILL-IN in runs/t/export/chatty/README.md")
    assert lines == [
        line for peer in ("chatty", "plain") for line in (
            f"hf upload me/t-{peer} runs/t/export/{peer} . --private --exclude 'merged/*'",
            f"hf upload me/t-{peer}-merged runs/t/export/{peer}/merged . --private",
        )
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", "upload", "--help"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "REPO_ID [LOCAL_PATH] [PATH_IN_REPO]" in " ".join(found.split())
    assert {"--private", "--exclude"} < set(found.split())


@pytest.mark.slow
def test_a_nano_peer_is_the_same_in_vllm(tmp_path: Path) -> None:
    """Fifty questions, of a run that trains three peers for a moment."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    (tmp_path / "peers").symlink_to(ROOT / "peers")
    sets = ["--set", "prompts.limit=64", "--set", "train.lr=2e-3", "--set", "benchmarks=[]"]
    run_module(
        "pipeline.round", "--run", "n", "--config", str(ROOT / "configs/nano.toml"), "--round", "1", *sets,
        cwd=tmp_path, timeout=900, check=True,
    )  # fmt: skip
    done = run_module("pipeline.share", "export", "--run", "n", "--merged", "--check", "50", cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("vllm, merged: 50 of 50 texts") == 3, done.stdout
    counts = re.findall(r"(?:transformers, merged|peft, adapter in float32): (\d+) of 50 answers", done.stdout)
    assert len(counts) == 6 and min(map(int, counts)) >= 47
