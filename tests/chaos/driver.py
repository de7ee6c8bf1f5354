"""Disturbs a run, resumes it, and compares it with an undisturbed one."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.chaos import child
from tests.chaos.cases import Case, Point, case_of, damaged, needs_grader, read_points
from tests.chaos.compare import differences
from tests.chaos.faults import Fault
from tests.chaos.project import Kind, make_models, make_project

SECONDS = 300  # for a run; a longer one counts as hanging
REFUSALS = 12  # most refusals obeyed in a row: each stage may refuse what an earlier one has made again
SAME, NOTICED, MISSED, MISMATCH = "same", "noticed", "missed", "mismatch"
DELETE = re.compile(r"delete (it|\S*runs/t\S*)")
FILE = re.compile(r"\S*runs/t/[^\s,;:]+")


@dataclass
class Outcome:
    """The outcome of a case."""

    result: str
    details: list[str] = field(default_factory=list)


@dataclass
class Ended:
    """How a run ended, and its output."""

    status: int | None  # None: it hangs
    text: str

    @property
    def error(self) -> str:
        """Its error line, if it was refused."""
        return next((line for line in self.text.splitlines() if line.startswith("error: ")), "")


class Chaos:
    """Undisturbed runs, made once in `folder`, and cases compared with them. `bug`: see tests.chaos.child."""

    def __init__(self, folder: Path, kind: Kind, bug: str | None = None, models: Path | None = None) -> None:
        self.folder, self.kind, self.bug = folder, kind, bug
        self.models = models or folder / "models"
        self.address: str | None = None  # of a Ray cluster

    def undisturbed(self, kind: Kind) -> tuple[Path, list[Point]]:
        """A finished run and its points."""
        name = f"{kind.engine}-{kind.executor}-{kind.answers}-{kind.rounds}"
        project, record = self.folder / name, self.folder / f"{name}.points"
        if not (project / "whole").exists():
            shutil.rmtree(project, ignore_errors=True)
            record.unlink(missing_ok=True)
            if kind.engine == "transformers":  # the nano peers come with the project
                make_models(self.models)
            make_project(project, self.models, kind)
            ended = self.run(project, kind, record=record)
            if ended.status != 0:
                raise RuntimeError(f"the undisturbed run ended with {ended.status}:\n{ended.text}")
            (project / "whole").touch()
        return project / "runs" / "t", read_points(record)

    def case(self, seed: int) -> Case:
        """The case of a seed."""
        kind = replace(self.kind, answers="math") if needs_grader(seed, self.kind) else self.kind
        return case_of(seed, kind, self.undisturbed(kind)[1])

    def run(self, project: Path, kind: Kind, fault: Fault | None = None, record: Path | None = None) -> Ended:
        """Run the command in a project until it ends."""
        out = project / "out.txt"
        out.unlink(missing_ok=True)
        where = [] if self.address is None else ["--set", f"executor.address={self.address}"]
        process = child.launch(project, [*kind.arguments, *where], out, fault, record, self.bug)
        process.join(SECONDS)
        hangs = process.is_alive()
        process.kill()
        process.join()
        text = out.read_text(encoding="utf-8", errors="replace") if out.exists() else ""
        return Ended(None if hangs else process.exitcode, text)

    def do(self, case: Case) -> Outcome:
        """Run a case: disturb, resume, compare."""
        reference, _ = self.undisturbed(case.kind)
        project = self.folder / f"case-{case.seed}"
        shutil.rmtree(project, ignore_errors=True)
        make_project(project, self.models, case.kind)
        if case.fault is None:
            shutil.copytree(reference, project / "runs" / "t")
        elif case.begins is not None:
            shutil.copytree(reference.parent.parent / "before" / case.begins, project / "runs" / "t")
        first = Ended(0, "") if case.fault is None else self.run(project, case.kind, case.fault)
        outcome = self.resumed(case, project, reference, first)
        if outcome.result == MISMATCH:
            (project / "first.txt").write_text(first.text, encoding="utf-8")
        else:
            shutil.rmtree(project)
        return outcome

    def resumed(self, case: Case, project: Path, reference: Path, first: Ended) -> Outcome:
        """Resume after the disturbance, and judge the result."""
        run, told = project / "runs" / "t", [str(case)]
        if wrong := badly_ended(case, first):
            return Outcome(MISMATCH, [*told, wrong])
        if case.what == "damage":
            done = damaged(run, case) if run.exists() else None
            if done is None:
                return Outcome(MISSED, told)
            told.append(done)
        elif first.status == 0 and case.what == "kill" and case.fault is not None and case.fault.target == "command":
            return Outcome(MISSED, told)
        noticed = False
        for _ in range(REFUSALS):
            ended = self.run(project, case.kind)
            if ended.status != 2 or case.what != "damage" or not (heeded := heed(ended.error, project)):
                break
            noticed = True
            told.append(f"{ended.error} [heeded: {heeded}]")
        if ended.status == 3 and case.what == "damage":
            return Outcome(NOTICED, [*told, "noticed by verify"])
        if ended.status != 0:
            return Outcome(MISMATCH, [*told, f"the resumed run ended with {ended.status}: {ended.text[-2000:]}"])
        found = differences(reference, run)
        if found:
            return Outcome(MISMATCH, [*told, *found[:5]])
        return Outcome(NOTICED if noticed else SAME, told)


def badly_ended(case: Case, first: Ended) -> str | None:
    """What is wrong with the end of the disturbed run."""
    if first.status is None:
        return f"it hangs: {first.text[-2000:]}"
    if case.what == "damage" or first.status == 0:
        return None
    if "Traceback" in first.text and first.status > 0:
        return f"a traceback, status {first.status}: {first.text[-2000:]}"
    if case.what == "fail" and "No space left" not in first.error:
        return f"status {first.status} without a line that says the disk is full: {first.text[-2000:]}"
    return None


def heed(line: str, project: Path) -> str | None:
    """Obey a refusal: delete the path that it names, which must be in the run. Returns the path, or None."""
    found = DELETE.search(line)
    if found is None:
        return None
    named = found[1].rstrip(".,;:")
    if named == "it":
        file = FILE.search(line)
        if file is None:
            return None
        named = file[0]
    path = project / named
    run = project / "runs" / "t"
    if not path.exists() or run not in (path, *path.parents):
        return None
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return named


def kept(path: Path) -> list[dict[str, Any]]:
    """The finished cases."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def series(chaos: Chaos, cases: int, seed: int, path: Path) -> Iterator[dict[str, Any]]:
    """Run cases until `cases` have finished without missing, and keep each in a file; cases in it are not run again."""
    done = {row["case"]: row for row in kept(path)}
    number, counted = seed, 0
    while counted < cases:
        row = done.get(number)
        if row is None:
            begun = time.monotonic()
            case = chaos.case(number)
            outcome = chaos.do(case)
            row = {
                "case": number, "what": case.what, "stage": case.stage, "result": outcome.result,
                "seconds": round(time.monotonic() - begun, 1), "details": outcome.details,
            }  # fmt: skip
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            yield row
        number, counted = number + 1, counted + (row["result"] != MISSED)


def summary(rows: list[dict[str, Any]]) -> str:
    """`61 kills (15 in generate, …), 29 other faults, 0 mismatches`."""
    rows = [row for row in rows if row["result"] != MISSED]
    kills = Counter(row["stage"] for row in rows if row["what"] == "kill")
    fails, damages = (sum(row["what"] == what for row in rows) for what in ("fail", "damage"))
    noticed = sum(row["result"] == NOTICED for row in rows)
    wrong = [row["case"] for row in rows if row["result"] == MISMATCH]
    by_stage = ", ".join(f"{number} in {stage}" for stage, number in kills.items())
    line = (
        f"{kills.total()} kills ({by_stage}), {fails + damages} other faults ({fails} failed writes, {damages} damaged "
    )
    line += f"files of which {noticed} were noticed), {len(wrong)} mismatches"
    return line + (f": again with CASE={wrong[0]}" if wrong else "")
