"""Nothing in a run's folder may lead out of it: a run may have come from anyone.

`runs` itself and `runs/<run>` may be links, to a larger disk for example. Below that, a link may lead to another place
in the run. One that leads out would make a stage read, write or delete what is not the run's, and a pipe would make it
wait for ever.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from data.errors import UserError

LAST_ROUND = 100_000  # `make status` lists all stages up to the last round


def check_inside(root: Path) -> None:
    """Raises UserError for a link in a run's folder that leads out of it, for an entry that is neither file nor folder,
    and for one named like a round that is none."""
    real, folders = os.path.realpath(root), [str(root)]
    while folders:
        with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:  # another command may delete some
            for entry in entries:
                if entry.name.startswith("round=") and os.path.dirname(entry.path) == str(root):
                    _check_round(entry)
                if entry.is_symlink():
                    _check_link(entry, root, real)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    raise UserError(
                        f"{entry.path} is a pipe, a socket or a device; expected only files and folders in {root}: "
                        "remove it"
                    )


def _check_round(entry: os.DirEntry[str]) -> None:
    number = entry.name.partition("=")[2]
    if not re.fullmatch("0|[1-9][0-9]*", number) or len(number) > 9 or int(number) > LAST_ROUND:
        raise UserError(
            f"{entry.path} is named like a round and is none; expected round=0 to round={LAST_ROUND}: rename "
            "or remove it"
        )


def _check_link(entry: os.DirEntry[str], root: Path, real: str) -> None:
    target = os.path.realpath(entry.path)
    if target != real and not target.startswith(real + os.sep):
        raise UserError(
            f"{entry.path} is a link to {target}, which is not in {root}; links out of a run are not followed: put a "
            "copy in its place, or remove it"
        )
