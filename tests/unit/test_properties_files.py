"""Files: what was written is read again, and what is damaged is refused in one line, or is read as it was.

Shards, manifests, checkpoints, files of questions, safetensors and GGUF: mutated, cut and extended bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from data import shards
from data.config.sections import PeerSection, PromptsSection
from data.errors import UserError
from data.questions import read_with_origin
from data.schema import ChainRow, EvalRow, PromptRow, ScoreRow, schema_of
from peers import weights, weights_check
from peers.gguf_file import check_gguf, check_pieces
from peers.gguf_load import QuickReader, read_quickly
from peers.weights_check import check_weights
from tests.properties import bounded, examples, within
from train.loop import CHECKPOINT, _checkpoint, _resume

SECONDS = 10.0  # of CPU time
MIB = 256  # of memory that a file of some KB may take


def one_line(error: UserError) -> None:
    """The message for a person."""
    assert str(error).strip() and "\n" not in str(error) and "Traceback" not in str(error)


@st.composite
def damage(draw: st.DrawFn, most: int = 3) -> Any:
    """A function that changes bytes in some places, of `end` at most: other bytes, bits, bytes cut out or put in."""
    steps = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5), st.binary(min_size=1, max_size=8)), min_size=1,
                          max_size=most))  # fmt: skip

    def change(content: bytes, first: int = 0, end: int | None = None) -> bytes:
        found, last = bytearray(content[:end]), len(content) if end is None else end
        for share, kind, some in steps:
            at = max(0, min(first + int(share * (last - first)), last - 1, len(found) - 1))
            if not found:  # all was cut out
                break
            if kind == 0:
                found[at] ^= 1 << (some[0] % 8)
            elif kind == 1:
                found[at : at + len(some)] = some[: len(found) - at]
            elif kind == 2:
                del found[at : at + len(some)]
            elif kind == 3:
                found[at:at] = some
            elif kind == 4:
                found[at : at + 8] = (2 ** (some[0] % 64) - some[-1] % 2).to_bytes(8, "little")[: len(found) - at]
            else:
                found[at : at + 1] = b"\xff"
        return bytes(found) + (b"" if end is None else content[end:])

    return change


@st.composite
def cuts(draw: st.DrawFn) -> Any:
    """A function that leaves the beginning of a file, and not all of it."""
    share = draw(st.floats(0, 1, exclude_max=True))
    return lambda content, *_: content[: int(share * len(content))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all examples, which write over each other's files and need not wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield tmp_path_factory.mktemp("properties")


# --- shards and manifests ---------------------------------------------------------------------------------------

VALUES: dict[Any, st.SearchStrategy[Any]] = {
    pa.string(): st.text(max_size=12), pa.int32(): st.integers(-(2**31), 2**31 - 1), pa.bool_(): st.booleans(),
    pa.float64(): st.floats(allow_nan=False, allow_infinity=False),
    pa.list_(pa.int32()): st.lists(st.integers(0, 2**31 - 1), max_size=5),
}  # fmt: skip
SCHEMAS = [schema_of(row) for row in (ChainRow, EvalRow, PromptRow, ScoreRow)]


@st.composite
def tables(draw: st.DrawFn) -> tuple[pa.Schema, list[dict[str, Any]]]:
    """A schema of the pipeline and rows that it may have."""
    schema = draw(st.sampled_from(SCHEMAS))
    fields = {f.name: st.one_of(st.none(), VALUES[f.type]) if f.nullable else VALUES[f.type] for f in schema}
    return schema, draw(st.lists(st.fixed_dictionaries(fields), max_size=4))


@examples(20)
@given(tables())
def test_a_shard_is_read_as_it_was_written(folder: Path, table: tuple[pa.Schema, list[dict[str, Any]]]) -> None:
    schema, rows = table
    path = folder / "part-00000.parquet"
    shards.write_rows(rows, path, schema)
    assert shards.read_rows(path, schema) == rows and shards.row_count(path) == len(rows)
    assert [each.name for each in folder.glob("part-*")] == [path.name]
    again = path.read_bytes()
    shards.write_rows(rows, path, schema)
    assert path.read_bytes() == again


@examples(20)
@given(tables(), st.data())
def test_a_row_that_does_not_fit_is_refused_and_nothing_is_written(
    folder: Path, table: tuple[pa.Schema, list[dict[str, Any]]], data: st.DataObject
) -> None:
    schema, rows = table
    assume(rows)
    path = folder / "part-00001.parquet"
    name = data.draw(st.sampled_from(schema.names))
    kind = schema.field(name).type
    odd: list[Any] = [] if schema.field(name).nullable else [None]
    odd += [math.nan, math.inf] if kind == pa.float64() else [object(), "x" if kind != pa.string() else 1]
    rows[-1][name] = data.draw(st.sampled_from(odd))
    with pytest.raises((ValueError, TypeError)):
        shards.write_rows(rows, path, schema)
    assert not list(folder.glob("part-00001*"))


@examples(20)
@given(tables(), cuts())
def test_a_shard_that_was_cut_is_refused(folder: Path, table: tuple[pa.Schema, list[Any]], cut: Any) -> None:
    schema, rows = table
    path = folder / "part-00002.parquet"
    shards.write_rows(rows, path, schema)
    path.write_bytes(cut(path.read_bytes()))
    for read in (lambda: shards.read_rows(path, schema), lambda: shards.row_count(path)):
        with pytest.raises(UserError) as raised:
            read()
        one_line(raised.value)


@examples(20)
@given(tables(), damage())
def test_a_damaged_shard_is_refused_by_its_manifest_and_read_or_refused_without(
    folder: Path, table: tuple[pa.Schema, list[Any]], change: Any
) -> None:
    schema, rows = table
    path = folder / "stage" / "part-00000.parquet"
    shards.write_rows(rows, path, schema)
    shards.write_manifest(path.parent, {"rows": len(rows)}, [path])
    content = path.read_bytes()
    assume((damaged := change(content)) != content)
    path.write_bytes(damaged)
    with pytest.raises(UserError) as raised:
        shards.read_manifest(path.parent)
    one_line(raised.value)
    with within(SECONDS), bounded(MIB):
        try:
            shards.read_rows(path, schema)
        except UserError as error:
            one_line(error)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False),
              st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
)  # fmt: skip


@examples(20)
@given(st.dictionaries(st.text(max_size=6), JSON, max_size=4), damage())
def test_a_manifest_is_read_as_it_was_written_and_damaged_ones_are_read_or_refused(
    folder: Path, said: dict[str, Any], change: Any
) -> None:
    assume(not said.keys() & {"format", shards.SEAL, *shards.STATED})  # Hypothesis knows the words of the sources
    stage = folder / "manifest"
    file = stage / "part-00000.parquet"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"some")
    shards.write_manifest(stage, said, [file])
    found = shards.read_manifest(stage)
    assert found is not None and {key: found[key] for key in said} == said
    path = stage / shards.SUCCESS
    path.write_bytes(change(path.read_bytes()))
    try:
        again = shards.read_manifest(stage)
    except UserError as error:
        one_line(error)
        return
    assert again == found or shards.SEAL not in json.loads(path.read_text(encoding="utf-8"))


# --- checkpoints ------------------------------------------------------------------------------------------------


def trained(seed: int, steps: int) -> tuple[Any, Any, Any]:
    """An adapter, its optimiser and its schedule after some steps."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    base: Any = torch.nn.Sequential(torch.nn.Linear(3, 2))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"]))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter) * (step + 1)
        optimizer.step()
        schedule.step()
    return model, optimizer, schedule


