"""Whether a library's version changed during a run: reported, never refused. Each stage's manifest has the versions
that made it."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from data import shards
from data.errors import UserError

ABSENT = "none"  # instead of a version


def made_with(root: Path) -> list[tuple[str, Path, dict[str, str]]]:
    """(stage and round, folder, {library: version}) of a run's finished stages, in order. Manifests that cannot be read
    or have no versions are left out."""
    from data.run import OUTPUT  # a circular import

    found = []
    rounds = (path.name.partition("=")[2] for path in root.glob("round=*"))
    for round_ in sorted(int(name) for name in rounds if name.isdecimal()):
        for stage, kind in OUTPUT.items():
            folder = root / f"round={round_}" / kind
            versions = _versions(folder / shards.SUCCESS)
            if versions:
                found.append((f"{stage} round {round_}", folder, versions))
    return found


def _versions(path: Path) -> dict[str, str]:
    try:
        manifest: Any = shards.read_json(path) if path.is_file() else {}
    except (UserError, OSError):
        return {}
    found = manifest.get("versions") if isinstance(manifest, dict) else None
    return {str(name): str(version) for name, version in found.items()} if isinstance(found, dict) else {}


def changed_since(folder: Path, now: dict[str, str]) -> str | None:
    """The versions that changed since the run's last finished stage, in one line; None if none did. `folder` is that of
    the stage that begins."""
    others = [each for each in made_with(folder.parent.parent) if each[1] != folder]
    if not others:
        return None
    stage, _, before = others[-1]
    changed = [
        f"{name} {before.get(name, ABSENT)} -> {now.get(name, ABSENT)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    return f"other versions than {stage} was made with: {', '.join(changed)}" if changed else None


def version_changes(root: Path) -> list[str]:
    """A line for each library whose version is not the same in all finished stages of a run."""
    stages = made_with(root)
    lines = []
    for name in sorted({name for _, _, versions in stages for name in versions}):
        used = [(versions.get(name, ABSENT), first) for first, _, versions in stages]
        runs = [(version, next(group)[1]) for version, group in groupby(used, key=itemgetter(0))]
        if len(runs) > 1:
            parts = [f"{version} from {first} on" for version, first in runs[1:]]
            lines.append(f"{name} was {runs[0][0]}, {', '.join(parts)}")
    return lines
