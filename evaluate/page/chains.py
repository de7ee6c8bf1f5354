"""The chains of a run, to look at: one as plain data, for the terminal; up to 2,000 for the page's chain browser."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from markupsafe import Markup

from data import shards
from data.answers.equivalence import AnswerPair
from data.answers.grader import Grader
from data.answers.kinds import AnswerKindName
from data.errors import UserError
from data.run import RUNS, Run, load_frozen
from data.schema import SCORES
from evaluate.labels import gold_by_id, source_has_changed
from evaluate.page.chain_blocks import PREVIEW, block, index_row, packed
from evaluate.page.chain_data import ChainView, chains_of, ids_of, stage_rows
from evaluate.page.chain_verdicts import gold_of, judge_chains
from evaluate.page.maths import Formulas

Order = Literal["worst", "random"]
BATCH_LABELS = 256  # labels compared at a time in the search for wrong ones
MAX_QUESTIONS = 2_000  # questions on the page
BLOCK_QUESTIONS = 50  # questions that the browser unpacks at a time
MAX_BYTES = 7_000_000  # bytes of chains on the page, all rounds together, so that it stays below 10 MB
MAX_FORMULAS = 10_000  # formulas converted for a page: about 4 s
MAX_SLOW_PAIRS = 200  # pairs of answers that only math-verify can compare: about 10 s


def one_chain(run: Run, round_: int, prompt_id: str) -> ChainView:
    """The chain of a question, by its id or the beginning of its id.

    Raises UserError for a round without finished chains, and unless exactly one question has such an id.
    """
    ids = ids_of(run, round_)
    found = [id_ for id_ in ids if id_.startswith(prompt_id)]
    if len(found) != 1 or not prompt_id:
        which = f"{len(found)} questions have ids that begin with it" if found else "no question has this id"
        raise UserError(
            f"prompt {prompt_id!r}: {which} in round {round_} of run {run.name!r}; some ids are "
            f"{', '.join((found or ids)[:3])}, all are in the column prompt_id of {run.stage_dir(round_, 'chains')}"
        )
    return some_chains(run, round_, found)[0]


def some_chains(run: Run, round_: int, ids: Sequence[str]) -> list[ChainView]:
    """The chains of questions that the round has, in this order."""
    found = {chain["id"]: chain for chain in chains_of(run, round_, set(ids))}
    section, chains = run.config.evaluate, [found[id_] for id_ in ids]
    with Grader(section.answer_timeout_seconds, run.config.runtime.grader_workers) as grader:
        judge_chains(chains, gold_of(run.config, ids), run.config, grader)
    return chains


def ordering(run: Run, round_: int, order: Order, seed: int | None = None) -> Iterator[str]:
    """Ids of questions: `worst`: those with a wrong label, the highest weight first; `random`: all, shuffled by a seed,
    by default the run's.

    Raises UserError for `worst` without finished scores or gold answers, and for `random` without finished chains.
    """
    if order == "random":
        ids = ids_of(run, round_)
        seed = run.config.run.seed if seed is None else seed
        yield from random.Random(f"{seed}/{round_}/show").sample(ids, len(ids))
        return
    section = run.config.evaluate
    rows = stage_rows(run, round_, "scores", SCORES, ["prompt_id", "label", "weight"])
    trained = [row for row in rows if row["weight"] and row["label"] is not None]
    trained.sort(key=lambda row: -row["weight"])
    seen = set()
    with Grader(section.answer_timeout_seconds, run.config.runtime.grader_workers) as grader:
        for start in range(0, len(trained), BATCH_LABELS):  # the first wrong one comes early
            some = trained[start : start + BATCH_LABELS]
            gold = gold_by_id(run.config, {row["prompt_id"] for row in some})
            known = [row for row in some if row["prompt_id"] in gold]
            pairs = [(row["label"], gold[row["prompt_id"]]) for row in known]
            for row, right in zip(known, grader.matches(pairs, section.gold_answers), strict=True):
                if right is False and row["prompt_id"] not in seen:
                    seen.add(row["prompt_id"])
                    yield row["prompt_id"]


@dataclass(frozen=True)
class Browser:
    """The data of the page's chain browser: `shown` of `total` questions, and `notices` about them."""

    rounds: list[int]
    peers: list[str]
    gold: bool
    shown: int
    total: int
    notices: list[str]
    index: Markup
    blocks: list[Markup]  # round after round


