"""How good a round's labels were, if the questions have gold answers (`python -m pipeline.labels`).

Generate, score and train read nothing from here, except in an ablation's arm `oracle` (pipeline/ablation.py), in which
gold answers choose the examples, as its reports say: train reads the list that `keep_right` writes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data import shards
from data.answers.clusters import clusters, compare_all
from data.answers.gold import questions_with_gold
from data.answers.grader import Grader
from data.answers.kinds import AnswerKindName
from data.answers.votes import voting_answer
from data.config.sections import Config
from data.errors import UserError
from data.hashing import question_id
from data.keep import read_keep, write_keep
from data.questions import read_with_origin
from data.run import OUTPUT, Run
from data.schema import CHAINS, SCORES
from data.shards import Row
from evaluate.clustered import Bootstrap
from evaluate.gap import accuracy
from evaluate.intervals import Estimate

CHAIN_COLUMNS = (
    "prompt_id",
    "question",
    "role",
    "position",
    "sample",
    "peer",
    "is_aggregate",
    "answer",
    "finish_reason",
)
SCORE_COLUMNS = (
    "prompt_id",
    "peer",
    "number",
    "label",
    "role",
    "position",
    "sample",
    "pmi_per_token",
    "weight",
    "agrees",
    "target",
)


def gold_by_id(config: Config, ids: Collection[str] | None = None) -> dict[str, str]:
    """{question id: gold answer} of the unlabelled questions' source: of all questions, or only of these `ids`.

    Raises UserError if the column is not configured or is the questions' own, if an answer cannot be read, and if a
    question occurs twice with different answers.
    """
    section = config.prompts
    column = config.evaluate.gold_column
    if column is None:
        raise UserError(
            "the column of prompts.source with the gold answers is not configured: set it before the run begins "
            'with SET="evaluate.gold_column=NAME", or, for an existing run, use `python -m pipeline.labels --run '
            "RUN --column NAME`"
        )
    if section.question_column == column:
        raise UserError(f"prompts.question_column and evaluate.gold_column are both {column!r}")
    table, origin = read_with_origin(section, [section.question_column, column], "prompts", lists=(column,))
    rows: Sequence[int] = range(len(table))
    if ids is not None:  # reading the answers of a large source takes longest
        questions = table[section.question_column].to_list()
        rows = [row for row, question in enumerate(questions) if question_id(question) in ids]
        table = table[rows]
    kind, first = config.evaluate.gold_answers, config.evaluate.gold_index
    golds = questions_with_gold(table, kind, lambda row: origin.location(rows[row]), "prompts", first)
    return {id_: gold for id_, (_, gold) in golds.items()}


def source_has_changed(run: Run) -> bool:
    """Whether the files of prompts.source have changed since the run drew its questions.

    False if the source is no local file (a dataset of the hub), since nothing is known about it.
    """
    drawn = (shards.read_manifest(run.prompts_dir) or {}).get("source", {"files": []})["files"]
    if not drawn:
        return False
    section = run.config.prompts
    _, origin = read_with_origin(section, [section.question_column], "prompts")
    return [file["sha256"] for file in drawn] != [file.sha256 for file in origin.files]


def judged(
    run: Run, round_: int, only: Collection[str] | None = None, gold: dict[str, str] | None = None
) -> tuple[list[Row], list[Row]]:
    """The round's chains and scores, each row with `right`: whether its answer, or its label, is right by gold; only
    those of the questions with the ids `only`, if given. `gold`: the result of `gold_by_id`, if it is there.

    A comparison that timed out is not right. Raises UserError if the round's chains or scores are not finished, or if
    the source no longer has all its questions.
    """
    for stage in ("generate", "score"):
        folder = run.stage_dir(round_, OUTPUT[stage])
        manifest = shards.read_manifest(folder)
        if manifest is None:
            raise UserError(f"{folder} is not finished: run `make {stage} RUN={run.name} ROUND={round_}` first")
    section = run.config.evaluate
    if gold is None:
        gold = gold_by_id(run.config, None if only is None else set(only))
    chains = _rows(run.stage_dir(round_, "chains"), CHAINS, CHAIN_COLUMNS, only)
    scores = _rows(run.stage_dir(round_, "scores"), SCORES, SCORE_COLUMNS, only)
    asked = {row["prompt_id"]: row["question"] for row in chains}
    missing = [question for id_, question in asked.items() if id_ not in gold]
    if missing:
        raise UserError(
            f"prompts: {run.config.prompts.source} has changed since round {round_} of run {run.name!r}: "
            f"{len(missing)} of {len(asked)} questions are no longer in it, first {missing[0][:60]!r}; restore the file"
        )
    with Grader(section.answer_timeout_seconds, run.config.runtime.grader_workers) as grader:
        taught = _of_texts(scores, asked, run.config.prompts.answers, grader)
        for row, answer in zip(scores, taught, strict=True):  # without a label, the text teaches its own answer
            row["answer"] = row["label"] or answer
        rows = [*chains, *scores]
        stated = [row for row in rows if row["answer"] is not None]
        same = grader.matches([(row["answer"], gold[row["prompt_id"]]) for row in stated], section.gold_answers)
        for row in rows:
            row["right"] = False
        for row, equal in zip(stated, same, strict=True):
            row["right"] = bool(equal)
        if run.config.score.text == "samples":  # each has its own answer, whatever the label
            _judge_texts(scores, taught, gold, section.gold_answers, grader)
        in_chain = [row for row in chains if row["role"] in ("chain", "synthesis") or run.config.generate.alone]
        _vote(in_chain, "vote_right", section.gold_answers, grader)
        samples: dict[str, list[Row]] = defaultdict(list)
        for row in chains:
            if row["role"] == "sample":
                samples[row["peer"]].append(row)
        for of_peer in samples.values():
            _vote(of_peer, "majority_right", section.gold_answers, grader)
    right = {_response_key(row): row["right"] for row in chains}
    for row in scores:
        row["own_right"] = right.get(_response_key(row))  # of the measured response, if there is one
    return chains, scores


def _rows(folder: Path, schema: pa.Schema, columns: Sequence[str], only: Collection[str] | None) -> list[Row]:
    """The rows of a stage, or only those of the questions `only`; the others are not kept in memory."""
    found: list[Row] = []
    for path in shards.shard_paths(folder):
        table = shards.read_table(path, schema, columns)
        if only is not None:
            table = table.filter(pc.is_in(table["prompt_id"], value_set=pa.array(list(only), pa.string())))
        found += table.to_pylist()
    return found


def _of_texts(scores: list[Row], asked: dict[str, str], kind: AnswerKindName, grader: Grader) -> list[str | None]:
    """The answer of each row's text; None if it has no text, or its text states no answer."""
    found = grader.find([(row["target"] or "", asked.get(row["prompt_id"], "")) for row in scores], kind)
    pairs = zip(found, scores, strict=True)
    return [each.answer if each is not None and row["target"] is not None else None for each, row in pairs]


