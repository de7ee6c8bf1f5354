"""The executor of a Ray cluster: what it refuses, what it reserves, that its rows are those of `local`, and that
nothing is lost or doubled when a process, a node or the command is killed in the middle of a stage."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.config.sections import ExecutorSection, RuntimeSection
from data.errors import UserError
from data.run import Run, open_run
from data.schema import CHAINS, EVALS, SCORES
from peers import ray_cluster, ray_nodes
from peers.local import warm
from peers.ray_cluster import Need, placement_on
from peers.ray_executor import _reason, _refuse_if_too_small
from peers.ray_nodes import Node
from tests.conftest import ROOT, read_stage, run_module
from tests.pipeline.test_resume import (  # noqa: F401
    FOLDERS,
    OTHER,
    ROUND,
    TABLES,
    assert_same,
    environment,
    finished,
    forget,
    one_core,
    times,
)

GIB = 2**30
# What a stage has made when a process of a peer is stopped in the middle of a call.
BEGUN = {
    "generate": "chains/.work/*~{peer}.parquet",
    "score": "scores/.work/passes*{peer}*.parquet",
    "train": "adapters/.work/{peer}/checkpoint.pt",
    # the samples are there: those of the transformers engine depend on what else is in a call
    "evaluate": "evals/.work/current*{peer}*.parquet",
}


def cpu_node(name: str, cpus: float = 4, memory: int = 16 * GIB) -> Node:
    """A node without a GPU."""
    return Node(name, name, cpus, 0, memory, 0)


def gpu_node(name: str, gpus: float, gb: int) -> Node:
    """A node with GPUs of so many GB."""
    return Node(name, name, 64, gpus, 512 * GIB, gb * 10**9)


@pytest.fixture
def run(project: Path) -> Iterator[Run]:
    """A run of two tiny peers."""
    with open_run("w", Path("tiny.toml"), ["executor.kind=ray"]) as opened:
        yield opened


def with_(run: Run, **keys: Any) -> Run:
    """The run with other keys in its section `executor`."""
    section = run.config.executor.model_copy(update=keys)
    return Run(run.name, run.config.model_copy(update={"executor": section}))


def test_without_ray_one_line_says_what_to_install(project: Path) -> None:
    (project / "hidden").mkdir()
    (project / "hidden" / "ray.py").write_text("raise ImportError('no ray here')")
    environment_ = {**os.environ, "PYTHONPATH": f"{project / 'hidden'}{os.pathsep}{ROOT}"}
    command = ["-m", "generate", "--config", "tiny.toml", "--run", "n", "--round", "1", "--set", "executor.kind=ray"]
    done = subprocess.run([sys.executable, *command], env=environment_, cwd=project, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: executor.kind is 'ray', but Ray cannot be imported (no ray here); install it with "
        "`make setup EXTRA=ray`"
    ]


def test_nothing_imports_ray_that_does_not_need_it() -> None:
    code = "import sys, peers.workers, peers.local, peers.command, pipeline.round; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_nothing_is_warmed_up_here_for_processes_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: make setup EXTRA=ray")
    monkeypatch.setattr("peers.local.ensure_running", lambda: pytest.fail("a server was started"))
    warm(run.config, engine=True)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "127.0.0.1:1",
            r"no Ray cluster answers at 127.0.0.1:1 \(.*refused.*\); start its head with `ray start --head",
        ),
        ("ray://10.0.0.1:10001", r"expected HOST:PORT .* \(Ray's client, ray://, does not work"),
        ("head", "expected HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(address: str, words: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: make setup EXTRA=ray")
    with pytest.raises(UserError, match=words):
        ray_cluster.connect(ExecutorSection(kind="ray", address=address), 2)


def test_the_environment_goes_along_but_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_TOKEN", "PST_CACHE", "AWS_SECRET_ACCESS_KEY", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "8")
    passed = ray_cluster._environment(ExecutorSection(cpus_per_worker=3))
    assert passed["HF_HOME"] == passed["PST_CACHE"] == "8" and passed["OMP_NUM_THREADS"] == "3"
    assert passed["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    assert not {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"} & passed.keys()


def test_a_node_that_differs_is_refused(tmp_path: Path) -> None:
    """What the small task says here, and what becomes of each difference."""
    pytest.importorskip("ray", reason="Ray is not installed: make setup EXTRA=ray")
    mark = tmp_path / "mark"
    mark.write_text("x", encoding="ascii")
    ask = (str(ROOT), ray_nodes.PACKAGES, ray_nodes.LIBRARIES)
    here: dict[str, Any] = ray_nodes._look()(*ask, {str(mark): "x"})
    ray_nodes._refuse_if_different("n1", here, here | {"marks": {str(mark): "x"}})
    mark.unlink()
    away = ray_nodes._look()(*ask, {str(mark): "x"})
    with pytest.raises(UserError, match=rf"node n1 does not share {tmp_path}: .* under the same path"):
        ray_nodes._refuse_if_different("n1", away, here)
    for name in ("Python", "Ray", "torch", f"the code in {ROOT}"):
        other = here | {"versions": here["versions"] | {name: "0.1"}}
        with pytest.raises(UserError, match=rf"Ray's node n1 has {name} 0.1, this node has .*: install the same req"):
            ray_nodes._refuse_if_different("n1", other, here)
    nowhere: dict[str, Any] = ray_nodes._look()(str(tmp_path), *ask[1:], {})
    assert nowhere["versions"][f"the code in {tmp_path}"] == "(none)"
    with pytest.raises(UserError, match="node n1 cannot be used: it burns; fix it or stop Ray there"):
        ray_nodes._refuse_if_different("n1", {"error": "it burns"}, here)


def test_processes_have_devices_of_their_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def on(nodes: list[Node], **keys: Any) -> tuple[list[str], list[dict[str, float]]]:
        monkeypatch.setitem(ray_cluster._nodes, run.name, nodes)
        changed = with_(run, **keys)
        placement = placement_on(changed)
        assert len({slot.device for slot in placement.slots}) == len(placement.slots) and not placement.turns
        assert not any(slot.shared for slot in placement.slots)
        bundles = [need.bundle() for need in ray_cluster.needs_of(changed, placement)]
        return [f"{slot.peer}{slot.replica}" for slot in placement.slots], bundles

    names, bundles = on([cpu_node("a"), cpu_node("b")])
    assert names == ["chatty0", "plain0"]
    assert [(b["CPU"], b.get("GPU"), b["memory"] / GIB) for b in bundles] == [(1, None, 4), (1, None, 4)]
    names, bundles = on([cpu_node("a"), cpu_node("b", memory=8 * GIB)], workers=2, cpus_per_worker=3)
    assert names == ["chatty0", "plain0", "chatty1", "plain1"] and {b["CPU"] for b in bundles} == {3}
    names, bundles = on([gpu_node("a", 2, 80), gpu_node("b", 1, 24), cpu_node("c")])
    assert names == ["chatty0", "plain0", "chatty1"] and bundles == [{"CPU": 1, "GPU": 1}] * 3
    assert len(on([gpu_node("a", 2, 80)], gpus_per_worker=0.5)[0]) == 4
    assert len(on([gpu_node("a", 2, 80)], workers=1)[0]) == 2
    assert on([gpu_node("a", 2, 80)], gpus_per_worker=0.0)[1][0].get("GPU") is None
    with pytest.raises(UserError, match=r"room for 1 processes .*gpus_per_worker=auto, but 2 are needed: add nodes"):
        on([gpu_node("a", 1, 80), cpu_node("b")])


def test_no_memory_is_reserved_where_the_user_has_seen_to_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ray_cluster._nodes, run.name, [cpu_node("a")])
    runtime = RuntimeSection(resident="all")
    changed = Run(run.name, run.config.model_copy(update={"runtime": runtime}))
    assert ray_cluster.needs_of(changed, placement_on(changed)) == [Need(1, 0), Need(1, 0)]


def test_what_an_empty_cluster_cannot_hold_is_refused() -> None:
    two = [Need(2, 0, GIB)] * 2
    _refuse_if_too_small(two, [cpu_node("a", 2), cpu_node("b", 3)])
    _refuse_if_too_small(two, [cpu_node("a", 4)])
    for nodes in ([cpu_node("a", 2), cpu_node("b", 1)], [cpu_node("a", 8, GIB)], [], [cpu_node("a", 3)]):
        with pytest.raises(
            UserError, match=r"too small: 2 processes need 2 x \(2 CPU, 1 GiB\), .*; add nodes, or lower"
        ):
            _refuse_if_too_small(two, nodes)
    with pytest.raises(UserError, match=r"2 x \(1 CPU, 1 GPU\), each on one node, and it has a: 4 CPU, 16 GiB;"):
        _refuse_if_too_small([Need(1, 1)] * 2, [cpu_node("a")])


def test_a_death_is_told_in_a_few_words() -> None:
    told = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: A\n\tpid: 5154\n\tip: 10.0.0.2\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: x"
    )
    assert _reason(RuntimeError(told)) == "its worker process has died, node 10.0.0.2"
    assert _reason(RuntimeError("The actor died because its node has died. Node Id: 7")) == "its node has died"
    assert _reason(KeyError("x")) == "KeyError"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three raylets of two cores, each with its own object store."""
    pytest.importorskip("ray", reason="Ray is not installed: make setup EXTRA=ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **NODE})
    for _ in range(2):
        made.add_node(**NODE)
    yield made
    made.shutdown()


NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 80 * 2**20}


