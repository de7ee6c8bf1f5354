"""The generate stage with fake engines: who sees what, resumption, what is skipped, the aggregate."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data import shards
from data.answers.extract import extract
from data.config.sections import Config
from data.errors import UserError
from data.hashing import draw_key, request_seed
from data.run import Run, open_run
from data.schema import CHAINS, PROMPTS
from generate import stage
from peers import policy_cache
from peers.policy import Policy, resolve_all, with_voters
from peers.prompts import PeerPrompts, load_prompts
from tests.conftest import questions, read_stage, write_jsonl
from tests.fake_engine import FakeEngine, Inline

Say = Callable[[str, int], str]
PEERS = ["chatty", "plain", "third"]
SIZE = ("generate.max_new_tokens=48", "generate.context_tokens=768")


def distinct(peer: str, seed: int) -> str:
    """A response that names its author and its question."""
    return f"{peer[0]}{seed % 997}. The answer is {seed % 89}."


class Killed(BaseException):
    """Stands for kill -9: nothing is cleaned up after it."""


class Fakes:
    """Fake engines in place of the pool: what they were asked, and how many requests they live for."""

    def __init__(self, say: Say, together: bool, requests: int = 10**9) -> None:
        self.say, self.together, self.left = say, together, requests
        self.asked: list[tuple[str, list[int], int]] = []

    def engine(self, policy: Policy, config: Config) -> FakeEngine:
        """In place of `policy_cache.engine`."""
        prompts, name = policy.prompts, policy.name

        def respond(prompt: Sequence[int], seed: int) -> list[int]:
            if self.left == 0:
                raise Killed
            self.left -= 1
            self.asked.append((name, list(prompt), seed))
            response: list[Any] = [*prompts.encode_response(self.say(name, seed)), prompts.end_id]
            return response

        return FakeEngine(prompts, respond)


@pytest.fixture
def three(project: Path, tiny_models: dict[str, Path]) -> Path:
    """The project with a third peer and 12 questions in shards of 8 and 4."""
    shutil.copytree(tiny_models["plain"], project / "third")
    write_jsonl(project / "train.jsonl", questions(0, 12))
    peer = f'[[peers]]\nname = "third"\nmodel = "{project / "third"}"\n'
    toml = project / "tiny.toml"
    toml.write_text(toml.read_text(encoding="utf-8") + peer, encoding="utf-8")
    return project


@contextmanager
def opened(name: str, *overrides: str) -> Iterator[Run]:
    """A run of tiny.toml in the current directory."""
    with open_run(name, Path("tiny.toml"), [*SIZE, *overrides]) as run:
        yield run


def generate(name: str, fakes: Fakes, *overrides: str, round_: int = 1) -> list[dict[str, Any]]:
    """Run the stage with fake engines; the rows."""
    with pytest.MonkeyPatch.context() as patch, opened(name, *overrides) as run:
        patch.setattr(policy_cache, "engine", fakes.engine)
        stage.main(run, round_, Inline(run, fakes.together))
        return read_stage(run.stage_dir(round_, "chains"), CHAINS)


def chains(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows by question, in the order of the file."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["prompt_id"], []).append(row)
    return list(found.values())


def prompts_of(name: str) -> dict[str, PeerPrompts]:
    """Prompts of all peers of a run, under its frozen config."""
    with open_run(name, None, []) as run:
        return {peer: load_prompts(run.config, peer) for peer in run.config.peer_names}


def manifest(name: str) -> dict[str, Any]:
    """That of the run's chains."""
    found = shards.read_manifest(Path("runs") / name / "round=1" / "chains")
    assert found is not None
    return found


