"""The train stage: scores → one PEFT adapter per peer. Whoever uses an adapter first merges it (peers/policy.py).

Each peer is trained in its own process; within a peer a kill costs at most `runtime.checkpoint_steps` steps.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from data import shards
from data.console import console
from data.errors import UserError
from data.hashing import digest, request_seed
from data.keep import keep_path, read_keep
from data.run import Run
from data.schema import SCORES, TOKENS
from data.stage import Stage
from data.task import Advance, task
from peers import policy_cache
from peers.policy import Policy, merge_into, prompts_of, publish_adapter, resolve_all
from peers.prompts import PeerPrompts
from peers.source import check_peers
from peers.workers import Workers

if TYPE_CHECKING:  # imported in the peers' processes only: a finished stage needs no torch
    from train.examples import Examples

FIDELITY_EXAMPLES = 8  # float32 forwards of three models, so only a few examples


def main(run: Run, round_: int, workers: Workers) -> None:
    """Train all peers of a round, or go on where an earlier command stopped."""
    check_peers(run.config)
    config, scores_dir = run.config, run.stage_dir(round_, "scores")
    policies = resolve_all(run, round_ - 1)
    manifest = shards.read_manifest(scores_dir)
    if manifest is None:
        raise UserError(f"{scores_dir} is not finished: run `make score ROUND={round_}` first")
    kept = read_keep(run, round_)
    chosen = {} if kept is None else {"keep": shards.checksum(keep_path(run.name, round_))}
    stage = Stage(
        "train",
        round_,
        run.stage_dir(round_, "adapters"),
        {
            "config": digest(
                config.model_dump(mode="json", include={"run", "train", "templates", "wordings", "peers"})
            ),
            "scores": digest(manifest["files"]),
            **chosen,
            "policies": [policy.identity for policy in policies.values()],
        },
    )
    run.freeze(lambda: prompts_of(policies))
    if not stage.begin():
        return
    for name, policy in policies.items():
        if policy.prompts.turn.opening and not policy.peer.train_thoughts:
            console.print(
                f"  {name}: its chat template opens a thought, but the texts it trains on have none: set its "
                "train_thoughts or template_arguments in a new run",
                soft_wrap=True,
                markup=False,
            )
    to_train = {name: n * config.train.epochs for name, n in count_examples(run, round_, kept).items()}
    with task(stage.title, to_train, "examples") as line:
        for name, policy in policies.items():
            workers.submit(name, train_peer, round_, policy)
        for _ in workers.results(line):
            pass
    reports = {name: shards.read_json(stage.folder / name / "training.json") for name in config.peer_names}
    fidelity = {name: report["merge_fidelity"] for name, report in reports.items() if "merge_fidelity" in report}
    files = [file for name in reports for file in sorted((stage.folder / name).iterdir())]
    stage.finish(
        files,
        sum(report["examples"] for report in reports.values()),
        {
            "examples": {name: report["examples"] for name, report in reports.items()},
            "loss": {name: report["loss"] for name, report in reports.items()},
            **({"merge_fidelity": {name: _percent(each) for name, each in fidelity.items()}} if fidelity else {}),
            "tokens": sum(report["tokens"] for report in reports.values()),
            "peers": reports,
        },
    )


def count_examples(run: Run, round_: int, kept: pa.Table | None) -> dict[str, int]:
    """How many examples each peer trains on; `kept` is the round's list of examples, if it has one."""
    found: Counter[str] = Counter(dict.fromkeys(run.config.peer_names, 0))
    if kept is not None:
        found.update(kept["peer"].to_pylist())
        return found
    for path in shards.shard_paths(run.stage_dir(round_, "scores")):
        table = shards.read_table(path, SCORES, ["peer", "weight"])
        found.update(table.filter(pc.not_equal(table["weight"], 0))["peer"].to_pylist())
    return found


def training_examples(run: Run, round_: int, policy: Policy) -> Examples:
    """What a peer trains on: its scored rows with a weight other than 0, or those that the round's list names, at
    weight 1. The prompt is x alone, as at test time.

    They are written once, shard by shard, to a file beside the peer's checkpoints.
    """
    from train.examples import Examples, write_examples

    path = run.stage_dir(round_, "adapters") / ".work" / policy.name / "examples.arrow"
    if not shards.is_whole(path):
        name, prompts = policy.name, policy.prompts
        paths, kept = shards.shard_paths(run.stage_dir(round_, "scores")), read_keep(run, round_)
        keys = None if kept is None else example_keys(kept.filter(pc.equal(kept["peer"], name))).combine_chunks()
        write_examples((examples_of(path, name, prompts, keys) for path in paths), path)
        shards.write_sum(path)
    return Examples(path)


def examples_of(path: Path, name: str, prompts: PeerPrompts, kept: pa.Array | None = None) -> pa.Table:
    """A peer's examples from one shard of scores; `kept` are the keys of the examples that a list names."""
    from train.examples import EXAMPLES

    columns = ["prompt_id", "peer", "number", "weight", "question", "target", "target_token_ids"]
    table = shards.read_table(path, SCORES, columns)
    table = table.filter(pc.equal(table["peer"], name))
    if kept is None:
        table = table.filter(pc.not_equal(table["weight"], 0))
        weights = table["weight"]
    else:
        table = table.filter(pc.is_in(example_keys(table), value_set=kept))
        weights = pa.repeat(1.0, len(table))
    questions = [(question, ()) for question in table["question"].to_pylist()]
    tokens = pa.array(prompts.all_of("solve", questions, table["target"].to_pylist()), TOKENS)
    return pa.table([tokens, table["target_token_ids"], weights], schema=EXAMPLES)


