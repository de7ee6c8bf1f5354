"""The examples that a round trains on, where an ablation has chosen them: runs/<run>/round=<R>/keep.parquet.

An ordinary run has no such file. Where it exists, train uses the examples in it, each at weight 1, and no others. The
file holds only ids and names: it does not show how they were chosen.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from data import shards, sums
from data.errors import UserError
from data.hashing import digest
from data.run import RUNS, Run
from data.schema import KEEP

KEEP_FILE = "keep.parquet"
SCORES_KEY = b"scores"  # in the file's metadata: a digest of the scores whose rows it lists


def keep_path(run: str, round_: int) -> Path:
    """The path of a round's list."""
    return RUNS / run / f"round={round_}" / KEEP_FILE


def write_keep(run: Run, round_: int, keys: list[tuple[str, str, int]]) -> None:
    """Keep these (prompt id, peer, number) of the round's finished scores."""
    rows = [{"prompt_id": id_, "peer": peer, "number": number} for id_, peer, number in keys]
    table = pa.Table.from_pylist(rows, schema=KEEP.with_metadata({SCORES_KEY: _scores(run, round_)}))
    with sums.noted(keep_path(run.name, round_)):
        shards.write_table(table, keep_path(run.name, round_))


def read_keep(run: Run, round_: int) -> pa.Table | None:
    """The list of a round; None if it has none. Raises UserError if it is damaged, or was made for other scores."""
    path = keep_path(run.name, round_)
    if not path.is_file():
        return None
    table = shards.read_table(path, KEEP)
    if (table.schema.metadata or {}).get(SCORES_KEY, b"").decode() != _scores(run, round_):
        raise UserError(
            f"{path} lists examples of other scores than this round's: run the same `make ablate` again, which lists "
            "them again"
        )
    return table


def _scores(run: Run, round_: int) -> str:
    manifest = shards.read_manifest(run.stage_dir(round_, "scores"))
    return digest((manifest or {}).get("files"))
