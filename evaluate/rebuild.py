"""The report of a running run, rewritten as its stages finish: quietly, and without ever ending the run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data.run import Run

TIMES = 20  # a report that took t seconds is not rewritten for 20 t: it takes at most a twentieth of a run's time


class Rebuild:
    """Called after each stage; after a command's last stage it always writes."""

    def __init__(self) -> None:
        self.not_before = 0.0

    def __call__(self, run: Run) -> None:
        """Write the report, if there is anything to report and it was not just written."""
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
