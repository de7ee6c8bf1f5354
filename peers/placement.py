"""Who runs where: which devices a peer's processes have, and what is in a device's memory at the same time.

Peer i gets device i mod n; remaining devices get replicas, the peers in order. On one device all live side by side if
the memory plan allows; else they take turns: an idle one sleeps, with its weights in the machine's memory, or ends. On
a GPU a peer's engine always sleeps while its model scores or trains. This module starts nothing and does not import
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.config.sections import Config, PeerSection, RuntimeSection
from data.errors import UserError
from data.run import Run
from peers.devices import CPU, GB, Device, devices, gpu_is_there
from peers.host_memory import memory_free
from peers.memory import CUDA_CONTEXT, GIB, Footprint, Shape, footprint, shape_in

__all__ = [
    "Placement",
    "Slot",
    "by_device",
    "gpu_is_there",
    "place",
    "placement_of",
    "resolve_runtime",
    "runtime_here",
    "shapes_of",
]

# (least memory, max_num_seqs, score_tokens, train_tokens). A GPU of 24 GB has 22.4 GiB, one of 80 GB 74.5 GiB.
ON_GPU = ((70 * GB, 512, 16384, 8192), (35 * GB, 256, 16384, 4096), (18 * GB, 256, 8192, 1024), (0, 128, 4096, 1024))
ON_CPU = (128, 2048, 1024)
MIN_TRAIN_TOKENS = 512  # train_tokens down to which the default is lowered for a peer that does not fit with more
CPU_KV_GIB = 2.0
MAX_NAMED_DEVICES = 8  # devices that messages name one by one
MIN_CACHE_SHARE = 0.25  # of the key-value cache that an engine prefers; with less, peers take turns instead
# of the stored weights: the engine's, another while they are repacked, the scorer's or trainer's, all maybe in float32
CPU_COPIES = 8
CPU_EACH = 2 * GIB  # for the libraries and activations of a process
CPU_SHARE = 0.7  # of the free memory


@dataclass(frozen=True)
class Slot:
    """One process of a peer, on a device."""

    peer: str
    replica: int
    device: Device
    kv_cache_bytes: int
    shared: bool  # whether other processes live on the device
    train_tokens: int = 0  # of a micro-batch, if the device's default is too much for this peer; else 0
    apart: bool = False  # engine and model are never in the device's memory together, even without turns


@dataclass(frozen=True)
class Placement:
    """Who runs where, and why."""

    slots: tuple[Slot, ...]
    turns: frozenset[Device]  # that hold one engine or model at a time
    reasons: tuple[str, ...]  # sentences for the user

    def slots_of(self, peer: str) -> tuple[Slot, ...]:
        """A peer's slots, replicas in order."""
        return tuple(slot for slot in self.slots if slot.peer == peer)

    def takes_turns(self, slot: Slot) -> bool:
        """Whether its device holds one engine or model at a time."""
        return slot.device in self.turns


def by_device(runtime: RuntimeSection, device: Device) -> RuntimeSection:
    """`runtime` with a number for every 0, which means "by device"; except a GPU's `kv_cache_gib`, see `place`."""
    requests, score, train = ON_CPU
    if device.is_gpu:
        requests, score, train = next(row[1:] for row in ON_GPU if device.memory >= row[0])
    kv = runtime.kv_cache_gib or (0.0 if device.is_gpu else CPU_KV_GIB)
    return runtime.model_copy(
        update={
            "max_num_seqs": runtime.max_num_seqs or requests,
            "score_tokens": runtime.score_tokens or score,
            "train_tokens": runtime.train_tokens or train,
            "kv_cache_gib": kv,
        }
    )


def resolve_runtime(runtime: RuntimeSection, slot: Slot, turns: bool = False) -> RuntimeSection:
    """`runtime` for a slot's process: plain numbers, and `resident` "one" if it never has an engine and a model in its
    device's memory together, else "all"."""
    update: dict[str, object] = {"resident": "one" if turns or slot.apart else "all"}
    if slot.train_tokens:
        update["train_tokens"] = slot.train_tokens
    if slot.device.is_gpu:
        update["kv_cache_gib"] = slot.kv_cache_bytes / GIB
    return by_device(runtime, slot.device).model_copy(update=update)


def place(
    config: Config,
    devices: Sequence[Device],
    shapes: Mapping[str, Shape],
    together: bool | None = None,
    free: int | None = None,
) -> Placement:
    """Place all processes. Pure. `together` overrides `runtime.resident`; if one of them decides, a CPU needs no
    `shapes` (by peer). `free` are the CPU's free bytes (None: all of its memory).

    Raises UserError for a peer that does not fit its device alone, or if peers must live side by side on a GPU that is
    too small for that.
    """
    if not devices or not devices[0].memory:
        raise UserError("there is no device to place the peers on; for a cluster, `ray status` lists its nodes")
    choice = config.runtime.resident
    forced = together if together is not None or choice == "auto" else choice == "all"
    mine: dict[Device, list[tuple[str, int]]] = {}
    for peer, replica, device in _assigned(config, devices):
        mine.setdefault(device, []).append((peer, replica))
    slots: list[Slot] = []
    turns, why = set(), dict[str, list[Device]]()
    for device, here in mine.items():
        on_device = _on_gpu if device.is_gpu else _on_cpu
        placed, takes_turns, reason = on_device(config, device, here, shapes, forced, free)
        slots += placed
        why.setdefault(f"({device.model}): {reason}." if device.is_gpu else f"{reason}.", []).append(device)
        if takes_turns:
            turns.add(device)
    order = {name: number for number, name in enumerate(config.peer_names)}
    slots.sort(key=lambda slot: (slot.replica, order[slot.peer]))
    reasons = [f"{_called(alike)} {reason}" for reason, alike in why.items()]
    unused = [device.name for device in devices if device not in mine]
    if unused:
        reasons.append(f"Unused with executor.workers = {config.executor.workers}: {join_names(unused)}.")
    return Placement(tuple(slots), frozenset(turns), tuple(reasons))


