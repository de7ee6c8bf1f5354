"""Stages count the responses whose tokens cannot be told from those of the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import generate.stage
import score.stage
from data import shards
from data.run import open_run
from data.schema import SCORES
from peers.prompts import PeerPrompts
from tests.conftest import read_stage
from tests.fake_engine import Inline
from tests.pipeline.test_streaming import with_fakes


@pytest.mark.parametrize("scorer", ["own", "aggregator"])  # the aggregator can measure what the peer cannot train on
def test_rows_without_a_clean_cut_are_dropped_and_counted(
    scorer: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fakes(monkeypatch)
    encode = PeerPrompts.encode_responses

    def fails_at_times(self: PeerPrompts, asked: Any) -> list[list[int] | None]:
        return [None if "pens and buys 3" in q else ids for (q, _), ids in zip(asked, encode(self, asked), strict=True)]

    monkeypatch.setattr(PeerPrompts, "encode_responses", fails_at_times)
    with open_run("t", Path("tiny.toml"), ["generate.max_new_tokens=64", f"score.scorer={scorer}"]) as run:
        generate.stage.main(run, 1, Inline(run))
        score.stage.main(run, 1, Inline(run))
        rows = read_stage(run.stage_dir(1, "scores"), SCORES)
        manifest = shards.read_manifest(run.stage_dir(1, "scores"))
    assert manifest is not None
    dropped = [row for row in rows if row["drop_reason"] == "target_not_separable"]
    # chatty and plain begin responses differently, so a peer encodes the other's aggregate again
    assert dropped and all("pens and buys 3" in row["question"] for row in dropped)
    assert all(row["pmi"] is row["weight"] is None and row["target_token_ids"] == [] for row in dropped)
    assert manifest["dropped"]["target_not_separable"] == len(dropped)
    kept = [row for row in rows if row["drop_reason"] is None and row["peer"] != row["target_peer"]]
    assert manifest["re_encoded"] == len(kept) > 0