def on(cluster: Any, *more: str) -> list[str]:
    """The options of a command that uses a cluster."""
    pairs = ["executor.kind=ray", f"executor.address={cluster.address}", *more]
    return [word for pair in pairs for word in ("--set", pair)]


def assert_same_rounds(left: Path, right: Path) -> None:
    """Rows of all stages that both have: texts equal, scores to 1e-5, adapters to 1e-4."""
    from safetensors.torch import load_file

    for folder, schema in (("chains", CHAINS), ("scores", SCORES), ("evals", EVALS)):
        if (right / folder).is_dir():
            assert_same(read_stage(left / folder, schema), read_stage(right / folder, schema), 1e-5)
    for path in right.glob("adapters/*/adapter_model.safetensors"):
        a, b = load_file(left / path.relative_to(right)), load_file(path)
        assert a.keys() == b.keys() and max((a[name] - b[name]).abs().max().item() for name in a) <= 1e-4
    assert len(list(left.glob("adapters/*/*"))) == len(list(right.glob("adapters/*/*")))


@pytest.mark.slow
def test_two_rounds_are_those_of_local(cluster: Any, project: Path) -> None:
    for name, options in (("l", []), ("r", on(cluster)), ("two", on(cluster, "executor.workers=2"))):
        for number in ("1", "2"):
            done = run_module(
                "pipeline.round", "--config", "tiny.toml", "--run", name, "--round", number, *options, cwd=project
            )
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
            assert f"generate round {number}: 48 rows" in done.stdout  # what is printed comes through
    for round_ in (0, 1, 2):
        assert_same_rounds(Path(f"runs/l/round={round_}"), Path(f"runs/r/round={round_}"))
        assert_same_rounds(Path(f"runs/l/round={round_}"), Path(f"runs/two/round={round_}"))
    log = Path("runs/r/round=0/logs/evaluate.log").read_text(encoding="utf-8")
    assert log.count("peer chatty: process ") == log.count("peer plain: process ") == 1
    assert not Path("runs/r/.workers").exists()