def test_position_k_sees_the_earlier_responses_in_order(three: Path) -> None:
    fakes = Fakes(distinct, together=True)
    rows = generate("t", fakes)
    prompts = prompts_of("t")
    by_seed = {seed: (peer, prompt) for peer, prompt, seed in fakes.asked}
    assert len(by_seed) == len(fakes.asked) == len(rows) == 12 * 3
    asked = [row["id"] for row in read_stage(Path("runs/t/prompts"), PROMPTS)]
    for number, chain in enumerate(chains(rows)):
        assert chain[0]["prompt_id"] == asked[number]
        shift = (number + 1) % 3  # rotated by question and round 1
        assert [row["peer"] for row in chain] == [*PEERS[shift:], *PEERS[:shift]]
        assert [row["position"] for row in chain] == [1, 2, 3]
        assert [row["is_aggregate"] for row in chain] == [False, False, True]
        assert len({row["response"] for row in chain}) == 3
        for k, row in enumerate(chain, start=1):
            peer, prompt = by_seed[request_seed(17, 1, draw_key(row["question"]), k)]
            assert peer == row["peer"]
            text = prompts[peer].decode(prompt)
            assert text.count(row["question"]) == 1
            earlier = [f"Solution {i}: {before['response']}" for i, before in enumerate(chain[: k - 1], start=1)]
            places = [text.index(solution) for solution in earlier]
            assert places == sorted(places)
            assert text.count("Solution ") == k - 1


def test_rows_say_what_was_generated(three: Path) -> None:
    rows = generate("t", Fakes(distinct, together=True))
    prompts = prompts_of("t")
    for row in rows:
        response = distinct(row["peer"], request_seed(17, 1, draw_key(row["question"]), row["position"]))
        found = extract(response)
        assert found is not None
        assert (row["response"], row["answer"], row["finish_reason"]) == (response, found.answer, "stop")
        assert row["token_ids"] == prompts[row["peer"]].encode_response(response)
        assert row["n_tokens"] == len(row["token_ids"])
        assert row["logprob"] == -0.5 * row["n_tokens"]
    assert manifest("t")["rows"] == manifest("t")["questions"] * 3 == 36
    assert manifest("t")["tokens"] == sum(row["n_tokens"] for row in rows)


def test_the_rows_follow_from_the_seed(three: Path) -> None:
    runs = {name: Fakes(distinct, together=True) for name in "abc"}
    rows = generate("a", runs["a"])
    assert generate("b", runs["b"]) == rows
    generate("c", runs["c"], "run.seed=18")
    seeds = {name: {seed for _, _, seed in fakes.asked} for name, fakes in runs.items()}
    assert seeds["a"] == seeds["b"]
    assert seeds["a"].isdisjoint(seeds["c"])


def test_one_engine_at_a_time_is_loaded_once_a_position(three: Path) -> None:
    fakes = Fakes(distinct, together=False)
    with pytest.MonkeyPatch.context() as patch, opened("t") as run:
        patch.setattr(policy_cache, "engine", fakes.engine)
        workers = Inline(run, together=False)
        stage.main(run, 1, workers)
    assert len(workers.stretches) <= 7  # 3 positions of 3 peers, less two where a peer goes on with the next position


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("requests", [0, 23, 30])
def test_a_killed_stage_goes_on_where_it_stopped(together: bool, requests: int, three: Path) -> None:
    clean = generate("clean", Fakes(distinct, not together))
    with pytest.raises(Killed):
        generate("t", Fakes(distinct, together, requests))
    folder = Path("runs/t/round=1/chains")
    assert not (folder / shards.SUCCESS).exists()
    done = sum(len(shards.read_rows(path, CHAINS)) for path in folder.rglob("*.parquet"))
    assert requests - 8 < done <= requests  # a unit has at most 8 requests
    again = Fakes(distinct, together)
    assert generate("t", again) == clean
    assert len(again.asked) == len(clean) - done
    assert not (folder / ".work").exists()
    finished = Fakes(distinct, together)
    assert generate("t", finished) == clean
    assert finished.asked == []


