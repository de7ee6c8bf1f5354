"""A flipped bit in what an unfinished stage keeps, which no manifest lists yet, is noticed."""

from __future__ import annotations

import hashlib
import io
import random
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from data import shards
from data.answers import grader as grader_module
from data.answers.grader import Grader
from data.errors import UserError
from data.stage import Stage
from peers import policy as policies
from peers.merge import ADAPTER_WEIGHTS
from tests.dying_grader import dying
from train.loop import CHECKPOINT, _read_checkpoint
from train.stage import PeerTraining, _sums

SCHEMA = pa.schema([pa.field("text", pa.string(), nullable=False), pa.field("number", pa.float64())])
ROWS = [{"text": f"text {i}", "number": i / 7} for i in range(300)]


def flipped(path: Path, place: int, bit: int = 0) -> None:
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_no_flipped_bit_of_a_shards_pages_gives_other_rows(tmp_path: Path) -> None:
    path, draw = tmp_path / "part-00000.parquet", random.Random(0)
    shards.write_rows(ROWS, path, SCHEMA)
    whole = path.read_bytes()
    refused = 0
    for _ in range(200):
        path.write_bytes(whole)
        flipped(path, draw.randrange(len(whole) * 3 // 4), draw.randrange(8))  # behind them are names and places
        try:
            assert shards.read_rows(path, SCHEMA) == ROWS
        except UserError as error:
            refused += 1
            assert f"delete {tmp_path} and run its stage again" in str(error)
    assert refused > 150


def test_a_damaged_shard_of_an_unfinished_stage_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "chains"
    assert Stage("generate", 1, folder, {}).begin()
    shards.write_rows(ROWS, folder / "part-00000.parquet", SCHEMA)
    assert Stage("generate", 1, folder, {}).begin()
    flipped(folder / "part-00000.parquet", 100)
    with pytest.raises(UserError, match=r"part-00000.parquet is damaged: delete it and run the same command again"):
        Stage("generate", 1, folder, {}).begin()


def test_a_shard_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chains" / "part-00000.parquet"
    shards.write_rows(ROWS, path, SCHEMA)
    content = path.read_bytes()
    refused = 0
    for place in range(len(content) - 4):  # the column's name stands in several places
        if content[place : place + 4] == b"text":
            path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
            try:
                shards.read_rows(path, SCHEMA)
            except UserError as error:
                assert "is damaged" in str(error) and str(path.parent) in str(error)
                refused += 1
    assert refused
    bad = pa.Array.from_buffers(pa.string(), 1, [*pa.array(["ab"]).buffers()[:2], pa.py_buffer(b"\xff\xfe")])
    shards.write_table(pa.table([bad, [1.0]], schema=SCHEMA), path)
    with pytest.raises(UserError, match=r"is damaged .*UTF8"):
        shards.read_rows(path, SCHEMA)


def test_a_checkpoint_is_read_with_its_sum(tmp_path: Path) -> None:
    path, content = tmp_path / CHECKPOINT, io.BytesIO()
    torch.save({"adapter": torch.arange(1000.0), "step": 3}, content)
    whole = hashlib.sha256(content.getbuffer()).digest() + content.getvalue()
    path.write_bytes(whole)
    assert _read_checkpoint(path)["step"] == 3
    flipped(path, whole.index(torch.arange(1000.0).numpy().tobytes()) + 2000)
    changed = torch.load(io.BytesIO(path.read_bytes()[32:]), weights_only=True)["adapter"]
    assert not torch.equal(changed, torch.arange(1000.0))  # torch says nothing
    for damaged in (path.read_bytes(), whole[:1000], whole[:10], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{CHECKPOINT} is damaged .*; delete it and run its stage again"):
            _read_checkpoint(path)


def test_a_file_without_its_sum_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "examples.arrow"
    assert not shards.is_whole(path)
    path.write_bytes(b"abc")
    assert not shards.is_whole(path)
    shards.write_sum(path)
    assert shards.is_whole(path)
    flipped(path, 1)
    assert not shards.is_whole(path)


def test_an_adapter_that_changed_before_its_manifest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sums = tmp_path / "ada", tmp_path / ".work" / "adapter.json"
    monkeypatch.setattr(PeerTraining, "folder", folder)
    monkeypatch.setattr(PeerTraining, "sums", sums)
    for path in (folder / ADAPTER_WEIGHTS, folder / "training.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"abc")
    training = PeerTraining.__new__(PeerTraining)
    shards.write_json(_sums(folder), sums)
    training.check_whole()
    flipped(folder / ADAPTER_WEIGHTS, 1)
    with pytest.raises(UserError, match="ada is damaged: delete it and run the same command again"):
        training.check_whole()


def test_a_damaged_merge_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def write_merged(base: Path, adapter: Path, target: Path, *_: Any) -> None:
        made.append(1)
        target.mkdir(parents=True)
        (target / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(policies, "write_merged", write_merged)
    monkeypatch.setattr(policies, "_seen", set())
    adapter, merged = tmp_path / "adapter", tmp_path / "checkpoints" / "round=1" / "ada"
    adapter.mkdir()
    (adapter / ADAPTER_WEIGHTS).write_bytes(b"adapter")
    for _ in range(2):
        policies.merge_into(merged, tmp_path, adapter, "float32", 0)
    assert len(made) == 1
    policies._seen.clear()  # as another process
    policies.merge_into(merged, tmp_path, adapter, "float32", 0)
    assert len(made) == 1
    flipped(merged / "model.safetensors", 3)
    policies._seen.clear()
    policies.merge_into(merged, tmp_path, adapter, "float32", 0)
    assert len(made) == 2 and (merged / "model.safetensors").read_bytes() == b"weights"
    (merged / policies.STAMP).write_text("{")
    policies.merge_into(merged, tmp_path, adapter, "float32", 0)
    assert len(made) == 3


def test_a_killed_grader_changes_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is ready, and with a pair: another one is started, and the pair is no timeout."""
    monkeypatch.setattr(grader_module, "_serve", partial(dying, tmp_path / "deaths"))
    with Grader(30.0, 1) as grader:
        assert dict(grader._verify([("a", "b"), ("c", "d")])) == {("a", "b"): True, ("c", "d"): True}
    assert (tmp_path / "deaths").read_text() == "xx"