def processes_of(run: Path, peer: str) -> list[int]:
    """Numbers of a peer's processes."""
    text = "".join(log.read_text(encoding="utf-8") for log in sorted(run.glob("round=*/logs/*.log")))
    return [int(number) for number in re.findall(rf"peer {peer}: process (\d+) ", text)]  # a bar may stand before it


def stopped_in(name: str, options: list[str], spared: set[int]) -> tuple[subprocess.Popen[str], int]:
    """Start a stage of run t, and stop a peer's process in the middle of a call: the command, and that process.
    Those whose parents are `spared` are not taken."""
    command = [sys.executable, "-m", name, "--config", "tiny.toml", "--run", "t", "--round", "1", *options]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    begun = {peer: times(ROUND, BEGUN[name].format(peer=peer)) for peer in ("chatty", "plain")}
    before = {peer: processes_of(Path("runs/t"), peer) for peer in begun}
    deadline = time.monotonic() + 200
    while True:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        for peer in begun:
            if times(ROUND, BEGUN[name].format(peer=peer)) - begun[peer]:
                new = [pid for pid in processes_of(Path("runs/t"), peer) if pid not in before[peer]]
                victim = new[-1]
                if psutil.Process(victim).ppid() not in spared:
                    os.kill(victim, signal.SIGSTOP)
                    return process, victim
        time.sleep(0.001)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; its parent need not have been told."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("what", ["worker", "node", "driver"])