def test_a_lost_unit_and_a_lost_shard_are_made_again(three: Path) -> None:
    clean = generate("clean", Fakes(distinct, together=True))
    with pytest.raises(Killed):
        generate("t", Fakes(distinct, True, requests=34))
    folder = Path("runs/t/round=1/chains")
    # shard 0 (8 questions) is finished; of shard 1 (4 questions) both earlier positions
    assert [path.name for path in shards.shard_paths(folder)] == ["part-00000.parquet"]
    lost = sorted((folder / ".work").glob("shard-00001~chain-1~*.parquet"))[0]
    n = len(shards.read_rows(lost, CHAINS))
    assert n > 0
    lost.unlink()
    with pytest.raises(Killed):
        generate("t", Fakes(distinct, True, requests=n))
    assert lost.is_file()
    (folder / "part-00000.parquet").unlink()
    again = Fakes(distinct, True)
    assert generate("t", again) == clean
    assert len(again.asked) >= 8 * 3


def test_too_long_questions_are_skipped_and_counted(three: Path) -> None:
    rows = [*questions(0, 5), {"question": "Long? " * 400, "answer": "1"}, *questions(5, 4)]
    write_jsonl(three / "train.jsonl", rows)
    found = generate("t", Fakes(distinct, together=True), "prompts.shuffle=false")
    ids = [row["id"] for row in read_stage(Path("runs/t/prompts"), PROMPTS)]
    assert [chain[0]["prompt_id"] for chain in chains(found)] == [id_ for i, id_ in enumerate(ids) if i != 5]
    # numbers are places among all questions: that of the one after the long one is 6, and (6 + 1) mod 3 = 1
    assert [row["peer"] for row in chains(found)[5]] == ["plain", "third", "chatty"]
    assert manifest("t")["questions"] == 9
    assert list(manifest("t")["skipped"]["too_long"]) == [ids[5]]
    assert "room for 720" in manifest("t")["skipped"]["too_long"][ids[5]]


def test_the_manifest_names_only_some_of_many_long_questions(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "TOO_LONG_SHOWN", 5)
    long = [{"question": f"Long {i}? " * 300, "answer": "1"} for i in range(10)]
    write_jsonl(three / "train.jsonl", [*long, *questions(0, 3)])
    found = generate("t", Fakes(distinct, together=True), "prompts.shuffle=false")
    ids = [row["id"] for row in read_stage(Path("runs/t/prompts"), PROMPTS)]
    assert manifest("t")["questions_too_long"] == 10
    assert list(manifest("t")["skipped"]["too_long"]) == ids[:5]
    assert [id_ for id_ in ids if id_ not in {row["prompt_id"] for row in found}] == ids[:10]


def test_a_whole_shard_of_long_questions_is_an_empty_shard(three: Path) -> None:
    long = [{"question": f"Long {i}? " * 300, "answer": "1"} for i in range(8)]
    write_jsonl(three / "train.jsonl", [*long, *questions(0, 3)])
    found = generate("t", Fakes(distinct, together=False), "prompts.shuffle=false")
    assert len(found) == 9
    assert len(manifest("t")["files"]) == 2


def test_only_long_questions_is_an_error(three: Path) -> None:
    write_jsonl(three / "train.jsonl", [{"question": f"Long {i}? " * 300, "answer": "1"} for i in range(2)])
    with pytest.raises(UserError, match=r"all 2 questions are longer than the context: .*leaves 720 tokens"):
        generate("t", Fakes(distinct, together=True))


def test_a_chain_that_outgrows_the_context_goes_on_without_a_response(three: Path) -> None:
    # a question takes more than 20 tokens, a response more than 30, the room is 60: position 2 does not fit
    def wordy(_: str, seed: int) -> str:
        return "x" * 30 + f" {seed % 10}"

    fakes = Fakes(wordy, together=True)
    rows = generate("t", fakes, "generate.context_tokens=108")
    reasons = Counter((row["position"], row["finish_reason"]) for row in rows)
    assert reasons == {(1, "stop"): 12, (2, "context"): 12, (3, "context"): 12}
    for row in rows:
        if row["finish_reason"] == "context":
            assert (row["response"], row["answer"], row["token_ids"], row["n_tokens"]) == ("", None, [], 0)
    assert len(fakes.asked) == 12
    assert all(len(prompt) <= 60 for _, prompt, _ in fakes.asked)
    assert manifest("t")["finish_reasons"] == {"stop": 12, "context": 24}
    assert manifest("t")["aggregates_without_answer"] == 12


