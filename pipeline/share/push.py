"""`make push`: prints the commands that upload an export to the Hugging Face hub, and runs none."""

from __future__ import annotations

import shlex
from pathlib import Path

from data.console import console
from data.run import check_run
from pipeline.share.card import FILL
from pipeline.share.check import MERGED
from pipeline.share.export import exported
from pipeline.share.files import CARD

OWNER = "OWNER"  # a placeholder for the user to replace


def commands(run: str, out: Path | None, owner: str) -> list[str]:
    """One `hf upload` per peer, and one more for its merged checkpoint. Raises UserError without an export."""
    folder, manifest = exported(run, out)
    lines = []
    for peer in manifest["peers"]:
        name = f"{owner}/{run}-{peer}"
        lines.append(_upload(name, folder / peer, ["--exclude", f"{MERGED}/*"] if manifest["merged"] else []))
        if manifest["merged"]:
            lines.append(_upload(f"{name}-{MERGED}", folder / peer / MERGED, []))
    return lines


def _upload(name: str, folder: Path, more: list[str]) -> str:
    return shlex.join(["hf", "upload", name, str(folder), ".", "--private", *more])


def push(run: str, out: Path | None, owner: str) -> None:
    """Print the commands, and what to fill in first."""
    check_run(run)
    folder, _ = exported(run, out)
    cards = [path for path in sorted(folder.rglob(CARD)) if FILL in path.read_text(encoding="utf-8")]
    if cards:
        console.print(f"# replace {FILL} in {', '.join(map(str, cards))}", markup=False, soft_wrap=True)
    if owner == OWNER:
        console.print(f"# {OWNER} is your name on the hub, or an organisation's; `hf auth login` once", markup=False)
    for line in commands(run, out, owner):
        console.print(line, markup=False, soft_wrap=True)
