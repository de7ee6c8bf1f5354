"""Without gold answers by construction: no gold answer can reach generate, score or train."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pytest

from data import schema
from data.gate import Decision, GateComparison
from score.examples import EXAMPLES
from score.passes import PASSES, VERIFIED
from tests.conftest import ROOT
from train.gate.stage import RESPONSES

BLIND = ("data", "peers", "generate", "score", "train")
MODULES = sorted(path for package in BLIND for path in (ROOT / package).rglob("*.py"))
SCHEMAS = {name: value for name, value in vars(schema).items() if isinstance(value, pa.Schema)}
GOLD_WORDS = ("gold", "correct", "label", "verdict", "solution")


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Absolute names of all modules that a file imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(part for part in (package if node.level else "", node.module or "") if part)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """Calls of a function by its bare name or as an attribute."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in found if ast.unparse(call.func).split(".")[-1] == name]


def test_the_walk_sees_what_it_is_for() -> None:
    assert len(MODULES) > 20
    code = "import evaluate.gap\nfrom data import a, b\ndef f():\n from evaluate import metrics\n from .stage import x"
    found = set(imported(ast.parse(code), "score"))
    assert found == {"evaluate.gap", "evaluate.metrics", "score.stage.x", "data.a", "data.b"}


def test_only_evaluate_has_a_column_for_gold_answers() -> None:
    assert {"PROMPTS", "CHAINS", "SCORES", "KEEP", "GATE", "EVALS", "METRICS"} <= SCHEMAS.keys()
    assert SCHEMAS["KEEP"].names == ["prompt_id", "peer", "number"]  # evaluate writes it for train
    assert "gold" in SCHEMAS["EVALS"].names
    for name, found in {
        **SCHEMAS,
        "PASSES": PASSES,
        "EXAMPLES": EXAMPLES,
        "VERIFIED": VERIFIED,
        "RESPONSES": RESPONSES,
    }.items():
        if name not in ("EVALS", "METRICS", "ABLATION"):
            columns = set(found.names) - {"label", "label_share"}  # the label that the peers' own answers give
            assert not [column for column in columns if any(word in column for word in GOLD_WORDS)], name
    assert "gold" not in SCHEMAS["METRICS"].names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_must_not_see_gold_answers_reads_none(path: Path) -> None:
    tree = parsed(path)
    assert not [name for name in imported(tree, path.parent.name) if name.split(".")[0] == "evaluate"]
    # no module is imported by a name that is built at run time, but the one that compares a user's own answers
    assert not calls(tree, "import_module") + calls(tree, "__import__") or path.name == "own.py"
    # `answer_column` is declared with the benchmarks and read in evaluate alone
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "answer_column"]
    words = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value in ("gold", "answer_column")]
    assert not words or path.name == "columns.py"  # which says what each column means, and reads none
    passed_on = {"columns"} if path.name == "questions.py" else set()  # `read_source` calls `read_with_origin`
    for call in calls(tree, "read_source") + calls(tree, "read_with_origin"):
        assert ast.unparse(call.args[1]) in {"[section.question_column]", *passed_on}


def test_evaluate_is_where_the_answer_column_is_read() -> None:
    reading = [path.name for path in (ROOT / "evaluate").glob("*.py") if calls(parsed(path), "read_with_origin")]
    assert sorted(reading) == ["benchmarks.py", "labels.py"]
    asking = [path.name for path in MODULES if any("answers.gold" in name for name in imported(parsed(path), ""))]
    # how a gold answer is read is in data/answers/gold.py, with a part in gold_texts.py; who reads one is evaluate
    assert asking == ["gold.py"]


def test_what_decides_about_an_adapter_has_no_gold_answer() -> None:
    """The decision file is shares, counts and rounds; the gate is one of the modules that are walked above."""
    assert {ROOT / "train" / "gate" / f"{name}.py" for name in ("stage", "rule")} <= set(MODULES)
    assert ROOT / "data" / "gate.py" in MODULES and ROOT / "peers" / "policy.py" in MODULES
    names = [field.name for kind in (GateComparison, Decision) for field in fields(kind)]
    assert not [name for name in names if any(word in name for word in GOLD_WORDS)]


def test_prompts_have_no_section_for_answers() -> None:
    from data.config.sections import PromptsSection

    names = set(PromptsSection.model_fields) - {"answers"}  # of which kind they are
    assert not [name for name in names if "answer" in name or "gold" in name]
