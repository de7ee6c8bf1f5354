"""Where a run's numbers are recorded besides its own files."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from pydantic import Field

from data.config.base import NAME, NAME_BYTES, Section
from data.errors import UserError


class TrackingSection(Section):
    """A record of all runs besides their files; may differ from command to command, and changes no results."""

    kind: Literal["none", "trackio"] = Field(
        "none", description="Keep each evaluated round's numbers in trackio, on this machine (docs/tracking.md)."
    )
    project: str = Field(
        "pst", pattern=f"^{NAME}$", max_length=NAME_BYTES, description="The tracker's project; runs keep their names."
    )


def check_tracker_installed(section: TrackingSection) -> None:
    """Raises UserError if the tracker's package is missing; checked before a round, not after it."""
    if section.kind != "none" and find_spec(section.kind) is None:
        raise UserError(
            f"tracking.kind is {section.kind!r} but the package is not installed: run `make setup EXTRA=trackio`, or "
            "go on with --set tracking.kind=none (SET= with make)"
        )
