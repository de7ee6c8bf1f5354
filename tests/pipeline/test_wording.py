"""`make wording`: the dev set, what a wording is worth, which one is kept, and what is written where."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from data.answers.grader import Grader
from data.config.edit import set_wordings
from data.config.load import load_config, parse_config
from data.config.sections import Config
from data.errors import UserError
from evaluate.wording import DevSet, WordingTrial, choose, load_dev_set, trial_of
from peers.engines.protocol import Completion
from pipeline.wording import app
from tests.conftest import questions, write_jsonl
from tests.fake_engine import Here

TOML = """# head
[[peers]]
name = "a"      # first
model = "x"

# about b
[[peers]]
  name = 'b'
  model = [
    "p1",  # one
    "[[p2]]",
  ]

[[peers]]
name = "c"
wording = "old"   # keep me
model = "z"

[prompts]
source = "q"
"""


def test_a_choice_is_written_and_nothing_else(tmp_path: Path) -> None:
    path, link = tmp_path / "c.toml", tmp_path / "link.toml"
    path.write_bytes(TOML.replace("\n", "\r\n").encode())
    link.symlink_to(path)
    set_wordings(link, {"b": "short", "c": "long"})
    expected = TOML.replace("  name = 'b'\n", "  name = 'b'\n  wording = \"short\"\n").replace('"old" ', '"long" ')
    assert link.is_symlink() and path.read_bytes().decode().replace("\r\n", "\n") == expected
    assert [peer.get("wording") for peer in tomllib.loads(expected)["peers"]] == [None, "short", "long"]


@pytest.mark.parametrize(
    "text",
    [
        'peers = [{name = "a", model = "x"}, {name = "b", model = "y"}]\n',
        '[[peers]]\nmodel = """\n[[peers]]\nname = 1\n"""\nname = "a"\n[[peers]]\nname = "b"\n',
        '[[peers]]\nname = "a"\nwording = """x"""\n',
    ],
)
def test_what_cannot_be_edited_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(UserError, match='write by hand: wording = "short" for a'):
        set_wordings(path, {"a": "short"})
    assert path.read_text() == text and list(tmp_path.iterdir()) == [path]


def config_of(**wording: Any) -> Config:
    """With the dev set in dev.jsonl."""
    raw: dict[str, Any] = {
        "prompts": {"source": "train.jsonl", "limit": 1},
        "peers": [{"name": "a", "model": "m"}, {"name": "b", "model": "n"}],
        "benchmarks": [{"name": "t", "source": "test.jsonl", "answers": "numbers"}],
        "wording": {"source": "dev.jsonl", "answers": "numbers", **wording},
    }
    return parse_config(raw, "x")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", questions(0, 5))
    write_jsonl(tmp_path / "test.jsonl", questions(10, 5))
    return tmp_path


def test_the_dev_set_is_neither_trained_on_nor_tested_on(sources: Path) -> None:
    """Not on a question that the limit of the prompts leaves out with this seed, either."""
    write_jsonl(sources / "dev.jsonl", [*questions(3, 1), *questions(12, 1), *questions(20, 6)])
    with pytest.raises(
        UserError, match=r"wording: 2 of 8 questions are also trained on or tested on, first 'Tom has 3"
    ):
        load_dev_set(config_of())
    dev = load_dev_set(config_of(overlap="drop", answer_column="answer", limit=4))
    assert dev.golds is not None and len(dev.golds) == len(dev.questions) == 4
    answers = {row["question"]: row["answer"] for row in questions(20, 6)}
    assert [answers[question] for question in dev.questions] == dev.golds
    assert load_dev_set(config_of(overlap="drop", limit=4)) == DevSet(dev.questions, None)
    write_jsonl(sources / "dev.jsonl", questions(1, 2))
    with pytest.raises(UserError, match="nothing is left to try wordings on"):
        load_dev_set(config_of(overlap="drop"))
    with pytest.raises(UserError, match=r"the config has no \[wording\]"):
        load_dev_set(config_of().model_copy(update={"wording": None}))


def said(text: str, reason: Any = "stop") -> Completion:
    """A response of as many tokens as it has words."""
    return Completion(list(range(len(text.split()))), text, 0.0, reason)


def test_what_a_wording_is_worth() -> None:
    with Grader() as grader:
        greedy = [[said("The answer is 4.")], [said("The answer is 5.")], [said("so 6", "length")], [said("hm hm")]]
        dev = DevSet(["q"] * 4, ["4", "6", "6", "6"])
        assert trial_of("w", greedy, dev, "numbers", grader) == WordingTrial("w", [1.0, 0.0, 0.0, 0.0], 0.25, 0.5, 3.0)
        drawn = [
            [said("The answer is 4."), said("It is 4.0"), said("The answer is 5."), said("then 4", "length")],
            [said("hm", "context")] * 4,
        ]
        found = trial_of("w", drawn, DevSet(["q"] * 2, None), "numbers", grader)
    assert found.values == [0.5, 0.0]  # of four samples two agree; what was cut off amid its steps has no vote
    assert (found.unfinished, found.unanswered) == (0.125, 0.625)


def test_a_peer_keeps_its_wording_unless_another_is_better_by_more_than_chance() -> None:
    config = config_of()

    def trial(name: str, right: int, tokens: float = 9) -> WordingTrial:
        return WordingTrial(name, [1.0] * right + [0.0] * (40 - right), 0.1, 0.1, tokens)

    now = trial("[templates]", 20)
    assert choose([now, trial("a", 10)], "[templates]", config).chosen == "[templates]"
    slight = choose([now, trial("a", 21)], "[templates]", config)
    assert (slight.best, slight.chosen) == ("a", "[templates]") and slight.gain is not None
    better = choose([now, trial("a", 30), trial("b", 30, tokens=5)], "[templates]", config)
    assert (better.best, better.chosen) == ("b", "b")  # as right in fewer tokens
    assert better.gain is not None and better.gain.mean == 0.25 and (better.gain.low or 0) > 0
    same = choose([trial("a", 20, tokens=1), now], "[templates]", config)
    assert same.best == same.chosen == "[templates]" and same.gain is None


def test_make_wording_writes_the_best_wording_into_the_config(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wording that leaves no room for an answer loses to one that does, which is written; no run is left behind."""
    monkeypatch.setattr("pipeline.unrecorded.Pool", Here)
    monkeypatch.setattr("pipeline.unrecorded.warm", lambda *_, **__: None)
    path = project / "tiny.toml"
    long = "Say nothing at all. " * 100  # the prompt does not fit
    text = path.read_text().replace('instruction = "Solve."\nreview', f'instruction = "{long}"\nreview')
    dev = '\n[wordings.learnt]\ninstruction = "Solve."\n[wording]\nsource = "dev.jsonl"\n'
    path.write_text(f'{text}{dev}[wordings.long]\ninstruction = "{long}"\n')
    write_jsonl(project / "dev.jsonl", questions(40, 8))
    app(["--config", "tiny.toml", "--no-write"], standalone_mode=False)
    out = capfd.readouterr().out
    assert "self-consistency" in out and "not written to tiny.toml" in out and "written" not in path.read_text()
    assert load_config(path, []).peers[0].wording is None
    app(["--config", "tiny.toml"], standalone_mode=False)
    assert 'written to tiny.toml: wording = "learnt" for chatty' in capfd.readouterr().out
    assert {peer.wording for peer in load_config(path, []).peers} == {"learnt"}
    app(["--config", "tiny.toml", "--set", "wording.answer_column=answer"], standalone_mode=False)
    out = capfd.readouterr().out
    assert "accuracy" in out and "[templates]" not in out and "tiny.toml is unchanged" in out
    assert not (project / "runs").exists()
