"""`python -m pipeline.plan --config FILE`: who runs where and why, what memory, hours and disk a run will take.

Nothing is trained and nothing is frozen. Hours come from finished rounds where there are any (pipeline/measured.py),
else from a probe as `make try` does it; for devices that are given and are not here, from a rule of thumb
(pipeline/rough.py), which is said.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.filesize import decimal
from rich.table import Table

from data.cli import guarded, quiet_environment, start
from data.config.load import load_config
from data.config.sections import Config
from data.console import console
from data.errors import UserError
from data.selection import choose_prompts
from evaluate.benchmarks import load_benchmarks
from peers.devices import GB, Device, devices, parse_devices
from peers.placement import Placement, gib, place, shapes_of
from pipeline.first_look import MORE, devices_of, duration, look, work_of
from pipeline.measured import measured_stages, rows_of, scaled
from pipeline.memory_plan import MemoryRow, host_memory, memory_plan
from pipeline.projection import COMMAND, Cost, PeerRates, RoundWork, project
from pipeline.rough import like, likely_lengths, rough_rates, sizing_table

ONCE = ("baseline", "votes")  # stages of the untouched peers
NAMES = {"baseline": "evaluate, round 0", "votes": "gate, round 0"}
PROBED = 8  # questions
PRICE = 2.5  # of a device hour, for --sizing


def placement_table(placement: Placement) -> Table:
    """device: its peers, how, and their caches."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("device", "memory", "peers", "key-value cache of each", "how"):
        table.add_column(name)
    for device in dict.fromkeys(slot.device for slot in placement.slots):
        here = [slot for slot in placement.slots if slot.device == device]
        table.add_row(
            f"{device.name} ({device.model})" if device.is_gpu else "CPU", gib(device.memory),
            ", ".join(slot.peer for slot in here), ", ".join(gib(slot.kv_cache_bytes) for slot in here),
            "in turns" if device.name in placement.turns else "side by side",
        )  # fmt: skip
    return table


def memory_table(rows: list[MemoryRow]) -> Table:
    """device: bytes of each stage. Devices with the same numbers are one row."""
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
        table.add_row(", ".join(names), *[gib(number) for number in numbers])
    return table


def cost_table(
    costs: dict[str, Cost], sources: dict[str, str], rounds: int, devices: int, price: float | None
) -> Table:
    """stage: time, disk, from what; then the run up to a round."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("stage")
    for name in ("time", "disk", "and for a while"):
        table.add_column(name, justify="right")
    table.add_column("from")
    for stage, cost in costs.items():
        while_ = decimal(round(cost.temporary)) if cost.temporary else ""
        table.add_row(
            NAMES.get(stage, stage), duration(cost.seconds), decimal(round(cost.bytes)), while_, sources[stage]
        )
    table.add_section()
    for last in dict.fromkeys((1, rounds)):
        whole = total(costs, last)
        paid = f"{price * devices * whole.seconds / 3600:,.2f} at {price:g} per device hour" if price else ""
        name, while_ = f"make round ROUND={last}", decimal(round(whole.temporary))
        table.add_row(name, duration(whole.seconds), decimal(round(whole.bytes)), while_, paid)
    return table


def total(costs: dict[str, Cost], rounds: int) -> Cost:
    """Of a command that makes all rounds up to one."""
    often = {stage: 1 if stage in ONCE else rounds for stage in costs}
    return Cost(
        COMMAND + sum(often[stage] * cost.seconds for stage, cost in costs.items()),
        sum(often[stage] * cost.bytes for stage, cost in costs.items()),
        max(cost.temporary for cost in costs.values()),
    )


def costs_of(
    config: Config, run: str, work: RoundWork, rates: dict[str, PeerRates], placement: Placement, source: str
) -> tuple[dict[str, Cost], dict[str, str]]:
    """Each stage's cost, and where it comes from: a finished stage, else the rates."""
    costs = project(work, rates, devices_of(placement))
    sources = dict.fromkeys(costs, source)
    if source == ESTIMATED:
        return costs, sources
    rows = rows_of(work, len(config.peers))
    for stage, found in measured_stages(config, run).items():
        if stage in costs and rows[stage]:
            costs[stage] = scaled(stage, found, rows[stage], costs[stage].temporary)
            sources[stage] = f"measured in {found.where}"
    return costs, sources


