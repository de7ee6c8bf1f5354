"""The harness's tasks: local files in a folder, a YAML and a JSONL each.

`pst-NAME`: a benchmark's questions with this peer's prompts, answered greedily, graded by grading.py. `everyday`: sixty
plain questions of everyday knowledge with four choices, unrelated to what a run trains on, so that they show
forgetting. They were written for this file.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from data.config.sections import GenerateSection
from evaluate.benchmarks import Item
from peers.prompts import PeerPrompts

HERE = Path(__file__).parent
EVERYDAY = "everyday"


def task_name(name: str) -> str:
    """The harness's name for a benchmark."""
    return f"pst-{name}"


def write_questions(
    folder: Path, name: str, kind: str, items: list[Item], prompts: PeerPrompts, section: GenerateSection
) -> int:
    """Write a benchmark as a task for a peer. Returns the number of prompts that the harness will encode differently:
    for example, of texts that spell a control token."""
    asked = prompts.all_of("solve", [(item.question, ()) for item in items])
    texts = [prompts.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in asked]
    pairs = zip(texts, items, strict=True)
    rows: list[dict[str, object]] = [{"prompt": text, "gold": item.gold, "kind": kind} for text, item in pairs]
    ends = [prompts.tokenizer.decode([token]) for token in prompts.stop_ids]
    _write(
        folder,
        task_name(name),
        rows,
        [
            "output_type: generate_until",
            "doc_to_text: prompt",
            "doc_to_target: gold",
            "process_results: !function grading.process_results",
            "generation_kwargs:",
            f"  until: {json.dumps([*prompts.stop_strings, *ends])}",
            f"  max_gen_toks: {section.max_new_tokens}",
            "  do_sample: false",
            *_metric("exact_match"),
        ],
    )
    shutil.copy(HERE / "grading.py", folder)
    again = [prompts.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return sum(mine != theirs for mine, theirs in zip(asked, again, strict=True))


def write_everyday(folder: Path) -> None:
    """Write the everyday questions as a task."""
    lines = (HERE / "everyday.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{"prompt": f"Question: {row['question']}\nAnswer:", **row} for row in map(json.loads, lines)]
    _write(
        folder,
        EVERYDAY,
        rows,
        [
            "output_type: multiple_choice",
            "doc_to_text: prompt",
            "doc_to_choice: choices",
            "doc_to_target: answer",
            *_metric("acc"),
        ],
    )


def _write(folder: Path, task: str, rows: list[dict[str, object]], lines: list[str]) -> None:
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    head = [
        f"task: {task}",
        "dataset_path: json",
        "dataset_kwargs:",
        "  data_files:",
        f"    test: {json.dumps(str(path.resolve()))}",
        "test_split: test",
        "num_fewshot: 0",
    ]
    (folder / f"{task}.yaml").write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


def _metric(name: str) -> list[str]:
    return ["metric_list:", f"  - metric: {name}", "    aggregation: mean", "    higher_is_better: true"]
