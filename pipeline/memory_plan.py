"""What is in each device's memory in each stage, at most. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from data.config.sections import Config
from peers.memory import GIB, Footprint, Shape, footprint
from peers.placement import Placement, Slot, resolved

CPU_COMMAND = GIB  # the command itself, and the process that the peers' are forked from


@dataclass(frozen=True)
class MemoryRow:
    """Bytes of a stage on a device; `limit` is what the plan may use there."""

    device: str
    stage: str
    bytes: int
    limit: int


def memory_plan(config: Config, placement: Placement, shapes: Mapping[str, Shape], total: int) -> list[MemoryRow]:
    """What is in each device's memory in each stage, at most. `total`: bytes of this machine."""
    rows = []
    for device in dict.fromkeys(slot.device for slot in placement.slots):
        here = [slot for slot in placement.slots if slot.device == device]
        turns = device.name in placement.turns
        limit = round(config.runtime.gpu_memory_utilization * device.memory) if device.is_gpu else total
        beside = 0 if device.is_gpu else CPU_COMMAND
        for stage in ("generate, evaluate", "score", "train"):
            each = [_bytes(_footprint(config, shapes, slot), slot, stage, turns) for slot in here]
            asleep = sum(_footprint(config, shapes, slot).process for slot in here[1:]) if device.is_gpu else 0
            rows.append(MemoryRow(device.name, stage, beside + (max(each) + asleep if turns else sum(each)), limit))
    return rows


def _footprint(config: Config, shapes: Mapping[str, Shape], slot: Slot) -> Footprint:
    runtime = resolved(config.runtime, slot)
    return footprint(shapes[slot.peer], config.peer(slot.peer), config, runtime, slot.device)


def _bytes(needs: Footprint, slot: Slot, stage: str, turns: bool) -> int:
    """Of a slot's process. In turns an engine and a model are never there together; else an engine
    lives as long as its process."""
    engine, model = needs.engine + slot.kv_cache_bytes, needs.train if stage == "train" else needs.score
    if turns:
        return needs.process + (engine if stage == "generate, evaluate" else model)
    return needs.process + engine + model


def host_memory(placement: Placement, shapes: Mapping[str, Shape]) -> int:
    """Bytes that engines which sleep hold in the machine's memory."""
    asleep = [slot for slot in placement.slots if slot.device.is_gpu and placement.takes_turns(slot)]
    return sum(2 * shapes[slot.peer].weights for slot in asleep)