def chains(name: str) -> Browser | None:
    """The chains of a run's finished rounds; None if there are none.

    Every round shows the same questions: all, or as much of a seeded sample as there is room for.
    """
    run = Run(name, load_frozen(name))
    rounds = [n for n in _rounds(name) if (run.stage_dir(n, "chains") / shards.SUCCESS).is_file()]
    ids = list(dict.fromkeys(id_ for round_ in rounds for id_ in ids_of(run, round_)))
    if not ids:
        return None
    sample = random.Random(f"{run.config.run.seed}/page").sample(ids, min(len(ids), MAX_QUESTIONS))
    gold, notices = _gold(run, set(sample))
    packing = _Packing(run, sample, gold, MAX_BYTES // len(rounds))
    section = run.config.evaluate
    grader = _Hasty(section.answer_timeout_seconds, run.config.runtime.grader_workers, MAX_SLOW_PAIRS)
    with grader:
        for round_ in reversed(rounds):  # the latest first: formulas and comparisons are limited
            packing.add(round_, grader)
    notices += _limits(packing, grader, len(ids))
    return Browser(
        rounds,
        run.config.peer_names,
        bool(gold),
        len(packing.sample),
        len(ids),
        notices,
        packing.index(rounds),
        [each for round_ in rounds for each in packing.blocks_of(round_)],
    )


def _rounds(name: str) -> list[int]:
    return sorted(int(path.parent.name.split("=")[1]) for path in (RUNS / name).glob("round=*/chains"))


def _gold(run: Run, ids: set[str]) -> tuple[dict[str, str], list[str]]:
    """The gold answers, and the notices if there are none, or if their source has changed."""
    if run.config.evaluate.gold_column is None:
        return {}, [
            "No gold answers: evaluate.gold_column is not set, so nothing here says what is right or wrong, and there "
            "is no filter for it."
        ]
    try:
        gold, changed = gold_of(run.config, ids), source_has_changed(run)
    except UserError as error:
        return {}, [f"No gold answers, so nothing here says what is right or wrong: {error}"]
    changes = (
        f"{run.config.prompts.source} has changed since the run drew its questions: these are its present answers."
    )
    return gold, [changes] if changed else []


def _limits(packing: _Packing, grader: _Hasty, total: int) -> list[str]:
    """What the page leaves out."""
    shown, notices = len(packing.sample), []
    if shown < total:
        why = f"at most {MAX_QUESTIONS:,}" if shown == MAX_QUESTIONS else "as many as fit on a page of less than 10 MB"
        notices.append(f"{shown:,} of {total:,} questions, a seeded sample, the same in every round: {why}.")
    if packing.formulas.left < 0:
        notices.append(f"After {MAX_FORMULAS:,} formulas, mathematics is shown as it was written.")
    if grader.left < 0:
        notices.append(
            f"{-grader.left:,} pairs of answers were not compared, since that takes long: it is not known whether they "
            "are right. `make labels` compares all."
        )
    return notices


class _Packing:
    """Packs round after round, each in `room` bytes; `sample` becomes shorter if a round has no room for it."""

    def __init__(self, run: Run, sample: list[str], gold: dict[str, str], room: int) -> None:
        self.run, self.sample, self.gold, self.room = run, sample, gold, room
        self.formulas = Formulas(MAX_FORMULAS)
        self.blocks: dict[int, list[Markup]] = {}
        self.rows: dict[int, list[Any]] = {}
        self.questions: dict[str, str] = {}

    def add(self, round_: int, grader: Grader) -> None:
        """Pack a round."""
        found = {chain["id"]: chain for chain in chains_of(self.run, round_, set(self.sample))}
        judge_chains(list(found.values()), self.gold, self.run.config, grader)
        blocks, size = self.blocks.setdefault(round_, []), 0
        for start in range(0, len(self.sample), BLOCK_QUESTIONS):
            new = block((found.get(id_) for id_ in self.sample[start : start + BLOCK_QUESTIONS]), self.formulas)
            size += len(new)
            if blocks and size > self.room:
                self.sample = self.sample[:start]
                break
            blocks.append(new)
        self.questions |= {id_: chain["question"][:PREVIEW] for id_, chain in found.items()}
        peers = self.run.config.peer_names
        self.rows[round_] = [index_row(found[id_], peers) if id_ in found else None for id_ in self.sample]

    def blocks_of(self, round_: int) -> list[Markup]:
        """The blocks of the questions that every round has room for."""
        return self.blocks[round_][: -(-len(self.sample) // BLOCK_QUESTIONS)]

    def index(self, rounds: Sequence[int]) -> Markup:
        """What the browser filters by."""
        questions = [[id_, self.questions[id_]] for id_ in self.sample]
        rows = {round_: self.rows[round_][: len(self.sample)] for round_ in rounds}
        return packed(
            {
                "run": self.run.name,
                "rounds": rounds,
                "peers": self.run.config.peer_names,
                "gold": bool(self.gold),
                "block": BLOCK_QUESTIONS,
                "questions": questions,
                "rows": rows,
            }
        )


class _Hasty(Grader):
    """A grader whose processes compare at most `left` pairs; `left` then falls below 0 by the number of skipped
    pairs."""

    # shared by all pages of this process: `make round` writes several
    known: ClassVar[dict[tuple[str, ...], bool | None]] = {}

    def __init__(self, timeout_seconds: float, max_workers: int, left: int) -> None:
        super().__init__(timeout_seconds, max_workers)
        self._known, self.left = self.known, left

    def equivalent(self, pairs: Sequence[AnswerPair], kind: AnswerKindName) -> list[bool | None]:
        """See `Grader.equivalent`; a later page compares again what this one skipped."""
        return self._forget_skipped(super().equivalent(pairs, kind))

    def matches(self, pairs: Sequence[AnswerPair], kind: AnswerKindName) -> list[bool | None]:
        """See `Grader.matches`; as above."""
        return self._forget_skipped(super().matches(pairs, kind))

    def _forget_skipped(self, verdicts: list[bool | None]) -> list[bool | None]:
        for key in [key for key, verdict in self._known.items() if verdict is None]:
            del self._known[key]
        return verdicts

    def _run(self, pairs: Sequence[AnswerPair], kind: AnswerKindName) -> Iterator[tuple[AnswerPair, bool | None]]:
        some = pairs[: max(0, self.left)]
        self.left -= len(pairs)
        yield from super()._run(some, kind)
        yield from ((pair, None) for pair in pairs[len(some) :])
