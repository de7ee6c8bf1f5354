"""The gate: its rule, its questions, and that a refused adapter is not used. Without models."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from scipy.stats import multinomial

from data import gate, shards
from data.config.load import load_config
from data.config.sections import GateSection
from data.errors import UserError
from data.guard import Ended
from data.hours import Hours, hours_of
from data.progress import stages
from data.run import Run, open_run
from data.schema import GATE, PROMPTS
from data.selection import write_prompts
from data.stage import FORMAT
from evaluate.gate import gate_notes, gate_table, refused_notice
from peers.engines.protocol import Completion
from peers.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from peers.policy import adapter_identity, resolve, resolve_all
from peers.source import model_directory
from pipeline.status import status_table
from tests.conftest import read_stage
from tests.fake_engine import Inline
from train.gate import stage as gate_stage
from train.gate.rule import compare_agreement, difference_interval, non_inferiority, power, refusal

PEERS = ("chatty", "plain")
GATED = ("prompts.limit=16", "gate.questions=8", "gate.samples=2")


def yes_no(both: int, lost: int, gained: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Agreement before and after, of so many questions each."""
    pairs = [(True, True)] * both + [(True, False)] * lost + [(False, True)] * gained + [(False, False)] * neither
    return [before for before, _ in pairs], [after for _, after in pairs]


# --- the rule ---------------------------------------------------------------------------------------------------


def test_the_interval_is_bonett_and_prices_by_hand() -> None:
    """By hand: of 50 questions 3 gained and 12 lost: p = 4/52, q = 13/52, half = 1.96 √((17/52 − (9/52)²) / 52)."""
    low, high = difference_interval(3, 12, 50, 1.959964)
    assert (low, high) == pytest.approx((-0.173077 - 0.148116, -0.173077 + 0.148116), abs=2e-6)
    assert difference_interval(12, 3, 50, 1.959964) == pytest.approx((-high, -low))
    none = difference_interval(0, 0, 100, 1.959964)
    assert none[0] == pytest.approx(-none[1]) and 0.02 < none[1] < 0.04  # where nothing differs it still has a width
    assert difference_interval(0, 1, 1, 5.0)[0] == -1.0


def test_the_interval_covers_what_it_says() -> None:
    """Exact, over all tables of 30 questions: the two-sided 95 % interval of a difference of −10 points."""
    n, p = 30, (0.10, 0.20)  # gained, lost
    covered = sum(
        float(multinomial.pmf([gained, lost, n - gained - lost], n, [*p, 1 - sum(p)]))
        for gained, lost in product(range(n + 1), repeat=2)
        if gained + lost <= n and difference_interval(gained, lost, n, 1.959964)[0] <= p[0] - p[1]
        and p[0] - p[1] <= difference_interval(gained, lost, n, 1.959964)[1]
    )  # fmt: skip
    assert 0.94 < covered < 0.98


def test_few_questions_stop_harm_and_many_show_non_inferiority() -> None:
    few, many = GateSection(questions=100), GateSection(questions=800)
    assert not non_inferiority(few) and non_inferiority(many)
    slight = yes_no(70, 8, 5, 17)  # −3 of 100
    assert compare_agreement(*slight, 0, few).passed
    assert not compare_agreement(slight[0] * 8, slight[1] * 8, 0, many).passed  # a fall of 3 points is not excluded
    before, after = yes_no(70, 6, 6, 18)
    assert compare_agreement(before * 8, after * 8, 0, many).passed
    harm = compare_agreement(*yes_no(60, 20, 5, 15), 2, few)
    assert not harm.passed and harm.high < 0
    assert (harm.against, harm.n, harm.before, harm.after) == (2, 100, 0.8, 0.65)
    assert (harm.gained, harm.lost, harm.difference) == (5, 20, -0.15)
    with pytest.raises(ValueError, match="no question"):
        compare_agreement([], [], 0, few)


def test_power_is_what_the_rule_does() -> None:
    """The normal approximation beside the exact probabilities of `compare`; and both ends of it."""
    for section, n in ((GateSection(questions=100), 100), (GateSection(questions=100, harm_below=50), 100)):
        for fall, discordant in ((0.0, 0.15), (0.06, 0.15)):
            p = ((discordant - fall) / 2, (discordant + fall) / 2)
            exact = sum(
                float(multinomial.pmf([gained, lost, n - gained - lost], n, [*p, 1 - sum(p)]))
                for gained, lost in product(range(45), repeat=2)
                if not compare_agreement(*yes_no(0, lost, gained, n - gained - lost), 0, section).passed
            )
            assert refusal(fall, n, discordant, section) == pytest.approx(exact, abs=0.06)
    many = power(1000, 0.15, GateSection(questions=1000))
    assert list(many) == ["fall of 3 points refused", "fall of 6 points refused", "unchanged accepted"]
    assert many["fall of 3 points refused"] == pytest.approx(0.95, abs=0.001)  # the level, at the margin itself
    assert power(100, 0.0, GateSection(questions=100))["unchanged accepted"] == 1.0


