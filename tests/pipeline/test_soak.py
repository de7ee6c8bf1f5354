"""Many rounds in one process tree need no more resources than few, and leave nothing (tests/soak.py has a long run)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.soak import Sample, left_behind, soak, table, trend

ROUNDS = 6


@pytest.mark.slow
def test_six_rounds_hold_no_more_than_two_and_leave_nothing_behind() -> None:
    with tempfile.TemporaryDirectory(prefix="pst-soak-") as short:  # a socket's path has 107 characters at most
        samples, left = soak(Path(short), ROUNDS)
    assert left == [] and [each.round for each in samples] == list(range(ROUNDS + 1))
    for what in ("processes", "threads", "handles"):
        counts = [getattr(each, what) for each in samples if each.round >= 2]
        assert max(counts) <= counts[0] + 2, (what, counts)
    first, last, _ = trend(samples, "pss")
    assert last < first + 40, samples  # MiB; in 50 rounds it is as flat (docs/reliability.md)


def test_what_is_left_behind_is_named(tmp_path: Path) -> None:
    temporary, run = tmp_path / "tmp", tmp_path / "runs" / "soak"
    for path in (temporary / "x", run / "round=1" / "chains" / "a.tmp", run / "round=1" / "chains" / "_STARTED.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert left_behind(tmp_path, temporary, set(), set()) == [
        "temporary file tmp/x", "work file runs/soak/round=1/chains/_STARTED.json",
        "work file runs/soak/round=1/chains/a.tmp",
    ]  # fmt: skip
    (run / ".lock").write_text("7")
    assert left_behind(tmp_path, temporary, set(), {os.getpid()})[-1] == "a lock that still says '7'"


def test_the_table_has_quarters_and_a_slope() -> None:
    samples = [Sample(n, n, 4, 10, 50, 100.0 + n, 200.0, 50.0) for n in range(10)]
    assert trend(samples, "pss") == pytest.approx((102.5, 108.5, 1.0))
    assert "| pss | 102.5 | 108.5 | +1.000 |" in table(samples)
