"""A run: its folder, its frozen config, its lock, and its prompts.

runs/<run>/config.json · prompts/ · round=<R>/{chains,scores,adapters,evals,metrics.parquet,guard.json} · report.html;
data/README.md has the whole list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data import shards, sums
from data.answers.own_grader import check_own
from data.config.engine import settled
from data.config.form import form_warnings
from data.config.load import differences, load_config, parse_config
from data.config.sections import NAME, NAME_BYTES, Config
from data.console import console
from data.errors import UserError
from data.inside import check_inside
from data.locks import locked
from data.selection import write_prompts
from data.stage import check_format

RUNS = Path("runs")
# suffixes of files that hold no finished work
NOTHING_MADE = (shards.STARTED, "~too-long.json", "~too-long.json.sha256", ".tmp")
OUTPUT = {  # folders by stage
    "generate": "chains",
    "score": "scores",
    "train": "adapters",
    "gate": "gate",
    "evaluate": "evals",
}


@dataclass(frozen=True)
class Run:
    """An opened run. Paths are relative to the project's root, where all commands start."""

    name: str
    config: Config

    @property
    def root(self) -> Path:
        """runs/<run>"""
        return RUNS / self.name

    @property
    def prompts_dir(self) -> Path:
        """Folder of the unlabelled questions."""
        return self.root / "prompts"

    @property
    def gate_dir(self) -> Path:
        """Folder of the gate's unlabelled questions; missing without a gate."""
        return self.root / "gate"

    def round_dir(self, round_: int) -> Path:
        """runs/<run>/round=<R>"""
        return self.root / f"round={round_}"

    def stage_dir(self, round_: int, kind: str) -> Path:
        """Folder of a stage's output: chains, scores, adapters, gate or evals."""
        return self.round_dir(round_) / kind

    def freeze(self, check: Callable[[], object]) -> None:
        """Write the config for good. The first stage calls this after all checks that need no weights, so that a
        refused config leaves nothing that the corrected one could conflict with.

        `check` raises UserError; it is for checks too slow for every command, and is not called for a frozen config.
        """
        path = self.root / "config.json"
        if not path.is_file():
            check()
            for line in form_warnings(self.config):
                console.print(f"warning: {line}", markup=False, soft_wrap=True)
            with sums.noted(path):
                shards.write_json(self.config.model_dump(mode="json"), path)
        else:
            sums.note_missing(path)

    def adapter_dir(self, round_: int, peer: str) -> Path | None:
        """A peer's adapter after a round; None for round 0, the untouched base."""
        return self.stage_dir(round_, "adapters") / peer if round_ else None

    def checkpoint_dir(self, round_: int, peer: str) -> Path:
        """The temporary checkpoint of a peer's base merged with its adapter of a round."""
        return self.root / ".checkpoints" / f"round={round_}" / peer


def stage_is_finished(run: str, stage: str, round_: int) -> bool:
    """Whether a stage of a run has its manifest, whose contents are not checked."""
    return (RUNS / run / f"round={round_}" / OUTPUT[stage] / shards.SUCCESS).is_file()


def check_run_name(run: str, option: str = "--run") -> None:
    """Raises UserError for what cannot be the name of a run; `option` is the option that gave it."""
    if not re.fullmatch(NAME, run) or len(run) > NAME_BYTES:
        raise UserError(
            f"{option} {run[: 2 * NAME_BYTES]!r}: expected a name of at most {NAME_BYTES} letters, digits, '.', '_' "
            "and '-' that begins with a letter or digit and does not end in '.'; it is a folder in runs/"
        )


@contextmanager
def open_run(
    name: str,
    config_path: Path | None,
    overrides: list[str],
    resolved: Callable[[Config], None] = lambda config: None,
) -> Iterator[Run]:
    """Lock a run, resolve its config, and write its prompts if they are missing.

    `resolved` is called with the config before the prompts are written. Without a config file, an existing run's frozen
    config is used. Raises UserError if another process holds the run, if the config conflicts with the frozen one, or
    if the questions are not usable.
    """
    check_run_name(name)
    root = RUNS / name
    check_inside(root)
    frozen_path = root / "config.json"
    if config_path is None and not frozen_path.is_file():
        raise UserError(f"run {name!r} does not exist yet: give its config with --config FILE (configs/ has some)")
    given = load_config(config_path, overrides) if config_path is not None else None
    with locked(root):
        first = not frozen_path.is_file()
        try:
            if not first:
                check_run_version(root)  # before configs are compared: an old run gets the right error
            config = _resolve(frozen_path, given, overrides)
            resolved(config)
            check_own(config.answer_kinds)
            run = Run(name, config)
            if first or shards.read_manifest(run.prompts_dir) is None:
                write_prompts(config, run.prompts_dir, run.gate_dir)
            yield run
        except BaseException:
            if first:
                with suppress(OSError):  # report the first error
                    _forget(root)
            raise


