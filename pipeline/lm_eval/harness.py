"""Runs lm-evaluation-harness: `python -P harness.py JOB.json RESULT.json`, in its own process and folder.

Imports nothing of the project: the harness needs a package `evaluate` that is not ours.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any


def main(job_path: str, result_path: str) -> None:
    """Evaluate every model of the job; writes {model: {task: {"metric,filter": figures}}}."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {}
    for name, model in job["models"].items():
        lm: Any = HFLM(
            pretrained=model["directory"],
            peft=model["adapter"],
            dtype=job["dtype"],
            device=device,
            batch_size=job["batch_size"],
            max_length=job["context_tokens"],
        )
        found[name] = {}
        default = lm.add_bos_token
        for tasks, folder, chat in (
            (job["prompts"], job["folder"], False),
            (job["everyday"], job["folder"], False),
            (job["hub"], None, job["chat"]),
        ):
            if tasks:
                lm.add_bos_token = False if tasks == job["prompts"] else default  # these prompts already have it
                manager = TaskManager(include_path=folder, include_defaults=folder is None)
                found[name] |= figures(evaluated(lm, tasks, manager, chat, job["limit"]))
        del lm
        gc.collect()
    Path(result_path).write_text(json.dumps(found), encoding="utf-8")


def evaluated(lm: Any, tasks: list[str], manager: Any, chat: bool, limit: int | None) -> dict[str, Any]:
    """The harness's results."""
    from lm_eval import simple_evaluate

    options = {"apply_chat_template": chat, "limit": limit, "bootstrap_iters": 1000, "log_samples": True}
    found: dict[str, Any] = simple_evaluate(model=lm, tasks=tasks, task_manager=manager, **options)
    return found


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """{task: {"metric,filter": {"value", "stderr", "values": {number of the question: value}}}}; metrics that are
    not means over questions have no values."""
    tasks: dict[str, Any] = {}
    for task, results in found["results"].items():
        samples = found["samples"].get(task, [])
        for key, value in results.items():
            metric, _, kind = key.partition(",")
            stderr = results.get(f"{metric}_stderr,{kind}")
            if stderr is None:
                continue
            mine = [sample for sample in samples if sample["filter"] == kind]
            values = {sample["doc_id"]: sample.get(metric) for sample in mine}
            numbers = {id_: float(x) for id_, x in values.items() if isinstance(x, (int, float))}
            tasks.setdefault(task, {})[key] = {
                "value": value,
                "stderr": stderr if isinstance(stderr, float) else None,
                "values": numbers,
            }
    return tasks


if __name__ == "__main__":
    main(*sys.argv[1:])
