"""How long a run has taken, for `runtime.max_hours`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from data import shards
from data.fork import origin_of
from data.guard import Ended
from data.run import OUTPUT, Run


@dataclass(frozen=True)
class Hours:
    """The seconds of the stages that were finished before this command, and when this command began."""

    before: float
    start: float = field(default_factory=time.monotonic)

    def check(self, run: Run, title: str) -> None:
        """Raises Ended if the run has used up its hours; `title` names the stage that does not begin."""
        limit = run.config.runtime.max_hours
        hours = (self.before + time.monotonic() - self.start) / 3600
        if limit is not None and hours > limit:
            raise Ended(
                f"run {run.name!r} has taken {hours:.2f} hours, runtime.max_hours is {limit:g}: {title} does not "
                "begin. Finished stages are kept; --set runtime.max_hours=null (SET= with make) goes on"
            )


def hours_of(run: Run) -> Hours:
    """The clock of a command. It does not count the seconds of commands that were killed within a stage, which nobody
    knows, nor those of stages that a forked run took from another run."""
    origin = origin_of(run.name)
    linked = origin.linked if origin else frozenset()
    folders = [folder for folder in run.root.glob("round=*/*") if folder.name in OUTPUT.values()]
    folders = [folder for folder in folders if folder.relative_to(run.root).as_posix() not in linked]
    manifests = [folder / shards.SUCCESS for folder in folders if (folder / shards.SUCCESS).is_file()]
    return Hours(sum(float(shards.read_json(path)["seconds"]) for path in manifests))
