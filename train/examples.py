"""The examples of one peer in one round: a memory-mapped file, not lists of tokens.

The system may drop pages of a mapped file, so training's memory does not grow with the number of questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import pyarrow as pa

from data.schema import TOKENS
from data.shards import writing
from peers.logprob.model import Pair

EXAMPLES = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("prompt", TOKENS),
            ("target", TOKENS),
            ("weight", pa.float64()),
        )
    ]
)


@dataclass(frozen=True)
class TrainingExample:
    """Prompt (x alone) and target tokens, and the example's weight (not 0; negative only in signed training)."""

    pair: Pair
    weight: float


def write_examples(tables: Iterable[pa.Table], path: Path) -> None:
    """Write tables of EXAMPLES one after the other to one Arrow IPC file, atomically."""
    with (
        writing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, EXAMPLES) as writer,
    ):
        for table in tables:
            writer.write_table(table)


LOGPROBS = pa.schema([pa.field("logprobs", pa.list_(pa.float32()), nullable=False)])


def write_logprobs(parts: Iterable[list[list[float]]], path: Path) -> None:
    """Write per-token log-probabilities, example by example, as `write_examples` writes examples."""
    with (
        writing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, LOGPROBS) as writer,
    ):
        for part in parts:
            writer.write_table(pa.table([pa.array(part, LOGPROBS.field(0).type)], schema=LOGPROBS))


class Logprobs:
    """Per-token log-probabilities, read from the file on access."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            self.table = pa.ipc.open_file(source).read_all()

    def __getitem__(self, index: int) -> list[float]:
        found: list[float] = self.table["logprobs"][index].as_py()
        return found


class Examples(Sequence[TrainingExample]):
    """Examples, read from the file on access."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:  # the table keeps the mapping
            self.table = pa.ipc.open_file(source).read_all()

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> TrainingExample: ...

    @overload
    def __getitem__(self, index: slice) -> list[TrainingExample]: ...

    def __getitem__(self, index: int | slice) -> TrainingExample | list[TrainingExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no example {index}: there are {len(self)}")
        row = self.table.slice(index % len(self), 1).to_pylist()[0]
        return TrainingExample(Pair(row["prompt"], row["target"]), row["weight"])
