"""The most memory that each stage needs on each device. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from data.config.sections import Config
from peers.memory import GIB, Footprint, Shape, footprint
from peers.placement import Placement, Slot, resolve_runtime

CPU_COMMAND = GIB  # the command itself, and the process from which the peers' are forked


@dataclass(frozen=True)
class MemoryRow:
    """Bytes that a stage needs on a device; `limit` is what it may use there."""

    device: str
    stage: str
    bytes: int
    limit: int


def memory_plan(config: Config, placement: Placement, shapes: Mapping[str, Shape], total: int) -> list[MemoryRow]:
    """The most memory that each stage needs on each device. `total`: bytes of memory of this machine."""
    rows = []
    for device in dict.fromkeys(slot.device for slot in placement.slots):
        here = [slot for slot in placement.slots if slot.device == device]
        turns = device in placement.turns
        limit = round(config.runtime.gpu_memory_utilization * device.memory) if device.is_gpu else total
        beside = 0 if device.is_gpu else CPU_COMMAND
        for stage in ("generate, evaluate", "score", "train"):
            each = [_bytes(_footprint(config, shapes, slot), slot, stage, turns) for slot in here]
            asleep = sum(_footprint(config, shapes, slot).process for slot in here[1:]) if device.is_gpu else 0
            rows.append(MemoryRow(device.name, stage, beside + (max(each) + asleep if turns else sum(each)), limit))
    return rows


def _footprint(config: Config, shapes: Mapping[str, Shape], slot: Slot) -> Footprint:
    runtime = resolve_runtime(config.runtime, slot)
    return footprint(shapes[slot.peer], config.peer(slot.peer), config, runtime, slot.device)


def _bytes(needs: Footprint, slot: Slot, stage: str, turns: bool) -> int:
    """Bytes of a slot's process. Side by side, an engine lives as long as its process; a verifier in evaluate needs as
    much as a model in score."""
    model = needs.train if stage == "train" else needs.score
    if stage != "generate, evaluate" and (turns or needs.apart):
        return needs.process + model
    return needs.at_once(slot.kv_cache_bytes, model, turns)


def host_memory(config: Config, placement: Placement, shapes: Mapping[str, Shape]) -> int:
    """Bytes of the machine's memory that sleeping engines hold in score and train."""
    asleep = [slot for slot in placement.slots if slot.apart]
    return sum(_footprint(config, shapes, slot).weights for slot in asleep)
