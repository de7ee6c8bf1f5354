"""What is right in a chain by gold answers, and the count of its votes: the only part that compares answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from data.answers.clusters import clusters, compare_all
from data.answers.grader import Grader
from data.answers.kinds import AnswerKindName
from data.answers.votes import voting_answer
from data.config.sections import Config
from evaluate.labels import gold_by_id
from evaluate.page.chain_data import ChainView, ResponseView


def gold_of(config: Config, ids: Collection[str]) -> dict[str, str]:
    """{prompt id: gold answer} of some questions; empty if evaluate.gold_column is not set."""
    return {} if config.evaluate.gold_column is None else gold_by_id(config, ids)


def judge_chains(chains: Sequence[ChainView], gold: dict[str, str], config: Config, grader: Grader) -> None:
    """Count the votes, and set what is right: labels first, then the chains' responses, then samples, so a grader that
    gives up has done what matters most."""
    kind, known = config.evaluate.gold_answers, [chain for chain in chains if chain["id"] in gold]
    for chain in known:
        chain["gold"] = gold[chain["id"]]
    labels = [(label, chain) for chain in known for label in chain["labels"] if label["answer"] is not None]
    samples = [(row, chain) for chain in known for row in chain["responses"] if row["role"] == "sample"]
    others = [(row, chain) for chain in known for row in chain["responses"] if row["role"] != "sample"]
    for rows in (labels, others, samples):
        _compare(rows, kind, grader)
    compare_all(([answer for answer, _ in _voters(chain, config)] for chain in chains), config.prompts.answers, grader)
    for chain in chains:
        right = {label["answer"]: label["right"] for label in chain["labels"]}
        for row in chain["training"]:
            row["label_right"] = right.get(row["label"])
        _count_votes(chain, config, grader)


def _compare(rows: Sequence[tuple[Any, ChainView]], kind: AnswerKindName, grader: Grader) -> None:
    """Set in each label or response whether its answer is right; without an answer it is not."""
    stated = [(row, chain["gold"]) for row, chain in rows if row["answer"] is not None]
    verdicts = grader.matches([(row["answer"], str(gold)) for row, gold in stated], kind)
    for row, _ in rows:
        row["right"] = False
    for (row, _), verdict in zip(stated, verdicts, strict=True):
        row["right"] = verdict


def _voters(chain: ChainView, config: Config) -> list[tuple[str | None, ResponseView]]:
    """The responses whose votes made the label, each with its vote; empty if the label comes from no vote."""
    roles: tuple[str, ...] = ()
    if config.score.label in ("sample-vote", "own-vote", "teacher-vote"):
        roles = ("sample",)
    elif config.score.label == "aggregate" and config.generate.aggregate == "vote":
        roles = ("chain", "synthesis")
    rows = [row for row in chain["responses"] if row["role"] in roles]
    return [(voting_answer(row["answer"], "length" if row["unfinished"] else "stop"), row) for row in rows]


def _count_votes(chain: ChainView, config: Config, grader: Grader) -> None:
    voters = _voters(chain, config)
    for group in clusters([answer for answer, _ in voters], config.prompts.answers, grader):
        rows = [voters[place][1] for place in group]
        by = dict(Counter(row["peer"] for row in rows))
        chain["votes"].append({"answer": str(rows[0]["answer"]), "by": by, "right": rows[0]["right"]})
