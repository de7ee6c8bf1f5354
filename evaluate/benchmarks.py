"""Benchmarks: questions with gold answers. Nothing outside this package reads a gold answer."""

from __future__ import annotations

from dataclasses import dataclass

from data.config.sections import BenchmarkSection, Config
from data.errors import UserError
from data.hashing import normalise, question_id
from data.questions import read_source, shuffled

SAMPLE = 17  # seed of a limited benchmark's questions: the same in all runs, so that runs and seeds can be compared


@dataclass(frozen=True)
class Item:
    """A benchmark question and its gold answer."""

    id: str
    question: str
    gold: str


def load_benchmark(section: BenchmarkSection, where: str) -> list[Item]:
    """The items: unique by normalised question, and where there is a limit, a sample that is the same in all runs.

    Raises UserError if the same question comes with two different gold answers.
    """
    if section.question_column == section.answer_column:
        raise UserError(f"{where}: question_column and answer_column are both {section.answer_column!r}")
    table = read_source(section, [section.question_column, section.answer_column], where)
    items: dict[str, Item] = {}
    for question, gold in table.iter_rows():
        item = Item(question_id(question), question, gold.strip())
        known = items.setdefault(item.id, item)
        if normalise(known.gold) != normalise(item.gold):
            raise UserError(
                f"{where}: {section.source} has the question {question[:60]!r} twice, with the answers "
                f"{known.gold!r} and {item.gold!r}; remove one"
            )
    if section.limit is None:
        return list(items.values())
    order = shuffled({id_: item.question for id_, item in items.items()}, SAMPLE)
    return [items[id_] for id_ in order[: section.limit]]


def load_benchmarks(config: Config) -> dict[str, list[Item]]:
    """All benchmarks of a config by name."""
    return {
        section.name: load_benchmark(section, f"benchmarks.{index}") for index, section in enumerate(config.benchmarks)
    }
