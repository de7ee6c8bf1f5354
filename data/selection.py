"""The questions that a run trains on: each once, in a seeded order, none from a benchmark unless prompts.overlap
allows it."""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from data import shards
from data.config.sections import Config, PromptsSection
from data.console import console
from data.errors import UserError
from data.hashing import digest, loose_form, normalise_question
from data.questions import SourceOrigin, shuffled, unique_questions
from data.schema import PROMPTS

MAX_PRINTED = 10  # lines of a list on the screen at most
MAX_LISTED = 1000  # entries of a list in the manifest at most, which is read whole
SHORT = 60  # characters of a question in a message
FATE = {"drop": "dropped", "transductive": "trained on anyway"}


@dataclass(frozen=True)
class Shared:
    """A question that another source also has, in both spellings."""

    question: str
    benchmark: str
    in_benchmark: str

    @property
    def same(self) -> bool:
        """Whether both are the same question, not only alike in their loose forms."""
        return normalise_question(self.question) == normalise_question(self.in_benchmark)

    def __str__(self) -> str:
        written = "" if self.same else f", written {_short(self.in_benchmark)} there"
        return f"{_short(self.question)} in {self.benchmark!r}{written}"


@dataclass(frozen=True)
class Chosen:
    """The questions of a run, and what was left out."""

    questions: dict[str, str]  # those to train on, by id, in order
    for_gate: dict[str, str]  # the next ones, for the gate alone
    duplicates: int
    shared: dict[str, Shared]
    origin: SourceOrigin
    benchmarks: dict[str, SourceOrigin]


def choose_prompts(config: Config) -> Chosen:
    """The unlabelled questions: unique, disjoint from the benchmarks unless `prompts.overlap` is 'transductive',
    shuffled, limited; and the next ones, for the gate.

    Raises UserError if a source cannot be used, has too few questions for the gate, or shares questions with a
    benchmark against `prompts.overlap`.
    """
    section = config.prompts
    questions, duplicates, origin = unique_questions(section, "prompts")
    shared, benchmarks = _in_benchmarks(config, questions)
    left = _without(questions, shared, section)
    ids = shuffled(left, config.run.seed) if section.shuffle else list(left)
    chosen, kept_apart = (
        {id_: questions[id_] for id_ in some} for some in (ids[: section.limit], _for_gate(ids, config))
    )
    return Chosen(chosen, kept_apart, duplicates, shared, origin, benchmarks)


def write_prompts(config: Config, folder: Path, gate: Path) -> None:
    """Write the questions of `choose_prompts`, those for the gate into the folder `gate`, and print a summary. Raises
    UserError as it does."""
    section, chosen = config.prompts, choose_prompts(config)
    shared, origin, ids = chosen.shared, chosen.origin, list(chosen.questions)
    shutil.rmtree(gate, ignore_errors=True)
    if chosen.for_gate:  # first: the prompts' manifest says that all is complete
        parts = _write_questions(chosen.for_gate, config, gate)
        about = {"stage": "gate questions", "rows": len(chosen.for_gate)}
        shards.write_manifest(gate, about, parts)
    files = _write_questions(chosen.questions, config, folder)
    loose = [asdict(pair) for pair in shared.values() if not pair.same]
    manifest = {
        "stage": "prompts",
        "rows": len(ids),
        "duplicates_dropped": chosen.duplicates,
        "overlap": len(shared),
        "overlap_rule": section.overlap,
        "overlap_loose": loose[:MAX_LISTED],
        "source": origin.manifest(),
        "benchmarks": {name: found.manifest() for name, found in chosen.benchmarks.items()},
        "config": digest(section.model_dump(mode="json")),
    }
    shards.write_manifest(folder, manifest, files)
    _print_summary(section, origin, chosen.duplicates, shared, len(ids), len(chosen.for_gate))
    for name, found in chosen.benchmarks.items():
        _say(f"benchmark {name}: {found}", found.left_out)


def _for_gate(ids: list[str], config: Config) -> list[str]:
    """The `gate.questions` questions after those to train on. Raises UserError if there are too few."""
    wanted, trained = config.gate.questions, len(ids[: config.prompts.limit])
    found = ids[trained : trained + wanted]
    if len(found) < wanted:
        way_out = f"set prompts.limit to at most {len(ids) - wanted}, or " if wanted < len(ids) else ""
        raise UserError(
            f"gate.questions is {wanted}, but of the {len(ids)} questions of prompts.source {trained} are trained on "
            f"(prompts.limit), which leaves {len(found)}: {way_out}set gate.questions lower"
        )
    return found


