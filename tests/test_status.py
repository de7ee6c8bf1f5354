"""`make status`, and what it and a finished stage say of damaged files."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from rich.table import Table

from data import shards
from data.errors import UserError
from data.stage import FORMAT, Stage
from pipeline.status import status

ROW = pa.schema([("x", pa.int64())])


def finished(folder: Path) -> Path:
    """A finished stage of one shard, which is returned."""
    part = folder / "part-00000.parquet"
    shards.write_rows([{"x": 1}], part, ROW)
    shards.write_manifest(folder, {"rows": 1, "seconds": 2.5, "fingerprint": {}, "format": FORMAT}, [part])
    return part


def rows_of(table: Table) -> list[list[str]]:
    """The words of a table's rows."""
    file = StringIO()
    Console(file=file, width=200).print(table)
    return [line.replace("│", " ").split() for line in file.getvalue().splitlines()]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    peers = [{"name": name, "model": name} for name in "ab"]
    config = {"prompts": {"source": "q.jsonl"}, "peers": peers}
    shards.write_json(config, tmp_path / "runs" / "r" / "config.json")
    return Path("runs") / "r"


def test_a_damaged_stage_does_not_hide_the_others(root: Path) -> None:
    finished(root / "round=0" / "evals")
    finished(root / "round=1" / "chains").write_bytes(b"")
    finished(root / "round=1" / "scores")
    (root / "round=1" / "adapters").mkdir()
    (root / "round=1" / "adapters" / shards.STARTED).write_text("{}")
    table, errors = status("r")
    lines = rows_of(table)
    assert ["0", "evaluate", "finished", "1", "2.5"] in lines
    assert ["1", "generate", "damaged"] in lines and ["1", "score", "finished", "1", "2.5"] in lines
    assert ["1", "train", "started"] in lines and ["1", "evaluate", "-"] in lines
    assert len(errors) == 1 and errors[0].startswith("runs/r/round=1/chains/part-00000.parquet is damaged")


def test_a_round_in_which_nothing_was_made_is_not_listed(root: Path) -> None:
    finished(root / "round=0" / "evals")
    (root / "round=1").mkdir()
    (root / "round=2" / "logs").mkdir(parents=True)
    (root / "round=2" / "logs" / "generate.log").write_text("refused")
    assert not {"1", "2"} & {line[0] for line in rows_of(status("r")[0]) if line}


def test_a_finished_stage_whose_metrics_were_cut_off_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(root / "round=0" / "evals")
    metrics = root / "round=0" / "metrics.parquet"
    shards.write_rows([{"x": 1}], metrics, ROW)
    stage = Stage("evaluate", 0, root / "round=0" / "evals", {})
    assert not stage.begin(also=metrics) and "finished already" in capsys.readouterr().out
    metrics.write_bytes(metrics.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"metrics\.parquet is damaged .*delete runs/r/round=0/metrics\.parquet"):
        stage.begin(also=metrics)
