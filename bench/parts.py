"""The three comparisons: which contenders get which inputs, and what is checked besides the time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bench.inputs import Maker, Tokens, configuration
from bench.measure import Contender, Session, alternate, run_worker
from data.config.load import load_config
from data.console import console
from data.run import Run
from data.schema import CHAINS
from data.shards import read_rows, shard_paths
from peers.placement import runtime_here
from peers.prompts import load_all_prompts, load_prompts
from peers.source import compute_dtype, model_directory
from train.loss import optimiser_steps

SEED = 17
PACKED_TOKENS = 1024  # TRL's default
AGREEMENT_PAIRS = 150
NANO = Path("configs") / "nano.toml"
RUN = "bench-generate"


def tokens_of(pairs: list[Tokens]) -> int:
    """Prompt and target tokens."""
    return sum(len(prompt) + len(target) for prompt, target in pairs)


class Bench:
    """One model with its config and its inputs."""

    def __init__(self, session: Session, model: str, worked_examples: bool = False) -> None:
        self.session, self.model = session, model
        self.config, name = configuration(model, worked_examples)
        self.maker = Maker(load_prompts(self.config, name), model != "nano", SEED)
        peer, runtime = self.config.peer(name), runtime_here(self.config.runtime)
        self.base: dict[str, Any] = {
            "directory": str(model_directory(peer, self.config).resolve()),
            "dtype": compute_dtype(peer, runtime.compute),
            "seed": SEED,
            "kv_cache_gib": runtime.kv_cache_gib,
            "max_num_seqs": runtime.max_num_seqs,
            "context_tokens": self.config.generate.context_tokens,
        }

    def about(self, part: str, pairs: list[Tokens], unit: str) -> None:
        """The first record of a part: its workload in words."""
        mean, target = tokens_of(pairs) / len(pairs), sum(len(target) for _, target in pairs) / len(pairs)
        text = f"{len(pairs):,} {unit} of {mean:.0f} tokens, {target:.0f} of them the target; {self.base['dtype']}."
        self.session.record(part, self.model, kind="about", text=text)

    def limit(self, part: str, pairs: list[Tokens], repeat: int = 0, record: bool = True) -> None:
        """Measure the machine's limit for a workload."""
        runtime, train = runtime_here(self.config.runtime), part == "train"
        rows = runtime.train_tokens if train else runtime.score_tokens
        steps = optimiser_steps(len(pairs), self.config.train.batch_size, 1, SEED) if train else []
        found = run_worker("machine_limit", {**self.base, "pairs": pairs, "steps": steps, "budget": rows})
        if record:
            keep = {key: found[key] for key in ("seconds_at_limit", "tflops", "flops")}
            self.session.record(part, self.model, kind="limit", repeat=repeat, rows=rows, **keep)
        rates = "; ".join(f"{dtype} {a:.2f}, head {b:.2f} TFLOP/s" for dtype, (a, b) in found["tflops"].items())
        console.print(f"  limit {part} {self.model}: {rates}; {found['seconds_at_limit']:.1f} s for this workload")

    def rounds(self, part: str, contenders: list[Contender], pairs: list[Tokens], unit: str, repeats: int) -> None:
        """All repeats, each with the machine's limit beside it."""
        for repeat in range(repeats):
            self.limit(part, pairs, repeat)
            for contender in alternate(contenders, repeat):
                self.session.measure(part, self.model, contender, repeat, contenders[0].amount, unit)

    def score(self, tokens: int, their_tokens: int, repeats: int, batch_size: str, vllm: bool) -> None:
        """Ours, lm-eval and vLLM on the same pairs; on the nano peer also compare with float64."""
        pairs = self.maker.score(tokens)
        few = self.maker.score(their_tokens) if 0 < their_tokens < tokens else pairs
        self.about("score", pairs, "pairs")
        job, few_tokens = {**self.base, "pairs": few}, tokens_of(few)
        size = batch_size if batch_size == "auto" else int(batch_size)
        budget = runtime_here(self.config.runtime).score_tokens
        ours = Contender("ours", "ours_score", {**self.base, "pairs": pairs, "budget": budget}, tokens_of(pairs))
        theirs = [Contender("lm-eval hf", "lm_eval_score", {**job, "batch_size": size}, few_tokens, f"batch {size}")]
        if vllm:
            theirs.append(Contender("vLLM prompt_logprobs", "vllm_score", job, few_tokens))
        self.rounds("score", [ours, *theirs], pairs, "tokens", repeats)
        for other in theirs:
            if other.last and ours.last:
                both = zip(ours.last["logprobs"], other.last["sums"], strict=False)  # theirs may be a sample
                apart = [abs(sum(a) - b) / len(a) for a, b in both]
                text = f"{sum(apart) / len(apart):.1e} nats per token apart on average, {max(apart):.1e} at most"
                self.session.note("score", self.model, f"Pairs' sums, ours and {other.label}: {text}.")
        if self.model == "nano":
            self.agreement(pairs[:AGREEMENT_PAIRS])

    def agreement(self, pairs: list[Tokens]) -> None:
        """Compare ours in float32 with the float64 reference, token by token."""
        job = {
            **self.base,
            "dtype": "float32",
            "pairs": pairs,
            "budget": runtime_here(self.config.runtime).score_tokens,
        }
        one, two = (run_worker(system, job)["logprobs"] for system in ("ours_score", "reference_score"))
        error = max(abs(a - b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))
        text = f"at most {error:.2e} nats apart at any of {sum(map(len, two)):,} target tokens"
        self.session.note("score", self.model, f"Ours in float32 and the plain formula in float64: {text}.")

    def train_job(self, pairs: list[Tokens], **changed: Any) -> dict[str, Any]:
        """The job of both trainers."""
        section, runtime = (
            self.config.train.model_copy(update={"epochs": 1, **changed}),
            runtime_here(self.config.runtime),
        )
        return {
            **self.base,
            "pairs": pairs,
            "train": section.model_dump(),
            "budget": runtime.train_tokens,
            "steps": optimiser_steps(len(pairs), section.batch_size, 1, SEED),
            "packed_tokens": PACKED_TOKENS,
            "checkpoint_steps": runtime.checkpoint_steps,
            "packing": False,
        }

    def train(self, examples: int, their_examples: int, repeats: int, packing: bool) -> None:
        """Ours and TRL on the same examples; then both in float32, loss by loss."""
        pairs = self.maker.train(examples)
        few = pairs[:their_examples] if their_examples else pairs
        self.about("train", pairs, f"examples ({self.config.train.batch_size} per optimiser step)")
        job, name = self.train_job(few), "TRL SFTTrainer"
        contenders = [Contender("ours", "ours_train", self.train_job(pairs), len(pairs))]
        contenders.append(Contender(name, "trl_train", job, len(few)))
        if packing:
            packed = {**job, "packing": True}
            contenders.append(Contender(f"{name}, packing", "trl_train", packed, len(few), f"rows of {PACKED_TOKENS}"))
        self.rounds("train", contenders, pairs, "examples", repeats)
        if packing and contenders[-1].last:
            per_step = contenders[-1].last["examples_per_step"]
            self.session.note("train", self.model, f"With packing TRL had {per_step:.1f} examples per optimiser step.")
        if not contenders[1].failed:
            self.same_loss()

    def same_loss(self, steps: int = 6, batch: int = 8) -> None:
        """Compare both trainers' losses in float32 at a constant rate, on targets of one length: the mean over a
        batch's tokens (TRL's loss) then equals the mean of its examples' means (ours)."""
        pairs = self.maker.train_alike(steps * batch)
        job = self.train_job(pairs, batch_size=batch, schedule="constant", warmup_ratio=0.0) | {"dtype": "float32"}
        one, two = (run_worker(system, job)["losses"] for system in ("ours_train", "trl_train"))
        error = max(abs(a - b) for a, b in zip(one, two, strict=True))
        text = f"at most {error:.1e} apart over {steps} steps, in which ours went from {one[0]:.3f} to {one[-1]:.3f}"
        self.session.note("train", self.model, f"Loss in float32, ours and TRL's: {text}.")