def _judge_texts(
    scores: list[Row], taught: list[str | None], gold: dict[str, str], kind: AnswerKindName, grader: Grader
) -> None:
    """Set in each row whether the answer of its text is right."""
    stated = [(row, answer) for row, answer in zip(scores, taught, strict=True) if answer is not None]
    same = grader.matches([(answer, gold[row["prompt_id"]]) for row, answer in stated], kind)
    for row in scores:
        row["text_right"] = False
    for (row, _), equal in zip(stated, same, strict=True):
        row["text_right"] = bool(equal)


def _response_key(row: Row) -> tuple[Any, ...]:
    """The key of a response."""
    return row["prompt_id"], row["peer"], row["role"], row["position"], row["sample"]


def _vote(rows: list[Row], name: str, kind: AnswerKindName, grader: Grader) -> None:
    """Set in each row whether the vote of its question's rows is right; in a tie, the share of the tied answers that
    are right. As in any vote, unfinished responses do not count."""
    by_question: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_question[row["prompt_id"]].append(row)
    answers = {
        id_: [voting_answer(row["answer"], row["finish_reason"]) for row in of] for id_, of in by_question.items()
    }
    compare_all(answers.values(), kind, grader)
    for id_, of in by_question.items():
        groups = clusters(answers[id_], kind, grader)
        largest = [group for group in groups if len(group) == len(groups[0])]
        share = accuracy([of[group[0]]["right"] for group in largest]) if largest else 0.0
        for row in of:
            row[name] = share


def quality(chains: list[Row], scores: list[Row], draws: Bootstrap, oracle: bool = False) -> dict[str, Estimate | None]:
    """The numbers of one round, by name. Shares are of responses, labels or trained examples, as named; intervals are
    over questions.

    Numbers without a meaning are left out: positions and votes without a chain; all about weights if an `oracle` chose
    the examples, which are then trained at weight 1; the weight on wrong labels if weights have signs.
    """
    found = accuracies(chains, scores, draws)
    trained = [{**row, "wrong": not row["right"]} for row in scores if row["weight"]]
    if not oracle:
        found["examples whose label is wrong"] = _share(draws, trained, "wrong")
    if not oracle and all(row["weight"] > 0 for row in trained):
        found["training weight on them"] = _share(draws, trained, "wrong", "weight")
    return found | _of_pmi(scores, draws, oracle)


def _share(draws: Bootstrap, rows: list[Row], value: str, weight: str | None = None) -> Estimate | None:
    weights = [row[weight] for row in rows] if weight else None
    return draws.share([row["prompt_id"] for row in rows], [row[value] for row in rows], weights)


