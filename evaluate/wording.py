"""The wordings of [wordings] on the dev set of [wording]: what each peer answers under each, and which one it keeps.

With gold answers, a wording's value for a question is 1 if the greedy answer is right, else 0. Without, it is the
self-consistency of k samples: the share in the largest cluster of equivalent answers. Confident nonsense is consistent,
too, so self-consistency is a guide, not a measure of accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from data.answers.clusters import clusters, compare_all
from data.answers.extract import Extracted
from data.answers.grader import Grader, grade
from data.answers.kinds import AnswerKindName
from data.config.sections import BenchmarkSection, Config, TemplateSection, WordingSection
from data.errors import UserError
from data.hashing import draw_key, request_seed
from data.questions import shuffled, unique_questions
from data.run import Run
from data.selection import without_known
from data.task import Advance
from evaluate.benchmarks import SAMPLE, load_benchmark
from evaluate.intervals import Estimate, estimate
from peers import policy_cache
from peers.engines.protocol import Completion, Sampling, complete
from peers.lengths import max_prompt_tokens
from peers.policy import Policy


@dataclass(frozen=True)
class DevSet:
    """Questions to try wordings on; `golds` is None without gold answers."""

    questions: list[str]
    golds: list[str] | None


@dataclass(frozen=True)
class WordingTrial:
    """The result of one wording with one peer: a value between 0 and 1 per question, and shares of the responses."""

    wording: str
    values: list[float]
    unfinished: float  # cut off by the token limit
    unanswered: float  # without an answer, or cut off before stating one
    tokens: float  # mean of a response


@dataclass(frozen=True)
class WordingChoice:
    """Which wording a peer should use, `chosen`; `best` is the one with the highest mean."""

    present: str
    best: str
    chosen: str
    gain: Estimate | None  # of the best over the present one, paired; None if they are the same


def load_dev_set(config: Config) -> DevSet:
    """The dev set, without questions that are trained or tested on. Raises UserError if there is none, or if it cannot
    be used."""
    section = config.wording
    if section is None:
        raise UserError(
            "the config has no [wording]: add it with a source of questions that are neither trained nor tested on, "
            "and an answer_column if they have answers (docs/config.md, wording.*)"
        )
    if section.answer_column is None:
        questions, golds = unique_questions(section, "wording").texts, {}
    else:
        items = load_benchmark(_as_benchmark(section, section.answer_column), "wording")
        questions = {item.id: item.question for item in items}
        golds = {item.id: item.gold for item in items}
    left = without_known(config, questions)
    ids = shuffled(left, SAMPLE)[: section.limit]  # the same in all runs
    return DevSet([left[id_] for id_ in ids], [golds[id_] for id_ in ids] if golds else None)


def _as_benchmark(section: WordingSection, column: str) -> BenchmarkSection:
    """The dev set as a benchmark, without the limit, which applies after overlapping questions are left out."""
    shared = {name: getattr(section, name) for name in ("source", "split", "subset", "revision", "question_column")}
    return BenchmarkSection(
        name="wording",
        rows=section.rows,
        answer_column=column,
        answers=section.answers,
        options=section.options,
        answer_index=section.answer_index,
        **shared,
    )


def ask(
    run: Run, policy: Policy, wordings: dict[str, TemplateSection], questions: list[str], k: int, advance: Advance
) -> dict[str, list[list[Completion]]]:
    """A peer's responses under each wording, in its process: per question one greedy response (k = 0) or k samples."""
    section, limits = run.config.evaluate, run.config.generate
    sampling = Sampling(section.temperature, section.top_p, limits.max_new_tokens, logprobs=False)
    if not k:
        sampling = Sampling(0.0, 1.0, limits.max_new_tokens, logprobs=False)
    count = max(1, k)
    prompts: list[list[int]] = []
    for wording in wordings.values():
        worded = replace(policy, wording=wording).prompts.all_of("solve", [(question, ()) for question in questions])
        prompts += [tokens for tokens in worded for _ in range(count)]
    seeds = [
        request_seed(run.config.run.seed, "wording", policy.name, draw_key(question), number)
        for _ in wordings
        for question in questions
        for number in range(count)
    ]
    engine = partial(policy_cache.engine, policy, run.config)  # one for all: no wording changes what ends a response
    found = complete(engine, prompts, seeds, sampling, max_prompt_tokens(limits), advance)
    by_question = [found[first : first + count] for first in range(0, len(found), count)]
    size = len(questions)
    return {name: by_question[n * size : (n + 1) * size] for n, name in enumerate(wordings)}


def trial_of(
    wording: str, responses: list[list[Completion]], dev: DevSet, kind: AnswerKindName, grader: Grader
) -> WordingTrial:
    """The trial of a wording, from its responses (one or k per question)."""
    pairs = zip(dev.questions, responses, strict=True)
    read = iter(grader.find([(each.text, question) for question, answers in pairs for each in answers], kind))
    found = [[next(read) for _ in answers] for answers in responses]
    stated = [
        [answer if _stated(answer, each) else None for answer, each in zip(*pair, strict=True)]
        for pair in zip(found, responses, strict=True)
    ]
    if dev.golds is not None:
        rows = [
            (answers[0], gold, each[0].finish_reason == "length")
            for answers, gold, each in zip(found, dev.golds, responses, strict=True)
        ]
        values = [float(verdict == "correct") for verdict in grade(rows, kind, grader)]
    else:
        votes = [[answer.answer if answer else None for answer in answers] for answers in stated]
        compare_all(votes, kind, grader)
        values = [len((clusters(answers, kind, grader) or [[]])[0]) / len(answers) for answers in votes]
    every = [each for answers in responses for each in answers]
    return WordingTrial(
        wording,
        values,
        unfinished=fmean(each.finish_reason == "length" for each in every),
        unanswered=fmean(answer is None for answers in stated for answer in answers),
        tokens=fmean(len(each.token_ids) for each in every),
    )


def _stated(answer: Extracted | None, response: Completion) -> bool:
    """Whether a response states its answer: the last number of a calculation that was cut off is none."""
    return answer is not None and not (response.finish_reason == "length" and answer.guessed)


def mean(trial: WordingTrial, config: Config) -> Estimate:
    """A trial's value with its 95 % bootstrap interval over questions."""
    return _estimate(trial.values, config)


def choose(trials: Sequence[WordingTrial], present: str, config: Config) -> WordingChoice:
    """Keep the present wording unless the best one is better by more than chance: its paired 95 % interval is above 0.

    The best of several wordings looks better than it is, and changing the wording for chance differences on a small dev
    set would need a new run each time.
    """
    by_name = {trial.wording: trial for trial in trials}
    now = by_name[present]
    best = max(trials, key=lambda trial: (fmean(trial.values), trial is now, -trial.unfinished, -trial.tokens))
    if best is now:
        return WordingChoice(present, present, present, None)
    gain = _estimate([a - b for a, b in zip(best.values, now.values, strict=True)], config)
    better = gain.low is not None and gain.low > 0
    return WordingChoice(present, best.wording, best.wording if better else present, gain)


def _estimate(values: Sequence[float], config: Config) -> Estimate:
    return estimate([[list(values)]], config.evaluate.bootstrap, config.run.seed)
