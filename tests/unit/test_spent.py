"""What the peers' processes worked on a stage is in its manifest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import shards
from data.config.load import parse_config
from data.run import Run
from data.spent import Spent, spent
from data.stage import Stage
from tests.unit.test_pool import Scripted, Worker, pool, slot, work


def test_a_manifest_has_what_was_spent_since_its_stage_began(tmp_path: Path) -> None:
    stage = Stage("generate", 1, tmp_path / "chains", {})
    spent.add("p", "cpu", 100.0)  # of what came before
    assert stage.begin()
    spent.add("p", "0", 1.5)
    spent.add("q", "1", 2.0)
    spent.add("p", "0", 1.0)
    stage.finish([], 1, {})
    manifest = shards.read_manifest(tmp_path / "chains")
    assert manifest is not None
    assert manifest["peer_seconds"] == {"p": 2.5, "q": 2.0} and manifest["devices"] == 2
    assert Spent().totals() == {}
    spent.clear()


class Slow(Scripted):
    """An executor whose workers take a moment."""

    def messages(self, workers: Any) -> Iterator[tuple[Worker, str, Any]]:
        """See `Executor.messages`."""
        time.sleep(0.01)
        yield from super().messages(workers)


def test_a_call_is_counted_for_its_peer() -> None:
    runtime = {"max_num_seqs": 4}
    raw = {"prompts": {"source": "x"}, "peers": [{"name": name, "model": name} for name in "pq"], "runtime": runtime}
    spent.clear()
    with pool(Run("r", parse_config(raw, "x")), Slow(), [slot("p"), slot("q")]) as workers:
        workers.submit("p", work)
        assert len(list(workers.results())) == 1
    assert list(spent.seconds) == ["p"] and spent.seconds["p"] > 0.005 and spent.totals()["devices"] == 1
    spent.clear()