# --- its questions ----------------------------------------------------------------------------------------------


def test_the_gates_questions_follow_those_to_train_on(project: Path) -> None:
    def drawn(*overrides: str) -> tuple[list[str], list[str]]:
        write_prompts(load_config(Path("tiny.toml"), list(overrides)), Path("p"), Path("g"))
        train, gate = ([row["id"] for row in read_stage(Path(name), PROMPTS)] for name in "pg")
        return train, gate

    everything, none = drawn()
    assert len(everything) == 24 and none == [] and not Path("g").exists()
    trained, kept = drawn("prompts.limit=15", "gate.questions=9", "run.shard_questions=4")
    assert trained == everything[:15] and kept == everything[15:]
    assert len(shards.shard_paths(Path("g"))) == 3
    for limit, says in (("16", "trained on (prompts.limit), which leaves 8: set prompts.limit to at most 15"),
                        ("null", "24 are trained on (prompts.limit), which leaves 0")):  # fmt: skip
        with pytest.raises(UserError) as error:
            drawn(f"prompts.limit={limit}", "gate.questions=9")
        assert says in str(error.value)


def test_patience_may_change_within_a_run_and_no_other_key(project: Path) -> None:
    with open_run("t", Path("tiny.toml"), [*GATED]) as run:
        run.freeze(lambda: None)
    with open_run("t", None, ["gate.patience=2"]) as run:
        assert run.config.gate.patience == 2
    with pytest.raises(UserError, match=r"gate\.margin: 0\.03 -> 0\.1"), open_run("t", None, ["gate.margin=0.1"]):
        pass


# --- rounds with made-up answers ----------------------------------------------------------------------------------


@pytest.fixture
def gated(project: Path) -> Run:
    """A run with 16 questions to train on and 8 for the gate, no round of it made."""
    with open_run("t", Path("tiny.toml"), [*GATED]) as run:
        run.freeze(lambda: None)
    return run


def adapters(run: Run, round_: int) -> None:
    """The output of train: a file of weights per peer, different in each round."""
    folder, files = run.stage_dir(round_, "adapters"), []
    for peer in run.config.peers:
        made = folder / peer.name
        made.mkdir(parents=True)
        save_file({"a": torch.tensor([float(round_)])}, made / ADAPTER_WEIGHTS)
        plain = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "init_lora_weights": True}
        shards.write_json(plain, made / ADAPTER_CONFIG)
        shards.write_json(adapter_identity(peer, model_directory(peer, run.config)), made / "pst.json")
        files.append(made / ADAPTER_WEIGHTS)
    shards.write_manifest(folder, {"format": FORMAT, "rows": 0, "seconds": 0.0}, files)


def answering(monkeypatch: pytest.MonkeyPatch, right: Callable[[str, int, int], bool]) -> list[tuple[str, int, int]]:
    """Have all samples vote 1, and a greedy answer be 1 where `right(peer, round of its policy, number of the
    question)`, else 2; returns the list of batches: (peer, round of its policy, prompts)."""
    batches = []

    def complete(engine: Any, prompts: list[list[int]], *_: Any) -> list[Completion]:
        policy = engine.args[0]
        batches.append((policy.name, policy.round, len(prompts)))
        voting = len(prompts) == 16  # two samples of eight questions
        said = ["1" if voting or right(policy.name, policy.round, n) else "2" for n in range(len(prompts))]
        return [Completion([1, 2], f"The answer is {answer}.", 0.0, "stop") for answer in said]

    monkeypatch.setattr(gate_stage, "complete", complete)
    return batches


def shown(*what: Any) -> str:
    page = Console(file=StringIO(), width=200, record=True)
    for each in what:
        page.print(each)
    return page.export_text()


