"""Merge fidelity is measured if configured, and changes nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

import train.stage
from data import shards
from data.run import open_run
from data.schema import SCORES
from tests.fake_engine import Inline
from tests.unit.test_loss import score_row


def test_merge_fidelity_on_request(project: Path) -> None:
    found = {}
    for name, asked in (("off", "false"), ("on", "true")):
        with open_run(name, project / "tiny.toml", [f"train.merge_fidelity={asked}", "train.lr=1e-2"]) as run:
            folder = run.stage_dir(1, "scores")
            rows = [score_row(f"q{i}", 1.0, [20 + i, 30, 40]) for i in range(8)]
            shards.write_rows(rows, folder / "part-00000.parquet", SCORES)
            shards.write_manifest(folder, {"to_train": len(rows)}, shards.shard_paths(folder))
            train.stage.main(run, 1, Inline(run))
            found[name] = shards.read_manifest(run.stage_dir(1, "adapters")) or {}
    off, on = found["off"], found["on"]
    assert "merge_fidelity" not in off and not [r for r in off["peers"].values() if "merge_fidelity" in r]
    measured = on["peers"]["plain"].pop("merge_fidelity")
    assert measured.keys() == {"loss_base", "loss_adapter", "loss_merged", "fidelity"}
    assert measured["loss_adapter"] < measured["loss_base"]
    effect = measured["loss_base"] - measured["loss_adapter"]
    assert measured["fidelity"] == pytest.approx((measured["loss_base"] - measured["loss_merged"]) / effect)
    assert 0.9 < measured["fidelity"] < 1.1
    assert on["merge_fidelity"] == {"plain": f"{measured['fidelity']:.1%}"}  # chatty had no examples
    assert on["peers"] == off["peers"] and on["files"].keys() == off["files"].keys()
    weights = "plain/adapter_model.safetensors"
    assert on["files"][weights] == off["files"][weights]
