"""How good a round's aggregates were as labels, where the questions have gold answers (`python -m pipeline.labels`).

Seen from outside: nothing here is read by generate, score or train, but for the arm `oracle` of an ablation
(pipeline/ablation.py), which has these gold answers choose the examples and says so: train reads the list that
`keep_right` writes.
"""

from __future__ import annotations

from collections import defaultdict

from data import shards
from data.answers.clusters import clusters, compare_all
from data.answers.gold import gold_by_question
from data.answers.grader import Grader
from data.config.sections import Config
from data.errors import UserError
from data.keep import read_keep, write_keep
from data.questions import read_with_origin
from data.run import OUTPUT, Run
from data.schema import CHAINS, SCORES
from data.shards import Row
from data.stage import check_format
from evaluate.clustered import Bootstrap
from evaluate.gap import accuracy
from evaluate.intervals import Estimate

CHAIN_COLUMNS = ("prompt_id", "question", "role", "position", "peer", "is_aggregate", "answer", "finish_reason")


def gold_answers(config: Config) -> dict[str, str]:
    """{question id: gold answer} of the unlabelled questions' source.

    Raises UserError if the column is not named, or has an answer that cannot be read.
    """
    section = config.prompts
    column = config.evaluate.label_column
    if column is None:
        raise UserError(
            "which column of prompts.source holds the gold answers is not known: give it before the run begins "
            'with SET="evaluate.label_column=NAME", or, of a run that is there, call `python -m pipeline.labels --run '
            "RUN --column NAME`"
        )
    if section.question_column == column:
        raise UserError(f"prompts.question_column and evaluate.label_column are both {column!r}")
    table, origin = read_with_origin(section, [section.question_column, column], "prompts", lists=column)
    golds = gold_by_question(table, config.evaluate.label_answers, origin.place, "prompts")
    return {id_: gold for id_, (_, gold) in golds.items()}


def source_has_changed(run: Run) -> bool:
    """Whether the files of prompts.source are others than when the run's questions were drawn from them.

    Of a source that is no file here (a dataset of the hub) nothing is known: False.
    """
    drawn = (shards.read_manifest(run.prompts_dir) or {}).get("source", {"files": []})["files"]
    section = run.config.prompts
    _, origin = read_with_origin(section, [section.question_column], "prompts")
    return [file["sha256"] for file in drawn] != [file.sha256 for file in origin.files] and bool(drawn)


def judged(run: Run, round_: int) -> tuple[list[Row], list[Row]]:
    """The round's chains and scores, each row with `right`: its answer's, and its aggregate's, against gold.

    A comparison that timed out is not right. Raises UserError if the source no longer has all questions of the round.
    """
    for stage in ("generate", "score"):
        folder = run.stage_dir(round_, OUTPUT[stage])
        manifest = shards.read_manifest(folder)
        if manifest is None:
            raise UserError(f"{folder} is not finished: run `make {stage} RUN={run.name} ROUND={round_}` first")
        check_format(manifest, folder)  # ids of another one are not those of the source
    gold, section = gold_answers(run.config), run.config.evaluate
    chains = [
        row
        for path in shards.shard_paths(run.stage_dir(round_, "chains"))
        for row in shards.read_rows(path, CHAINS, CHAIN_COLUMNS)
        if row["role"] != "solo" or run.config.generate.alone  # beside a chain it is outside it
    ]
    asked = {row["prompt_id"]: row["question"] for row in chains}
    missing = [question for id_, question in asked.items() if id_ not in gold]
    if missing:
        raise UserError(
            f"prompts: {run.config.prompts.source} has changed since round {round_} of run {run.name!r}: "
            f"{len(missing)} of {len(asked)} questions are no longer in it, first {missing[0][:60]!r}; restore the file"
        )
    with Grader(section.answer_timeout_seconds, run.config.runtime.grader_workers) as grader:
        stated = [row for row in chains if row["answer"] is not None]
        same = grader.equivalent([(row["answer"], gold[row["prompt_id"]]) for row in stated], section.label_answers)
        for row in chains:
            row["right"] = False
        for row, equal in zip(stated, same, strict=True):
            row["right"] = bool(equal)
        by_question: dict[str, list[Row]] = defaultdict(list)
        for row in chains:
            by_question[row["prompt_id"]].append(row)
        # as in a vote, an answer that was cut off does not count
        answers = {
            id_: [row["answer"] if row["finish_reason"] == "stop" else None for row in rows]
            for id_, rows in by_question.items()
        }
        compare_all(answers.values(), section.label_answers, grader)
        for id_, rows in by_question.items():
            groups = clusters(answers[id_], section.label_answers, grader)
            largest = [group for group in groups if len(group) == len(groups[0])]
            share = accuracy([rows[group[0]]["right"] for group in largest]) if largest else 0.0
            for row in rows:
                row["vote_right"] = share
    aggregate = {(row["prompt_id"], row["peer"]): row["right"] for row in chains if row["is_aggregate"]}
    columns = ("prompt_id", "peer", "aggregate_peer", "pmi_per_token", "weight", "agrees")
    scores = [
        {**row, "right": aggregate[row["prompt_id"], row["aggregate_peer"]]}
        for path in shards.shard_paths(run.stage_dir(round_, "scores"))
        for row in shards.read_rows(path, SCORES, columns)
    ]
    return chains, scores


