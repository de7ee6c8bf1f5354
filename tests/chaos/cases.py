"""A case, determined by its seed and the points of an undisturbed run."""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tests.chaos.faults import COMMAND, Fault
from tests.chaos.project import Kind

STAGES = ("generate", "score", "train", "evaluate")
FOLDERS = {"generate": ("/chains", "prompts"), "score": ("/scores",), "train": ("/adapters",),
           "evaluate": ("/evals", "metrics", "guard", "sums", "grader", ".checkpoints")}  # fmt: skip
OF_STAGE = {"generate": ("chains",), "score": ("scores",), "train": ("adapters",), "evaluate": ("evals",)}
LONGEST_DELAY = 0.4  # seconds
DAMAGES = {
    "shard": ("part-*.parquet", "prompts/part-*.parquet", "round=*/*.parquet"), "unit": (".work/**/*.parquet",),
    "checkpoint": (".work/**/*.pt", ".work/**/*.arrow", ".work/*.json", ".checkpoints/round=*/*/*.safetensors"),
    "marker": ("_SUCCESS.json", "_STARTED.json", "config.json", "sums.json", "merged_from.json"),
    "adapter": ("adapters/*/*.safetensors", "adapters/*/*.json"),
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A point that an undisturbed run has passed: process, step, file, and which time."""

    role: str
    step: str
    name: str
    time: int

    @property
    def stage(self) -> str:
        """The stage that the file belongs to."""
        return next((stage for stage, parts in FOLDERS.items() if any(part in self.name for part in parts)), "generate")


@dataclass(frozen=True)
class Case:
    """A run that is disturbed once: killed, refused a write, or stopped and then damaged."""

    seed: int
    what: Literal["kill", "fail", "damage"]
    stage: str
    kind: Kind
    fault: Fault | None  # None: the damage is done to a finished run
    damage: str | None = None
    begins: str | None = None  # start from an undisturbed run before this step; None: from no run

    def __str__(self) -> str:
        fault = self.fault
        if fault is None:
            where = "a finished run"
        else:
            later = f", {fault.delay:.2f} s later" if fault.delay else ""
            where = f"{fault.step} {fault.time} of {fault.name} by {fault.role}{later}"
        if self.what == "kill" and fault is not None:
            return f"{signal.Signals(fault.signal).name} to {_victim(fault)} at {where}"
        return f"no room at {where}" if self.what == "fail" else f"{self.damage} damaged after a kill at {where}"


def _victim(fault: Fault) -> str:
    return fault.role if fault.target == "self" else f"the {fault.target}"


def read_points(path: Path) -> list[Point]:
    """The recorded points of a run."""
    return [Point(*json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def needs_grader(seed: int, kind: Kind) -> bool:
    """Whether a case kills a grader process, which needs answers that only such a process compares."""
    return seed % 12 == 3 and kind.rounds > 1 and kind.engine == "transformers"


def case_of(seed: int, kind: Kind, points: Sequence[Point]) -> Case:
    """The case of a seed: two of three kill, over the four stages in turn."""
    draw = random.Random(seed)
    if needs_grader(seed, kind):
        here = [point for point in points if point.step == "grade"]
        return Case(seed, "kill", "evaluate", kind, _at(draw.choice(here), target="grader"))
    stages = [stage for stage in STAGES if any(point.stage == stage for point in points)]
    stage = stages[seed % len(stages)]
    here = [point for point in points if point.stage == stage and point.step != "grade"]
    point = draw.choice(here)
    if seed % 3 < 2:
        fault = _kill(here, draw)
        return Case(seed, "kill", stage, kind, fault, begins=step_of(fault.name, stage))
    if seed // 3 % 2:
        return Case(seed, "fail", stage, kind, _at(point, what="fail"), begins=step_of(point.name, stage))
    damage = draw.choice(sorted(DAMAGES))
    if draw.random() < 0.25:
        return Case(seed, "damage", stage, kind, None, damage)
    return Case(seed, "damage", stage, kind, _at(point, target="command"), damage, step_of(point.name, stage))


def step_of(name: str, stage: str) -> str | None:
    """The step that writes a file of a round's stage folder; None for a file that several steps may write."""
    found = re.match(rf"round=(\d+)/({'|'.join(OF_STAGE[stage])})/", name)
    return f"{stage}-{found[1]}" if found else None


def _at(
    point: Point, what: Literal["kill", "fail"] = "kill", target: Literal["command", "self", "peer", "grader"] = "self"
) -> Fault:
    return Fault(point.role, point.step, point.name, point.time, what, target)


def _kill(here: list[Point], draw: random.Random) -> Fault:
    peers = [point for point in here if point.role != COMMAND]
    delay = draw.choice((0.0, draw.uniform(0, LONGEST_DELAY)))
    if not peers and draw.random() < 0.4:  # peers of a cluster pass no points
        return replace(_at(draw.choice(here), target="peer"), delay=delay)
    if peers and draw.random() < 0.3:
        point = draw.choice(peers)
        sent = draw.choice((signal.SIGKILL, signal.SIGTERM))
        return replace(_at(point), signal=sent, delay=delay)
    point = draw.choice(here)
    sent = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    return replace(_at(point, target="command"), signal=sent, delay=delay)


def damaged(run: Path, case: Case) -> str | None:
    """Cut a file of the case's kind, or flip a bit of it; returns what was done, or None if there is no such file."""
    draw = random.Random(f"damage {case.seed}")
    order = [case.damage, *draw.sample(sorted(DAMAGES), len(DAMAGES))]
    for damage in order:
        files = sorted(
            {path for pattern in DAMAGES[str(damage)] for path in run.glob(f"**/{pattern}") if path.is_file()}
        )
        files = [path for path in files if path.stat().st_size]
        if files:
            path = draw.choice(files)
            content = bytearray(path.read_bytes())
            place = draw.randrange(len(content))
            if draw.random() < 0.4:
                path.write_bytes(content[:place])
                return f"{path.relative_to(run)} cut to {place} of {len(content)} bytes"
            content[place] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
            return f"a bit of byte {place} of {path.relative_to(run)} flipped"
    return None