def accuracies(chains: list[Row], scores: list[Row], draws: Bootstrap) -> dict[str, Estimate | None]:
    """How often responses and labels were right in a round (`judged`): by position in the chain, the aggregate, votes,
    samples, the label. What the round does not have is left out."""

    def share(rows: list[Row], value: str) -> Estimate | None:
        return _share(draws, rows, value)

    found: dict[str, Estimate | None] = {}
    aggregates = [row for row in chains if row["is_aggregate"]]
    in_chain = [row for row in chains if row["role"] == "chain"]
    for position in sorted({row["position"] for row in in_chain}):
        found[f"right at position {position}"] = share([r for r in in_chain if r["position"] == position], "right")
    if aggregates:
        found["right, the aggregate"] = share(aggregates, "right")
    if in_chain:
        found["right, a vote of the chain"] = share(aggregates, "vote_right")
    samples = [row for row in chains if row["role"] == "sample"]
    for rater in dict.fromkeys(row["peer"] for row in samples):
        mine = [row for row in samples if row["peer"] == rater]
        found[f"right, a sample of {rater}"] = share(mine, "right")
        found[f"right, the majority of {rater}"] = share([r for r in mine if r["sample"] == 1], "majority_right")
    labels = [row for row in scores if row["number"] == 1 and row["label"] is not None]
    if samples and labels:
        found["right, the label"] = share(labels, "right")
    return found


def _of_pmi(scores: list[Row], draws: Bootstrap, oracle: bool) -> dict[str, Estimate | None]:
    """What PMI and the weight say about right and wrong labels; also by peer, since the total hides how peers
    differ."""
    from scipy.stats import pearsonr

    found: dict[str, Estimate | None] = {}
    measured = [row for row in scores if row["pmi_per_token"] is not None]
    weights = () if oracle else (("the weight", "weight"),)
    for name, column in (("PMI", "pmi_per_token"), *weights, ("agreement", "agrees")):
        rows = [row for row in measured if row[column] is not None]
        if rows:
            found[f"AUROC of {name}: is the label right"] = _auroc(rows, column, draws)
        for peer in sorted({row["peer"] for row in rows}):
            found[f"AUROC of {name}, {peer}"] = _auroc([row for row in rows if row["peer"] == peer], column, draws)
    for peer in sorted({row["peer"] for row in measured}):
        rows = [row for row in measured if row["peer"] == peer and row["own_right"] is not None]
        learns = [row["right"] and not row["own_right"] for row in rows]
        ids, surprise = [row["prompt_id"] for row in rows], [-row["pmi_per_token"] for row in rows]
        found[f"AUROC of −PMI: own wrong and label right, {peer}"] = draws.auroc(ids, learns, surprise)
        differs = [float(not row["agrees"]) for row in rows]  # what PMI has to beat
        found[f"AUROC of another answer: own wrong and label right, {peer}"] = draws.auroc(ids, learns, differs)
    for (peer, own, label), weight in ({} if oracle else mean_weights(scores, draws)).items():
        found[f"mean weight, {peer}: own {_word(own)}, label {_word(label)}"] = weight
    pmi, agrees = ([float(row[column]) for row in measured] for column in ("pmi_per_token", "agrees"))
    if measured:
        both = len(set(agrees)) > 1 and len(set(pmi)) > 1
        correlation = Estimate(float(pearsonr(pmi, agrees).statistic), None, None) if both else None
        found["correlation of PMI with agreement"] = correlation
    return found


def mean_weights(scores: list[Row], draws: Bootstrap) -> dict[tuple[str, bool, bool], Estimate | None]:
    """{(peer, own response right, label right): mean weight of such examples}; None if there are none."""
    measured = [row for row in scores if row["pmi_per_token"] is not None]
    found = {}
    for cell in product(sorted({row["peer"] for row in measured}), (True, False), (True, False)):
        rows = [r for r in measured if (r["peer"], r["own_right"], r["right"]) == cell and r["weight"]]
        found[cell] = _share(draws, rows, "weight") if rows else None
    return found


def _word(right: bool) -> str:
    return "right" if right else "wrong"


def _auroc(rows: list[Row], column: str, draws: Bootstrap) -> Estimate | None:
    return draws.auroc(*([row[name] for row in rows] for name in ("prompt_id", "right", column)))


def keep_right(run: Run, round_: int) -> int:
    """For arms with `oracle = true`: write the list of examples whose label is right (`samples` as text: whose own
    answer), so that train takes no others (data/keep.py); returns their number. An existing list of the same scores is
    kept: a comparison may time out one day and not the next.
    """
    try:
        kept = read_keep(run, round_)
    except UserError:  # of other scores, or damaged
        kept = None
    if kept is not None:
        return len(kept)
    if source_has_changed(run):
        raise UserError(
            f"prompts: {run.config.prompts.source} has changed since run {run.name!r} drew its questions, so its gold "
            f"answers may not be those of the other arms; restore the file, or delete {run.root} to begin again"
        )
    _, scores = judged(run, round_)
    right = [
        (row["prompt_id"], row["peer"], row["number"])
        for row in scores
        if row["weight"] is not None and row.get("text_right", row["right"])
    ]
    write_keep(run, round_, right)
    return len(right)