def quality(chains: list[Row], scores: list[Row], draws: Bootstrap, oracle: bool = False) -> dict[str, Estimate | None]:
    """The numbers of one round, by name. Shares are of questions, weights of all trained examples.

    What means nothing is left out: positions and votes where there is no chain; all about the weight where an `oracle`
    chose the examples, which are then trained at weight 1.
    """
    from scipy.stats import pearsonr

    def share(rows: list[Row], value: str, weight: str | None = None) -> Estimate | None:
        weights = [row[weight] for row in rows] if weight else None
        return draws.share([row["prompt_id"] for row in rows], [row[value] for row in rows], weights)

    found: dict[str, Estimate | None] = {}
    aggregates = [row for row in chains if row["is_aggregate"]]
    in_chain = [row for row in chains if row["role"] == "chain"]
    for position in sorted({row["position"] for row in in_chain}):
        found[f"right at position {position}"] = share([r for r in in_chain if r["position"] == position], "right")
    found["right, the aggregate"] = share(aggregates, "right")
    if in_chain:
        found["right, a vote of the chain"] = share(aggregates, "vote_right")
    if not oracle:
        trained = [{**row, "wrong": not row["right"]} for row in scores if row["weight"]]
        found["examples whose aggregate is wrong"] = share(trained, "wrong")
        found["training weight on them"] = share(trained, "wrong", "weight")
    measured = [row for row in scores if row["pmi_per_token"] is not None]
    for name, column in (("PMI", "pmi_per_token"), *(() if oracle else (("the weight", "weight"),))):
        rows = [row for row in measured if row[column] is not None]
        if rows:
            found[f"AUROC of {name}: is the aggregate right"] = _auroc(rows, column, draws)
        for peer in sorted({row["peer"] for row in rows}):
            found[f"AUROC of {name}, {peer}"] = _auroc([row for row in rows if row["peer"] == peer], column, draws)
    pmi, agrees = ([float(row[column]) for row in measured] for column in ("pmi_per_token", "agrees"))
    if measured:
        both = len(set(agrees)) > 1 and len(set(pmi)) > 1
        correlation = Estimate(float(pearsonr(pmi, agrees).statistic), None, None) if both else None
        found["correlation of PMI with agreement"] = correlation
    return found


def _auroc(rows: list[Row], column: str, draws: Bootstrap) -> Estimate | None:
    return draws.auroc(*([row[name] for row in rows] for name in ("prompt_id", "right", column)))


def keep_right(run: Run, round_: int) -> int:
    """For the arm `oracle`: list the examples whose aggregate is right, for train to take no others (data/keep.py);
    returns how many. A list of these very scores is left as it is: a comparison may time out one day and not the next.
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
    right = [(row["prompt_id"], row["peer"]) for row in scores if row["weight"] is not None and row["right"]]
    write_keep(run, round_, right)
    return len(right)
