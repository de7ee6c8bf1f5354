"""One poisoned question is lost, with its reason; too many stop the stage, and the same command continues it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import generate.stage
import peers.logprob.scoring
import peers.policy_cache
import score.stage
from bench.data_plane import BankEngine
from data import quarantine, shards
from data.answers.grader import Grader
from data.errors import UserError
from data.run import Run, open_run
from data.schema import CHAINS, QUARANTINE, SCORES
from data.shards import Row
from data.sums import read_sums
from data.task import Advance
from peers.engines.protocol import Completion, Engine, Request, Sampling, complete
from peers.faults import Fault, NotFinite, isolate_faults
from tests.conftest import read_stage
from tests.fake_engine import Inline
from tests.pipeline.test_streaming import with_fakes

OVERRIDES = ["generate.max_new_tokens=64"]


def failing(bad: set[int]) -> tuple[Callable[..., list[int]], list[int]]:
    """Work that fails on any of some numbers, and the sizes of its calls."""
    calls: list[int] = []

    def work(items: Sequence[int], advance: Advance) -> list[int]:
        calls.append(len(items))
        advance(1, 5)  # some of it, before it fails
        if found := bad & set(items):
            raise RuntimeError(f"no {min(found)}\nmore")
        advance(len(items) - 1, 0)
        return [10 * item for item in items]

    return work, calls


@pytest.mark.parametrize("bad", [set(), {0}, {99}, {3, 4, 70}])
def test_the_guilty_ones_are_found_by_halving(bad: set[int]) -> None:
    work, calls = failing(bad)
    told: list[int] = []
    found = isolate_faults(range(100), work, 5, lambda items, _: told.append(items))
    expected = [Fault(f"RuntimeError: no {n}") if n in bad else 10 * n for n in range(100)]
    assert found == expected and sum(told) == 100
    assert len(calls) == 1 if not bad else len(calls) <= 1 + 2 * len(bad) * 7


def test_what_nothing_can_be_done_of_is_an_error_as_ever() -> None:
    work, calls = failing(set(range(100)))
    with pytest.raises(RuntimeError, match="no 3"):
        isolate_faults(range(100), work, 3, lambda *_: None)
    assert len(calls) < 20
    work, _ = failing({0, 1})
    with pytest.raises(RuntimeError, match="no 1"):
        isolate_faults(range(2), work, 10, lambda *_: None)
    assert isolate_faults(range(1), work, 10, lambda *_: None) == [Fault("RuntimeError: no 0")]
    work, _ = failing(set(range(10, 20)))
    with pytest.raises(UserError, match=r"^4 of 100 requests failed even alone; at most 3 may .*RuntimeError: no 10"):
        isolate_faults(range(100), work, 3, lambda *_: None)


def test_logits_that_are_no_numbers_are_of_one_request_or_of_all() -> None:
    def work(items: Sequence[int], _: Advance) -> list[int]:
        if 3 in items:
            raise NotFinite("damaged")
        return list(items)

    assert isolate_faults(range(5), work, 10, lambda *_: None)[3] == Fault("NotFinite: damaged")
    with pytest.raises(UserError, match="damaged"):
        isolate_faults([3, 3], work, 10, lambda *_: None)


@pytest.mark.parametrize("error", [UserError("told"), OSError(28, "No space left on device")])
def test_what_says_what_to_do_is_no_fault_of_an_item(error: Exception) -> None:
    def work(*_: object) -> list[int]:
        raise error

    with pytest.raises(type(error)):
        isolate_faults(range(4), work, 10, lambda *_: None)


def test_without_leave_an_engines_error_is_raised() -> None:
    class Bad:
        def generate(self, *_: object) -> list[Completion]:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        complete(Bad, [[1]], [0], Sampling(0, 1, 4), 10, lambda *_: None)  # type: ignore[arg-type]
    (found,) = complete(Bad, [[1]], [0], Sampling(0, 1, 4), 10, lambda *_: None, 10)  # type: ignore[arg-type]
    assert found == Completion([], "", 0.0, "error", "RuntimeError: no")


def test_how_many_may_be_lost() -> None:
    assert [quarantine.allowed(0.01, n) for n in (0, 100, 1000, 1001, 100_000)] == [10, 10, 10, 11, 1000]
    assert quarantine.allowed(0, 100_000) == 0


class Poisoned(BankEngine):
    """Fails on every batch that has a request of a peer for one of some questions."""

    peer = "plain"
    texts: tuple[str, ...] = ("Tom has 3 pens",)

    def generate(self, requests: Sequence[Request], sampling: Sampling, advance: Advance) -> list[Completion]:
        """See `Engine.generate`."""
        texts = [self.prompts.decode(request.prompt) for request in requests]
        if self.prompts.peer.name == self.peer and any(bad in text for text in texts for bad in self.texts):
            raise ValueError("poisoned")
        return super().generate(requests, sampling, advance)

    def __init__(self, prompts: Any) -> None:
        super().__init__(prompts)
        self.prompts = prompts


def generated(name: str, *overrides: str) -> tuple[list[Row], Row]:
    """Rows and manifest of generate, which is done, or gone on with."""
    with open_run(name, Path("tiny.toml"), [*OVERRIDES, *overrides]) as run:
        generate.stage.main(run, 1, Inline(run))
        return read_stage(run.stage_dir(1, "chains"), CHAINS), manifest_of(run, "chains")


def manifest_of(run: Run, kind: str) -> Row:
    """Of a finished stage."""
    found = shards.read_manifest(run.stage_dir(1, kind))
    assert found is not None
    return found


def lost(name: str) -> list[tuple[str, str | None, str, str | None]]:
    """(stage, peer, reason, detail) of the rows of quarantine.parquet."""
    rows = shards.read_rows(Path(f"runs/{name}/round=1/quarantine.parquet"), QUARANTINE)
    return [(row["stage"], row["peer"], row["reason"], row["detail"]) for row in rows]


@pytest.fixture
def poisoned(project: Path, monkeypatch: pytest.MonkeyPatch) -> type[Poisoned]:
    """An engine that fails on one question, and a scorer without a model."""
    with_fakes(monkeypatch)
    kind = type("Mine", (Poisoned,), {})

    def engine(policy: Any, _: Any) -> Engine:
        return kind(policy.prompts)  # type: ignore[no-any-return]

    monkeypatch.setattr(peers.policy_cache, "engine", engine)
    return kind


def test_a_poisoned_question_costs_itself(poisoned: type[Poisoned], capsys: pytest.CaptureFixture[str]) -> None:
    rows, manifest = generated("t")
    bad = [row for row in rows if row["finish_reason"] == "error"]
    assert [(row["peer"], row["response"], row["answer"], row["token_ids"]) for row in bad] == [("plain", "", None, [])]
    assert manifest["quarantined"] == {"engine_error": 1} and "quarantined engine_error 1" in capsys.readouterr().out
    assert lost("t") == [("generate", "plain", "engine_error", "ValueError: poisoned")]
    assert list(read_sums(Path("runs/t/round=1"))) == ["quarantine.parquet"]
    poisoned.texts = ()
    clean, manifest = generated("u")
    assert "quarantined" not in manifest and not Path("runs/u/round=1/quarantine.parquet").exists()
    others = [[row for row in each if row["prompt_id"] != bad[0]["prompt_id"]] for each in (rows, clean)]
    assert others[0] == others[1] and len(others[0]) == 46
    with open_run("t", None, []) as run:
        score.stage.main(run, 1, Inline(run))
        scores = read_stage(run.stage_dir(1, "scores"), SCORES)
    about = {row["peer"]: row["drop_reason"] for row in scores if row["prompt_id"] == bad[0]["prompt_id"]}
    assert about["plain"] == "response_empty" and sum(row["weight"] is not None for row in scores) >= 20
    assert quarantine.lines_of(Path("runs/t")) == [
        "generate round 1: quarantined engine_error 1 (runs/t/round=1/quarantine.parquet)"
    ]


def test_a_stage_that_is_linked_brings_its_reasons(poisoned: type[Poisoned]) -> None:
    from pipeline.reuse import link_stage

    generated("t")
    poisoned.texts = ()
    generated("u", "prompts.limit=3")
    assert not Path("runs/u/round=1/quarantine.parquet").exists()
    with open_run("u", None, []) as run:
        link_stage("t", run, "generate", 1)
    assert lost("u") == lost("t") and list(read_sums(Path("runs/u/round=1"))) == ["quarantine.parquet"]


def test_a_kill_loses_no_reason(poisoned: type[Poisoned], monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is on disk before the unit, and what is done is not asked again."""
    write_rows, write_json = shards.write_rows, shards.write_json

    def killed_after_the_unit(rows: Any, path: Path, schema: Any) -> None:
        write_rows(rows, path, schema)
        if quarantine.notes_of(path).is_file():
            raise KeyboardInterrupt

    def killed_at_the_note(value: Any, path: Path) -> None:
        if path.name.endswith(quarantine.NOTES):
            raise KeyboardInterrupt
        write_json(value, path)

    for name, killed in (("write_json", killed_at_the_note), ("write_rows", killed_after_the_unit)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(shards, name, killed)
            generated("t")
    poisoned.texts = ()
    assert generated("t")[1]["quarantined"] == {"engine_error": 1}
    assert lost("t") == [("generate", "plain", "engine_error", "ValueError: poisoned")]


def test_too_many_stop_the_stage_which_goes_on_once_the_cause_is_gone(poisoned: type[Poisoned]) -> None:
    poisoned.texts = ("Tom has 3 pens", "Tom has 11 pens", "Tom has 19 pens")  # of all three shards, some
    poisoned.texts += tuple(f"Tom has {n} pens" for n in range(20, 24))
    told = (
        r"^generate round 1: 3 of 24 questions are quarantined, 0 may be: engine_error 3 "
        r"\(such as: ValueError: poisoned\)\. Finished work is kept: run the same command again .* raise "
        r"runtime\.quarantine_share \(0\)"
    )
    with pytest.raises((UserError, ValueError), match=r"1 of \d+ requests failed even alone; at most 0 may|^poisoned"):
        generated("t", "runtime.quarantine_share=0")
    quarantined = quarantine.allowed
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=told):
        patch.setattr(quarantine, "allowed", lambda share, n: 0 if n == 24 else quarantined(0.01, n))
        generated("t", "runtime.quarantine_share=0")
    done = set(Path("runs/t/round=1/chains").rglob("*.parquet"))
    assert done and not Path("runs/t/round=1/chains/_SUCCESS.json").exists()
    times = {path: path.stat().st_mtime_ns for path in done}
    poisoned.texts = ()
    rows, manifest = generated("t", "runtime.quarantine_share=0")
    assert "quarantined" not in manifest and rows == generated("u")[0]
    assert all(
        path.stat().st_mtime_ns == times[path] for path in done if path.is_file() and path.parent.name != ".work"
    )


