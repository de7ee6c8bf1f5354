"""Benchmarks: questions with gold answers. Nothing outside this package reads a gold answer."""

from __future__ import annotations

from dataclasses import dataclass

from data.answers.gold import questions_with_gold
from data.config.sections import BenchmarkSection, Config
from data.errors import UserError
from data.hashing import digest
from data.questions import read_with_origin, shuffled

SAMPLE = 17  # seed of a limited benchmark's questions: the same in all runs, so runs and seeds can be compared


@dataclass(frozen=True)
class Item:
    """A benchmark question and its gold answer, read (data/answers/gold.py)."""

    id: str
    question: str
    gold: str


def load_benchmark(section: BenchmarkSection, where: str) -> list[Item]:
    """The items, unique by normalised question; with a limit, a sample that is the same in all runs.

    Raises UserError for a gold answer that cannot be read, and for a question with two different ones.
    """
    if section.question_column == section.answer_column:
        raise UserError(f"{where}: question_column and answer_column are both {section.answer_column!r}")
    column = section.answer_column
    table, origin = read_with_origin(section, [section.question_column, column], where, lists=(column,))
    golds = questions_with_gold(table, section.answers, origin.location, where, section.answer_index)
    items = {id_: Item(id_, question, gold) for id_, (question, gold) in golds.items()}
    if section.limit is None:
        return list(items.values())
    order = shuffled({id_: item.question for id_, item in items.items()}, SAMPLE)
    return [items[id_] for id_ in order[: section.limit]]


def load_benchmarks(config: Config) -> dict[str, list[Item]]:
    """All benchmarks of a config by name."""
    return {
        section.name: load_benchmark(section, f"benchmarks.{index}") for index, section in enumerate(config.benchmarks)
    }


def digests(benchmarks: dict[str, list[Item]]) -> dict[str, dict[str, str]]:
    """{name: {"digest": content hash of the items}} for a manifest, to see which benchmark has changed."""
    return {name: {"digest": digest([vars(item) for item in items])} for name, items in benchmarks.items()}