def test_an_empty_response_is_not_shown_to_those_after(three: Path) -> None:
    fakes = Fakes(lambda peer, seed: "" if peer == "plain" else distinct(peer, seed), together=True)
    rows = generate("t", fakes, "generate.order=fixed")
    prompts = prompts_of("t")
    by_seed = {seed: prompt for _, prompt, seed in fakes.asked}
    for chain in chains(rows):
        assert [bool(row["response"]) for row in chain] == [True, False, True]
        text = prompts["third"].decode(by_seed[request_seed(17, 1, draw_key(chain[0]["question"]), 3)])
        assert f"Solution 1: {chain[0]['response']}\nAnswer:" in text
        assert "Solution 2" not in text


@pytest.mark.parametrize("together", [True, False])
def test_synthesis_adds_a_response_that_sees_all(together: bool, three: Path) -> None:
    fakes = Fakes(distinct, together)
    rows = generate("t", fakes, "generate.aggregate=synthesis", "templates.synthesis=Write the last word.")
    prompts = prompts_of("t")
    by_seed = {seed: prompt for _, prompt, seed in fakes.asked}
    authors = []
    for number, chain in enumerate(chains(rows)):
        assert [row["position"] for row in chain] == [1, 2, 3, None]
        assert [row["role"] for row in chain] == ["chain", "chain", "chain", "synthesis"]
        assert [row["is_aggregate"] for row in chain] == [False, False, False, True]
        last = chain[-1]
        assert last["peer"] == PEERS[(number + 1) % 3]
        authors.append(last["peer"])
        text = prompts[last["peer"]].decode(by_seed[request_seed(17, 1, draw_key(last["question"]), 4)])
        assert "Write the last word." in text
        assert all(f"Solution {row['position']}: {row['response']}" in text for row in chain[:-1])
    assert Counter(authors) == dict.fromkeys(PEERS, 4)


def test_vote_marks_one_of_the_majority(three: Path) -> None:
    answers = {"chatty": "It is 1/2.", "plain": "The answer is 0.5.", "third": "The answer is 3."}
    rows = generate("t", Fakes(lambda peer, _: answers[peer], together=True), "generate.aggregate=vote")
    for chain in chains(rows):
        # the fake's mean log-probability is -0.5 for all, so the earlier of the two that agree has it
        winner = next(row for row in chain if row["peer"] != "third")
        assert [row["is_aggregate"] for row in chain] == [row is winner for row in chain]


@pytest.mark.parametrize("together", [True, False])
def test_each_peer_gives_samples_where_label_or_text_need_them(together: bool, three: Path) -> None:
    overrides = ("score.label=sample-vote", "score.text=solution", "score.weighting=uniform", "generate.samples=5")
    fakes = Fakes(lambda peer, seed: f"{peer[0]}{seed}. The answer is {seed % 2}.", together)
    rows = generate("t", fakes, *overrides)
    assert len(rows) == 12 * 3 * 5 and len({seed for _, _, seed in fakes.asked}) == len(rows)
    prompts = prompts_of("t")
    texts = {row["question"] for row in rows}
    allowed = {peer: [prompts[peer].solve(text) for text in texts] for peer in PEERS}
    assert all(prompt in allowed[peer] for peer, prompt, _ in fakes.asked)
    for chain in chains(rows):
        assert [row["peer"] for row in chain] == [peer for peer in PEERS for _ in range(5)]
        assert [row["sample"] for row in chain] == [1, 2, 3, 4, 5] * 3
        assert all(row["role"] == "sample" and row["position"] is None for row in chain)
        assert not any(row["is_aggregate"] for row in chain)
    drawn = Fakes(lambda peer, seed: f"{peer[0]}{seed}. The answer is {seed % 2}.", together)
    both = generate("u", drawn, "generate.samples=5", "score.text=solution")  # the label is the chain's
    assert [row for row in both if row["role"] == "sample"] == rows
    assert sum(row["is_aggregate"] for row in both) == 12


