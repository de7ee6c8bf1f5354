"""`python -m pipeline.plan --config FILE`: who runs where and why, and the memory, hours and disk of a run.

It trains nothing and freezes no config. Hours come from the probe of `make try`; for devices that this machine does not
have, from a rule of thumb (pipeline/rough.py), and then the plan says so.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.filesize import decimal
from rich.table import Table

from data import shards
from data.cli import guarded, quiet_environment, start
from data.config.load import load_config, parse_config
from data.config.sections import Config, ExecutorSection
from data.console import console
from data.errors import UserError
from data.run import RUNS, check_run_name, load_frozen
from data.selection import choose_prompts
from evaluate.benchmarks import load_benchmarks
from peers.devices import Device, devices, gpu_is_there, parse_devices
from peers.host_memory import memory_free, memory_total
from peers.placement import Placement, gib, join_names, place, shapes_of
from pipeline.first_look import FURTHER_QUESTIONS, devices_of, probe_peers, short_duration, work_of
from pipeline.memory_plan import MemoryRow, host_memory, memory_plan
from pipeline.projection import COMMAND, Cost, project
from pipeline.rough import like, likely_lengths, likely_shapes, rough_rates, sizing_table

ONCE = ("baseline", "votes")  # stages of the untouched peers
STAGE_NAMES = {"baseline": "evaluate, round 0", "votes": "gate, round 0"}
PROBED = 8  # questions
PRICE = 2.5  # default price of a device hour, for --sizing


def placement_table(placement: Placement) -> Table:
    """Per device: its peers, their caches, and how they share it. Equal devices are one row."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("device", "memory", "peers", "key-value caches", "how"):
        table.add_column(name)
    alike: dict[tuple[str, ...], list[Device]] = {}
    for device in dict.fromkeys(slot.device for slot in placement.slots):
        here = [slot for slot in placement.slots if slot.device == device]
        row: tuple[str, ...] = (
            gib(device.memory),
            ", ".join(slot.peer for slot in here),
            ", ".join(gib(slot.kv_cache_bytes) for slot in here),
            "alone" if len(here) == 1 else "in turns" if device in placement.turns else "side by side",
        )
        alike.setdefault(row, []).append(device)
    for row, same in alike.items():
        table.add_row(join_names([device.name for device in same]), *row)
    return table


def memory_table(rows: list[MemoryRow]) -> Table:
    """Per device: bytes of each stage. Devices with equal numbers are one row."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("device")
    stages = list(dict.fromkeys(row.stage for row in rows))
    for name in (*stages, "may use"):
        table.add_column(name, justify="right")
    alike: dict[tuple[int, ...], list[str]] = {}
    for device in dict.fromkeys(row.device for row in rows):
        mine = [row for row in rows if row.device == device]
        alike.setdefault((*[row.bytes for row in mine], mine[0].limit), []).append(device)
    for numbers, names in alike.items():
        table.add_row(join_names(names), *[gib(number) for number in numbers])
    return table


def cost_table(costs: dict[str, Cost], rounds: int, devices: int, price: float | None) -> Table:
    """Time and disk per stage, then of a run of `rounds` rounds; `price` per device hour."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("stage")
    for name in ("time", "disk", "and for a while", *(["cost"] if price is not None else [])):
        table.add_column(name, justify="right")
    for stage, cost in costs.items():
        while_ = decimal(round(cost.temporary)) if cost.temporary else ""
        table.add_row(STAGE_NAMES.get(stage, stage), short_duration(cost.seconds), decimal(round(cost.bytes)), while_)
    table.add_section()
    for last in dict.fromkeys((1, rounds)):
        whole = total(costs, last)
        paid = [] if price is None else [f"{price * devices * whole.seconds / 3600:,.2f}"]
        name, while_ = f"make round ROUND={last}", decimal(round(whole.temporary))
        table.add_row(name, short_duration(whole.seconds), decimal(round(whole.bytes)), while_, *paid)
    return table


def total(costs: dict[str, Cost], rounds: int) -> Cost:
    """The cost of a command that runs `rounds` rounds."""
    often = {stage: 1 if stage in ONCE else rounds for stage in costs}
    return Cost(
        COMMAND + sum(often[stage] * cost.seconds for stage, cost in costs.items()),
        sum(often[stage] * cost.bytes for stage, cost in costs.items()),
        max(cost.temporary for cost in costs.values()),
    )


@dataclass(frozen=True)
class Plan:
    """All that the command prints except what depends on the number of rounds."""

    placement: Placement
    memory: list[MemoryRow]
    asleep: int  # bytes of the machine's memory that sleeping engines hold
    costs: dict[str, Cost]  # by stage
    source: str  # how the times were found
    work: str  # in words
    warnings: list[str]


def plan_of(config: Config, where: list[Device]) -> Plan:
    """The plan for devices. Raises UserError if questions cannot be read, or peers cannot be used or do not fit."""
    here = where == devices()
    questions = list(choose_prompts(config).questions.values())  # before any model is downloaded
    items = sum(map(len, load_benchmarks(config).values()))
    local = config.model_copy(update={"executor": ExecutorSection(workers=config.executor.workers)})
    shapes = shapes_of(config) if here else likely_shapes(config)
    placement = place(local, where, shapes, free=memory_free())
    if here:
        probes, _ = probe_peers(local, questions[:PROBED], questions[PROBED : PROBED + FURTHER_QUESTIONS], "plan")
        rates, on, source = {name: found.rates for name, found in probes.items()}, None, "measured by a probe"
    else:
        lengths = likely_lengths(config)
        on = {
            device.name: {name: rough_rates(shape, config, device, lengths) for name, shape in shapes.items()}
            for device in where
        }
        rates, likes = on[where[0].name], ", ".join(dict.fromkeys(map(like, where)))
        source = f"estimated, not measured: a roofline of {likes}, responses half as long as allowed"
    work = work_of(config, len(questions), items)
    rows, asleep = memory_plan(config, placement, shapes, memory_total()), host_memory(config, placement, shapes)
    summary = f"{work.questions:,} questions, {work.items:,} benchmark questions with k = {work.samples}, "
    summary += f"{len(rates)} peers"
    costs = project(work, rates, devices_of(placement), on)
    return Plan(placement, rows, asleep, costs, source, summary, _warnings(config, rows, asleep, here))


