"""The first screen: what was run, the result in a sentence, and each peer's change."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from data import shards
from data.config.sections import Config
from evaluate.changes import MEAN, Change
from evaluate.gate import all_decisions, best
from evaluate.intervals import Estimate
from evaluate.page.frames import Frames
from evaluate.page.parts import Tile, interval_text, join_words, mark, number, percent, plural, signed
from evaluate.results import Results

SWITCHES = ("run", "prompts", "generate", "score", "train", "evaluate", "gate", "guard")
OTHERWISE_SHOWN = ("run.seed", "prompts.source", "prompts.split", "prompts.limit")
Facts = list[tuple[str, list[str]]]


def subtitle(results: Results, frames: Frames) -> str:
    """What was run, in a line."""
    config = results.config
    trained = max(frames.rounds("train"), default=0)
    rounds = plural(trained, "trained round") if trained else "nothing trained yet"
    return " · ".join(
        (
            plural(len(config.peers), "peer"),
            plural(question_count(frames), "unlabelled question"),
            rounds,
            f"seed {config.run.seed}",
        )
    )


def question_count(frames: Frames) -> int:
    """How many unlabelled questions the run has."""
    path = frames.run.prompts_dir / shards.SUCCESS
    return int(shards.read_json(path)["rows"]) if path.is_file() else 0


def facts(results: Results, frames: Frames) -> Facts:
    """What was run: models, wordings, questions, benchmarks, and the switches that differ from the defaults."""
    config, n = results.config, question_count(frames)
    wordings = [f"{peer.name}: {config.wording_name(peer)}" for peer in config.peers]
    shared = {config.wording_name(peer) for peer in config.peers}
    found: Facts = [
        ("Models", [f"{peer.name}: {_model(peer.model)} ({peer.dtype})" for peer in config.peers]),
        ("Wording", wordings if len(shared) > 1 or len(wordings) == 1 else [f"{shared.pop()}, for all peers"]),
        ("Unlabelled questions", [f"{n:,} from {config.prompts.source}"]),
        ("Benchmarks", _benchmarks(config, frames) or ["none"]),
    ]
    if config.gate.questions:
        found.append(("Gate", [f"{config.gate.questions:,} more unlabelled questions"]))
    changed = [f"{key} = {value} (default {default})" for key, value, default in switches(config)]
    return [*found, ("Switches changed", changed or ["none: all are the defaults"])]


def _model(model: Any) -> str:
    return model if isinstance(model, str) else f"{model[0]} and {len(model) - 1} more pieces"


def _benchmarks(config: Config, frames: Frames) -> list[str]:
    known = {(row["benchmark"]): row for row in frames.metrics.select("benchmark", "n", "k").unique().to_dicts()}
    return [
        f"{each.name}: {known[each.name]['n']:,} questions, k = {known[each.name]['k']}"
        if each.name in known
        else f"{each.name}: not evaluated yet"
        for each in config.benchmarks
    ]


def switches(config: Config) -> list[tuple[str, str, str]]:
    """(key, value, default) of the switches that differ from their defaults."""
    found = []
    for name in SWITCHES:
        section = getattr(config, name)
        for key, field in type(section).model_fields.items():
            value, default = getattr(section, key), field.get_default(call_default_factory=True)
            if f"{name}.{key}" not in OTHERWISE_SHOWN and value != default and not field.is_required():
                found.append((f"{name}.{key}", _word(value), _word(default)))
    return found


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# --- what came out ---


def sentences(results: Results, frames: Frames) -> tuple[list[str], list[str]]:
    """The verdict (whether the models got better, and which round to ship), and further details."""
    if not frames.metrics.height:
        none = "There are no benchmarks, so exact match and GV-Gap are not known."
        return [none, ship(results, frames)], gate_sentences(results, frames)
    lead, *more = _em(results, frames)
    return [lead, ship(results, frames)], [*more, *_gap(results), *gate_sentences(results, frames), *_guard(results)]


def level(frames: Frames, round_: int, peer: str = "", name: str = "em") -> float | None:
    """The mean of a metric over benchmarks, and over peers unless one is named."""
    rows = frames.metrics.filter(frames.metrics["round"] == round_).to_dicts()
    known = [row[name] for row in rows if peer in ("", row["peer"]) and row[name] is not None]
    return fmean(known) if known else None


def overall(results: Results, peer: str = "") -> Change | None:
    """A peer's change up to the last round, over all benchmarks; without a peer, the change of all peers."""
    last = [each for each in results.changes if each.round == results.rounds[-1]]
    whole = {each.group: each for each in last}
    alone = [each for each in last if each.group[0] != MEAN and peer in ("", each.group[1])]
    return whole.get((MEAN, peer)) or (alone[0] if len(alone) == 1 else None)


def _em(results: Results, frames: Frames) -> list[str]:
    last = results.rounds[-1]
    over = _over(results)
    if last == 0:
        return [f"Before any training, exact match is {percent(level(frames, 0))} %{over}."]
    found, after = overall(results), level(frames, last)
    rounds = f"After {plural(last, 'round')}"
    if found is None:
        missing = "Round 0" if 0 not in results.rounds else "A round's graded responses"
        verb = "is" if missing == "Round 0" else "are"
        why = f"{missing} {verb} missing, so the change since round 0 has no interval."
        return [f"{rounds} exact match is {percent(after)} %{over}.", why]
    from_to = f"from {percent(level(frames, 0))} to {percent(after)} %"
    return [f"{rounds} exact match {_moved(found.em, found.em_same)}, {from_to}{over}."]


