"""Arms and seeds side by side: intervals, what is shared, labels against gold."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data.config.load import load_config
from data.errors import UserError
from data.guard import Collapse
from data.run import Run
from evaluate.benchmarks import load_benchmarks
from evaluate.clustered import Bootstrap
from evaluate.gap import auroc, bootstrap_interval
from evaluate.intervals import Estimate, estimate, half_width
from evaluate.labels import gold_by_id, judged, quality
from pipeline.ablation import DEFAULT_ARMS, Ablation, _shown
from pipeline.arms import ARMS, Arm, load_arm
from tests.conftest import ROOT, run_module, write_jsonl


def test_one_seed_is_the_bootstrap_over_items() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(3).random((1, 80)) < 0.3
    ours = estimate([values], 4000, seed=1)
    theirs = bootstrap((values[0].astype(float),), np.mean, n_resamples=4000, method="percentile", rng=2)
    assert ours.mean == values.mean()
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_one_seed_of_several_benchmarks_draws_each_of_them_by_itself() -> None:
    rng = np.random.default_rng(6)
    arrays = [(rng.random((1, n)) < share).astype(float) for n, share in ((40, 0.3), (150, 0.8), (60, 0.5))]
    drawn = [np.mean([rng.choice(values[0], values.size).mean() for values in arrays]) for _ in range(20000)]
    found = estimate(arrays, 20000, seed=1)
    assert found.mean == pytest.approx(np.mean([values.mean() for values in arrays]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.004)
    # two items each: all resamples of the one are 0, those of the other 0, 1/2, 1/2 and 1, and each counts half
    found = estimate([np.zeros((1, 2)), np.array([[0.0, 1.0]])], 400, seed=1)
    assert (found.mean, found.low, found.high) == (0.25, 0.0, 0.5)
    found = estimate([np.zeros((1, 2)), np.array([[1.0]])], 400, seed=1)
    assert (found.mean, found.low, found.high) == (0.5, None, None)


def test_the_interval_over_seeds_and_items_by_hand() -> None:
    # seed means 0.5 and 1: variance 1/8, over 2 seeds 1/16; item means 0.5 and 1 likewise 1/8; the rest is ±1/4 in all
    # four cells, one degree of freedom: 1/4; so items are max(0, 1/8 - 1/8) / 2 = 0 and half is t_1 / 4
    found = estimate([np.array([[0.0, 1.0], [1.0, 1.0]])], 100, seed=1)
    assert (found.mean, found.high) == pytest.approx((0.75, 0.75 + 12.7062047 / 4))
    # only seeds differ: Student's interval of their means; only items do: that of the items' means
    from scipy.stats import t

    for values, n in ((np.array([[0.0], [1.0], [3.0]]).repeat(7, axis=1), 3), (np.tile([0.0, 1.0, 3.0], (4, 1)), 3)):
        found = estimate([values], 100, seed=1)
        low, high = t.interval(0.95, n - 1, loc=4 / 3, scale=np.std([0, 1, 3], ddof=1) / np.sqrt(n))
        assert (found.low, found.high) == pytest.approx((low, high))
    same = estimate([np.full((3, 5), 0.25)], 100, seed=1)
    assert (same.mean, same.low, same.high) == (0.25, 0.25, 0.25)


def test_the_parts_of_the_variance_are_those_of_an_anova() -> None:
    """Two-way without replication, from sums of squares written out; two benchmarks share their seeds."""
    from scipy.stats import t

    rng = np.random.default_rng(5)
    shared = rng.normal(size=(4, 1))
    arrays = [shared + 3 * rng.normal(size=(1, n)) + 0.1 * rng.normal(size=(4, n)) for n in (6, 9)]
    squared = (
        t.ppf(0.975, 3) ** 2 * np.var([(a.mean() + b.mean()) / 2 for a, b in zip(*arrays, strict=True)], ddof=1) / 4
    )
    for y in arrays:
        n = y.shape[1]
        between = 4 * sum((y[:, i].mean() - y.mean()) ** 2 for i in range(n)) / (n - 1)
        total = ((y - y.mean()) ** 2).sum()
        seeds = n * sum((row.mean() - y.mean()) ** 2 for row in y)
        rest = (total - seeds - between * (n - 1)) / (3 * (n - 1))
        squared += t.ppf(0.975, n - 1) ** 2 * (between - rest) / (4 * n) / 4
    found = estimate(arrays, 100, seed=1)
    assert found.high == pytest.approx(found.mean + np.sqrt(squared))


def test_benchmarks_count_alike_whatever_their_size() -> None:
    assert estimate([np.zeros((2, 10)), np.ones((2, 1000))], 100, seed=1).mean == 0.5
    with pytest.raises(ValueError, match="different numbers of seeds"):
        estimate([np.zeros((2, 10)), np.zeros((3, 10))], 100, seed=1)


def test_seeds_that_happen_to_agree_do_not_make_an_interval_of_no_width() -> None:
    values = np.array([[1.0, 0.0] * 30, [0.0, 1.0] * 30])  # both means are 0.5, and so is every item's
    found = estimate([values], 100, seed=1)
    assert found.low is not None and found.high is not None
    # as of 120 independent coins: 2.001 · sqrt(0.25 · 60 / 59 / 120)
    assert found.high - found.mean == pytest.approx(0.0921, abs=2e-4)


def test_a_single_item_has_no_interval_and_decides_nothing() -> None:
    found = estimate([np.array([[1.0]])], 100, seed=1)
    assert (found.mean, found.low, found.contains_zero) == (1.0, None, True)


def test_intervals_cover() -> None:
    """Nominal 95 %, one seed: over items alone."""
    rng, hits, trials = np.random.default_rng(11), 0, 600
    for trial in range(trials):
        found = estimate([rng.random((1, 150)) < 0.6], 400, seed=trial)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.6 <= found.high
    assert 0.93 <= hits / trials <= 0.97


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize(
    ("seed_effect", "item_effect", "rest", "at_most"),
    [
        (0.5, 0.0, 0.001, 0.97),  # the extremes, where the interval is Student's
        (0.0, 0.5, 0.001, 0.97),
        (0.0, 0.0, 0.5, 0.995),  # `items` is 0 or a little above: the least half-width counts
        (0.05, 0.4, 0.3, 0.995),  # both count: wider than it has to be
    ],
)
def test_intervals_over_seeds_and_items_cover(
    seeds: int, seed_effect: float, item_effect: float, rest: float, at_most: float
) -> None:
    """At least the nominal 95 %, within what 1000 simulations can tell, and not much more."""
    rng, hits, trials = np.random.default_rng(12), 0, 1000
    for _ in range(trials):
        shared = seed_effect * rng.normal(size=(seeds, 1))
        arrays = [shared + item_effect * rng.normal(size=(1, n)) + rest * rng.normal(size=(seeds, n)) for n in (60, 90)]
        hits += abs(np.mean([values.mean() for values in arrays])) <= half_width(arrays)
    print(f"{seeds} seeds {seed_effect} {item_effect} {rest}: {hits / trials:.3f}")
    assert 0.93 <= hits / trials <= at_most


def test_intervals_of_right_and_wrong_cover() -> None:
    """Three seeds on items that are hard, middling or easy; the seeds are a little better or worse on all."""
    rng, hits, trials = np.random.default_rng(13), 0, 1000
    for trial in range(trials):
        items, better = rng.choice([0.1, 0.5, 0.9], (1, 150)), rng.choice([-0.05, 0.05], (3, 1))
        found = estimate([rng.random((3, 150)) < items + better], 100, seed=trial)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.5 <= found.high
    print(f"binary: {hits / trials:.3f}")
    assert 0.93 <= hits / trials <= 0.995


def test_all_arms_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert set(DEFAULT_ARMS.split()) <= {path.stem for path in ARMS.glob("*.toml")}
    for path in ARMS.glob("*.toml"):
        arm = load_arm(path.stem)
        assert arm.oracle == path.stem.startswith("oracle")
    assert 'score.weighting="uniform"' in load_arm("uniform").overrides
    own = tmp_path / "mine.toml"
    own.write_text("[train]\nlr = 1e-3\n[score]\nbeta = 2.0\n")
    assert load_arm(str(own)).overrides == ("train.lr=0.001", "score.beta=2.0")
    with pytest.raises(UserError, match=r"no arm 'uniforn': expected one of .*uniform"):
        load_arm("uniforn")
    for text, expected in (
        ("oracle = 1", "must be true or false, found 1"),
        ("[[peers]]\nname = 'x'", "list of tables"),
        ("[evaluate]\nkeep = 0.25", "mine.toml: 'evaluate.keep=0.25' changes the peers or how they are measured"),
        ("[benchmarks.0]\nlimit = 5", "benchmarks.0.limit=5"),
        ("[run]\nseed = 99", "run.seed=99"),
        ("[templates]\nverify = 'Right?'", "templates.verify"),
        ("[generate]\nmax_new_tokens = 9", "generate.max_new_tokens=9"),
        ("[generate]\ncontext_tokens = 999", "generate.context_tokens=999"),
        ("[generate]\nengine = 'vllm'", "generate.engine="),
    ):
        own.write_text(text)
        with pytest.raises(UserError, match=expected):
            load_arm(str(own))
    own.write_text('[templates]\nreview = "Solve 😀 \\"it\\"."')
    config = load_config(Path("configs/nano.toml"), list(load_arm(str(own)).overrides))
    assert config.templates.review == 'Solve 😀 "it".'
    with pytest.raises(UserError, match="--arms is empty"):
        Ablation("x", Path("configs/nano.toml"), [], [], seeds=1, round_=1)
    with pytest.raises(UserError, match="two arms are called 'mine'"):
        Ablation("x", Path("configs/nano.toml"), [], [load_arm(str(own))] * 2, seeds=1, round_=1)
    own.write_text("[score]\nwieghting = 'rank'")
    with pytest.raises(UserError, match=r"arm mine: .*unknown key 'score.wieghting'"):
        Ablation("x", Path("configs/nano.toml"), [], [load_arm(str(own))], seeds=1, round_=1)


def test_arms_are_compared_with_those_that_are_named_or_with_the_default_ones() -> None:
    arms = [load_arm(name) for name in ("uniform", "aggregator")]

    def against(text: str | None) -> list[str]:
        found = Ablation("x", Path("configs/nano.toml"), [], arms, seeds=1, round_=1, against=text).compared
        return [arm.name for arm in found]

    assert against(None) == ["uniform"]  # of the default, what there is
    assert against("aggregator uniform aggregator") == ["aggregator", "uniform"]
    assert against("") == []
    with pytest.raises(UserError, match="'pst' is not an arm of this command; expected some of: uniform aggregator"):
        against("uniform pst")


def test_an_arm_that_the_guard_stops_does_not_stop_the_others(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.symlink(ROOT / "configs", project / "configs")
    stopped, begun = {"uniform"}, []

    def go_on(_: Ablation, __: Any, arm: Arm, seed: int) -> None:
        begun.append((arm.name, seed))
        if arm.name in stopped:
            raise Collapse("round 1 looks like collapse")

    monkeypatch.setattr(Ablation, "go_on", go_on)

    def ablation() -> Ablation:
        arms = [load_arm(name) for name in ("uniform", "pst", "rank")]
        return Ablation("x", Path("tiny.toml"), [], arms, seeds=2, round_=2)

    first = ablation()
    first.run()
    assert len(begun) == 5  # not uniform's second seed
    assert [arm.name for arm in first.arms] == ["pst", "rank"] and [arm.name for arm in first.compared] == ["pst"]
    stopped |= {"pst", "rank"}
    with pytest.raises(UserError, match="all arms ended early"):
        ablation().run()


def test_a_difference_that_is_not_sure_has_a_question_mark() -> None:
    def shown(mean: float, low: float | None, high: float | None, minus: str | None = "pst", metric: str = "em") -> str:
        return _shown({"mean": mean, "low": low, "high": high, "minus": minus, "metric": metric})

    assert shown(0.01, -0.02, 0.04) == "? +1.0 (-2.0 to +4.0)"
    assert shown(0.03, 0.02, 0.04) == "+3.0 (+2.0 to +4.0)"
    assert shown(1.0, None, None) == "? +100.0"  # a single question tells nothing of others
    assert shown(0.0, 0.0, 0.0) == "? +0.0 (no spread)" and shown(1.0, 1.0, 1.0) == "+100.0 (no spread)"
    assert shown(0.99, 0.97, 1.01, None) == "99.0 (97.0 to 100.0)"
    assert shown(0.05, -0.01, 0.11, None, "gap") == "5.0 (-1.0 to 11.0)"


def test_only_a_whole_stage_under_the_same_config_is_taken_from_another_run(project: Path) -> None:
    import pyarrow as pa

    from data import shards
    from data.schema import EVALS, METRICS
    from pipeline.reuse import offers

    config = load_config(Path("tiny.toml"), [])
    folder = project / "runs" / "x.pst.17" / "round=0" / "evals"
    part, metrics = folder / "part-00000.parquet", folder.with_name("metrics.parquet")

    def offer(schema: pa.Schema = EVALS, of_metrics: pa.Schema = METRICS) -> None:
        shards.write_json(config.model_dump(mode="json"), folder.parents[1] / "config.json")
        for path, columns in ((part, schema), (metrics, of_metrics)):
            shards.write_table(columns.empty_table(), path)
        shards.write_manifest(folder, {"fingerprint": {"a": 1}}, [part])

    def offered(fingerprint: int = 1, overrides: tuple[str, ...] = ()) -> bool:
        asked = load_config(Path("tiny.toml"), list(overrides))
        return offers("x.pst.17", "evaluate", 0, {"a": fingerprint}, asked)

    assert not offered()
    offer()
    assert offered() and not offered(fingerprint=2)
    assert not offered(overrides=("benchmarks.0.answers=math",))  # other rules of grading
    offer(schema=pa.schema([EVALS.field(0)]))  # of another version
    assert not offered()
    offer(of_metrics=pa.schema([METRICS.field(0)]))
    assert not offered()
    offer()
    part.unlink()
    assert not offered()


def test_runs_of_earlier_commands_are_shared(project: Path) -> None:
    for name in ("x.own.17", "x.rank.18", "x.rank.117", "y.rank.17"):
        (project / "runs" / name).mkdir(parents=True)
        (project / "runs" / name / "config.json").touch()
    ablation = Ablation("x", Path("tiny.toml"), [], [Arm("pst", ())], seeds=1, round_=1)
    assert ablation.names(17) == ["x.pst.17", "x.own.17"]


def test_names_and_seeds_are_checked_before_any_work(project: Path) -> None:
    arms = [Arm("a", ()), Arm("b" * 96, ("train.lr=0.5",))]
    with pytest.raises(UserError, match="at most 100 letters"):
        Ablation("x", Path("tiny.toml"), [], arms, seeds=1, round_=1).run()
    with pytest.raises(UserError, match=r"arm a: .*run\.seed"):
        Ablation("x", Path("tiny.toml"), [f"run.seed={2**31 - 2}"], arms[:1], seeds=3, round_=1)
    assert not Path("runs").exists()


@pytest.mark.parametrize("config", ["nano", "qwen", "paper"])
def test_every_arm_is_what_it_says_whatever_the_config(config: str) -> None:
    """Label, text and weighting belong to the arm: no config may turn one arm into another."""
    arms = [load_arm(path.stem) for path in sorted((ROOT / "configs/arms").glob("*.toml"))]
    path = ROOT / "configs" / f"{config}.toml"
    resolved = {arm.name: load_config(path, list(arm.overrides)) for arm in arms}
    known: dict[str, str] = {}
    for arm in arms:
        if arm.name not in ("again", "config"):  # the method once more, and whatever the config has
            assert known.setdefault(f"{arm.oracle}{resolved[arm.name].model_dump_json()}", arm.name) == arm.name
    choices = {name: (each.score.label, each.score.text, each.score.weighting) for name, each in resolved.items()}
    assert choices["pst"] == ("aggregate", "aggregate", "sigmoid")
    assert choices["vote-solution"] == ("sample-vote", "solution", "sigmoid")
    assert choices["aggregate-solution"] == ("aggregate", "solution", "uniform")


def test_two_arms_alike_are_refused(project: Path) -> None:
    arms = [Arm("a", ("train.lr=0.5",)), Arm("b", ("train.lr=0.5",))]
    with pytest.raises(UserError, match="'a' and 'b' are the same"):
        Ablation("x", Path("tiny.toml"), [], arms, seeds=1, round_=1)
    Ablation("x", Path("tiny.toml"), [], [arms[0], Arm("again", ("train.lr=0.5",))], seeds=1, round_=1)


def test_every_seed_is_evaluated_on_the_same_questions(project: Path) -> None:
    limited = "benchmarks.0.limit=5"
    items = [load_benchmarks(load_config(Path("tiny.toml"), [limited, f"run.seed={seed}"])) for seed in (1, 2)]
    assert items[0] == items[1] and len(items[0]["sums"]) == 5


def rows_of(right: str, pmi: list[float | None], weight: list[float | None], peer: str = "p") -> list[dict[str, Any]]:
    """Scores, one question each."""
    return [
        {
            "prompt_id": str(i),
            "peer": peer,
            "number": 1,
            "label": "1",
            "right": r == "1",
            "own_right": True,
            "pmi_per_token": p,
            "weight": w,
            "agrees": r == "1",
        }
        for i, (r, p, w) in enumerate(zip(right, pmi, weight, strict=True))
    ]


CHAINS = [
    {
        "prompt_id": id_,
        "role": "chain",
        "position": position,
        "is_aggregate": position == 2,
        "right": right,
        "vote_right": vote,
    }
    for id_, position, right, vote in (
        ("a", 1, True, 1),
        ("a", 2, False, 1),
        ("b", 1, True, 0.5),
        ("b", 2, True, 0.5),
    )
]
DRAWS = Bootstrap(200, seed=1)


def test_quality_by_hand() -> None:
    scores = rows_of("1100", [0.3, 0.1, 0.2, 0.0], [1.5, 0.5, 1.0, 1.0]) + rows_of("1", [None], [None])
    scores += rows_of("10", [0.0, 1.0], [1.0, 0.0], "q")
    found = {name: value and value.mean for name, value in quality(CHAINS, scores, DRAWS).items()}
    assert found["right at position 1"] == 1.0 and found["right at position 2"] == 0.5
    assert found["right, the aggregate"] == 0.5 and found["right, a vote of the chain"] == 0.75
    assert found["examples whose label is wrong"] == 0.4 and found["training weight on them"] == 0.4
    assert found["AUROC of PMI, p"] == 0.75  # 3 of 4 pairs in order
    assert found["AUROC of the weight, p"] == 0.5
    assert found["AUROC of PMI, q"] == 0 and found["AUROC of the weight, q"] == 1
    assert found["AUROC of PMI: is the label right"] == pytest.approx((2 + 1 + 0.5) / 9)
    assert found["AUROC of the weight: is the label right"] == pytest.approx((3 + 1 + 2) / 9)
    assert found["mean weight, p: own right, label right"] == 1.0  # of 1.5 and 0.5
    assert found["mean weight, q: own right, label wrong"] is None  # weight 0 is not trained
    assert found["correlation of PMI with agreement"] == pytest.approx(-0.3866946)
    assert found["AUROC of −PMI: own wrong and label right, p"] is None  # the own responses are all right


def test_low_pmi_is_measured_against_what_a_peer_has_to_learn() -> None:
    scores = rows_of("1100", [0.3, 0.1, 0.2, 0.0], [1.0] * 4)
    for row, own in zip(scores, (False, False, True, False), strict=True):
        row["own_right"] = row["agrees"] = own
    found = {name: value and value.mean for name, value in quality(CHAINS, scores, DRAWS).items()}
    assert found["AUROC of −PMI: own wrong and label right, p"] == 0.25  # 1 of 4 pairs in order
    assert found["AUROC of another answer: own wrong and label right, p"] == 0.75
    assert found["AUROC of agreement, p"] == 0.25  # of the wrong labels one, of the right ones none agrees


def test_what_means_nothing_is_left_out() -> None:
    scores = rows_of("10", [0.3, 0.1], [1.0, 0.0])
    every = set(quality(CHAINS, scores, DRAWS))
    positions = {"right at position 1", "right at position 2", "right, a vote of the chain"}
    weights = {"AUROC of the weight: is the label right", "AUROC of the weight, p", "training weight on them"}
    weights |= {"examples whose label is wrong"} | {name for name in every if name.startswith("mean weight")}
    without_chain = [{**row, "role": "solo", "position": None} for row in CHAINS]
    assert every - set(quality(without_chain, scores, DRAWS)) == positions
    assert every - set(quality(CHAINS, scores, DRAWS, oracle=True)) == weights
    none = quality(CHAINS, rows_of("1", [None], [1.0]), DRAWS)  # no PMI at all
    assert not [name for name in none if "AUROC" in name or "correlation" in name]


def test_the_rows_of_a_question_are_drawn_together() -> None:
    rng, bootstrap = np.random.default_rng(4), Bootstrap(2000, seed=1)
    right, scores = rng.random(60) < 0.7, rng.integers(0, 9, 60) / 4
    names = [str(i) for i in range(60)]
    once = bootstrap.auroc(names, right.tolist(), scores.tolist())
    thrice = bootstrap.auroc(names * 3, right.tolist() * 3, scores.tolist() * 3)
    assert once is not None and once == thrice  # three copies tell no more than one
    assert once.mean == pytest.approx(auroc(right.tolist(), scores.tolist()))
    draws = [rng.integers(60, size=60) for _ in range(1000)]
    drawn = np.array([auroc(right[index].tolist(), scores[index].tolist()) for index in draws], dtype=float)
    assert (once.low, once.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.03)
    share = bootstrap.share(names * 3, right.tolist() * 3)
    assert share is not None
    assert (share.low, share.high) == pytest.approx(bootstrap_interval([right.tolist()], 2000, 1), abs=0.02)
    assert bootstrap.auroc(["a", "b"], [True, True], [1.0, 2.0]) is None
    assert bootstrap.share(["a"], [1.0]) == Estimate(1.0, None, None)
    assert bootstrap.share([], []) is None


def test_labels_are_told_in_order(project: Path) -> None:
    """The error names what must exist first."""
    config = load_config(Path("tiny.toml"), [])
    with pytest.raises(UserError, match=r"chains is not finished: run `make generate RUN=t ROUND=1`"):
        judged(Run("t", config), 1)
    with pytest.raises(UserError, match=r'SET="evaluate\.gold_column=NAME".*pipeline\.labels --run RUN --column NAME'):
        gold_by_id(config)


@pytest.mark.slow
def test_chains_and_round_0_are_made_once_for_all_arms(project: Path) -> None:
    """Two arms and the oracle: the chains and round 0 are made once; the table compares with the first two."""
    os.symlink(ROOT / "configs", project / "configs")
    write_jsonl(project / "train.jsonl", [{**row, "answer": "1"} for row in _questions(16)])
    arguments: tuple[str, ...] = ("--config", "tiny.toml", "--arms", "pst uniform oracle", "--run", "x")
    arguments += ("--against", "pst oracle")
    refused = run_module("pipeline.ablation", *arguments, cwd=project)
    assert refused.returncode == 2 and "evaluate.gold_column" in refused.stderr
    assert not (project / "runs").exists()
    arguments += ("--set", "evaluate.gold_column=answer", "--set", "evaluate.gold_answers=numbers")
    done = run_module("pipeline.ablation", *arguments, cwd=project)
    assert done.returncode == 0, done.stderr
    for arm in ("uniform", "oracle"):
        assert f"run x.{arm}.17" in done.stdout
    assert done.stdout.count("generate round 1: the same as in run x.pst.17, linked") == 2
    assert done.stdout.count("evaluate round 0: the same as in run x.pst.17, linked") == 2
    tables = done.stdout[done.stdout.index("ablation x, round 1") :]  # not on a terminal, so 140 columns wide
    assert (
        tables.count("  oracle (reads gold)") == 2 and tables.count("− oracle (reads gold)") == 2 and "…" not in tables
    )
    runs = project / "runs"
    scores = {arm: pl.read_parquet(runs / f"x.{arm}.17/round=1/scores/*.parquet") for arm in ("uniform", "oracle")}
    assert set(scores["uniform"]["weight"].drop_nulls()) == {1.0}
    assert not set(scores["oracle"]["weight"].drop_nulls()) <= {0.0, 1.0}  # what is finished stays as it is
    kept = pl.read_parquet(runs / "x.oracle.17/round=1/keep.parquet")
    assert len(kept) < len(scores["oracle"].drop_nulls("weight"))
    trained = [
        json.loads(path.read_text("utf-8")) for path in runs.glob("x.oracle.17/round=1/adapters/*/training.json")
    ]
    assert sum(report["examples"] for report in trained) == len(kept)
    assert not [path for path in runs.glob("x.*/round=*/keep.parquet") if "oracle" not in path.parts[-3]]
    rows = pl.read_parquet(runs / "x.ablation.round=1.parquet")
    assert rows["arm"].unique(maintain_order=True).to_list() == ["round 0", "pst", "uniform", "oracle"]
    gold = (pl.col("arm") == "oracle") | (pl.col("minus").fill_null("") == "oracle")
    assert rows.filter(pl.col("reads_gold") != gold).is_empty() and rows["reads_gold"].any()
    assert rows["minus"].unique(maintain_order=True).to_list() == [None, "pst", "oracle"]
    assert rows["seeds"].to_list() == [[17]] * len(rows)
    times = {path: path.stat().st_mtime_ns for path in runs.glob("x.*.17/**/*.parquet")}
    again = run_module("pipeline.ablation", *arguments, cwd=project)
    assert again.returncode == 0, again.stderr
    assert times == {path: path.stat().st_mtime_ns for path in runs.glob("x.*.17/**/*.parquet")}
    assert again.stdout.splitlines()[-3:] == done.stdout.splitlines()[-3:]
    changed = run_module("pipeline.ablation", *arguments, "--set", "train.lr=0.5", cwd=project)
    assert changed.returncode == 2 and "train.lr: 0.001 -> 0.5" in changed.stderr
    labels = run_module("pipeline.labels", "--run", "x.oracle.17", cwd=project)
    assert labels.returncode == 0, labels.stderr
    for arm in ("uniform", "oracle"):
        report = run_module("evaluate.report", "--run", f"x.{arm}.17", cwd=project).stdout
        assert ("oracle: gold answers chose the examples" in report) == (arm == "oracle")
    assert "oracle: gold answers chose the examples" in labels.stdout
    assert "right, the aggregate" in labels.stdout and "training weight on them" not in labels.stdout
    (runs / "x.oracle.17/round=1/keep.parquet").unlink()
    refused = run_module("pipeline.ablation", *arguments, cwd=project)
    assert refused.returncode == 2 and "gold answers did not choose this oracle's examples" in refused.stderr


def _questions(count: int) -> list[dict[str, Any]]:
    from tests.conftest import questions

    rows = questions(0, count)
    random.Random(1).shuffle(rows)
    return rows
