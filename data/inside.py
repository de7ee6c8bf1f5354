"""What is in a run's folder stays in it: a run may have come from anyone.

`runs` itself and `runs/<run>` may be links, to a larger disk for one. Below that a link may lead to another place of
the run; one that leads out would have a stage read, write or delete what is not the run's, and a pipe would be waited
for.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from data.errors import UserError

LAST_ROUND = 100_000  # all steps up to it are listed


def check_inside(root: Path) -> None:
    """Raises UserError for a link in a run's folder that leads out of it, and for what is neither file nor folder,
    or called like a round and none."""
    real, folders = os.path.realpath(root), [str(root)]
    while folders:
        with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:  # a command that runs may delete some
            for entry in entries:
                if entry.name.startswith("round=") and os.path.dirname(entry.path) == str(root):
                    _check_round(entry)
                if entry.is_symlink():
                    _check_link(entry, root, real)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    raise UserError(
                        f"{entry.path} is a pipe, a socket or a device; expected files and folders alone in {root}: "
                        "remove it"
                    )


def _check_round(entry: os.DirEntry[str]) -> None:
    number = entry.name.partition("=")[2]
    if not re.fullmatch("0|[1-9][0-9]*", number) or len(number) > 9 or int(number) > LAST_ROUND:
        raise UserError(
            f"{entry.path} is called like a round and is none; expected round=0 to round={LAST_ROUND}: rename "
            "or remove it"
        )


def _check_link(entry: os.DirEntry[str], root: Path, real: str) -> None:
    target = os.path.realpath(entry.path)
    if target != real and not target.startswith(real + os.sep):
        raise UserError(
            f"{entry.path} is a link to {target}, which is not in {root}; links out of a run are not followed: put a "
            "copy in its place, or remove it"
        )
