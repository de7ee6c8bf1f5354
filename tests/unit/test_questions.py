"""Questions: ids, sources, what is refused and how it is told."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import polars as pl
import pytest

from data.config.sections import SourceSection
from data.errors import UserError
from data.hashing import draw_key, loose_form, normalise_question, question_id
from data.questions import read_source, shuffled, unique_questions
from data.run import open_run
from data.shards import read_manifest
from tests.conftest import write_jsonl

QUESTIONS = ["How many\tpens,  2 or 3?", 'She said "ten".\nHow many is that?', "Größe?", "007", "½ of 4?"]


def source(path: Path | str, rows: tuple[int, int] | None = None, column: str = "question") -> SourceSection:
    """A section for a source."""
    return SourceSection(source=str(path), rows=rows, question_column=column)


def jsonl(path: Path, questions: list[str]) -> Path:
    """Questions as JSONL."""
    return write_jsonl(path, [{"question": question, "answer": "1"} for question in questions])


def test_normalise_leaves_all_but_white_space_and_composition() -> None:
    assert normalise_question("  How\tMANY \n pens? ") == "How MANY pens?"
    assert normalise_question("Gro\u0308ße\u00a0?") == "Größe ?"  # o with two dots as one character, no-break space
    assert normalise_question("a b") != normalise_question("ab")


def test_case_space_and_ligatures_make_no_other_question() -> None:
    assert loose_form("  How\tMANY \n pens? ") == "how many pens?"
    assert loose_form("①\u00a0ﬁve") == "1 five"  # NFKC: circled one, no-break space, ligature
    assert loose_form("STRASSE") == loose_form("straße")
    assert loose_form("a b") != loose_form("ab")


@pytest.mark.parametrize(
    ("one", "other"),
    [("3² + 1?", "32 + 1?"), ("10⁴?", "104?"), ("4 MB?", "4 Mb?"), ("A - a?", "a - A?"), ("x₁?", "x1?"), ("½?", "1⁄2?"),
     ("ℝ?", "R?"), ("Ⅳ?", "IV?"), ("5′?", "5?"), ("a−b?", "a-b?"), ("ß?", "ss?"), ("1 2?", "12?")],
)  # fmt: skip
def test_one_question_is_not_another(one: str, other: str, tmp_path: Path) -> None:
    found = unique_questions(source(jsonl(tmp_path / "q.jsonl", [one, other])), "prompts")
    assert list(found.texts.values()) == [one, other]


def test_question_id_is_of_the_normalised_text() -> None:
    assert question_id("How many pens?") == question_id(" How  many\npens? ")
    assert question_id("How many pens?") != question_id("how many pens?")
    # sha256 of "How many pens?"; it is in the files of every run, so it must never change
    assert question_id("How many pens?") == "bbbc2e29e55de360"


def test_what_is_drawn_goes_by_the_ids_of_format_2() -> None:
    assert draw_key("How many pens?") == draw_key("how  many PENS?") == "946036e48fd854c2"
    texts = {question_id(text): text for text in [*(f"Number {i}?" for i in range(9)), "number 3?"]}
    again = dict(reversed(texts.items()))
    assert [texts[id_] for id_ in shuffled(texts, 17)] == [texts[id_] for id_ in shuffled(again, 17)]
    only = {id_: text for id_, text in texts.items() if text[0] == "N"}
    keys = {draw_key(text): text for text in only.values()}
    expected = [keys[key] for key in random.Random(17).sample(sorted(keys), len(keys))]  # as it was up to format 2
    assert [texts[id_] for id_ in shuffled(only, 17)] == expected


def test_all_formats_give_the_same_questions(tmp_path: Path) -> None:
    jsonl(tmp_path / "q.jsonl", QUESTIONS)
    pl.DataFrame({"question": QUESTIONS}).write_parquet(tmp_path / "q.parquet")
    with (tmp_path / "q.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["question", "more"], *([question, "1"] for question in QUESTIONS)])
    for suffix in ("jsonl", "parquet", "csv"):
        found, duplicates, _ = unique_questions(source(tmp_path / f"q.{suffix}"), "prompts")
        assert found == {question_id(question): question for question in QUESTIONS}, suffix
        assert list(found.values()) == QUESTIONS
        assert duplicates == 0


def test_a_glob_reads_all_its_files(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", ["one?"])
    jsonl(tmp_path / "b.jsonl", ["two?"])
    found, _, origin = unique_questions(source(tmp_path / "*.jsonl"), "prompts")
    assert list(found.values()) == ["one?", "two?"]
    assert str(origin) == "2 files, 2 rows"


def test_json_numbers_are_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": 12}\n{"question": 7}\n', encoding="utf-8")
    assert read_source(source(tmp_path / "q.jsonl"), ["question"], "prompts")["question"].to_list() == ["12", "7"]


@pytest.mark.parametrize(
    "cells", [["007", "1.50"], ["True", "False"], ["12345678901234567890123", "0.1"], ["1e3", "2"]]
)
def test_csv_cells_are_text_as_they_stand(cells: list[str], tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("\n".join(["question", *cells, ""]), encoding="utf-8")
    assert read_source(source(tmp_path / "q.csv"), ["question"], "prompts")["question"].to_list() == cells


def test_a_tilde_in_a_source_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    jsonl(tmp_path / "q.jsonl", ["one?"])
    assert len(read_source(source("~/q.jsonl"), ["question"], "prompts")) == 1


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", ["One?", "two?", "One ?", " One?", " two? "])
    found, duplicates, _ = unique_questions(source(path), "prompts")
    assert list(found.values()) == ["One?", "two?", "One ?"]
    assert duplicates == 2


def test_rows_are_a_slice_of_the_source(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [f"number {i}?" for i in range(6)])
    found, *_ = unique_questions(source(path, rows=(1, 3)), "prompts")
    assert list(found.values()) == ["number 1?", "number 2?"]
    first, *_ = unique_questions(source(path, rows=(0, 4)), "prompts")
    rest, *_ = unique_questions(source(path, rows=(4, 99)), "prompts")
    assert [*first.values(), *rest.values()] == [f"number {i}?" for i in range(6)]


@pytest.mark.parametrize(
    ("content", "rows", "told"),
    [
        (None, None, r"^prompts: file .*q\.jsonl does not exist"),
        ("", None, r"^prompts: file .*q\.jsonl is empty"),
        ('{"text": "one?"}\n', None, r"^prompts: .*q\.jsonl has no column 'question'; it has text"),
        ('{"question": "one?"}\n', (5, 9), r"^prompts: .*q\.jsonl has no rows in \[5, 9\]"),
        ('{"question": "one?"}\n{"question": " \\n"}\n', None, r"^prompts: .*q\.jsonl row 2 has an empty 'question'"),
        ('{"question": "one?"}\n{"question": null}\n', None, r"^prompts: .*q\.jsonl row 2 has an empty 'question'"),
        ('{"question": "one?"}\n{"answer": "1"}\n', None, r"^prompts: .*q\.jsonl row 2 has an empty 'question'"),
        ('{"question": "one?"}\n{"question": "tw\n', None, r"^prompts: .*q\.jsonl cannot be read: line 2 is not JSON"),
        ("not json\n", None, r"^prompts: .*q\.jsonl"),
        ('{"question": {"text": "one?"}}\n', None, r"^prompts: .*q\.jsonl"),
        ('{"question": ["one?"]}\n', None, r"^prompts: .*q\.jsonl"),
    ],
)
def test_bad_sources_are_named(content: str | None, rows: tuple[int, int] | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=told):
        read_source(source(path, rows), ["question"], "prompts")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_other_formats_are_named_too(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"q.{suffix}"
    with pytest.raises(UserError, match=r"^benchmarks\.0: file .* does not exist; set benchmarks\.0\.source"):
        read_source(source(path), ["question"], "benchmarks.0")
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"^benchmarks\.0: .* is empty"):
        read_source(source(path), ["question"], "benchmarks.0")
    path.write_bytes(b"text\none?\n")
    with pytest.raises(UserError, match=r"^benchmarks\.0: .*has no column 'question'|cannot be read"):
        read_source(source(path), ["question"], "benchmarks.0")


def test_a_row_is_named_by_its_place_in_the_source(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", ["one?", "two?", " "])
    with pytest.raises(UserError, match="row 3 has an empty"):
        read_source(source(path, rows=(1, 3)), ["question"], "prompts")


def test_a_missing_folder_is_no_hub_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^prompts: .*nowhere does not exist; set prompts\.source"):
        unique_questions(source(tmp_path / "nowhere"), "prompts")


def test_shuffled_depends_on_the_ids_and_the_seed_alone() -> None:
    ids = {f"{i:02d}": f"number {i}" for i in range(30)}
    once = shuffled(ids, 17)
    assert once == shuffled(dict(reversed(ids.items())), 17)
    assert sorted(once) == list(ids)
    assert once != list(ids)
    assert once != shuffled(ids, 18)


def prompts_of(folder: Path, name: str, *overrides: str) -> list[str]:
    """The questions that a run selects, in its order."""
    with open_run(name, folder / "c.toml", list(overrides)) as run:
        files = sorted(run.prompts_dir.glob("part-*.parquet"))
        return [question for file in files for question in pl.read_parquet(file)["question"]]


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config over 20 questions (one twice) and a benchmark that shares two of them."""
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "train.jsonl", [*(f"train {i}?" for i in range(20)), " train  3?"])
    jsonl(tmp_path / "test.jsonl", ["test?", "Train  4?", "train 5?"])
    peers = "".join(f'[[peers]]\nname = "{name}"\nmodel = "{name}"\n' for name in "ab")
    sources = (
        f'[prompts]\nsource = {json.dumps("train.jsonl")}\noverlap = "drop"\n'
        '[[benchmarks]]\nname = "t"\nsource = "test.jsonl"\n'
    )
    (tmp_path / "c.toml").write_text(f"run.shard_questions = 8\n{sources}{peers}", encoding="utf-8")
    return tmp_path


