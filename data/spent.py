"""How long the peers' processes worked on a stage, and on how many devices: for its manifest and the page.

A process has one such account, since it does one stage at a time: peers/workers.py adds to it; data/stage.py clears it
when a stage begins and writes it to the manifest when one is finished.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any


class Spent:
    """Seconds of each peer, summed over its processes, and the devices that they used."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.devices = set[str]()

    def add(self, peer: str, device: str, seconds: float) -> None:
        """Count one call of a peer's process."""
        self.seconds[peer] += seconds
        self.devices.add(device)

    def clear(self) -> None:
        """Start again at zero, for a new stage."""
        self.seconds.clear()
        self.devices.clear()

    def totals(self) -> dict[str, Any]:
        """For a manifest: `peer_seconds`, `devices`; {} if no process was called."""
        if not self.devices:
            return {}
        seconds = {peer: round(value, 1) for peer, value in sorted(self.seconds.items())}
        return {"peer_seconds": seconds, "devices": len(self.devices)}


spent = Spent()