def generate(session: Session, questions: int, repeats: int) -> None:
    """The generate stage of a nano run, and a bare `LLM.generate` over the prompts of its chains."""
    overrides = [f"prompts.limit={questions}"]
    run = Run(RUN, load_config(NANO, overrides))
    requests, dtype = questions * len(run.config.peers), compute_dtype(run.config.peers[0], run.config.runtime.compute)
    text = f"{questions:,} questions, so {requests:,} requests, greedy; {dtype}."
    session.record("generate", "nano", kind="about", text=text)
    ours = Contender("ours", "ours_generate", {"run": RUN, "config": str(NANO), "set": overrides}, requests)
    bare = Contender("vLLM LLM.generate", "vllm_generate", {}, requests, "one engine after the other")
    for repeat in range(repeats):
        for contender in alternate([ours, bare], repeat):
            if contender is ours:
                shutil.rmtree(run.root, ignore_errors=True)
            elif not bare.job:  # ours is first in the first repeat, so its chains exist
                bare.job = bare_job(run, dtype)
            session.measure("generate", "nano", contender, repeat, requests, "requests")
            if ours.failed:
                return
    shutil.rmtree(run.root, ignore_errors=True)


def bare_job(run: Run, dtype: str) -> dict[str, Any]:
    """The requests of a finished generate stage, by peer, with the earlier responses that each was shown."""
    config, prompts, runtime = run.config, load_all_prompts(run.config), runtime_here(run.config.runtime)
    requests: dict[str, list[list[int]]] = {name: [] for name in prompts}
    earlier: dict[str, list[str]] = {}
    rows = [row for path in shard_paths(run.stage_dir(1, "chains")) for row in read_rows(path, CHAINS)]
    for row in rows:  # a question's rows are in the order of its chain
        seen = earlier.setdefault(row["prompt_id"], [])
        requests[row["peer"]].append(prompts[row["peer"]].review(row["question"], seen))
        seen += [row["response"]] if row["response"] else []
    return {
        "dtype": dtype,
        "kv_cache_gib": runtime.kv_cache_gib,
        "max_num_seqs": runtime.max_num_seqs,
        "context_tokens": config.generate.context_tokens,
        "max_tokens": config.generate.max_new_tokens,
        "peers": [
            {
                "directory": str(model_directory(peer, config).resolve()),
                "prompts": requests[peer.name],
                "stop_ids": prompts[peer.name].stop_ids,
                "stop": prompts[peer.name].stop_strings,
            }
            for peer in config.peers
        ],
    }