def _assigned(config: Config, devices: Sequence[Device]) -> list[tuple[str, int, Device]]:
    """(peer, replica, device) of every process."""
    names, number = config.peer_names, len(devices)
    on_gpu = devices[0].is_gpu
    total = config.executor.workers * len(names) or max(len(names), number if on_gpu else 0)
    return [(names[k % len(names)], k // len(names), devices[k % number]) for k in range(total)]


DevicePlacement = tuple[list[Slot], bool, str]


def _on_cpu(
    config: Config,
    device: Device,
    here: list[tuple[str, int]],
    shapes: Mapping[str, Shape],
    forced: bool | None,
    free: int | None,
) -> DevicePlacement:
    """Side by side if CPU_COPIES of the weight files, the caches and CPU_EACH fit into CPU_SHARE of the free memory."""
    runtime = by_device(config.runtime, device)
    kv = round(runtime.kv_cache_gib * GIB)
    for name in dict.fromkeys(peer for peer, _ in here):
        shape = shapes.get(name)
        if shape is not None:
            needs = footprint(shape, config.peer(name), config, runtime, device)
            _refuse_unless_it_fits(name, needs, kv, device, device.memory, runtime)
    slots = [Slot(peer, replica, device, kv, len(here) > 1) for peer, replica in here]
    held = [shape.stored for shape in (shapes.get(peer) for peer, _ in here) if shape is not None]
    if forced is not None:
        return slots, not forced, f"{_how(not forced)}, as runtime.resident requests"
    need = CPU_COPIES * sum(held) + len(here) * (kv + CPU_EACH)
    room = CPU_SHARE * (device.memory if free is None else free)
    turns = not need < room
    processes = f"{len(here)} processes" if len(here) > 1 else "the process"
    why = f"while loading, {processes} may take {gib(need)}; {CPU_SHARE:.0%} of the free memory are {gib(room)}"
    return slots, turns, f"{_how(turns)}: {why}"


def _on_gpu(
    config: Config,
    device: Device,
    here: list[tuple[str, int]],
    shapes: Mapping[str, Shape],
    forced: bool | None,
    free: int | None,
) -> DevicePlacement:
    """Side by side if the peaks of all processes fit together, with enough cache."""
    runtime = by_device(config.runtime, device)
    room = int(runtime.gpu_memory_utilization * device.memory)
    given = round(runtime.kv_cache_gib * GIB)
    needs: dict[str, Footprint] = {}
    train_tokens: dict[str, int] = {}
    asleep = (len(here) - 1) * CUDA_CONTEXT  # what the others hold while they sleep
    for name in dict.fromkeys(peer for peer, _ in here):
        shape = shapes[name]
        if not shape.layers:
            raise UserError(
                f"peer {name}: its config.json uses names for its sizes that this version does not know, so it cannot "
                "be placed on a GPU; expected num_hidden_layers, hidden_size, intermediate_size, num_attention_heads"
            )
        mine = _lowered(shape, config.peer(name), config, runtime, device, room - asleep)
        needs[name] = footprint(shape, config.peer(name), config, mine, device)
        train_tokens[name] = mine.train_tokens if mine.train_tokens != runtime.train_tokens else 0
        _refuse_unless_it_fits(name, needs[name], given or needs[name].kv_minimum, device, room - asleep, runtime)
    each = [needs[peer] for peer, _ in here]
    wanted = [given or max(need.kv_preferred, need.kv_minimum) for need in each]
    least = [given or max(round(MIN_CACHE_SHARE * need.kv_preferred), need.kv_minimum) for need in each]
    if len(here) == 1 and each[0].apart:
        least = [given or each[0].kv_minimum]  # it is alone, so turns would not help
    together = sum(need.at_once(cache, need.stage) for need, cache in zip(each, least, strict=True))
    turns = not forced if forced is not None else together > room
    if not turns and together > room:
        raise UserError(
            f"{_and([peer for peer, _ in here])} cannot live side by side on GPU {device.name} ({device.model}), as "
            f"runtime.resident requests: they need {gib(together)} and may use {gib(room)}; set it to 'auto'"
        )
    caches = wanted
    if turns:
        alone = [room - asleep - need.process - need.engine for need in each]
        caches = [min(both) for both in zip(wanted, alone, strict=True)]
    elif sum(need.at_once(cache, need.stage) for need, cache in zip(each, wanted, strict=True)) > room:
        caches = _shared(each, wanted, least, room)
    slots = [
        Slot(peer, replica, device, cache, len(here) > 1, train_tokens[peer], needs[peer].apart)
        for (peer, replica), cache in zip(here, caches, strict=True)
    ]
    return slots, turns, _reason([peer for peer, _ in here], turns, forced, together, room)


def _shared(each: Sequence[Footprint], wanted: list[int], least: list[int], room: int) -> list[int]:
    """Bytes of each cache: from `least` the same share of the way to `wanted` for all, the largest share that fits."""

    def caches(share: float) -> list[int]:
        return [int(low + share * (high - low)) for low, high in zip(least, wanted, strict=True)]

    low, high = 0.0, 1.0
    for _ in range(20):  # bisect: where engine and model are apart the peak is not linear in the cache
        middle = (low + high) / 2
        fits = sum(n.at_once(cache, n.stage) for n, cache in zip(each, caches(middle), strict=True)) <= room
        low, high = (middle, high) if fits else (low, middle)
    return caches(low)


def _lowered(
    shape: Shape, peer: PeerSection, config: Config, runtime: RuntimeSection, device: Device, room: int
) -> RuntimeSection:
    """`runtime` with train_tokens, if it is the default, halved until the peer's training fits."""
    while not config.runtime.train_tokens and runtime.train_tokens > MIN_TRAIN_TOKENS:
        needs = footprint(shape, peer, config, runtime, device)
        if needs.process + needs.train <= room:
            break
        runtime = runtime.model_copy(update={"train_tokens": runtime.train_tokens // 2})
    return runtime


def _reason(names: list[str], turns: bool, forced: bool | None, needs: int, room: int) -> str:
    how = f"{names[0]} alone"
    if len(names) > 1:
        how = f"{_and(names)} {'take turns' if turns else 'live side by side'}"
    elif turns:
        how += ", its engine and model in turns"
    if forced is not None:
        return f"{how}, as runtime.resident requests"
    return f"{how}: side by side would need at least {gib(needs)} of {gib(room)}" if turns else how


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _refuse_unless_it_fits(
    name: str, needs: Footprint, kv: int, device: Device, room: int, runtime: RuntimeSection
) -> None:
    what, bytes_, change = max(
        ("its engine", needs.process + needs.engine + kv, "runtime.max_num_seqs or generate.context_tokens"),
        ("score", needs.process + needs.score, f"runtime.score_tokens ({runtime.score_tokens} here)"),
        ("train", needs.process + needs.train, f"runtime.train_tokens ({runtime.train_tokens} here)"),
        key=lambda each: each[1],
    )
    if bytes_ > room:
        alone = needs.process + needs.weights
        change = f"lower {change}, or " if alone < room else f"its process and weights alone take {gib(alone)}: "
        where = "the CPU" if not device.is_gpu else f"GPU {device.name} ({device.model})"
        share = f", runtime.gpu_memory_utilization {runtime.gpu_memory_utilization:g}" if device.is_gpu else ""
        raise UserError(
            f"peer {name} does not fit {where}: {what} needs {gib(bytes_)}, but may use {gib(max(0, room))} of "
            f"{gib(device.memory)}{share}; {change}use a larger device or a smaller peer"
        )


def _called(alike: list[Device]) -> str:
    if not alike[0].is_gpu:
        return "CPU:" if len(alike) == 1 else f"each of {len(alike)} processes on CPUs of the cluster,"
    return f"GPU{'s' if len(alike) > 1 else ''} {join_names([device.name for device in alike])}"


def join_names(names: Sequence[str]) -> str:
    """Names in one line; if there are many, the first three, the last and the number."""
    if len(names) <= MAX_NAMED_DEVICES:
        return ", ".join(names)
    return f"{', '.join(names[:3])} … {names[-1]} ({len(names)})"


def _how(turns: bool) -> str:
    return "in turns" if turns else "side by side"


def gib(bytes_: float) -> str:
    """Bytes as text in GiB, with one decimal, or two below 1 GiB."""
    return f"{bytes_ / GIB:.{1 if bytes_ >= GIB else 2}f} GiB"


def shapes_of(config: Config) -> dict[str, Shape]:
    """Every peer's shape, from the headers of its files; downloads and converts models on first use. Raises
    UserError."""
    from peers.source import model_directory

    return {peer.name: shape_in(peer, model_directory(peer, config)) for peer in config.peers}


def placement_of(run: Run, together: bool | None = None) -> Placement:
    """Placement of a run's peers on this machine. Raises UserError if a peer does not fit, or a GPU is unusable."""
    found = devices()
    forced = together is not None or run.config.runtime.resident != "auto"
    shapes = {} if forced and found[0].name == CPU else shapes_of(run.config)
    return place(run.config, found, shapes, together, memory_free())


def runtime_here(runtime: RuntimeSection) -> RuntimeSection:
    """`by_device` for the first device of this machine: for a process without a slot, as in tests and benchmarks."""
    return by_device(runtime, devices()[0])
