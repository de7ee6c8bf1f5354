"""The report of a run that is going, written anew as its stages finish: quietly, and no reason for a run to fail."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data.run import Run

TIMES = 20  # as long as the report took must pass before it is made again: a twentieth of a run's time, at most


class Rebuild:
    """Called after each stage. The last one of a command always has a report."""

    def __init__(self) -> None:
        self.not_before = 0.0

    def __call__(self, run: Run) -> None:
        """Write the report, if there is anything to report and that was not just done."""
        from data import events
        from data.console import console
        from data.progress import going
        from data.record import reason_of

        start = time.monotonic()
        if start < self.not_before and going(run.name):
            return
        try:
            if not self.written(run):
                return
        except Exception as error:
            console.print(f"  warning: no report could be written: {reason_of(error)}", markup=False, soft_wrap=True)
        else:
            seconds = round(time.monotonic() - start, 2)
            events.emit("report", path=str(run.root / "report.html"), seconds=seconds)
        now = time.monotonic()
        self.not_before = now + TIMES * (now - start)

    def written(self, run: Run) -> bool:
        """Write the report; False if there is nothing to report."""
        from evaluate.report import has_results, write_report

        if not has_results(run.name):
            return False
        write_report(run.name, run.config.guard)
        return True
