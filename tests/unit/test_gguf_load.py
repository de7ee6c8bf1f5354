"""GGUF files are read and dequantised quickly, with the same numbers as the library gguf's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from peers import gguf_load
from peers.gguf_load import QuickReader, read_quickly

HALVES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q4_1": (0, 2)}  # where a block has its 16-bit floats


def packed(kind: Type, rows: int, blocks: int, seed: int) -> NDArray[np.uint8]:
    """Rows of blocks of a quantised type; all bits are random but those of the scales, which are finite."""
    draw = np.random.default_rng(seed)
    _, size = gguf.GGML_QUANT_SIZES[kind]
    raw = draw.integers(0, 256, (rows, blocks, size), np.uint8)
    for at in HALVES.get(kind.name, (0,)):
        raw[..., at : at + 2] = draw.normal(0, 0.1, (rows, blocks, 1)).astype(np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_numbers_are_those_of_the_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Type[name]
    monkeypatch.setattr(gguf_load, "GROUP", 4096)
    for rows, blocks in ((1, 1), (37, 3), (700, 2)):
        raw = packed(kind, rows, blocks, rows)
        before = gguf.dequantize(raw, kind)
        with read_quickly():
            after = gguf.dequantize(raw, kind)
        assert after.shape == before.shape and after.dtype == before.dtype == np.float32
        assert after.tobytes() == before.tobytes() and np.isfinite(after).all()
    stacked = packed(kind, 12, 2, 5).reshape(3, 4, -1)  # the experts of a mixture
    with read_quickly():
        after = gguf.dequantize(stacked, kind)
    assert after.shape[:2] == (3, 4) and after.tobytes() == gguf.dequantize(stacked, kind).tobytes()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_numbers_that_are_not_quantised_stay(name: str) -> None:
    draw = np.random.default_rng(1).normal(0, 1, (33, 64)).astype(np.float32)
    raw = gguf.quants.quantize(draw, Type[name])
    before = gguf.dequantize(raw, Type[name])
    with read_quickly():
        assert gguf.dequantize(raw, Type[name]).tobytes() == before.tobytes()


def test_a_header_is_read_as_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["<s>", "", "é – 1", "x" * 300])
    writer.add_token_types([3, 1, 1, 1])
    lists: dict[str, list[Any]] = {"floats": [0.5, -1e30], "bools": [True, False, True], "far": [-(2**31)]}
    for key, values in lists.items():
        writer.add_array(f"llama.{key}", values)
    writer.add_uint32("llama.block_count", 2)
    writer.add_string("general.name", "tiny")
    writer.add_tensor("a.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs, ours = gguf.GGUFReader(path), QuickReader(path)
    assert list(ours.fields) == list(theirs.fields) and "llama.bools" in ours.fields
    for name, field in theirs.fields.items():
        found = ours.fields[name]
        assert (found.types, found.offset, found.contents()) == (field.types, field.offset, field.contents()), name
        assert [bytes(found.parts[i]) for i in found.data] == [bytes(field.parts[i]) for i in field.data], name
    assert ours.fields["tokenizer.ggml.tokens"].contents() == ["<s>", "", "é – 1", "x" * 300]
    assert [(t.name, t.data.tolist()) for t in ours.tensors] == [(t.name, t.data.tolist()) for t in theirs.tensors]
    for cut in range(8, path.stat().st_size - 24, 37):  # a file that is cut off is no file with less in it
        (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:cut])
        with pytest.raises(Exception, match=r"."):
            QuickReader(tmp_path / "cut.gguf")


def test_the_library_is_as_before_afterwards(tmp_path: Path) -> None:
    before = gguf.GGUFReader, gguf.quants._apply_over_grouped_rows, gguf.get_tensor_name_map
    with pytest.raises(ZeroDivisionError), read_quickly():
        assert before[0] != gguf.GGUFReader
        raise ZeroDivisionError
    assert before == (gguf.GGUFReader, gguf.quants._apply_over_grouped_rows, gguf.get_tensor_name_map)