def state_of(model: Any, optimizer: Any, schedule: Any) -> list[Any]:
    """All state that training continues from, tensors as bytes."""
    adapter = {n: p.detach().numpy().tobytes() for n, p in model.named_parameters() if p.requires_grad}
    moments = {
        (number, name): value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
        for number, inner in optimizer.state_dict()["state"].items()
        for name, value in inner.items()
    }
    return [adapter, moments, optimizer.state_dict()["param_groups"], schedule.state_dict()]


@examples(6)
@given(
    st.integers(0, 2**31), st.integers(0, 4), st.lists(st.floats(allow_nan=False), max_size=4), st.integers(0, 2**40)
)
def test_a_checkpoint_is_the_state_that_it_was_made_of(
    folder: Path, seed: int, steps: int, losses: list[float], tokens: int
) -> None:
    parts = trained(seed, steps)
    _checkpoint(folder, *parts, steps, losses, tokens)
    others = trained(seed + 1, (steps + 1) % 3)
    assert _resume(folder, *others) == (steps, losses, tokens)
    assert state_of(*others) == state_of(*parts)


@examples(10)
@given(st.one_of(cuts(), damage()))
def test_a_checkpoint_that_was_cut_or_changed_is_refused_or_the_same(folder: Path, change: Any) -> None:
    work = folder / "work"
    parts = trained(3, 2)
    _checkpoint(work, *parts, 2, [1.5, 0.5], 77)
    path = work / CHECKPOINT
    path.write_bytes(change(path.read_bytes()))
    others = trained(4, 1)
    with within(SECONDS), bounded(MIB):
        try:
            found = _resume(work, *others)
        except UserError as error:
            one_line(error)
            assert str(path) in str(error)
            return
    assert found == (2, [1.5, 0.5], 77) and state_of(*others) == state_of(*parts)


# --- files of questions -----------------------------------------------------------------------------------------

