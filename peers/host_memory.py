"""How much of the machine's memory this process may use: its container or job (a cgroup) may have a lower limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MINE = Path("/proc/self/cgroup")


def memory_total() -> int:
    """Bytes that this process may use."""
    import psutil

    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _limits())])


def memory_free() -> int:
    """Bytes available without swapping."""
    import psutil

    return min([int(psutil.virtual_memory().available), *(max(0, limit - used) for limit, used in _limits())])


def _limits() -> Iterator[tuple[int, int]]:
    """(limit, use without file pages that can be dropped), in bytes, of each cgroup that has a limit."""
    with suppress(OSError):  # macOS has none
        for line in MINE.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds == "":
                yield from _walk(CGROUPS, path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in kinds.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                yield from _walk(CGROUPS / "memory", path, *names)


def _walk(root: Path, path: str, limit: str, usage: str, inactive: str) -> Iterator[tuple[int, int]]:
    """`_limits` of a cgroup and those above it. A container sees its own as the root."""
    inside = root / path.lstrip("/")
    for folder in (inside, *inside.parents):
        with suppress(OSError, ValueError):  # "max", or no such file
            most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield most, used - int(stat.get(inactive, 0))
        if folder == root:
            break