def test_a_refused_adapter_is_not_used(
    gated: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Round 1: both accepted. Round 2: plain's is broken. Round 3: plain's is well again, chatty's worse than round 2,
    though not than the untouched peer."""
    good = {0: 6, 1: 8, 2: 8, 3: 6}  # of 8

    def right(peer: str, round_: int, n: int) -> bool:
        return n < (0 if (peer, round_) == ("plain", 2) else 8 if peer == "plain" else good[round_])

    batches, work = answering(monkeypatch, right), Inline(gated)
    with pytest.raises(UserError, match="run `make gate ROUND=0` first"):
        gate_stage.main(gated, 1, work)
    gate_stage.main(gated, 0, work)
    told = capsys.readouterr().out
    assert "8 questions; probabilities if 15 % of the answers differ (assumed): fall of 3 points refused" in told
    assert batches == [(peer, 0, n) for peer in PEERS for n in (8, 16)]  # greedy, then two samples
    rows = read_stage(gated.stage_dir(0, "gate"), GATE)
    assert len(rows) == 2 * 8 * 3 and {row["vote"] for row in rows} == {"1"}
    assert {row["agrees_before"] for row in rows} == {row["agrees_untouched"] for row in rows} == {None}
    adapters(gated, 1)
    with pytest.raises(UserError, match="run `make gate ROUND=1` first"):
        resolve_all(gated, 1)
    gate_stage.main(gated, 1, work)
    assert {name: policy.round for name, policy in resolve_all(gated, 1).items()} == {"chatty": 1, "plain": 1}
    assert "refused" not in capsys.readouterr().out

    adapters(gated, 2)
    gate_stage.main(gated, 2, work)
    line = " ".join(capsys.readouterr().out.split())
    assert "refused by the gate: the adapter of round 2 of plain agrees with the votes in 0.0 % of 8" in line
    assert "round 1 in 100.0 %: -100.0 points (" in line and "plain goes on with the adapter of round 1" in line
    assert "of chatty agrees" not in line
    used = resolve(gated, 2, "plain")
    assert (used.round, used.identity) == (1, resolve(gated, 1, "plain").identity)
    assert used.adapter == gated.adapter_dir(1, "plain") and used.checkpoint == gated.checkpoint_dir(1, "plain")
    assert used.rounding_seed == resolve(gated, 1, "plain").rounding_seed
    assert resolve(gated, 2, "chatty").round == 2

    adapters(gated, 3)
    gate_stage.main(gated, 3, work)
    decisions = gate.decisions(gated, 3) or {}
    assert [each.against for each in decisions["plain"].comparisons] == [1, 0]  # not the refused one
    assert decisions["plain"].accepted and decisions["plain"].in_use == 3
    rows = [row for row in read_stage(gated.stage_dir(3, "gate"), GATE) if row["peer"] == "chatty"]
    assert [row["sample"] for row in rows] == [0] * 8
    assert sum(bool(row["agrees"]) for row in rows) == sum(bool(row["agrees_untouched"]) for row in rows) == 6
    assert sum(bool(row["agrees_before"]) for row in rows) == 8
    report = shown(gate_table("t"), gate_notes("t"))
    assert "best round by the gate: 1 (mean agreement 100.0 %; adapters of chatty: round 1, plain: round 1)" in report
    refused = [line.split() for line in report.splitlines() if line.rstrip().endswith("refused")]
    assert len(refused) == 2 and refused[0][:3] == ["2", "plain", "round"], report  # against round 1, and round 0
    assert "100.0 → 0.0" in report and "as in the last round" in report
    assert "round 2: the gate refused plain's adapter, so the figures are of its policy in use (round 1)" in (
        refused_notice("t")
    )
    before = list(batches)
    gate_stage.main(gated, 3, work)
    assert "gate round 3: finished already" in capsys.readouterr().out and batches == before
    lines = shown(status_table(stages("t")))
    assert lines.count("gate") == 4 and "stopped" not in lines


def test_both_the_policy_before_and_the_untouched_peer_must_be_matched(
    gated: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow decline: each round is slightly worse than the last, the third much worse than the untouched peer."""
    good = {0: 8, 1: 6, 2: 4, 3: 2}
    answering(monkeypatch, lambda peer, round_, n: n < good[round_])
    work = Inline(gated)
    gate_stage.main(gated, 0, work)
    accepted = []
    for round_ in (1, 2, 3):
        adapters(gated, round_)
        gate_stage.main(gated, round_, work)
        accepted.append((gate.decisions(gated, round_) or {})["plain"])
    assert [each.accepted for each in accepted] == [True, True, False]
    assert [[c.passed for c in each.comparisons] for each in accepted] == [[True], [True, True], [True, False]]


def test_a_killed_gate_goes_on(gated: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = answering(monkeypatch, lambda *_: True)
    answer_all = gate_stage.answer_all

    def dies(run: Run, round_: int, policy: Any, *more: Any) -> None:
        if policy.name == "plain":
            raise KeyboardInterrupt
        answer_all(run, round_, policy, *more)

    monkeypatch.setattr(gate_stage, "answer_all", dies)
    with pytest.raises(KeyboardInterrupt):
        gate_stage.main(gated, 0, Inline(gated))
    monkeypatch.setattr(gate_stage, "answer_all", answer_all)
    gate_stage.main(gated, 0, Inline(gated))
    assert batches == [(peer, 0, n) for peer in PEERS for n in (8, 16)]  # nothing twice
    assert not (gated.stage_dir(0, "gate") / ".work").exists()


def test_an_adapter_that_was_trained_anew_is_not_taken_for_the_judged_one(
    gated: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, lambda *_: True)
    gate_stage.main(gated, 0, Inline(gated))
    adapters(gated, 1)
    gate_stage.main(gated, 1, Inline(gated))
    folder = gated.stage_dir(1, "adapters")
    save_file({"a": torch.tensor([9.0])}, folder / "plain" / ADAPTER_WEIGHTS)
    shards.write_manifest(folder, {}, [folder / peer / ADAPTER_WEIGHTS for peer in PEERS])
    with pytest.raises(UserError, match="peer plain: the adapter of round 1 is not the one that the gate has judged"):
        resolve_all(gated, 1)
    with pytest.raises(UserError, match=r"gate was made under other conditions \(candidates changed since\)"):
        gate_stage.main(gated, 1, Inline(gated))


def test_where_nobody_states_an_answer_nobody_votes(gated: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Completion([1], "I cannot say.", 0.0, "stop")
    cut_off = Completion([1], "The answer is 3", 0.0, "length")  # may go on: 31?
    for said in (silent, cut_off):
        monkeypatch.setattr(gate_stage, "complete", lambda _, prompts, *__, said=said: [said] * len(prompts))
        with pytest.raises(UserError, match="no sample of any peer states an answer to any of the 8 questions"):
            gate_stage.main(gated, 0, Inline(gated))
        assert not (gated.stage_dir(0, "gate") / shards.SUCCESS).exists()
        for made in (gated.stage_dir(0, "gate") / ".work").iterdir():
            made.unlink()


# --- what ends a run early --------------------------------------------------------------------------------------


def test_patience_ends_a_run_in_which_nothing_is_accepted(gated: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(patience: int | None) -> Run:
        section = gated.config.gate.model_copy(update={"patience": patience})
        return Run(gated.name, gated.config.model_copy(update={"gate": section}))

    answering(monkeypatch, lambda peer, round_, n: round_ in (0, 2) or (peer, round_) == ("plain", 1))
    gate_stage.main(gated, 0, Inline(gated))
    for round_ in (1, 2, 3, 4):  # accepted: plain; both; none; none
        adapters(gated, round_)
        gate_stage.main(gated, round_, Inline(gated))
    for patience, round_ in ((None, 5), (3, 5), (2, 4), (1, 3), (1, 2), (9, 5)):
        gate.before_round(run(patience), round_)
    with pytest.raises(Ended, match=r"accepted no peer's adapter in rounds 3 to 4 .* round 5 does not begin"):
        gate.before_round(run(2), 5)
    with pytest.raises(Ended, match=r"in round 3 of run 't', so round 4 does not begin \(gate\.patience is 1\)"):
        gate.before_round(run(1), 4)


def test_hours_count_finished_stages_and_this_call(gated: Run) -> None:
    section = gated.config.runtime.model_copy(update={"max_hours": 1.0})
    run = Run(gated.name, gated.config.model_copy(update={"runtime": section}))
    for round_, folder, seconds in ((0, "evals", 1000.0), (1, "chains", 2000.5)):
        shards.write_manifest(run.stage_dir(round_, folder), {"seconds": seconds}, [])
    hours = hours_of(run)
    assert hours.before == 3000.5
    hours.check(run, "score round 1")
    Hours(9e9).check(gated, "score round 1")  # no limit
    with pytest.raises(Ended, match=r"has taken 1\.11 hours, runtime\.max_hours is 1: score round 1 does not begin"):
        Hours(3000.0, hours.start - 1000).check(run, "score round 1")