def test_a_larger_share_goes_on_without_them(poisoned: type[Poisoned], monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned.texts = tuple(f"Tom has {n} pens" for n in range(0, 24, 3))
    monkeypatch.setattr(quarantine, "MIN_ALLOWED", 5)
    with pytest.raises(UserError, match=r"^generate round 1: \d+ of 24 questions are quarantined, 5 may be"):
        generated("t")
    rows, manifest = generated("t", "runtime.quarantine_share=0.6")
    assert manifest["quarantined"] == {"engine_error": 8}
    assert sum(row["finish_reason"] == "error" for row in rows) == 8 and len(rows) == 48


def test_all_questions_lost_stop_the_stage_however_few(poisoned: type[Poisoned]) -> None:
    poisoned.texts = ("Tom has",)
    with pytest.raises((UserError, ValueError), match=r"poisoned"):
        generated("t", "prompts.limit=2", "run.shard_questions=1")


def test_what_is_too_long_or_compared_in_vain_is_listed(
    poisoned: type[Poisoned], monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    poisoned.texts = ()
    long = '{"question": "Tom has ' + "many " * 600 + 'pens. How many?", "answer": "1"}\n'
    with (project / "train.jsonl").open("a") as file:
        file.write(long)

    def hangs(self: Grader, pairs: Sequence[Any]) -> Any:
        yield from ((pair, None) for pair in pairs)

    monkeypatch.setattr(Grader, "_verify", hangs)
    monkeypatch.setattr("data.answers.kinds.Mathematics.right", lambda *_: None, raising=False)
    with open_run("t", Path("tiny.toml"), [*OVERRIDES, "generate.aggregate=vote"]) as run:
        generate.stage.main(run, 1, Inline(run))
        counts = manifest_of(run, "chains")["quarantined"]
    assert counts["too_long"] == 1
    (detail,) = [detail for _, _, reason, detail in lost("t") if reason == "too_long"]
    assert detail is not None and "room for 448" in detail


def test_answers_compared_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    with Grader(1, 1) as grader:
        monkeypatch.setattr(grader, "_verify", lambda pairs: ((pair, None) for pair in pairs))
        assert grader.equivalent([(r"\sqrt{x+1}", r"\sqrt{1+x}")], "math") == [None]
        assert grader.failed_on([None, r"\sqrt{1+x}", r"\sqrt{x+1}"], "math")
        assert not grader.failed_on([r"\sqrt{1+x}", "7", None], "math")
        grader.forget()
        assert not grader.failed_on([r"\sqrt{1+x}", r"\sqrt{x+1}"], "math")


def test_a_pass_that_fails_or_is_no_number_costs_its_pair(
    poisoned: type[Poisoned], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned.texts = ()
    generated("t")
    finite = peers.logprob.scoring.score_pairs

    def spoilt(lm: Any, pairs: Any, *rest: Any) -> list[list[float]]:
        keys = [(len(pair.prompt), tuple(pair.prompt)) for pair in pairs]
        if worst in keys:
            raise IndexError("index out of range in self")
        return [[math.nan] * len(pair.target) if key == second else found
                for key, pair, found in zip(keys, pairs, finite(lm, pairs, *rest), strict=True)]  # fmt: skip

    with open_run("t", None, []) as run:
        scoring = score.stage.Scoring(run, 1, peers.policy.resolve_all(run, 0))
        clean = Inline(run)
        with Grader(5, 1) as grader:
            scoring.choose(clean, grader, quarantine.Quarantine(run, stage_of(run), 24))
        pairs = scoring.passes.pairs("chatty", 1)[1]
        prompts = sorted({(len(pair.prompt), tuple(pair.prompt)) for pair in pairs})
        worst, second = prompts[-1], prompts[0]
        monkeypatch.setattr("peers.logprob.scoring.score_pairs", spoilt)
        score.stage.main(run, 1, Inline(run))
        rows, counts = read_stage(run.stage_dir(1, "scores"), SCORES), manifest_of(run, "scores")["quarantined"]
    assert counts == {"score_error": 1, "score_not_finite": 1}
    assert "quarantined score_error 1, score_not_finite 1" in capsys.readouterr().out
    assert ("score", "chatty", "score_error", "IndexError: index out of range in self") in lost("t")
    dropped = [row for row in rows if row["drop_reason"] == "score_not_finite"]
    assert 1 <= len(dropped) <= 4 and {row["peer"] for row in dropped} == {"chatty"}


def stage_of(run: Run) -> Any:
    """The score stage, as far as a quarantine needs it."""
    return type("S", (), {"work": run.stage_dir(1, "scores") / ".work", "title": "score round 1", "name": "score"})


def test_a_scorer_without_a_number_stops_the_stage(poisoned: type[Poisoned], monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned.texts = ()
    generated("t")
    finite = peers.logprob.scoring.score_pairs

    def spoilt(lm: Any, pairs: Any, *rest: Any) -> list[list[float]]:
        return [[math.nan] * len(each) for each in finite(lm, pairs, *rest)]

    def scored() -> None:
        with open_run("t", None, []) as run:
            score.stage.main(run, 1, Inline(run))

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"score round 1: \d+ of 24 .* score_not_finite"),
    ):
        patch.setattr("peers.logprob.scoring.score_pairs", spoilt)
        scored()
    scored()  # now it has numbers: the passes without one are made again
    with open_run("t", None, []) as run:
        assert "quarantined" not in manifest_of(run, "scores")
    assert not Path("runs/t/round=1/quarantine.parquet").exists()