def test_what_is_killed_in_a_stage_loses_and_doubles_nothing(
    what: str, name: str, cluster: Any, finished: Path  # noqa: F811
) -> None:  # fmt: skip
    forget(name)
    raylets = {node: node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
    process, victim = stopped_in(name, on(cluster), {raylets[cluster.head_node]} if what == "node" else set())
    if what == "driver":
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        deadline = time.monotonic() + 20
        numbers = {pid for peer in ("chatty", "plain") for pid in processes_of(Path("runs/t"), peer)}
        while not all(map(is_gone, numbers)):  # the one that is stopped, too
            assert time.monotonic() < deadline, "a process goes on without its command"
            time.sleep(0.05)
        kept = times(ROUND / FOLDERS[name], "**/*.parquet")
        assert not (ROUND / FOLDERS[name] / "_SUCCESS.json").exists()
        time.sleep(1)
        assert times(ROUND / FOLDERS[name], "**/*.parquet") == kept
        done = subprocess.run(process.args, env=environment(), capture_output=True, text=True, timeout=200)
        status, out, err = done.returncode, done.stdout, done.stderr
    else:
        if what == "worker":
            os.kill(victim, signal.SIGKILL)
        else:
            node = next(node for node, pid in raylets.items() if pid == psutil.Process(victim).ppid())
            cluster.remove_node(node, allow_graceful=False)
            os.kill(victim, signal.SIGCONT)  # with its raylet gone it ends by itself
        out, err = process.communicate(timeout=200)
        status = process.returncode
        assert "its process died (" in out, out
        if what == "node":
            assert is_gone(victim)
            cluster.add_node(**NODE)
    assert status == 0, err
    assert not (ROUND / FOLDERS[name] / ".work").exists() and not Path("runs/t/.workers").exists()
    if name == "train":
        assert_same_rounds(OTHER, ROUND)
        for peer in ("chatty", "plain"):
            reports = [json.loads((p / "adapters" / peer / "training.json").read_text()) for p in (ROUND, OTHER)]
            assert len(reports[0]["losses"]) == len(reports[1]["losses"]) > 8
            assert reports[0]["examples"] == reports[1]["examples"]
    else:
        schema, tolerance = TABLES[name]
        left, right = (read_stage(path / FOLDERS[name], schema) for path in (ROUND, OTHER))
        assert_same(left, right, max(tolerance, 1e-5))


@pytest.mark.slow
def test_a_cluster_that_is_too_small_or_full_is_told_of(
    cluster: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = run_module(
        "generate", "--config", "tiny.toml", "--run", "s", "--round", "1", *on(cluster, "executor.cpus_per_worker=3"),
        cwd=project,
    )  # fmt: skip
    assert small.returncode == 2
    assert small.stderr.startswith("error: the Ray cluster is too small: 2 processes need 2 x (3 CPU, 4 GiB), each on")
    assert len(small.stderr.splitlines()) == 1


@pytest.mark.slow
def test_control_c_ends_the_processes_elsewhere(cluster: Any, finished: Path) -> None:  # noqa: F811
    forget("generate")
    process, victim = stopped_in("generate", on(cluster), set())
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines() == ["interrupted: run the same command again to go on where it stopped"]
    assert is_gone(victim) and not Path("runs/t/.workers").exists()
