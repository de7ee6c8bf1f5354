"""The change of exact match and GV-Gap since round 0, with paired intervals: for the tables and the page."""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose

from data import shards
from data.config.sections import Config
from data.run import RUNS, load_frozen
from data.schema import METRICS
from evaluate.intervals import Estimate, estimate
from evaluate.items import ItemValues, item_values, matrices

MEAN = "mean"  # in place of a benchmark: the mean over all of them
Group = tuple[str, str]  # benchmark or MEAN, peer or "" for the mean over all


@dataclass(frozen=True)
class Change:
    """The change of a group since round 0: shares, -1 to 1."""

    group: Group
    round: int
    em: Estimate
    gap: Estimate | None  # None if a verifier decided nothing: a gap of 0 would look measured
    em_same: bool  # no question differs, so the interval would have no width
    gap_same: bool
    gap_before: Estimate | None  # the gap of round 0


def round_changes(run: str, rounds: list[int]) -> list[Change]:
    """Group by group, round by round: each benchmark and peer, each peer over several benchmarks, all together.

    Empty without the evals of round 0 and of a later round. Raises UserError if rounds were not evaluated on the same
    questions.
    """
    rounds = [n for n in rounds if shards.read_manifest(RUNS / run / f"round={n}" / "evals")]
    if rounds[:1] != [0] or len(rounds) < 2:
        return []
    config = load_frozen(run)
    values = {n: item_values(RUNS / run, n) for n in rounds}
    undecided = {n: _undecided(run, n) for n in rounds}
    found = []
    for group in _groups(config, values[0]):
        mine = {n: {key: items for key, items in values[n].items() if _of(group, key)} for n in rounds}
        before = None if _any(group, undecided[0]) else _measured(config, "gap", mine[0])
        for n in rounds[1:]:
            known = before is not None and not _any(group, undecided[n])
            gap = _measured(config, "gap", mine[n], mine[0]) if known else None
            em = _measured(config, "em", mine[n], mine[0])
            em_same, gap_same = (_same(metric, mine[0], mine[n]) for metric in ("em", "gap"))
            found.append(Change(group, n, em, gap, em_same, gap_same, before if known else None))
    return found


def _groups(config: Config, values: ItemValues) -> list[Group]:
    names = [benchmark.name for benchmark in config.benchmarks]
    groups = sorted(values, key=lambda group: names.index(group[0]))
    peers, benchmarks = (list(dict.fromkeys(group[i] for group in groups)) for i in (1, 0))
    more = [(MEAN, peer) for peer in peers if len(benchmarks) > 1 and len(peers) > 1]
    return [*groups, *more, *([(MEAN, "")] if len(groups) > 1 else [])]


def _of(group: Group, key: Group) -> bool:
    return key == group or (group[0] == MEAN and group[1] in ("", key[1]))


def _any(group: Group, keys: set[Group]) -> bool:
    return any(_of(group, key) for key in keys)


def _measured(config: Config, metric: str, *of: ItemValues) -> Estimate:
    """The mean of a metric over questions; given values (after, before), the mean of its change."""
    both = [matrices([each], metric, "mean", of) for each in of]
    apart = both[0] if len(of) == 1 else [a - b for a, b in zip(*both, strict=True)]
    return estimate(apart, config.evaluate.bootstrap, config.run.seed)


def _same(metric: str, before: ItemValues, after: ItemValues) -> bool:
    return all(
        isclose(found[metric], after[key][item][metric], abs_tol=1e-9)
        for key, items in before.items()
        for item, found in items.items()
        if metric in found and metric in after[key][item]
    )


def _undecided(run: str, round_: int) -> set[Group]:
    """The (benchmark, peer) whose verifier decided nothing."""
    rows = shards.read_rows(RUNS / run / f"round={round_}" / "metrics.parquet", METRICS)
    return {(row["benchmark"], row["peer"]) for row in rows if row["verifier_undecided"] in (1, None)}
