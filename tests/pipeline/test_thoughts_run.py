"""A round in which the peers think before they answer: the config decides what is shown, scored and trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import generate.stage
import peers.policy_cache
import score.stage
from data.run import Run, open_run
from data.schema import CHAINS, SCORES
from data.shards import Row
from peers.policy import resolve
from tests.conftest import CHAT, read_stage
from tests.fake_engine import FakeEngine, Inline
from train.stage import training_examples

THOUGHT, OPENED = "Let me see", CHAT.replace("<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}")


class Round:
    """What was asked and scored in a round up to the examples, as text, and its rows."""

    def __init__(self, project: Path, monkeypatch: pytest.MonkeyPatch, name: str, overrides: list[str]) -> None:
        self.asked: list[str] = []
        self.scored: list[tuple[str, str]] = []
        monkeypatch.setattr(peers.policy_cache, "engine", self.engine)
        monkeypatch.setattr(peers.policy_cache, "language_model", lambda policy, _: policy.prompts)
        monkeypatch.setattr("peers.logprob.scoring.score_pairs", self.score)
        with open_run(name, Path("tiny.toml"), ["generate.max_new_tokens=64", *overrides]) as run:
            generate.stage.main(run, 1, Inline(run))
            score.stage.main(run, 1, Inline(run))
            self.chains = read_stage(run.stage_dir(1, "chains"), CHAINS)
            self.scores = read_stage(run.stage_dir(1, "scores"), SCORES)
            self.trained = self.examples(run)

    def engine(self, policy: Any, _: Any) -> FakeEngine:
        """The thinker thinks, and answers; a quarter of the time it never ends to think."""
        prompts = policy.prompts

        def respond(prompt: Sequence[int], seed: int) -> list[int]:
            self.asked.append(prompts.tokenizer.decode(prompt, skip_special_tokens=False))
            answer = f"The answer is {seed % 3}."
            ended = "" if seed % 4 == 0 else f"\n</think>\n\n{answer}"
            text = f"{THOUGHT} {seed % 5}.{ended}" if prompts.turn.opening else answer
            ids: list[int] = prompts.tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids

        return FakeEngine(prompts, respond)

    def score(self, prompts: Any, pairs: Any, _: int, advance: Callable[[int, int], None], *__: Any) -> Any:
        """The log-probability of a token is its place in the target, negative."""
        decode: Any = prompts.tokenizer.decode
        self.scored += [(decode(list(pair.prompt)), decode(list(pair.target))) for pair in pairs]
        advance(len(pairs), 0)
        return [[-float(place) for place in range(len(pair.target))] for pair in pairs]

    def examples(self, run: Run) -> list[tuple[str, str]]:
        """(prompt, target) of the training examples of the peer that thinks."""
        policy = resolve(run, 0, "chatty")
        self.prompts = policy.prompts
        decode: Any = policy.prompts.tokenizer.decode
        found = training_examples(run, 1, policy)
        pairs = [found[i].pair for i in range(len(found))]
        return [(decode(list(pair.prompt)), decode(list(pair.target))) for pair in pairs]


@pytest.fixture
def thinking(project: Path, tiny_models: dict[str, Path]) -> Path:
    """A project with a peer whose template opens a thought, and one without a template."""
    model = Path(shutil.copytree(tiny_models["chatty"], project / "thinker"))
    (model / "chat_template.jinja").write_text(OPENED, encoding="utf-8")
    text = (project / "tiny.toml").read_text(encoding="utf-8")
    (project / "tiny.toml").write_text(text.replace(str(tiny_models["chatty"]), str(model)), encoding="utf-8")
    return project


def dropped(rows: list[Row], reason: str) -> list[Row]:
    """Rows that are dropped for a reason."""
    return [row for row in rows if row["drop_reason"] == reason]


def test_thoughts_are_kept_and_neither_shown_nor_trained(thinking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Round(thinking, monkeypatch, "quiet", [])
    mine = [row["response"] for row in found.chains if row["peer"] == "chatty"]
    assert mine and all(text.startswith(f"<think>\n{THOUGHT}") for text in mine)
    endless = [row for row in found.chains if "</think>" not in row["response"] and row["peer"] == "chatty"]
    assert endless
    assert all(THOUGHT not in text for text in found.asked)
    reviews = [text for text in found.asked if "Solution 1:" in text]
    assert reviews and all("Solution 1: The answer is" in text for text in reviews)  # none that is empty
    assert found.scored and all(THOUGHT not in prompt + target for prompt, target in found.scored)
    by_thinker = [prompt for prompt, _ in found.scored if "<|assistant|>" in prompt]
    assert by_thinker and all(prompt.endswith("<think>\n\n</think>\n\n") for prompt in by_thinker)
    kept = [row for row in found.scores if row["drop_reason"] is None]
    assert kept and all(row["target"].startswith("The answer is") for row in kept)
    # whoever is the author of an aggregate, or of a response, that never ends to think
    aggregates = {row["prompt_id"] for row in endless if row["is_aggregate"]}
    others = {row["prompt_id"] for row in endless if not row["is_aggregate"]}
    assert aggregates and {row["prompt_id"] for row in dropped(found.scores, "aggregate_empty")} >= aggregates
    assert others and {row["prompt_id"] for row in dropped(found.scores, "response_empty")} >= others - aggregates
    for prompt, target in found.trained:  # after an empty thought
        assert prompt.endswith("<|assistant|><think>\n\n</think>\n\n") and target.startswith("The answer is")


def test_thoughts_are_shown_and_trained_where_that_is_asked_for(
    thinking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"peers.{n}.{key}=true" for n in (0, 1) for key in ("show_thoughts", "train_thoughts")]
    found = Round(thinking, monkeypatch, "loud", [*keys, "score.text=own"])
    assert any(f"Solution 1: <think>\n{THOUGHT}" in text for text in found.asked)
    assert any(f"Solution 1: <think>\n{THOUGHT}" in prompt for prompt, _ in found.scored)
    kept = [row for row in found.scores if row["drop_reason"] is None and row["peer"] == "chatty"]
    assert kept and all(THOUGHT in row["target"] for row in kept)
    assert len(found.trained) == len(kept)
    for prompt, target in found.trained:  # its own prompt has begun the thought, and its text goes on with it
        assert prompt.endswith("<|assistant|><think>\n") and target.startswith(THOUGHT)


@pytest.mark.parametrize("thoughts", [False, True])
def test_the_pmi_of_an_answer_is_of_its_token_after_the_thought(
    thoughts: bool, thinking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place of the token in the target, which stands for its log-probability, tells which one it was."""
    keys = ["score.pmi_target=answer", "score.scorer=aggregator", f"peers.0.train_thoughts={str(thoughts).lower()}"]
    found = Round(thinking, monkeypatch, "answers", keys)
    written = {row["prompt_id"]: row for row in found.chains if row["peer"] == "chatty" and row["is_aggregate"]}
    measured = [row for row in found.scores if row["target_peer"] == "chatty" and row["pmi"] is not None]
    assert measured
    for row in measured:
        text = written[row["prompt_id"]]
        ids = text["token_ids"] if thoughts else found.prompts.encode_response(found.prompts.learnt(text["response"]))
        place = int(-row["logp_alone"])
        assert (row["n_target_tokens"], found.prompts.decode(ids[place : place + 1]).strip()) == (1, text["answer"])