def _warnings(config: Config, rows: list[MemoryRow], asleep: int, here: bool) -> list[str]:
    found = []
    if config.executor.kind == "ray":
        found.append(
            "executor.kind is ray, but this plan is for the devices above in one machine, not for the Ray cluster"
        )
    for device in dict.fromkeys(row.device for row in rows if row.bytes > row.limit):
        found.append(f"{device} needs more memory than it may use")
    if here and asleep > memory_total():
        found.append(f"this machine has {gib(memory_total())} of memory, too little for the sleeping engines")
    return found


def _lack_of_disk(whole: Cost, rounds: int) -> list[str]:
    """A warning if the disk with runs/ has less free space than all rounds take."""
    free, wanted = shutil.disk_usage(RUNS if RUNS.is_dir() else ".").free, whole.bytes + whole.temporary
    if free >= wanted:
        return []
    return [f"the disk has {decimal(free)} free; up to round {rounds} the run takes {decimal(round(wanted))}"]


@contextmanager
def only_json() -> Iterator[None]:
    """Inside the block, print to standard error, in this process and the peers'."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    help="Print who runs where and why, and the memory, hours and disk of a run. Nothing is trained or frozen."
)
def command(
    config: Annotated[Path | None, typer.Option(help="TOML config.")] = None,
    run: Annotated[str, typer.Option(help="Run whose frozen config to use, without --config.")] = "",
    devices_: Annotated[
        str, typer.Option("--devices", help="Devices to plan for: 8x80, 2x24+1x80, cpu; default: this machine's.")
    ] = "",
    rounds: Annotated[int, typer.Option("--round", min=1, max=100_000, help="Number of the last round.")] = 1,
    price: Annotated[float | None, typer.Option(min=0, help="Price of a device hour.")] = None,
    sizing: Annotated[
        bool, typer.Option("--sizing", help="Print only a Markdown table: the paper's peers, up to 1 M questions.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override; repeatable.")] = None,
) -> None:
    """`python -m pipeline.plan --config FILE`."""
    quiet_environment()

    def body() -> None:
        if sizing:
            gpus = parse_devices(devices_ or "1x80")
            console.file.write(sizing_table(gpus, PRICE if price is None else price, rounds))
            return
        where = parse_devices(devices_) if devices_ else devices()
        if not where[0].is_gpu and gpu_is_there():
            raise UserError(
                "the hours of a CPU are measured, but the peers would run on the GPU here: set CUDA_VISIBLE_DEVICES='' "
                "to plan for the CPU"
            )
        make_plan(config_of(config, run, set_ or []), where, rounds, price, as_json)

    guarded(body)


def config_of(path: Path | None, run: str, overrides: list[str]) -> Config:
    """The config of a file, or else a run's frozen one. Raises UserError."""
    if path is not None:
        return load_config(path, overrides)
    if not run:
        raise UserError("no config is named: give its file with --config FILE (configs/ has some)")
    check_run_name(run)
    frozen = RUNS / run / "config.json"
    if not frozen.is_file():
        raise UserError(f"run {run!r} does not exist yet: give its config with --config FILE (configs/ has some)")
    load_frozen(run)  # to raise its errors
    return parse_config(shards.read_json(frozen), str(frozen), overrides)


def make_plan(config: Config, where: list[Device], rounds: int, price: float | None, as_json: bool) -> None:
    """Print the plan."""
    with only_json() if as_json else nullcontext():
        plan = plan_of(config, where)
    placement, costs, rows = plan.placement, plan.costs, plan.memory
    warnings = [*plan.warnings, *(_lack_of_disk(total(costs, rounds), rounds) if where == devices() else ())]
    if as_json:
        print(
            json.dumps(
                {
                    "slots": [asdict(slot) for slot in placement.slots],
                    "turns": sorted(device.name for device in placement.turns),
                    "reasons": placement.reasons,
                    "memory": [asdict(row) for row in rows],
                    "host_bytes_asleep": plan.asleep,
                    "from": plan.source,
                    "warnings": warnings,
                    "stages": {stage: asdict(cost) for stage, cost in costs.items()},
                    "run": {"rounds": rounds, **asdict(total(costs, rounds))},
                }
            )
        )
        return
    console.print(placement_table(placement))
    for reason in placement.reasons:
        _say(f"  {reason}")
    console.print("\nthe most memory that each stage needs, once all is loaded")
    console.print(memory_table(rows))
    if plan.asleep:
        _say(f"  in score and train the sleeping engines hold {gib(plan.asleep)} of the machine's memory.")
    for line in warnings:
        _say(f"  warning: {line}")
    _say(f"\n{plan.work}; times {plan.source}")
    console.print(cost_table(costs, rounds, len(where), price))


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    start(app, "pipeline.plan")
