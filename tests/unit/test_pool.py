"""Who is given which call when: units, replicas, turns on a GPU, and processes that die; without processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.run import Run, open_run
from data.task import Task
from peers import policy_cache
from peers.devices import Device
from peers.placement import Placement, Slot
from peers.workers import Pool, Work

CPU, GPU = Device("cpu", 2**34, "CPU"), Device("0", 2**36, "GPU")


def work(*_: Any) -> None:
    """Never called: the workers here have no process."""


class Worker:
    """A worker that records its jobs and finishes at once."""

    def __init__(self, slot: Slot, executor: Scripted) -> None:
        self.slot, self.executor = slot, executor
        self.given: deque[tuple[Work, tuple[Any, ...]]] = deque()

    def send(self, log: Path | None, work: Work, arguments: tuple[Any, ...]) -> bool:
        """See `peers.workers.Worker.send`."""
        self.given.append((work, arguments))
        self.executor.told.append((self.slot.peer, self.slot.replica, self.executor.name_of(work), arguments))
        return True

    def end(self) -> None:
        """See `peers.workers.Worker.end`."""
        self.executor.told.append((self.slot.peer, self.slot.replica, "end", ()))


class Scripted:
    """An executor whose workers die as often as they are told to."""

    def __init__(self, dying: int = 0, deaths: int = 2) -> None:
        self.told: list[tuple[str, int, str, tuple[Any, ...]]] = []
        self.dying, self.deaths = dying, deaths

    def name_of(self, work: Work) -> str:
        """Of a call."""
        return "rest" if work is policy_cache.sleep else "work"

    def start(self, run: Run, slot: Slot) -> Worker:
        """See `Executor.start`."""
        assert run.config.runtime.max_num_seqs > 0
        return Worker(slot, self)

    def messages(self, workers: Sequence[Worker]) -> Iterator[tuple[Worker, str, Any]]:
        """See `Executor.messages`: of the first worker only."""
        worker = workers[0]
        worker.given.popleft()
        yield worker, "advance", (1, 10)
        if self.dying:
            self.dying -= 1
            yield worker, "died", "exit code -9"
        else:
            yield worker, "done", None

    def close(self) -> None:
        """Nothing to release."""


@pytest.fixture
def run(project: Path) -> Iterator[Run]:
    """A run of two peers, chatty and plain."""
    with open_run("w", Path("tiny.toml"), ["runtime.max_num_seqs=4"]) as opened:
        yield opened


def pool(run: Run, executor: Scripted, slots: list[Slot], turns: frozenset[str] = frozenset()) -> Pool:
    """A pool whose placement and executor are given."""
    made = Pool(run)
    in_turns = frozenset(each.device for each in slots if each.device.name in turns)
    vars(made).update(seeded=True, placement=Placement(tuple(slots), in_turns, ()), executor=executor)
    return made


def slot(peer: str, replica: int = 0, device: Device = CPU) -> Slot:
    """A place for a process."""
    return Slot(peer, replica, device, 2**30, False)


def test_units_that_are_ready_go_in_one_call_up_to_what_an_engine_does_well(run: Run) -> None:
    executor = Scripted()
    with pool(run, executor, [slot("chatty"), slot("plain")]) as workers:
        workers.submit("chatty", work, "a", units=range(5), requests=6)  # 4 batches of 4 requests: two units a call
        workers.submit("chatty", work, "b", units=[7])
        workers.submit("chatty", work, "b")
        done = [(job.arguments, job.units) for job, _ in workers.results()]
    assert done == [(("a",), (0, 1)), (("a",), (2, 3)), (("a",), (4,)), (("b",), (7,)), (("b",), ())]
    assert [arguments for *_, arguments in executor.told][-3:-1] == [("b", [7]), ("b",)]


def test_units_of_an_engine_that_draws_by_the_batch_go_alone(run: Run) -> None:
    executor = Scripted()
    with pool(run, executor, [slot("chatty"), slot("plain")]) as workers:
        del workers.seeded
        assert not workers.seeded  # transformers
        workers.submit("chatty", work, units=range(3), requests=1)
        assert [job.units for job, _ in workers.results()] == [(0,), (1,), (2,)]


def test_units_that_ask_no_engine_are_shared_out_evenly(run: Run) -> None:
    executor = Scripted()
    with pool(run, executor, [slot("chatty"), slot("plain"), slot("chatty", 1)]) as workers:
        workers.submit("chatty", work, units=range(5))
        assert len(list(workers.results())) == 3
    given = [(replica, *arguments) for _, replica, what, arguments in executor.told if what == "work"]
    assert given == [(0, [0, 1, 2]), (1, [3]), (0, [4])]


def test_on_a_gpu_the_peer_that_waits_sleeps_and_no_process_ends(run: Run) -> None:
    executor = Scripted()
    with pool(run, executor, [slot("chatty", 0, GPU), slot("plain", 0, GPU)], frozenset([GPU.name])) as workers:
        for number in (1, 2):
            workers.submit("chatty", work, number)
            workers.submit("plain", work, number)
        list(workers.results())
        workers.release()
        assert [(peer, what) for peer, _, what, _ in executor.told] == [
            ("chatty", "work"), ("chatty", "work"), ("chatty", "rest"), ("plain", "work"), ("plain", "work"),
        ]  # fmt: skip
        workers.submit("chatty", work, 3)
        list(workers.results())
    told = [(peer, what) for peer, _, what, _ in executor.told]
    assert told[5:7] == [("plain", "rest"), ("chatty", "work")] and [what for _, what in told[7:]] == ["end", "end"]


@pytest.mark.parametrize("device", [CPU, GPU])
def test_what_is_loaded_is_used_as_long_as_there_is_work_for_it(run: Run, device: Device) -> None:
    executor = Scripted()
    slots = [slot("chatty", 0, device), slot("plain", 0, device)]
    with pool(run, executor, slots, frozenset([device.name])) as workers:
        for number in (1, 2):
            workers.submit("plain", work, number)
        for job, _ in workers.results():
            if job.arguments == (1,):
                workers.submit("chatty", work, 3)
    assert [peer for peer, _, what, _ in executor.told if what == "work"] == ["plain", "plain", "chatty"]


def test_on_a_cpu_the_peer_that_waits_is_ended(run: Run) -> None:
    executor = Scripted()
    with pool(run, executor, [slot("chatty"), slot("plain")], frozenset([CPU.name])) as workers:
        workers.submit("chatty", work)
        workers.submit("plain", work)
        list(workers.results())
        workers.release()
    told = [(peer, what) for peer, _, what, _ in executor.told]
    assert told == [("chatty", "work"), ("chatty", "end"), ("plain", "work"), ("plain", "end")]


def test_the_call_of_a_dead_process_is_done_by_another(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    executor, line = Scripted(dying=1), Task("t", 3, "things")
    with pool(run, executor, [slot("chatty"), slot("plain")]) as workers:
        workers.submit("chatty", work, units=[1, 2, 3], requests=2)
        assert [(job.units, job.requests) for job, _ in workers.results(line)] == [((n,), 2) for n in (1, 2, 3)]
    assert [what for _, _, what, _ in executor.told] == ["work", "end", *["work"] * 3, "end"]
    assert (line.done, line.tokens) == (3, 30)  # what the dead have told counts no longer
    assert "peer chatty: its process died (exit code -9); starting another one" in capsys.readouterr().out


@pytest.mark.parametrize("deaths", [2, 3])
@pytest.mark.parametrize("units", [None, [1, 2]])
def test_too_many_deaths_at_the_same_work_end_the_stage(run: Run, deaths: int, units: list[int] | None) -> None:
    executor = Scripted(dying=99, deaths=deaths)
    told = rf"peer chatty was killed {deaths} times at the same work \(exit code -9;"
    with pool(run, executor, [slot("chatty"), slot("plain")]) as workers:
        workers.submit("chatty", work, units=units, requests=1)
        with pytest.raises(UserError, match=told):
            list(workers.results())
    assert [what for _, _, what, _ in executor.told].count("work") == deaths


def test_deaths_at_other_work_do_not_add_up(run: Run) -> None:
    class Now(Scripted):
        """Every other call dies: each job once."""

        def messages(self, workers: Sequence[Worker]) -> Iterator[tuple[Worker, str, Any]]:
            self.dying = [what for _, _, what, _ in self.told].count("work") % 2
            yield from super().messages(workers)

    with pool(run, Now(), [slot("chatty"), slot("plain")]) as workers:
        for number in range(3):
            workers.submit("chatty", work, number)
        assert [(job.arguments, job.deaths) for job, _ in workers.results()] == [((n,), 1) for n in range(3)]
