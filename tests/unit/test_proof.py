"""What a run proves of itself: versions of libraries, checksums and a format in every list; and what the property tests
found, each once more in plain words."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gguf import GGUFReader, GGUFWriter

from data import shards, sums
from data.answers import choice, kinds, texts
from data.answers.equivalence import bare, decide_quickly
from data.answers.gold import Unreadable, read_gold
from data.config.load import load_config
from data.config.sections import PeerSection, PromptsSection
from data.console import console
from data.errors import UserError
from data.questions import read_with_origin
from data.run import OUTPUT
from data.stage import FORMAT, Stage, versions
from data.versions import changed_since, version_changes
from peers.gguf_file import check_gguf
from peers.gguf_load import QuickReader, read_quickly
from pipeline.share.files import FIGURES
from pipeline.share.verify import examine
from tests.properties import within

NOW = versions()


def finish(root: Path, round_: int, stage: str, **others: str | None) -> Path:
    """A finished stage that was made with other versions than there are now; None: without that library."""
    folder = root / f"round={round_}" / OUTPUT[stage]
    folder.mkdir(parents=True)
    made = {name: version for name, version in (NOW | others).items() if version is not None}
    said = {"stage": stage, "round": round_, "rows": 0, "seconds": 1.0, "fingerprint": {}, "versions": made}
    shards.write_manifest(folder, said, [])
    return folder


def test_a_library_that_changed_between_two_stages_is_told_and_not_refused(tmp_path: Path) -> None:
    finish(tmp_path, 0, "evaluate")
    generate = finish(tmp_path, 1, "generate")
    assert changed_since(tmp_path / "round=1" / "scores", NOW) is None and version_changes(tmp_path) == []
    finish(tmp_path, 1, "score", torch="2.0.0", vllm=None, peft=None)
    folder = tmp_path / "round=1" / "adapters"
    told = f"peft none -> {NOW['peft']}, torch 2.0.0 -> {NOW['torch']}"
    assert str(changed_since(folder, NOW)).startswith(f"other versions than score round 1 was made with: {told}")
    with console.capture() as said:
        assert Stage("train", 1, folder, {}).begin()
    assert said.get().startswith("train round 1: other versions than score round 1 was made with: ")
    finish(tmp_path, 2, "generate", torch="2.0.0")
    assert version_changes(tmp_path)[-1] == f"torch was {NOW['torch']}, 2.0.0 from score round 1 on"
    with console.capture() as said:
        assert not Stage("generate", 1, generate, {}).begin()
    assert "versions" not in said.get()  # nothing is made
    for path in tmp_path.glob("round=*/*/_SUCCESS.json"):
        path.write_text("no JSON")  # which whoever reads it tells
    assert version_changes(tmp_path) == []


def test_status_tells_of_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import status

    finish(tmp_path / "runs" / "t", 0, "evaluate", torch="1.0")
    finish(tmp_path / "runs" / "t", 1, "generate")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(status, "stages", lambda run: [])
    with console.capture() as said:
        status.command(run="t", json_=False)
    assert f"torch was 1.0, {NOW['torch']} from generate round 1 on" in said.get()


def test_lm_evals_figures_have_a_checksum(tmp_path: Path) -> None:
    path = tmp_path / "round=1" / FIGURES
    path.parent.mkdir()
    with sums.noted(path):
        shards.write_json({"rows": []}, path)
    assert examine(tmp_path)[1].all == []
    path.write_text(path.read_text() + " ")
    assert examine(tmp_path)[1].all == [f"round=1/{FIGURES}: its checksum is not the one in round=1/sums.json"]
    (tmp_path / "round=1" / sums.SUMS).unlink()
    faults = examine(tmp_path)[1]
    assert faults.all == [] and faults.unsummed == [f"round=1/{FIGURES}: cannot be checked, no list has its checksum"]


def test_every_list_of_a_finished_run_has_a_format_and_checksums(tmp_path: Path) -> None:
    folder = finish(tmp_path, 1, "score")
    manifest = shards.read_json(folder / shards.SUCCESS)
    assert manifest["format"] == FORMAT and manifest[shards.SEAL] == shards.seal(manifest) and manifest["files"] == {}


# --- what the property tests found ------------------------------------------------------------------------------

DEEP = "[" * 100_000


def test_tables_nested_too_deep_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("x." * 5000 + "y = 1")
    with pytest.raises(UserError, match="nested too deep"):
        load_config(path, [])


def test_json_nested_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(DEEP)
    with pytest.raises(UserError, match="cannot be read"):
        shards.read_json(tmp_path / "x.json")
    with pytest.raises(ValueError, match="are not a list"):
        choice.parse_options(DEEP)
    gold = '["' + '",["' * 50_000
    assert kinds.aliases('["a",' + DEEP) == ['["a",' + DEEP]
    for kind in ("math", "exact"):
        with pytest.raises(Unreadable):
            read_gold('["a",' + DEEP + gold, kind)


def test_a_manifest_with_a_flipped_bit_is_refused_by_whatever_reads_it(tmp_path: Path) -> None:
    folder = finish(tmp_path, 1, "score")
    path = folder / shards.SUCCESS
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with suppress(UserError):  # a bit of "fingerprint" gave a KeyError
            assert not Stage("score", 1, folder, {}).begin()
            assert shards.SEAL not in shards.read_json(path) or path.read_text().split() == content.decode().split()
    path.write_bytes(content.replace(b'"fingerprint"', b'"other"'))
    with pytest.raises(UserError, match="its own checksum does not match"):
        shards.read_manifest(folder)


@pytest.mark.parametrize("name", ["part\n0.parquet", "\ud800", "n" * 300])
def test_a_manifest_that_lists_no_plain_names_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / shards.SUCCESS).write_text(json.dumps({"format": FORMAT, "files": {name: "0"}}))
    with pytest.raises(UserError, match=r"^.* it lists the file '.*$"):
        shards.read_manifest(tmp_path)


def test_a_manifest_of_a_stage_without_a_fingerprint_is_refused(tmp_path: Path) -> None:
    (tmp_path / shards.SUCCESS).write_text(json.dumps({"format": FORMAT, "files": {}}))
    with pytest.raises(UserError, match=r"made under other conditions \(a changed since\)"):
        Stage("score", 1, tmp_path, {"a": 1}).begin()


def test_marks_on_both_sides_of_a_word_are_no_part_of_it() -> None:
    for text in ("**Paris**!", "“Paris”!", "Paris!*", "*Paris!*."):
        assert texts.normal_form(text) == "paris", text
    assert texts.normal_form("5!") == "5!" and texts.normal_form("an A") == "a"


def test_what_stands_before_a_remark_is_bare() -> None:
    for text in ("12 USD ; la respuesta es ", "**12 USD** (3 × 4)", "12 USD; the answer is ; he has more", "12 USD. "):
        assert bare(text) == "12 USD", text


def test_signs_alone_are_right_beside_themselves() -> None:
    assert decide_quickly(r"\$", r"\$", "numbers") and decide_quickly(r"\$", r"\$", "math")
    assert not decide_quickly(" ", " ", "math")


@pytest.mark.parametrize(
    "response", ["Answer: " * 8 + "12" * 40_000, "A. " + "\n" * 20_000 + "!", "Answer: " + "…" * 40_000],
    ids=["one long word", "line ends", "points"],
)  # fmt: skip
def test_long_runs_of_one_thing_take_no_time(response: str) -> None:
    with within(5):
        for kind in ("choice", "exact"):
            kinds.of(kind).find(response, "Which? (A) 1 (B) 2")
        kinds.of("exact").right(response, response + ".")


def gguf(path: Path, layers: int = 1) -> bytearray:
    """A file of two tensors; its content."""
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", layers)
    for name in ("a.weight", "b.weight"):
        writer.add_tensor(name, np.arange(16, dtype=np.float32).reshape(2, 8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return bytearray(path.read_bytes())


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised, read_quickly():
        check_gguf(PeerSection(name="p", model="m"), path, str(path))
    return str(raised.value)


def test_a_gguf_header_that_moves_a_tensor_or_asks_for_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content = gguf(path)
    first = GGUFReader(path).tensors[0]
    at = first.field.offset + sum(int(part.nbytes) for part in first.field.parts[:-1])
    assert int.from_bytes(content[at : at + 8], "little") == 0
    path.write_bytes(content[:at] + (64).to_bytes(8, "little") + content[at + 8 :])
    assert "has a.weight at byte" in refusal(path)  # else a would have the numbers of b
    kind = at - 4
    path.write_bytes(content[:kind] + (26).to_bytes(4, "little") + content[kind + 4 :])
    assert "tensors of the type I32, which cannot be dequantised" in refusal(path)
    gguf(path, 2**31)
    assert f"has 2 tensors, but its header says {2**31} layers" in refusal(path)


def test_a_gguf_of_the_other_byte_order_is_refused_before_its_lists_are_read(tmp_path: Path) -> None:
    head = b"GGUF" + (3).to_bytes(4, "big") + (0).to_bytes(8, "big") + (1).to_bytes(8, "big")
    key = (1).to_bytes(8, "big") + b"k" + (9).to_bytes(4, "big") + (4).to_bytes(4, "big") + (2**50).to_bytes(8, "big")
    (tmp_path / "m.gguf").write_bytes(head + key)
    with within(5), pytest.raises(ValueError, match="other byte order"):
        QuickReader(tmp_path / "m.gguf")


def test_a_parquet_file_whose_columns_have_no_names_in_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"question": ["a"], "answ\u00e9r": ["b"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xee\x20"))
    with pytest.raises(UserError, match=r"q\.parquet has names or text that are not UTF-8"):
        read_with_origin(PromptsSection(source=str(path)), ["question"], "prompts")


def test_a_gguf_whose_header_has_text_in_place_of_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content = bytes(gguf(path))
    path.write_bytes(content.replace(b"llama", b"ll\xffma"))
    assert "is a GGUF file that cannot be read" in refusal(path) or "not a complete GGUF" in refusal(path)
