"""A GGUF file as a model directory: transformers reads it, with faster code in place of two parts of the library gguf
that take a minute. The numbers are the same, bit for bit."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
from gguf.constants import GGUFValueType
from numpy.typing import DTypeLike, NDArray

from peers.devices import cores
from peers.weights_check import check_loading

GROUP = 1 << 18  # numbers dequantised at a time: a few MB, which stay in a processor's cache


class QuickReader(gguf.GGUFReader):
    """GGUFReader that reads long lists, such as a vocabulary of 150,000 strings, without a call per number.

    Unlike the library's, the `parts` of such a field are only its values, and strings are views of bytes.
    """

    def _push_field(self, field: gguf.ReaderField, skip_sum: bool = False) -> int:
        if self.byte_order != "I":  # the library would try to read some 2^60 numbers
            raise ValueError("its numbers have the other byte order")
        return super()._push_field(field, skip_sum)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        data: NDArray[np.uint8] = np.asarray(self.data)
        memory = memoryview(data.data)  # its slices are cheaper than an array's
        number, count = struct.unpack_from("<IQ", memory, orig_offs)
        kind, at = GGUFValueType(number), orig_offs + 12
        values: list[Any] = []
        if kind == GGUFValueType.STRING:
            for _ in range(count):
                (length,) = struct.unpack_from("<Q", memory, at)
                values.append(memory[at + 8 : at + 8 + length])
                at += 8 + length
        elif kind in self.gguf_scalar_to_np:
            found = np.frombuffer(data, self.gguf_scalar_to_np[kind], count, at)
            values, at = list(found.reshape(-1, 1)), at + found.nbytes
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [GGUFValueType.ARRAY, kind] if count else [GGUFValueType.ARRAY]
        return at - orig_offs, values, list(range(count)), types


def _over_groups(
    func: Callable[[NDArray[Any]], NDArray[Any]], arr: NDArray[Any], otype: DTypeLike, oshape: tuple[int, ...]
) -> NDArray[Any]:
    """`func` over groups of rows, as in gguf, but with large groups and on all cores (numpy releases the GIL)."""
    rows = arr.reshape(-1, arr.shape[-1])
    out = np.empty((len(rows), oshape[-1]), otype)
    step = max(1, GROUP // oshape[-1])

    def fill(first: int) -> None:
        out[first : first + step] = func(rows[first : first + step])

    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(fill, range(0, len(rows), step)))
    return out.reshape(oshape)


@contextmanager
def read_quickly() -> Iterator[None]:
    """Within the block the library gguf reads a file only once, with `QuickReader`, and dequantises in large groups.

    transformers reads a file's header five times, which took 11 s each for a vocabulary of 150,000 tokens.
    """
    with (
        mock.patch.object(gguf, "GGUFReader", functools.cache(QuickReader)),
        mock.patch.object(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
        mock.patch.object(gguf.quants, "_apply_over_grouped_rows", _over_groups),
    ):
        yield


def dequantise(folder: Path, name: str, dtype: str) -> None:
    """Write the model of the GGUF file `folder / name` into its folder: weights of `dtype`, config, tokenizer.

    Raises UserError if transformers leaves out or makes up tensors; other errors of transformers pass through.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    found: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, dtype),
        output_loading_info=True,
        trust_remote_code=False,
    )
    model, info = found
    check_loading(name, info)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
