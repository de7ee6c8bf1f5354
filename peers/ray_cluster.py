"""The Ray cluster that a run uses: the connection, its devices, and what Ray reserves for each process."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from typing import Any

from data.config.sections import ExecutorSection
from data.console import console
from data.errors import UserError
from data.run import Run
from peers.devices import CPU, Device, cores
from peers.memory import GIB
from peers.placement import CPU_COPIES, CPU_EACH, CPU_SHARE, Placement, place, shapes_of
from peers.ray_nodes import ROOT, Node, checked

PASSED = ("PST_", "HF_", "VLLM_", "TORCH", "TOKENIZERS_", "DO_NOT_TRACK", "THP_MEM_", "MKL_", "OMP_", "LD_", "PATH")


@dataclass(frozen=True)
class Need:
    """What Ray reserves for one process."""

    cpus: float
    gpus: float
    memory: int = 0  # bytes; 0: not reserved

    def bundle(self) -> dict[str, float]:
        """The need as Ray's bundle of resources."""
        named = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: amount for name, amount in named.items() if amount}

    def fit_in(self, node: Node) -> int:
        """How many such processes an empty node can hold."""
        pairs = ((node.cpus, self.cpus), (node.gpus, self.gpus), (node.memory, self.memory))
        return min(int(there / each + 1e-6) for there, each in pairs if each)


_nodes: dict[str, list[Node]] = {}  # by the name of the run for which they were checked


def nodes_of(run: Run) -> list[Node]:
    """Connect to the cluster; its nodes, which are checked once per run. Raises UserError."""
    if run.name not in _nodes:
        ray = connect(run.config.executor, len(run.config.peers))
        _nodes[run.name] = checked(ray, run)
    return _nodes[run.name]


def disconnect() -> None:
    """Leave the cluster; this ends a cluster that was started here."""
    _nodes.clear()
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def load_ray() -> Any:
    """The module `ray`. Raises UserError if it cannot be imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"executor.kind is 'ray', but Ray cannot be imported ({error}); install it with `make setup EXTRA=ray`"
        ) from None
    return ray


def connect(section: ExecutorSection, peers: int) -> Any:
    """The module `ray`, connected to the cluster. Without an address and if none is found, Ray is started here, with at
    least a core for each process, as without Ray. Raises UserError."""
    ray = load_ray()
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "error",
        "include_dashboard": False,
        "namespace": "pst",
        "runtime_env": {"env_vars": _environment(section)},
    }
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
    except Exception as error:  # Ray has no kind of error that means only "no cluster"
        raise _no_cluster(address, error) from None
    return ray


def _check_address(address: str) -> None:
    """Raises UserError unless a cluster listens at the address: Ray itself would try for a minute and print a lot."""
    host, _, port = address.rpartition(":")
    if address in ("auto", "local"):
        return
    if "://" in address or not host or not port.isdigit():
        raise UserError(
            f"executor.address {address!r}: expected HOST:PORT of the cluster's head, such as 10.0.0.1:6379; run the "
            "command on one of the cluster's nodes (Ray's client, ray://, does not work)"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return UserError(
        f"no Ray cluster answers at {address} ({reason}); start its head with `ray start --head --port=6379`, the "
        "other nodes and this one with `ray start --address=HEAD:6379`, and set executor.address to the head's address"
    )


def _environment(section: ExecutorSection) -> dict[str, str]:
    """Environment variables to pass on, since the processes do not inherit this one's; no secrets."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PASSED) and not name.endswith(("_TOKEN", "_KEY", "_SECRET", "_PASSWORD"))
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**passed, "PYTHONPATH": path, "OMP_NUM_THREADS": str(section.cpus_per_worker or 1)}


def ray_devices(run: Run) -> list[Device]:
    """A device for each process that the cluster can hold; on CPUs, for each process that the config requests.

    Ray decides which process gets which node, so all devices count as large as the smallest.
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
    """`peers.placement.placement_of` on the cluster: each process has a device of its own, so processes do not take
    turns; engine and model do if they do not fit the device side by side. Raises UserError."""
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
    """What Ray reserves for each slot. On CPUs also memory, unless the user decided with `runtime.resident`: as much as
    a process may take, but no more than a node has."""
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