ROWS = [{"question": f"Tom has {n} pens, “{n}”. How many?", "answer": n, "options": ["a", "b"]} for n in range(5)]


def _csv() -> bytes:
    lines = [f'"Tom has {n} pens, ""{n}"".\nHow many?",{n},"[""a"", ""b""]"' for n in range(5)]
    return "\n".join(["question,answer,options", *lines, ""]).encode()


def _parquet(**how: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), out, **how)
    return out.getvalue()


JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
FILES = {
    "q.jsonl": JSONL, "q.csv": _csv(), "q.parquet": _parquet(), "plain.parquet": _parquet(compression="none"),
    "q.jsonl.gz": gzip.compress(JSONL, mtime=0),
    "q.csv.zst": pa.Codec("zstd").compress(_csv(), asbytes=True),
}  # fmt: skip


@examples(60)
@given(st.sampled_from([*FILES]), st.one_of(damage(), cuts()))
def test_a_file_of_questions_is_read_or_refused(folder: Path, name: str, change: Any) -> None:
    path = folder / name
    path.write_bytes(change(FILES[name]))
    section = PromptsSection(source=str(path), options="options")
    with within(SECONDS), bounded(MIB):
        try:
            table, origin = read_with_origin(section, ["question", "answer"], "prompts")
        except UserError as error:
            assert str(error).startswith("prompts: ") and name in str(error)
            one_line(error)
            return
    assert len(table) == origin.rows > 0 and table.columns == ["question", "answer"]
    assert all(isinstance(text, str) and text.strip() for row in table.rows() for text in row)


# --- weights ----------------------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
PEER = PeerSection(name="p", model="m")
TOKENIZER: Any = SimpleNamespace(
    chat_template=None, bos_token="<s>", eos_token="</s>", added_tokens_decoder={}, get_vocab=lambda: {"<s>": 1}
)


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """A model directory of a few hundred numbers."""
    import transformers

    torch.manual_seed(0)
    made: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    made.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def own_cache(folder: Path) -> Iterator[None]:
    """Checksums are remembered in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "SUMS_FOLDER", folder / "sums")
        yield


@examples(15)
@given(st.one_of(damage(), cuts()))
def test_safetensors_are_refused_or_the_same_tensors(folder: Path, model: Path, own_cache: None, change: Any) -> None:
    from safetensors.torch import load_file

    path = model / weights.WHOLE
    whole = path.read_bytes()
    tensors = load_file(path)
    header = 8 + int.from_bytes(whole[:8], "little")
    damaged = change(whole, 0, header)
    try:
        path.write_bytes(damaged)
        weights_check._sound.clear()
        with within(SECONDS), bounded(MIB):
            check_weights(PEER, model, folder / "seals" / str(len(damaged)), lambda: TOKENIZER)
        found = load_file(path)
        assert {n: (t.dtype, t.tolist()) for n, t in found.items()} == {
            n: (t.dtype, t.tolist()) for n, t in tensors.items()
        }
    except UserError as error:
        one_line(error)
    finally:
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def gguf(folder: Path, model: Path) -> tuple[Path, bytes, int]:
    """(path, content, bytes of the header) of the model as a GGUF file, without its tokenizer."""
    from tests.unit.test_weights_checks import write_gguf

    path = folder / "gguf" / "m.gguf"
    path.parent.mkdir()
    core = {"vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, **{c: 3 + n for n, c in enumerate("abcdefgh")}}, "merges": []}
    (model / "tokenizer.json").write_text(json.dumps({"model": core}), encoding="utf-8")
    numbers = {"block_count": 1, "context_length": 64, "embedding_length": 8, "feed_forward_length": 12,
               "attention.head_count": 2, "attention.head_count_kv": 1, "rope.dimension_count": 4}  # fmt: skip
    write_gguf(model, path, more={f"llama.{key}": number for key, number in numbers.items()})
    return path, path.read_bytes(), QuickReader(path).data_offset


def gguf_tensors(path: Path) -> dict[str, tuple[Any, ...]]:
    """{name: (type, shape, bytes)} of a GGUF file."""
    return {
        each.name: (each.tensor_type, each.shape.tolist(), np.asarray(each.data).tobytes())
        for each in QuickReader(path).tensors
    }


@examples(20)
@given(st.one_of(damage(), cuts()))
def test_gguf_is_refused_or_the_same_tensors(gguf: tuple[Path, bytes, int], change: Any) -> None:
    path, whole, header = gguf
    path.write_bytes(whole)
    tensors = gguf_tensors(path)
    damaged = change(whole, 0, header)
    path.write_bytes(damaged)
    try:
        with within(SECONDS), bounded(MIB), read_quickly():
            check_pieces(PEER, [path])
            check_gguf(PEER, path, str(path))
    except UserError as error:
        one_line(error)
        return
    assert gguf_tensors(path) == tensors