ESTIMATED, PROBED_HERE, NONE = "estimated, not measured", "measured by a probe", "measured"


def rates_of(
    config: Config, questions: list[str], where: list[Device], here: bool, needed: bool
) -> tuple[dict[str, PeerRates], str]:
    """Of each peer on the devices, and what they are from."""
    if here and needed:
        probes, _ = look(config, questions[:PROBED], questions[PROBED : PROBED + MORE], "plan")
        return {name: found.rates for name, found in probes.items()}, PROBED_HERE
    shapes, lengths = shapes_of(config), likely_lengths(config)
    rough = {name: rough_rates(shape, config, where[0], lengths) for name, shape in shapes.items()}
    return rough, NONE if here else ESTIMATED


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help="Who runs where and why; memory, hours and disk of a run. Nothing is trained or frozen.")
def command(
    config: Annotated[Path | None, typer.Option(help="TOML config.")] = None,
    run: Annotated[str, typer.Option(help="Run whose finished rounds tell first how long a stage takes.")] = "",
    devices_: Annotated[
        str, typer.Option("--devices", help="As if there were these: 8x80, 2x24+1x80, cpu; default: those here.")
    ] = "",
    rounds: Annotated[int, typer.Option("--round", min=1, max=100_000, help="Up to which round.")] = 1,
    price: Annotated[float | None, typer.Option(min=0, help="Of a device hour.")] = None,
    sizing: Annotated[
        bool, typer.Option("--sizing", help="Only a Markdown table: the paper's peers, up to 1 M questions.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override; repeatable.")] = None,
) -> None:
    """`python -m pipeline.plan --config FILE`."""
    quiet_environment()

    def body() -> None:
        where = parse_devices(devices_) if devices_ else [] if sizing else devices()
        if sizing:
            gb = round(where[0].memory / GB) if where and where[0].is_gpu else 80
            console.file.write(sizing_table(gb, PRICE if price is None else price, rounds))
            return
        if config is None:
            raise UserError("which config? give its file with --config FILE (configs/ has some)")
        resolved = load_config(config, set_ or [])
        make_plan(resolved, run or config.stem, where, rounds, price, as_json)

    guarded(body)


def make_plan(config: Config, run: str, where: list[Device], rounds: int, price: float | None, as_json: bool) -> None:
    """Print the plan."""
    import psutil

    memory, here, shapes = psutil.virtual_memory(), where == devices(), shapes_of(config)
    placement = place(config, where, shapes, free=memory.available)
    questions = list(choose_prompts(config).questions.values())
    items = sum(map(len, load_benchmarks(config).values()))
    work = work_of(config, len(questions), items)
    done = measured_stages(config, run) if here else {}
    missing = [stage for stage, rows in rows_of(work, len(config.peers)).items() if rows and stage not in done]
    rates, source = rates_of(config, questions, where, here, bool(missing))
    costs, sources = costs_of(config, run, work, rates, placement, source)
    rows, asleep = memory_plan(config, placement, shapes, memory.total), host_memory(placement, shapes)
    if as_json:
        print(json.dumps({
            "slots": [asdict(slot) for slot in placement.slots], "turns": sorted(placement.turns),
            "reasons": placement.reasons, "memory": [asdict(row) for row in rows], "host_bytes_asleep": asleep,
            "stages": {stage: {**asdict(cost), "from": sources[stage]} for stage, cost in costs.items()},
            "run": {"rounds": rounds, **asdict(total(costs, rounds))},
        }))  # fmt: skip
        return
    console.print(placement_table(placement))
    for reason in placement.reasons:
        _say(f"  {reason}")
    console.print("\nmemory at most, in each stage")
    console.print(memory_table(rows))
    if asleep:
        _say(f"  engines that sleep hold {gib(asleep)} in the machine's memory.")
    asked = f"{work.questions:,} questions, {work.items:,} benchmark questions with k = {work.samples}"
    _say(f"\n{asked}, {len(rates)} peers")
    if source == ESTIMATED:
        taken = ", ".join(dict.fromkeys(like(device) for device in where if device.is_gpu)) or "this CPU"
        _say(f"  times are estimated, not measured: a roofline of {taken}, responses half as long as they may be.")
    console.print(cost_table(costs, sources, rounds, len(where), price))


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    start(app, "pipeline.plan")
