"""How long the peers' processes were at work on a stage, and on how many devices: for its manifest and the page.

There is one such account in a process, as there is one stage at a time: peers/workers.py adds to it, data/stage.py
clears it where a stage begins, and writes it down where one is finished.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any


class Spent:
    """Seconds by peer, over all its processes; and the devices that they were on."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.devices = set[str]()

    def add(self, peer: str, device: str, seconds: float) -> None:
        """A call of a peer's process was done."""
        self.seconds[peer] += seconds
        self.devices.add(device)

    def clear(self) -> None:
        """A stage begins."""
        self.seconds.clear()
        self.devices.clear()

    def totals(self) -> dict[str, Any]:
        """For a manifest: `peer_seconds`, `devices`; nothing if no process was asked."""
        if not self.devices:
            return {}
        seconds = {peer: round(value, 1) for peer, value in sorted(self.seconds.items())}
        return {"peer_seconds": seconds, "devices": len(self.devices)}


spent = Spent()
