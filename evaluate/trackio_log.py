"""A separate script: standard input (JSON of `evaluate.tracking.trackio`) into trackio's files.

A round is a step, and its digest, kept beside the numbers, shows whether it is logged. If trackio's run of this name
has other numbers for a round (the run was started over, a round evaluated again), a new one of the same name begins,
with all rounds. trackio only warns when it fails, so its files are read again at the end.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MADE_FROM = "made_from"


def main(given: dict[str, Any]) -> None:
    """Log the rounds that are missing. Raises RuntimeError if they are still missing afterwards."""
    import trackio

    project, name, rounds = given["project"], given["name"], given["rounds"]
    logged = steps_of(project, name)
    anew = any(logged.get(each["round"], each[MADE_FROM]) != each[MADE_FROM] for each in rounds)
    missing = [each for each in rounds if anew or each["round"] not in logged]
    if not missing:
        return
    resume = "never" if anew else "allow"
    run = trackio.init(
        project=project,
        name=name,
        config=given["config"],
        resume=resume,
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    for each in missing:
        run.log({**each["numbers"], MADE_FROM: each[MADE_FROM]}, step=each["round"])
    trackio.finish()
    kept = steps_of(project, name)
    lost = [each["round"] for each in rounds if kept.get(each["round"]) != each[MADE_FROM]]
    if lost:
        raise RuntimeError(f"trackio did not keep rounds {lost} of {name!r} in project {project!r}")


def steps_of(project: str, name: str) -> dict[int, str]:
    """{step: digest} of the latest run of a name."""
    from trackio.sqlite_storage import SQLiteStorage

    latest = SQLiteStorage.get_latest_run_record_by_name(project, name)
    rows = SQLiteStorage.get_logs(project, name, run_id=latest["id"]) if latest else []
    return {row["step"]: row[MADE_FROM] for row in rows if MADE_FROM in row}


if __name__ == "__main__":
    main(json.load(sys.stdin))
