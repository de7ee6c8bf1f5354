"""From a TOML file and `section.key=value` overrides to a `Config`, and how two configs differ."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data.config.sections import Config
from data.errors import UserError


def load_config(path: Path, overrides: list[str]) -> Config:
    """Read a TOML file and apply `section.key=value` overrides.

    Raises UserError for a missing file, bad TOML, an unknown key or a value out of bounds.
    """
    if not path.is_file():
        raise UserError(f"config file {path} does not exist; give an existing one with --config (configs/ has some)")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, a number with thousands of digits, deep brackets
        raise UserError(f"{path} is not valid TOML: {error}") from error
    return parse_config(raw, str(path), overrides)


def parse_config(raw: dict[str, Any], where: str, overrides: Sequence[str] = ()) -> Config:
    """Apply `section.key=value` overrides to a raw dictionary and validate it; `where` names its origin in errors.

    Raises UserError. For a wrong key that overrides set (or a key around or inside it), the message names these instead
    of `where`. For sections that do not fit together it names `where` and all overrides.
    """
    try:
        given = copy.deepcopy(raw)
        for text in overrides:
            _apply_override(given, text)
        return Config.model_validate(given)
    except RecursionError:
        raise UserError(f"{where}: tables are nested too deep; expected section.key = value") from None
    except ValidationError as error:
        found: dict[str, list[str]] = {}
        for item in error.errors():
            key = ".".join(map(str, item["loc"]))
            origin = where
            if setting := ", ".join(repr(text) for text in overrides if _related(key, text)):
                origin = f"--set {setting}" if key else f"{where} with --set {setting}"
            found.setdefault(origin, []).append(_explain(key, item["type"], item["msg"], item["input"]))
        raise UserError("; ".join(f"{origin}: {'; '.join(lines)}" for origin, lines in found.items())) from None


def _related(key: str, override: str) -> bool:
    """Whether an override sets a key, a table around it, or a key inside it. The empty key is around all."""
    pairs = zip(key.split("."), override.partition("=")[0].strip().split("."), strict=False)
    return not key or all(one == other for one, other in pairs)


def _explain(key: str, kind: str, message: str, found: Any) -> str:
    if kind == "extra_forbidden":
        return f"unknown key {key!r} (docs/config.md lists all keys)"
    if kind == "missing":
        return f"missing key {key!r}"
    message = message.removeprefix("Value error, ")
    found = f"{found:.60}…" if isinstance(found, str) and len(found) > 100 else found
    return f"{key}: {message} (found {found!r})" if key and kind != "value_error" else f"{key} {message}".strip()


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override!r}: expected section.key=value, for example --set generate.temperature=0.8")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = (
            None if text.strip() == "null" else text
        )  # a bare word is a string: --set score.weighting=rank needs no quotes in the shell
    *parents, last = key.strip().split(".")
    table: Any = raw
    for part in parents:
        table = _step_into(table, part, override)
    if isinstance(table, list):
        raise UserError(f"--set {override!r}: name one entry of the list, for example peers.0.{last}")
    table[last] = value


def _step_into(table: Any, part: str, override: str) -> Any:
    if isinstance(table, list):
        if not part.isdigit() or int(part) >= len(table):
            raise UserError(f"--set {override!r}: {part!r} is not an index into a list of {len(table)} entries")
        return table[int(part)]
    inner = table.setdefault(part, {})
    if not isinstance(inner, (dict, list)):
        raise UserError(f"--set {override!r}: {part!r} is a value, not a section")
    return inner


def differences(frozen: Config, given: Config) -> list[str]:
    """`key: frozen -> given` for every key that differs, except those of `runtime`, `executor`, `guard`, `tracking`,
    `wording` and `gate.patience`."""
    before, after = settled_keys(frozen), settled_keys(given)
    return [
        f"{key}: {before.get(key, '(absent)')} -> {after.get(key, '(absent)')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def settled_keys(config: Config) -> dict[str, str]:
    """{dotted key: its value as JSON} for every key that a run keeps for good; `differences` compares these."""
    free: Any = dict.fromkeys(("runtime", "executor", "guard", "tracking", "wording"), True) | {"gate": {"patience"}}
    return flat(config.model_dump(mode="json", exclude=free))


def flat(dump: dict[str, Any]) -> dict[str, str]:
    """{`section.key`, or `section.0.key` in lists of tables: its value as JSON} for a dumped config or a part of it."""
    found: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, inner in enumerate(value):
                walk(f"{prefix}.{index}", inner)
        else:
            found[prefix] = json.dumps(value)

    walk("", dump)
    return found