def _over(results: Results) -> str:
    config = results.config
    counts = [
        plural(len(of), what) for of, what in ((config.peers, "peer"), (config.benchmarks, "benchmark")) if len(of) > 1
    ]
    return f", on average over {join_words(counts)}" if counts else ""


def _moved(found: Estimate, same: bool) -> str:
    """rose by 3.0 points (95 % interval +1.0 to +5.0)"""
    if same:
        return "did not change on any question"
    size = number(abs(100 * found.mean))
    if found.low is None or found.high is None:
        return f"{'rose' if found.mean > 0 else 'fell'} by {size} points"
    between = f"95 % interval {signed(100 * found.low)} to {signed(100 * found.high)}"
    if found.contains_zero:
        return f"changed by {signed(100 * found.mean)} points, which may be nothing ({between})"
    return f"{'rose' if found.mean > 0 else 'fell'} by {size} points ({between})"


def _gap(results: Results) -> list[str]:
    found = overall(results)
    if found is None:
        return []
    if found.gap is None:
        return ["The verifier left all samples undecided, so there is no GV-Gap."]
    subject = "The GV-Gap, what a model gains by keeping the samples that it judges better itself,"
    return [f"{subject} {_moved(found.gap, found.gap_same)}."]


def gate_sentences(results: Results, frames: Frames) -> list[str]:
    """What the gate let through."""
    if not results.config.gate.questions:
        return ["There is no gate: each round's adapters were used."] if results.rounds[-1:] > [0] else []
    decided = all_decisions(results.run.name) if frames.gated else {}
    every = [(n, each) for n, of in decided.items() for each in of.values()]
    if not every:
        return ["The gate has judged no adapter yet."]
    refused = [f"{each.peer} in round {n}" for n, each in every if not each.accepted]
    rest = f"; it refused {join_words(refused)}, whose figures are those of the policy in use" if refused else ""
    return [f"The gate let {len(every) - len(refused)} of {plural(len(every), 'adapter')} through{rest}."]


def _guard(results: Results) -> list[str]:
    if results.config.guard.action == "ignore":
        return ["The guard against collapse is configured to ignore its findings (guard.action)."]
    if results.rounds[-1:] <= [0]:
        return []
    if results.warnings:
        return [f"The guard against collapse warns {plural(len(results.warnings), 'time')}: see below."]
    return ["The guard found no sign of collapse."]


def ship(results: Results, frames: Frames) -> str:
    """Which round to ship: by the gate, else by exact match, else the last one."""
    trained = max(frames.rounds("train"), default=0)
    if frames.gated and all_decisions(results.run.name):
        found = best(results.run.name)
        agrees = f"mean agreement with the votes {percent(found.agreement)} %, by the gate, without gold answers"
        if found.round == 0:
            return f"Ship nothing new: the untouched models are best ({agrees})."
        used = [f"{peer} of round {n}" if n else f"{peer} untouched" for peer, n in found.used.items()]
        what = "all peers" if set(found.used.values()) == {found.round} else join_words(used)
        return f"Ship round {found.round}: {what} ({agrees})."
    if trained == 0:
        return "There is nothing to ship yet: no adapter has been trained."
    if frames.metrics.height:
        levels = {n: level(frames, n) or 0.0 for n in results.rounds}
        top = max(levels, key=lambda n: levels[n])
        chosen = f"{percent(levels[top])} % on average. It is chosen on the benchmarks, which flatters that number"
        if top == 0:
            return f"Ship nothing new: the untouched models have the highest exact match, {chosen}."
        return f"Ship round {top}: it has the highest exact match, {chosen}."
    return f"Ship round {trained}, the last: without gate and benchmarks nothing tells the rounds apart."


def tiles(results: Results, frames: Frames) -> list[Tile]:
    """One per peer: how exact match changed, or, with round 0 only, what it is."""
    found: list[Tile] = []
    if not frames.metrics.height:
        return found
    last = results.rounds[-1]
    for place, peer in enumerate(results.config.peer_names):
        change, now = overall(results, peer), level(frames, last, peer)
        if change is None:
            found.append(Tile(peer, mark(place), percent(now), "% exact match", [f"round {last}"]))
            continue
        lines = [f"{percent(level(frames, 0, peer))} → {percent(now)} %", _between(change.em, change.em_same)]
        gap = "no verdicts" if change.gap is None else interval_text(change.gap, sign=True)
        unit = "points of exact match"
        found.append(Tile(peer, mark(place), signed(100 * change.em.mean), unit, [*lines, f"GV-Gap {gap}"]))
    return found


def _between(found: Estimate, same: bool) -> str:
    if same:
        return "no question differs"
    if found.low is None or found.high is None:
        return "no interval: one question"
    return f"95 % interval {signed(100 * found.low)} to {signed(100 * found.high)}"


def notices(results: Results, lines: Sequence[str]) -> list[str]:
    """What the page must say at the top; `lines` are the tables' notices."""
    found = [line[:1].upper() + line[1:] for line in lines if line]
    if results.config.prompts.overlap == "transductive":
        found.insert(0, "Transductive: training questions may also be benchmark questions")
    return found
