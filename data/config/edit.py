"""Sets `wording` of peers in a config's TOML and keeps every comment and blank line.

For one key in one kind of table a few lines of code are enough; tomlkit would put the key after the comment that
belongs to the next table. The new text is parsed and compared before anything is written.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from data import shards
from data.errors import UserError

_PEERS = re.compile(r"\s*\[\[\s*peers\s*\]\]")
_TABLE = re.compile(r"\s*\[")
_NAME = re.compile(r"(\s*)name\s*=")
_WORDING = re.compile(r"(\s*wording\s*=\s*)(\"[^\"]*\"|'[^']*')")


def set_wordings(path: Path, names: dict[str, str]) -> None:
    """Write `wording = NAME` into the [[peers]] tables {peer: NAME} of a TOML file, in place of the old value or after
    the peer's name. Raises UserError, and leaves the file as it is, if it cannot edit the file's style."""
    text = path.read_bytes().decode()  # keeps the line ends
    raw = tomllib.loads(text)
    expected = {**raw, "peers": [_with(peer, names.get(peer["name"])) for peer in raw["peers"]]}
    new = _edited(text, [names.get(peer["name"]) for peer in raw["peers"]])
    try:
        same = tomllib.loads(new) == expected
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        by_hand = "; ".join(f'wording = "{name}" for {peer}' for peer, name in names.items())
        raise UserError(f"{path}: its peers are not [[peers]] tables of one key a line; write by hand: {by_hand}")
    with shards.writing(path.resolve()) as temporary:  # the target of a link
        temporary.write_bytes(new.encode())


def _with(peer: dict[str, object], name: str | None) -> dict[str, object]:
    return peer if name is None else {**peer, "wording": name}


def _edited(text: str, names: list[str | None]) -> str:
    """The text with the wordings `names` in its [[peers]] tables, in order; None leaves one as it is."""
    lines = text.splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if _PEERS.match(line)]
    for start, name in reversed(list(zip(starts, names, strict=False))):
        if name is None:
            continue
        end = next((n for n in range(start + 1, len(lines)) if _TABLE.match(lines[n])), len(lines))
        mine = range(start + 1, end)
        there = next((n for n in mine if _WORDING.match(lines[n])), None)
        after = next((n for n in mine if _NAME.match(lines[n])), None)
        if there is not None and (found := _WORDING.match(lines[there])):
            lines[there] = f"{found[1]}{json.dumps(name)}{lines[there][found.end() :]}"
        elif after is not None and (found := _NAME.match(lines[after])):
            lines.insert(after + 1, f"{found[1]}wording = {json.dumps(name)}\n")
    return "".join(lines)
