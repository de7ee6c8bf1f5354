"""A run: its folder, its frozen config, its lock, and its prompts.

runs/<run>/config.json · prompts/ · round=<R>/{chains,scores,adapters,evals,metrics.parquet,guard.json} · report.html;
data/README.md has the whole list.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data import shards
from data.config.load import differences, load_config, parse_config
from data.config.sections import Config
from data.errors import UserError
from data.hashing import digest
from data.questions import shuffled, source_digest, unique_questions
from data.schema import PROMPTS

RUNS = Path("runs")
OUTPUT = {"generate": "chains", "score": "scores", "train": "adapters", "evaluate": "evals"}  # folders by stage


@dataclass(frozen=True)
class Run:
    """An opened run. Paths are relative to the project's root, from where everything is started."""

    name: str
    config: Config

    @property
    def root(self) -> Path:
        """runs/<run>"""
        return RUNS / self.name

    @property
    def prompts_dir(self) -> Path:
        """Where the unlabelled questions are."""
        return self.root / "prompts"

    def round_dir(self, round_: int) -> Path:
        """runs/<run>/round=<R>"""
        return self.root / f"round={round_}"

    def stage_dir(self, round_: int, kind: str) -> Path:
        """Folder of a stage's output: chains, scores, adapters or evals."""
        return self.round_dir(round_) / kind

    def freeze(self, check: Callable[[], object]) -> None:
        """Keep the config for good. Called by the first stage once all that can be checked without weights is
        checked, so that a config that was refused leaves nothing for the corrected one to conflict with.

        `check` raises UserError; it is for what takes too long in each call, and is not called for a frozen config.
        """
        path = self.root / "config.json"
        if not path.is_file():
            check()
            shards.write_json(self.config.model_dump(mode="json"), path)

    def adapter_dir(self, round_: int, peer: str) -> Path | None:
        """A peer's adapter after a round; None for round 0, the untouched base."""
        return self.stage_dir(round_, "adapters") / peer if round_ else None

    def checkpoint_dir(self, round_: int, peer: str) -> Path:
        """The temporary checkpoint of a peer's base merged with its adapter of a round."""
        return self.root / ".checkpoints" / f"round={round_}" / peer


def stage_is_finished(run: str, stage: str, round_: int) -> bool:
    """Whether a stage of a run has its manifest; what is in it is not looked at."""
    return (RUNS / run / f"round={round_}" / OUTPUT[stage] / shards.SUCCESS).is_file()


@contextmanager
def open_run(
    name: str,
    config_path: Path | None,
    overrides: list[str],
    resolved: Callable[[Config], None] = lambda config: None,
) -> Iterator[Run]:
    """Lock a run, resolve its config, and write its prompts if they are not there yet.

    `resolved` is given the config before the prompts are written.
    Without a config file an existing run's frozen config is used. Raises UserError if another process holds the run,
    the config conflicts with the frozen one, or the questions are not usable.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(
            f"--run {name!r}: expected a name of letters, digits, '.', '_' and '-'; it is a folder in runs/"
        )
    root = RUNS / name
    frozen_path = root / "config.json"
    if config_path is None and not frozen_path.is_file():
        raise UserError(f"run {name!r} does not exist yet: give its config with --config FILE (configs/ has some)")
    given = load_config(config_path, overrides) if config_path is not None else None
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        config = _resolve(frozen_path, given, overrides)
        resolved(config)
        run = Run(name, config)
        if not frozen_path.is_file() or shards.read_manifest(run.prompts_dir) is None:
            _write_prompts(run)
        yield run


@contextmanager
def locked(root: Path, ways_out: str = "wait for it, stop it, or use another --run name") -> Iterator[None]:
    """Hold a folder's lock; the system releases it when the process ends, however it ends."""
    with (root / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(f"{root} is in use by another process (pid {holder}); {ways_out}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _resolve(path: Path, given: Config | None, overrides: list[str]) -> Config:
    if not path.is_file():
        assert given is not None
        return given
    raw = shards.read_json(path)
    frozen = parse_config(raw, str(path))
    if given is None:
        given = parse_config(raw, str(path), overrides)
    changed = differences(frozen, given)
    if changed:
        raise UserError(
            f"the config differs from the one frozen in {path}: {'; '.join(changed)}. Ways out: another name "
            f"(--run, or RUN= with make) for a new run; undo the change to go on with this one; or delete "
            f"{path.parent} to start over"
        )
    return frozen.model_copy(update={"runtime": given.runtime, "guard": given.guard})


def _write_prompts(run: Run) -> None:
    """Select the unlabelled questions: unique, disjoint from the benchmarks, shuffled, limited."""
    section, seed = run.config.prompts, run.config.run.seed
    questions, duplicates = unique_questions(section, "prompts")
    evaluated: dict[str, str] = {}
    for index, benchmark in enumerate(run.config.benchmarks):
        asked, _ = unique_questions(benchmark, f"benchmarks.{index}")
        evaluated |= dict.fromkeys(asked, benchmark.name)
    overlap = [id_ for id_ in questions if id_ in evaluated]
    if overlap and section.overlap == "refuse":
        raise UserError(
            f"prompts: {len(overlap)} of {len(questions)} questions are also in a benchmark, first "
            f"{questions[overlap[0]][:60]!r} in {evaluated[overlap[0]]!r}. Use other rows, or set prompts.overlap to "
            "'drop' (leave them out of training) or 'transductive' (train on them; reports will say so)"
        )
    if section.overlap == "drop":
        questions = {id_: text for id_, text in questions.items() if id_ not in evaluated}
        if not questions:
            raise UserError("prompts: every question is also in a benchmark; nothing is left to train on")
    ids = shuffled(list(questions), seed) if section.shuffle else list(questions)
    ids = ids[: section.limit]
    shutil.rmtree(run.prompts_dir, ignore_errors=True)  # of a call that was killed before it could freeze its config
    size = run.config.run.shard_questions
    files = []
    for number, first in enumerate(range(0, len(ids), size)):
        rows = [{"id": id_, "question": questions[id_], "source": section.source} for id_ in ids[first : first + size]]
        files.append(run.prompts_dir / f"part-{number:05d}.parquet")
        shards.write_rows(rows, files[-1], PROMPTS)
    manifest = {
        "stage": "prompts", "rows": len(ids), "duplicates_dropped": duplicates, "overlap": len(overlap),
        "overlap_rule": section.overlap, "config": digest(run.config.prompts.model_dump(mode="json")),
        "source_digest": source_digest(section),
    }  # fmt: skip
    shards.write_manifest(run.prompts_dir, manifest, files)


def check_run(run: str) -> None:
    """Raises UserError for a run that never got as far as a config."""
    known = sorted(path.parent.name for path in RUNS.glob("*/config.json"))
    if run not in known:
        runs = ", ".join(known) or "none yet"
        raise UserError(f"there is no run {run!r} (`make round` would begin it); runs: {runs}")


def metrics_path(run: str, round_: int) -> Path:
    """runs/<run>/round=<R>/metrics.parquet"""
    return RUNS / run / f"round={round_}" / "metrics.parquet"


def load_frozen(run: str) -> Config:
    """The run's frozen config."""
    path = RUNS / run / "config.json"
    return parse_config(shards.read_json(path), str(path))