def _forget(root: Path) -> None:
    """Remove what a failed first command leaves, unless a stage has made something: the corrected one is then the
    first. The logs stay if it got as far as its models."""
    begun, rounds = (root / "config.json").is_file(), [path for path in root.glob("round=*/**/*") if path.is_file()]
    logs = [path for path in rounds if path.parent.name == "logs"]
    if any(not path.name.endswith(NOTHING_MADE) for path in rounds if path not in logs):
        return
    kept = [path for path in logs if begun and path.stat().st_size]
    ours = (shards.SUCCESS, *NOTHING_MADE, ".parquet")  # not what a person put there
    own = [path for name in ("prompts", "gate") for path in root.glob(f"{name}/*") if path.name.endswith(ours)]
    made = (*own, *rounds)
    for path in (root / "config.json", root / sums.SUMS, *made, root / ".lock"):
        if path not in kept:
            path.unlink(missing_ok=True)
    inside = [path for pattern in ("prompts", "gate", "round=*", "round=*/**/*") for path in root.glob(pattern)]
    for path in sorted((path for path in (*inside, root) if path.is_dir()), reverse=True):  # inner folders first
        if not any(path.iterdir()):
            path.rmdir()


def _resolve(path: Path, given: Config | None, overrides: list[str]) -> Config:
    if not path.is_file():
        assert given is not None
        return settled(given)
    frozen = read_frozen(path)
    if given is None:
        given = parse_config(shards.read_json(path), str(path), overrides)
    given = settled(given, frozen)
    changed = differences(frozen, given)
    if changed:
        raise UserError(
            f"the config differs from the one frozen in {path}: {'; '.join(changed)}. Ways out: another name "
            f"(--run, or RUN= with make) for a new run; undo the change to go on with this one; or delete "
            f"{path.parent} to start over"
        )
    gate = frozen.gate.model_copy(update={"patience": given.gate.patience})
    free = {name: getattr(given, name) for name in ("runtime", "executor", "guard", "tracking")}
    placed = {"peers": given.peers, "prompts": given.prompts, "benchmarks": given.benchmarks}  # moved by runtime.places
    return frozen.model_copy(update={**free, **placed, "gate": gate})


def check_run_version(root: Path) -> None:
    """Raises UserError if another version of this project made a part of a run. Damaged manifests are left to those
    who read them."""
    for folder in (*(root / name for name in ("prompts", "gate", "forked_from")), *sorted(root.glob("round=*/*"))):
        path = folder / shards.SUCCESS
        if path.is_file():
            try:
                manifest = shards.read_json(path)
            except UserError:
                continue
            if isinstance(manifest, dict):
                check_format(manifest, folder)


def check_run(run: str) -> None:
    """Raises UserError for a run without a frozen config, and for one of another version."""
    check_begun(run)
    load_frozen(run)


def check_begun(run: str) -> None:
    """Raises UserError for a run without a frozen config, whose contents are not checked, and for one with links that
    lead out of it."""
    known = sorted(path.parent.name for path in RUNS.glob("*/config.json"))
    if run not in known:
        runs = ", ".join(known) or "none yet"
        raise UserError(f"there is no run {run!r} (`make round` begins one); runs: {runs}")
    check_inside(RUNS / run)


def metrics_path(run: str, round_: int) -> Path:
    """runs/<run>/round=<R>/metrics.parquet"""
    return RUNS / run / f"round={round_}" / "metrics.parquet"


def load_frozen(run: str) -> Config:
    """The run's frozen config. Raises UserError for a run of another version."""
    check_run_version(RUNS / run)
    return read_frozen(RUNS / run / "config.json")


def read_frozen(path: Path) -> Config:
    """A frozen config. A missing key gets its default, which is how earlier versions of this format behaved
    (`check_run_version` refuses other formats). Raises UserError for a key that this version does not know."""
    raw = shards.read_json(path)
    try:
        return parse_config(raw, str(path))
    except UserError as error:
        raise UserError(
            f"{error}; another version froze it, or it was edited: begin a new run under another name (--run, or RUN= "
            "with make), or go on with that version"
        ) from None