def test_a_run_selects_unique_questions_in_a_seeded_order(run_folder: Path) -> None:
    found = prompts_of(run_folder, "one")
    assert sorted(found) == sorted(f"train {i}?" for i in range(20) if i not in (4, 5))
    assert found == prompts_of(run_folder, "two")
    assert found != prompts_of(run_folder, "three", "run.seed=18")
    in_order = prompts_of(run_folder, "four", "prompts.shuffle=false")
    assert in_order == [f"train {i}?" for i in range(20) if i not in (4, 5)]
    # the limit comes after the shuffle: a larger one goes on where the smaller one ends
    assert prompts_of(run_folder, "five", "prompts.limit=5") == found[:5]
    manifest = read_manifest(Path("runs/one/prompts"))
    assert manifest is not None
    assert (manifest["rows"], manifest["duplicates_dropped"], manifest["overlap"]) == (18, 1, 2)
    assert len(manifest["files"]) == 3  # 18 questions in shards of 8


def test_questions_that_a_benchmark_has_are_refused_kept_or_dropped(run_folder: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"2 of 20 questions are also in a benchmark, first 'train 4\?' in 't', written 'Train  4\?' there",
    ):
        prompts_of(run_folder, "one", "prompts.overlap=refuse")
    assert len(prompts_of(run_folder, "two", "prompts.overlap=transductive")) == 20
    with pytest.raises(UserError, match="nothing is left"):
        prompts_of(run_folder, "three", "prompts.rows=[4, 6]")


def test_questions_of_every_benchmark_are_kept_from_training(run_folder: Path) -> None:
    jsonl(run_folder / "more.jsonl", ["another?", "train 6?"])
    config = run_folder / "c.toml"
    more = '[[benchmarks]]\nname = "u"\nsource = "more.jsonl"\n'
    config.write_text(config.read_text(encoding="utf-8") + more, encoding="utf-8")
    kept = prompts_of(run_folder, "one")
    assert len(kept) == 17 and not {"train 4?", "train 5?", "train 6?"} & set(kept)
    with pytest.raises(UserError, match="3 of 20 questions are also in a benchmark"):
        prompts_of(run_folder, "two", "prompts.overlap=refuse")
