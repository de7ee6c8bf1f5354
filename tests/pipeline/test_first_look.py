"""`make try`: what it shows, what it leaves, what it projects; and when it warns of a review's form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.config.form import form_of, form_warnings, review_differs
from data.config.load import parse_config
from data.config.sections import Example, TemplateSection
from data.run import Run
from pipeline.first_look import app, short_duration, work_of
from pipeline.projection import PeerRates, RoundWork, project
from tests.conftest import run_module
from tests.fake_engine import Here
from tests.unit.test_config import MINIMAL

RATES = PeerRates(
    prompt_tokens=50, review_tokens=160, response_tokens=100, distinct=0.5, decode_rate=200, chain_rate=100,
    forward_rate=1000, engine_seconds=10, model_seconds=2, adapter_bytes=1000, weight_bytes=10**6,
)  # fmt: skip
WORK = RoundWork(questions=100, responses=1, passes=1, examples=0.5, epochs=2, items=20, samples=4)


def test_the_projection_is_the_sum_of_its_parts() -> None:
    found = project(WORK, {"a": RATES})
    seconds = {stage: round(cost.seconds, 6) for stage, cost in found.items()}
    verified = 50 + 4 * 0.5 * (100 + 12)  # tokens: a prompt once, two different samples, each with the request
    assert seconds == pytest.approx(
        {
            "baseline": 10 + 2 + 20 * 5 * 100 / 200 + 20 * verified / 1000,
            "generate": 100 * 100 / 100,
            "score": 2 + 100 * ((50 + 160) / 2 + 100) / 1000,
            "train": 2 + 3 * 100 * 0.5 * 2 * 150 / 1000,
            "evaluate": 3 * 2 + 20 * 5 * 100 / 200 + 20 * 2 * verified / 1000,
        }
    )
    gated = project(replace(WORK, gate=40, votes=4), {"a": RATES})
    assert {stage: gated[stage].seconds for stage in gated.keys() - found.keys()} == {
        "votes": 40 * 5 * 100 / 200, "gate": 2 + 40 * 100 / 200,
    }  # fmt: skip
    assert found["train"].bytes == 1000 and found["evaluate"].temporary == 10**6
    assert found["generate"].bytes == 100 * (10 + 2 * 100)
    assert found["evaluate"].bytes == 20 * (5 * 10 + (1 + 4 * 0.5) * 2 * 100)


def test_peers_share_a_device_or_have_their_own() -> None:
    peers = {"a": RATES, "b": replace(RATES, chain_rate=50)}
    alone = {name: project(WORK, {name: rates})["generate"] for name, rates in peers.items()}
    one = project(WORK, peers)["generate"]
    own = project(WORK, peers, {"a": ["0"], "b": ["1"]})["generate"]
    replicas = project(WORK, peers, {"a": ["0"], "b": ["1", "2"]})["generate"]
    mixed = project(WORK, peers, {"a": ["0"], "b": ["0", "1"]})["generate"]
    assert [alone["a"].seconds, alone["b"].seconds] == [100, 200]
    assert [each.seconds for each in (one, own, replicas, mixed)] == [300, 200, 100, 200]
    assert one.bytes == own.bytes == replicas.bytes == 2 * alone["a"].bytes


def test_the_engine_starts_in_the_first_stage_that_needs_it() -> None:
    later = {"items": 0, "gate": 40, "votes": 2}
    for work, first in ((WORK, "baseline"), (replace(WORK, **later), "votes"), (replace(WORK, items=0), "generate")):
        slow = project(work, {"a": replace(RATES, engine_seconds=1000)})
        plain = project(work, {"a": RATES})
        assert {stage for stage in slow if slow[stage].seconds != plain[stage].seconds} == {first}
    with pytest.raises(ValueError, match="no peer"):
        project(WORK, {})


def test_what_is_not_done_costs_nothing() -> None:
    """No benchmark; no PMI; responses of no token, of which nothing was measured."""
    found = project(replace(WORK, items=0, passes=0), {"a": RATES})
    assert [found[stage].seconds for stage in ("baseline", "score", "evaluate")] == [0, 0, 0]
    silent = replace(RATES, response_tokens=0, decode_rate=0, chain_rate=0, forward_rate=0)
    assert project(WORK, {"a": silent})["generate"].seconds == 0


@pytest.mark.parametrize(
    ("given", "responses", "passes", "examples"),
    [
        ({}, 1, 1, 0.5),
        ({"score": {"y_source": "alone"}}, 1.5, 1, 0.5),
        ({"score": {"train_final": True}}, 1, 1, 1),
        ({"generate": {"aggregate": "self"}}, 1, 0, 1),
        ({"score": {"label": "sample-vote", "text": "solution"}}, 9, 2, 1),
        ({"score": {"label": "own-vote", "text": "samples", "weighting": "signed"}}, 8, 0, 8),
    ],
)
def test_a_rounds_work_counts_all_responses_passes_and_examples(
    given: dict[str, Any], responses: float, passes: float, examples: float
) -> None:
    work = work_of(parse_config({**MINIMAL, **given}, "x"), 7, 3)
    assert (work.responses, work.passes, work.examples) == (responses, passes, examples)
    assert (work.questions, work.items, work.samples) == (7, 3, 8)


@pytest.mark.parametrize(("seconds", "told"), [(59.6, "60 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")])
def test_a_duration_is_told_in_the_unit_that_fits(seconds: float, told: str) -> None:
    assert short_duration(seconds) == told


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("3 * 4 = 12. The answer is 12.", "So 5 is it. So the answer is 5.", True),
        ("The answer is 12.", "Step 1: 12.\nThe answer is 12.", False),
        ("The answer is 12.", "The final answer: 12", False),
        ("The answer is 12.", "It is \\boxed{12}.", False),
        ("a\n#### 12", "b\nc\n#### 7", True),
        ("a\n#### 12", "b\n7", False),
        ("I cannot say.", "12", False),
    ],
)
def test_responses_have_one_form_where_they_state_answers_alike(one: str, other: str, alike: bool) -> None:
    assert (form_of(one) == form_of(other)) is alike


def wording(solve: str, review: str | None = None, **requests: str) -> TemplateSection:
    """With one worked example of each kind."""
    examples = [Example(question="q", response=solve)]
    examples += [Example(question="q", solutions=("s",), response=review)] if review else []
    return TemplateSection(examples=tuple(examples), **requests)


def test_a_review_that_asks_for_another_form_is_told() -> None:
    assert review_differs(TemplateSection()) is None
    assert review_differs(wording("The answer is 4.")) is None  # a review shows the same one
    assert review_differs(wording("The answer is 4.", "The answer is 7.")) is None
    told = review_differs(wording("The answer is 4.", "Solution 1 is right.\nSo \\boxed{4}."))
    assert told is not None and "(\\boxed{}, several lines)" in told and "('answer is', one line)" in told
    only = review_differs(TemplateSection(instruction="End with #### and the number."))
    assert only == "review asks for \\boxed{} and instruction does not"


def test_a_run_that_begins_is_warned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    boxed = {"instruction": "x", "review": "Use \\boxed{}."}
    raw = {
        **MINIMAL,
        "wordings": {"odd": boxed},
        "peers": [{**MINIMAL["peers"][0], "wording": "odd"}, MINIMAL["peers"][1]],
    }
    config = parse_config(raw, "x")
    assert len(form_warnings(config)) == 1 and not form_warnings(parse_config(MINIMAL, "x"))
    assert not form_warnings(parse_config({**raw, "generate": {"aggregate": "self"}}, "x"))  # nobody reviews
    for times in (1, 0):
        Run("r", config).freeze(lambda: None)
        out = capsys.readouterr().out
        assert out.count("warning: wording odd: review asks for \\boxed{}") == times


def test_make_try_shows_prompts_answers_and_hours_and_leaves_no_run(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts with their control tokens, responses, answers, rates, hours; and no run is left behind."""
    monkeypatch.setattr("pipeline.unrecorded.Pool", Here)
    monkeypatch.setattr("pipeline.unrecorded.warm", lambda *_, **__: None)
    app(["--config", "tiny.toml", "--questions", "2", "--all"], standalone_mode=False)
    shows_all(capfd.readouterr().out)
    assert not (project / "runs").exists()
    app(["--config", "tiny.toml", "--questions", "2"], standalone_mode=False)
    out = capfd.readouterr().out
    assert "prompt 1" in out and "prompt 2" not in out and "a review of" not in out


@pytest.mark.slow
def test_make_try_works_with_real_processes(project: Path) -> None:
    shows_all(run_module("pipeline.first_look", "--config", "tiny.toml", "--questions", "2", "--all", cwd=project,
                         check=True).stdout)  # fmt: skip
    assert not (project / "runs").exists()


def shows_all(out: str) -> None:
    """Of two questions with --all."""
    assert "<|user|>Solve.\n\nQuestion: Tom has" in out and "<|end|><|assistant|>" in out
    assert out.count("a review of question 1") == 2 and "Solution 1:" in out and out.count("prompt 2") == 2
    assert "ended by itself" in out or "cut off by the token limit" in out
    assert "projected for 24 questions, 8 benchmark questions with k = 2" in out and "make round ROUND=1" in out
