"""Arms of an ablation: small TOMLs that override keys of an experiment's config (configs/arms/)."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError

ARMS = Path("configs/arms")
# keys that all arms must share: otherwise neither their evaluations nor round 0's could be compared
MEASURE = (
    "run.",
    "peers.",
    "benchmarks.",
    "evaluate.",
    "templates.",
    "wordings.",
    "generate.max_new",
    "generate.context",
    "generate.engine",
)
NOT_MEASURE = ("templates.review", "templates.synthesis")  # wording used only in chains


@dataclass(frozen=True)
class Arm:
    """A name, and what it changes in the config as `section.key=value`."""

    name: str
    overrides: tuple[str, ...]
    oracle: bool = False  # gold answers choose the examples

    @property
    def title(self) -> str:
        """The name in tables, which marks an arm that reads gold answers."""
        return f"{self.name} (reads gold)" if self.oracle else self.name


BASE = Arm("round 0", ())  # the untouched models, for the tables


def load_arm(name: str) -> Arm:
    """The arm of configs/arms/NAME.toml, or of a TOML file given by its path. Raises UserError."""
    path = Path(name) if name.endswith(".toml") else ARMS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in ARMS.glob("*.toml")))
        raise UserError(f"there is no arm {name!r}: expected one of {known}, or the path of a TOML file")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    oracle = raw.pop("oracle", False)
    if not isinstance(oracle, bool):
        raise UserError(f"{path}: oracle must be true or false, found {oracle!r}")
    overrides = _flat(raw, path)
    measure = [text for text in overrides if text.startswith(MEASURE) and not text.startswith(NOT_MEASURE)]
    if measure:
        raise UserError(
            f"{path}: {measure[0]!r} changes the peers or how they are measured, which all arms must share: "
            "set it for all arms (--set, or SET= with make), or make another config"
        )
    return Arm(path.stem, tuple(overrides), oracle)


def _flat(table: dict[str, Any], path: Path, prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in table.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            raise UserError(f"{path}: an arm changes single keys; [[{prefix}{key}]] is a list of tables")
        text = json.dumps(value, ensure_ascii=False, default=str)  # the config refuses a date
        found += _flat(value, path, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}={text}"]
    return found
