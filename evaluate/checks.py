"""What the evaluate stage checks before it begins."""

from __future__ import annotations

from typing import Any

from data import shards
from data.errors import UserError
from data.run import Run
from data.stage import Stage
from evaluate.benchmarks import Item, digests
from evaluate.labels import gold_by_id
from peers.lengths import check_questions, max_prompt_tokens
from peers.policy import Policy, prompts_of
from peers.prompts import PeerPrompts


def check_room(run: Run, prompts: dict[str, PeerPrompts], benchmarks: dict[str, list[Item]]) -> None:
    """Raises UserError if no question of a benchmark fits a peer's context: all would count as wrong."""
    section = run.config.generate
    limit = max_prompt_tokens(section)
    for name, peer_prompts in prompts.items():
        for benchmark, items in benchmarks.items():
            if all(len(peer_prompts.solve(item.question)) > limit for item in items):
                raise UserError(
                    f"benchmark {benchmark}: no question fits the context of peer {name}: generate.context_tokens "
                    f"{section.context_tokens} less max_new_tokens {section.max_new_tokens} leaves {limit} tokens for "
                    "a prompt; raise the first or lower the second"
                )


def check_before_freezing(run: Run, policies: dict[str, Policy]) -> None:
    """Raises UserError for what generate and `pipeline.labels` would refuse only after the config is frozen."""
    check_questions(run, prompts_of(policies))
    if run.config.evaluate.gold_column is not None:
        gold_by_id(run.config)


def check_same_benchmarks(run: Run, stage: Stage, benchmarks: dict[str, list[Item]]) -> None:
    """Raises UserError if a benchmark, or a function that compares answers, has changed since round 0."""
    baseline = shards.read_manifest(run.stage_dir(0, "evals"))
    if baseline and baseline["fingerprint"]["benchmarks"] != stage.fingerprint["benchmarks"]:
        known, now = baseline["benchmarks"], digests(benchmarks)
        changed = [b for b in run.config.benchmarks if known[b.name] != now[b.name]]
        named = " and ".join(f"benchmark {b.name} ({b.source})" for b in changed)
        raise UserError(
            f"{named} changed since round 0 of run {run.name!r} was evaluated: the questions, their gold answers, "
            "or how this version reads them; restore what changed, or use another run name"
        )
    if baseline and baseline["fingerprint"].get("answers") != stage.fingerprint.get("answers"):
        raise UserError(
            f"a function that compares answers has changed since round 0 of run {run.name!r} was evaluated: "
            f"{_files(baseline['fingerprint'])} then, {_files(stage.fingerprint)} now; restore its file, delete the "
            "evals of all rounds to make them again, or use another run name"
        )


def _files(fingerprint_: dict[str, Any]) -> str:
    """The custom kinds of answers in a fingerprint, each with the beginning of its file's checksum."""
    known = fingerprint_.get("answers", {}).items()
    named = [f"{kind} ({each['sha256'][:12]})" for kind, each in known if "sha256" in each]
    return ", ".join(named) or "none"