def test_a_voter_gives_samples_in_its_own_words_and_nothing_else(three: Path) -> None:
    """Beside a chain, too: who votes is in no chain."""
    voter = 'voters=[{name="loud", peer="plain", templates={instruction="Shout the answer."}}]'
    fakes = Fakes(lambda peer, seed: f"{peer[0]}{seed}. The answer is {seed % 2}.", together=True)
    rows = generate("t", fakes, voter, "score.label=sample-vote", "generate.samples=2")
    for chain in chains(rows):
        assert Counter((row["role"], row["peer"]) for row in chain) == {
            **{("chain", peer): 1 for peer in PEERS}, **{("sample", rater): 2 for rater in (*PEERS, "loud")},
        }  # fmt: skip
    prompts = prompts_of("t")["plain"]
    texts = [prompts.decode(prompt) for peer, prompt, _ in fakes.asked if peer == "plain"]
    assert sum("Shout the answer." in text for text in texts) == 12 * 2
    with pytest.raises(UserError, match="loud is of peer 'nobody'"):
        generate("w", fakes, voter.replace("plain", "nobody"), "score.label=sample-vote")
    silent = generate("u", fakes, voter, "score.label=own-vote", "score.text=solution", "generate.samples=2")
    assert {row["peer"] for row in silent} == set(PEERS)  # where there is no vote of all
    with opened("v", voter) as run:
        assert set(with_voters(resolve_all(run, 0), run.config)) == set(PEERS)  # nor has its prompt to fit
    with pytest.raises(UserError, match="either wording or templates"):
        generate("w", fakes, 'voters=[{name="loud", peer="plain"}]', "score.label=sample-vote")
    with pytest.raises(UserError, match=r"voters: loud has wording 'x', which is not in"):
        generate("w", fakes, 'voters=[{name="loud", peer="plain", wording="x"}]', "score.label=sample-vote")


@pytest.mark.parametrize("together", [True, False])
def test_responses_to_the_question_alone_are_asked_for_where_they_are_measured(together: bool, three: Path) -> None:
    fakes = Fakes(distinct, together)
    clean = generate("chain", fakes)
    alone = Fakes(distinct, together)
    rows = generate("t", alone, "score.y_source=alone")
    assert [row for row in rows if row["role"] == "chain"] == clean
    prompts = prompts_of("t")
    by_seed = {(peer, seed): prompt for peer, prompt, seed in alone.asked}
    for chain in chains(rows):
        first = next(row["peer"] for row in chain if row["position"] == 1)
        extra = [row for row in chain if row["role"] == "solo"]
        assert sorted(row["peer"] for row in extra) == sorted(set(PEERS) - {first})
        for row in extra:
            text = prompts[row["peer"]].decode(by_seed[row["peer"], request_seed(17, 1, draw_key(row["question"]), 0)])
            assert "Solution 1" not in text and not row["is_aggregate"]


def test_chains_under_another_config_are_refused(three: Path) -> None:
    generate("t", Fakes(distinct, together=True))
    with pytest.raises(UserError, match=r"generate\.order: \"rotate\" -> \"fixed\""):
        generate("t", Fakes(distinct, together=True), "generate.order=fixed")
    path = Path("runs/t/prompts/part-00001.parquet")
    path.unlink()
    with pytest.raises(UserError, match=r"part-00001\.parquet is missing"):
        generate("t", Fakes(distinct, together=True))


def test_chains_are_known_by_whether_peers_are_asked_alone(project: Path) -> None:
    """An ablation links chains from one run into another by this; what else score does changes no chain."""

    def known_by(name: str, *overrides: str) -> dict[str, object]:
        with opened(name, *overrides) as run:
            return stage.fingerprint(run, resolve_all(run, 0))

    chain = known_by("chain")
    assert known_by("alone", "score.y_source=alone") != chain
    assert known_by("mean", "score.scorer=mean") == chain
