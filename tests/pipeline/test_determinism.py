"""Which changes keep the rows, and which do not: docs/reliability.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.compare import differences, measured
from tests.conftest import ROOT

ELSEWHERE = {"PYTHONHASHSEED": "7", "LC_ALL": "C", "LANG": "de_DE.UTF-8", "TZ": "Asia/Kathmandu"}
CHOICES = """
import sys
sys.path.insert(0, {root!r})
import os, time
if os.environ.get("TZ"):
    from tests.chaos.bugs import shifted_clock
    shifted_clock()
import pyarrow as pa
from data.config.load import parse_config
from data.hashing import digest, draw_key, request_seed
from data.selection import choose_prompts
from data.shards import checksum, write_rows
from data.schema import PROMPTS
from generate.asking import peer_order
from pathlib import Path
config = parse_config({{"prompts": {{"source": "q.jsonl", "limit": 30}}, "gate": {{"questions": 5}},
    "peers": [{{"name": name, "model": name}} for name in ("a", "b", "c")]}}, "c")
chosen = choose_prompts(config)
texts = {{**chosen.questions, **chosen.for_gate}}
seeds = [request_seed(1, 2, draw_key(text), "a", 3) for text in texts.values()]
orders = [peer_order(["a", "b", "c"], order, n, 1, 17, id_)
          for n, id_ in enumerate(texts) for order in ("random", "rotate")]
write_rows([{{"id": i, "question": q, "source": "q"}} for i, q in texts.items()], Path(sys.argv[1]), PROMPTS)
print(digest([list(texts), seeds, [list(order) for order in orders], config.model_dump(mode="json")]))
print(checksum(Path(sys.argv[1])))
"""


def python(code: str, cwd: Path, *arguments: str, **environment: str) -> str:
    """The output of a script."""
    kept = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hash_seed_locale_zone_and_clock_choose_nothing(tmp_path: Path) -> None:
    """Questions, their order, seeds, who begins, and the bytes of a shard."""
    texts = [f'{{"question": "Wie groß sind {i} Äpfel und İ?"}}\n' for i in range(60)]
    (tmp_path / "q.jsonl").write_text("".join(texts), encoding="utf-8")
    code = CHOICES.format(root=str(ROOT))
    here = python(code, tmp_path, "here.parquet", PYTHONHASHSEED="0")
    elsewhere = python(code, tmp_path, "elsewhere.parquet", **ELSEWHERE)
    assert here == elsewhere and len(here.splitlines()) == 2


def run(folder: Path, models: Path, *options: str, **environment: str) -> Path:
    """An undisturbed run of two rounds."""
    command = [sys.executable, "-m", "tests.chaos.once", str(folder), "--models", str(models), *options]
    kept = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    done = subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "t"


@pytest.fixture(scope="module")
def reference(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny models and a run of them."""
    models = tiny_models["plain"].parent
    return models, run(tmp_path_factory.mktemp("determinism") / "reference", models, PYTHONHASHSEED="0")


@pytest.mark.slow
def test_a_run_under_another_hash_seed_locale_zone_and_clock_is_the_same(
    reference: tuple[Path, Path], tmp_path: Path
) -> None:
    models, expected = reference
    found = run(tmp_path / "elsewhere", models, "--bug", "shifted_clock", **ELSEWHERE)
    assert differences(expected, found) == []


@pytest.mark.slow
def test_another_shard_size_changes_no_greedy_row(reference: tuple[Path, Path], tmp_path: Path) -> None:
    """Under the transformers engine, whose samples are drawn shard by shard; those of vLLM have seeds of their own."""
    models, _ = reference
    greedy = ("--set", "generate.temperature=0")
    few, many = (run(tmp_path / size, models, *greedy, "--set", f"run.shard_questions={size}") for size in ("2", "8"))
    found = measured(few, many)
    assert found["round=1/chains"].startswith("0 of 16 rows"), found
    assert found["round=1/scores"].startswith("0 of 16 rows"), found
    assert float(found["round=1/scores"].split()[-1]) < 1e-5, found
    assert all(float(found[f"round=1/adapters/{peer}"]) < 1e-3 for peer in ("chatty", "plain")), found


@pytest.mark.slow
def test_another_number_of_threads_changes_no_text(reference: tuple[Path, Path], tmp_path: Path) -> None:
    models, expected = reference
    found = measured(expected, run(tmp_path / "threads", models, "--set", "executor.cpus_per_worker=2"))
    assert found["round=1/chains"].startswith("0 of 16 rows"), found
    assert float(found["round=1/scores"].split()[-1]) < 1e-5, found