def example_keys(table: pa.Table) -> pa.ChunkedArray:
    """The keys of a peer's examples: prompt id and number of the text."""
    return pc.binary_join_element_wise(table["prompt_id"], pc.cast(table["number"], pa.string()), "/")


def train_peer(run: Run, round_: int, policy: Policy, advance: Advance) -> None:
    """`PeerTraining.finish`, in the peer's process."""
    policy_cache.evict(run.config)
    PeerTraining(run, round_, policy).finish(advance)


@dataclass
class PeerTraining:
    """Training of one peer in one round, from its policy of the round before."""

    run: Run
    round: int
    policy: Policy

    @property
    def name(self) -> str:
        """The peer's name."""
        return self.policy.name

    @property
    def folder(self) -> Path:
        """The finished adapter."""
        return self.run.stage_dir(self.round, "adapters") / self.name

    def finish(self, advance: Advance) -> None:
        """Train, and give the adapter its final name, unless that is done already."""
        from train.loop import open_adapter, train_adapter

        if (self.folder / "training.json").is_file():
            self.check_whole()
            advance(shards.read_json(self.folder / "training.json")["examples"] * self.run.config.train.epochs, 0)
            return
        config, base = self.run.config, self.policy.base
        work = self.folder.parent / ".work" / self.name
        examples = training_examples(self.run, self.round, self.policy)
        report: dict[str, Any] = {"examples": len(examples), "tokens": 0, "losses": [], "loss": "no examples"}
        adapter = work / "adapter"
        shutil.rmtree(adapter, ignore_errors=True)
        model = open_adapter(base, self.policy.dtype, config.train, self.policy.adapter, self.seed)
        if examples:
            trained = train_adapter(
                model,
                examples,
                config.train,
                self.seed,
                config.runtime.train_tokens,
                work,
                config.runtime.checkpoint_steps,
                advance,
                config.runtime.compile,
                config.score.weighting == "signed",
                config.runtime.gradient_checkpointing,
                self.name,
                f"train round {self.round}",
            )
            report |= {
                "tokens": trained.tokens,
                "losses": trained.losses,
                "loss": _first_to_last(trained.losses),
            }
        else:
            console.print(f"  {self.name} has no examples this round, so its policy does not change")
        model.save_pretrained(str(adapter), save_embedding_layers=False)  # else it asks the hub how large they are
        del model
        policy_cache.collect()
        publish_adapter(self.policy.peer, base, adapter, self.round)
        self.publish(adapter, examples, report)

    @property
    def seed(self) -> int:
        """Seed of the adapter's initial values and of the order of examples."""
        return request_seed(self.run.config.run.seed, self.round, self.name, "train")

    def publish(self, adapter: Path, examples: Examples, report: dict[str, Any]) -> None:
        """Measure the merge if that is configured, and rename the adapter into place; training.json is in it, so it is
        complete or absent."""
        config, base = self.run.config, self.policy.base
        if config.train.merge_fidelity and examples and config.run.adapters == "merged":
            from train.fidelity import merge_fidelity

            merged = self.run.checkpoint_dir(self.round, self.name)
            seed = request_seed(config.run.seed, self.round, self.name)
            merge_into(merged, base, adapter, self.policy.peer.dtype, seed)
            pairs = [example.pair for example in examples[:FIDELITY_EXAMPLES]]
            report["merge_fidelity"] = merge_fidelity(base, adapter, merged, pairs, config.runtime.score_tokens)
        shards.write_json(report, adapter / "training.json")
        self.sums.parent.mkdir(parents=True, exist_ok=True)
        shards.write_json(_sums(adapter), self.sums)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        os.replace(adapter, self.folder)

    @property
    def sums(self) -> Path:
        """Checksums of the finished adapter's files, until the stage has its manifest."""
        return self.folder.parent / ".work" / self.name / "adapter.json"

    def check_whole(self) -> None:
        """Raises UserError if the finished adapter, which no manifest lists yet, has changed since it was written."""
        if self.sums.is_file() and shards.read_json(self.sums) != _sums(self.folder):
            raise UserError(f"{self.folder} is damaged: delete it and run the same command again")


def _sums(folder: Path) -> dict[str, str]:
    return {path.name: shards.checksum(path) for path in sorted(folder.iterdir())}


def _percent(fidelity: dict[str, float | None]) -> str:
    """For the summary; a dash if the adapter has no effect to keep."""
    share = fidelity["fidelity"]
    return "-" if share is None else f"{share:.1%}"


def _first_to_last(losses: list[float]) -> str:
    """Mean loss of the first and last fifth of the steps."""
    n = max(1, len(losses) // 5)
    return f"{fmean(losses[:n]):.3f} → {fmean(losses[-n:]):.3f}"