def _write_questions(questions: dict[str, str], config: Config, folder: Path) -> list[Path]:
    """Write questions as shards; returns their paths."""
    ids = list(questions)
    shutil.rmtree(folder, ignore_errors=True)  # left by a command that was killed before it froze its config
    files = []
    for number, first in enumerate(range(0, len(ids), config.run.shard_questions)):
        part = ids[first : first + config.run.shard_questions]
        rows = [{"id": id_, "question": questions[id_], "source": config.prompts.source} for id_ in part]
        files.append(folder / f"part-{number:05d}.parquet")
        shards.write_rows(rows, files[-1], PROMPTS)
    return files


def _in_benchmarks(config: Config, questions: dict[str, str]) -> tuple[dict[str, Shared], dict[str, SourceOrigin]]:
    """The questions, by id, that a benchmark also has, by loose form; and where each benchmark comes from."""
    texts, origins = dict[str, dict[str, str]](), {}
    for index, benchmark in enumerate(config.benchmarks):
        texts[benchmark.name], _, origins[benchmark.name] = unique_questions(benchmark, f"benchmarks.{index}")
    return _shared(questions, texts), origins


def without_known(config: Config, questions: dict[str, str]) -> dict[str, str]:
    """The questions {id: text} of [wording] without those in a benchmark or among the prompts, whatever their limit.

    Raises UserError if there are such and `wording.overlap` is 'refuse', or if no question is left.
    """
    assert config.wording is not None
    known = {"prompts": unique_questions(config.prompts, "prompts").texts}
    known |= {b.name: unique_questions(b, f"benchmarks.{n}").texts for n, b in enumerate(config.benchmarks)}
    shared = _shared(questions, known)
    if shared and config.wording.overlap == "refuse":
        raise UserError(
            f"wording: {len(shared)} of {len(questions)} questions are also trained on or tested on, first "
            f"{next(iter(shared.values()))}. A wording chosen on them would flatter the run: use other rows, "
            "or set wording.overlap to 'drop'"
        )
    left = {id_: text for id_, text in questions.items() if id_ not in shared}
    if not left:
        raise UserError("wording: every question is also trained on or tested on; nothing is left to try wordings on")
    if shared:
        _say(f"wording: {len(shared):,} of {len(questions):,} questions are also trained on or tested on: dropped")
    return left


def _shared(questions: dict[str, str], others: dict[str, dict[str, str]]) -> dict[str, Shared]:
    """The questions, by id, that one of the others {name: {id: text}} also has, by loose form."""
    known: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for name, texts in others.items():
        for text in texts.values():
            known[loose_form(text)][normalise_question(text)] = (name, text)
    shared = {}
    for id_, question in questions.items():
        found = known.get(loose_form(question))
        if found:
            exact = found.get(normalise_question(question))
            shared[id_] = Shared(question, *(exact or next(iter(found.values()))))
    return shared


def _without(questions: dict[str, str], shared: dict[str, Shared], section: PromptsSection) -> dict[str, str]:
    """The questions that may be trained on."""
    if shared and section.overlap == "refuse":
        raise UserError(
            f"prompts: {len(shared)} of {len(questions)} questions are also in a benchmark, first "
            f"{next(iter(shared.values()))}. Use other rows, or set prompts.overlap to 'drop' (leave them out of "
            "training) or 'transductive' (train on them; reports will say so)"
        )
    if section.overlap != "drop":
        return questions
    left = {id_: text for id_, text in questions.items() if id_ not in shared}
    if not left:
        raise UserError("prompts: every question is also in a benchmark; nothing is left to train on")
    return left


def _print_summary(
    section: PromptsSection,
    origin: SourceOrigin,
    duplicates: int,
    shared: dict[str, Shared],
    taken: int,
    kept_apart: int,
) -> None:
    parts = [str(origin), f"{duplicates:,} duplicates dropped"]
    if section.rows:
        parts.insert(1, f"{list(section.rows)} of them used")
    loose = [str(pair) for pair in shared.values() if not pair.same]
    if shared:
        but = f" ({len(loose):,} except for case or typography)" if loose else ""
        parts.append(f"{len(shared):,} also in a benchmark{but}: {FATE[section.overlap]}")
    more = f", {kept_apart:,} more kept apart for the gate" if kept_apart else ""
    _say(f"prompts: {', '.join(parts)}; {taken:,} questions taken{more}", origin.left_out)
    for line in _some(loose):
        _say(f"  {line}")


def _say(line: str, left_out: tuple[str, ...] = ()) -> None:
    """Print a line as it is: names may have brackets, and a line may be longer than the screen."""
    console.print(line, markup=False, soft_wrap=True)
    for name in _some(list(left_out)):
        console.print(f"  left out: {name}", markup=False, soft_wrap=True)


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - MAX_PRINTED
    return [*lines[:MAX_PRINTED], f"… and {more:,} more"] if more > 0 else lines


def _short(text: str) -> str:
    return repr(text if len(text) <= SHORT else text[: SHORT - 1] + "…")
