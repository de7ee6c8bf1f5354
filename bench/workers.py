"""One function per measured system. Each runs in a fresh process, with the arguments SYSTEM JOB.json RESULT.json.

Ours run as a module from the project's root. The others run as a script (`python -P`) from another folder: lm-eval
imports Hugging Face's `evaluate`, and this project has a package of that name. So no module of the project is imported
at the top.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Result = dict[str, Any]
Ready = Callable[[], None]  # called when the model is loaded and the work begins


def ours_score(job: Job, ready: Ready) -> Result:
    """`score_pairs` under the config's token budget; log-probabilities of all target tokens."""
    from data.cli import quiet_environment

    quiet_environment()
    from peers.logprob.model import Pair, load_language_model
    from peers.logprob.scoring import score_pairs

    lm = load_language_model(Path(job["directory"]), job["dtype"])
    ready()
    pairs = [Pair(prompt, target) for prompt, target in job["pairs"]]
    return {"logprobs": score_pairs(lm, pairs, job["budget"], lambda *_: None)}


def lm_eval_score(job: Job, ready: Ready) -> Result:
    """lm-evaluation-harness, its `hf` backend, given the same tokens."""
    from lm_eval.models.huggingface import HFLM

    size = job["batch_size"]
    lm: Any = HFLM(pretrained=job["directory"], dtype=job["dtype"], batch_size=size, device="cpu")
    ready()
    requests = [((str(i), ""), prompt, target) for i, (prompt, target) in enumerate(job["pairs"])]
    return {"sums": [total for total, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True)]}


def vllm_score(job: Job, ready: Ready) -> Result:
    """vLLM's `prompt_logprobs` over prompt and target."""
    llm, params = _vllm(job, max_tokens=1, prompt_logprobs=0, detokenize=False)
    ready()
    outputs = llm.generate([{"prompt_token_ids": [*p, *t]} for p, t in job["pairs"]], params, use_tqdm=False)
    rows = [output.prompt_logprobs[-len(t) :] for output, (_, t) in zip(outputs, job["pairs"], strict=True)]
    return {
        "sums": [
            sum(row[token].logprob for row, token in zip(found, target, strict=True))
            for found, (_, target) in zip(rows, job["pairs"], strict=True)
        ]
    }


def reference_score(job: Job, ready: Ready) -> Result:
    """The plain formula in float64, one pair at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        job["directory"], dtype=torch.float64, attn_implementation="eager"
    ).eval()
    torch.float32 = torch.float64  # transformers' norms convert to torch.float32, which would round
    ready()
    logprobs = []
    with torch.no_grad():
        for prompt, target in job["pairs"]:
            logits = model(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1].double()
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None])
            logprobs.append(chosen[:, 0].tolist())
    return {"logprobs": logprobs}


def ours_train(job: Job, ready: Ready) -> Result:
    """`train_adapter`, checkpoints included."""
    from data.cli import quiet_environment

    quiet_environment()
    from data.config.sections import TrainSection
    from peers.logprob.model import Pair
    from train.examples import TrainingExample
    from train.loop import open_adapter, train_adapter

    section = TrainSection(**job["train"])
    model = open_adapter(Path(job["directory"]), job["dtype"], section, None, job["seed"])
    ready()
    examples = [TrainingExample(Pair(prompt, target), 1.0) for prompt, target in job["pairs"]]
    with tempfile.TemporaryDirectory() as work:
        trained = train_adapter(
            model, examples, section, job["seed"], job["budget"], Path(work), job["checkpoint_steps"], lambda *_: None
        )
    return {"losses": trained.losses}


def trl_train(job: Job, ready: Ready) -> Result:
    """TRL's SFTTrainer with its own defaults (float32 adapters, bf16 autocast), except for what the two must share."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    section = job["train"]
    pairs = [job["pairs"][i] for step in job["steps"] for i in step]  # in the same order as ours
    lengths = [len(p) + len(t) for p, t in pairs]
    packing = job["packing"]
    # packed rows hold several examples: use as many rows as hold about `batch_size` examples
    per_step = section["batch_size"]
    rows = max(1, round(per_step * sum(lengths) / len(lengths) / job["packed_tokens"])) if packing else per_step
    base: Any = AutoModelForCausalLM.from_pretrained(job["directory"], dtype=getattr(torch, job["dtype"]))
    lora = LoraConfig(
        r=section["rank"],
        lora_alpha=section["alpha"],
        target_modules="all-linear",
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(job["seed"])  # as ours does: both adapters begin with the same numbers
    model = get_peft_model(base, lora)
    warmup = math.ceil(section["warmup_ratio"] * len(job["steps"]))
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=job["dtype"] == "bfloat16",
            num_train_epochs=1,
            per_device_train_batch_size=rows,
            learning_rate=section["lr"],
            lr_scheduler_type=section["schedule"],
            warmup_steps=warmup,
            weight_decay=section["weight_decay"],
            max_grad_norm=section["max_grad_norm"],
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            completion_only_loss=True,
            packing=packing,
            max_length=job["packed_tokens"] if packing else None,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        data = Dataset.from_dict(
            {
                "input_ids": [[*p, *t] for p, t in pairs],
                "completion_mask": [[*[0] * len(p), *[1] * len(t)] for p, t in pairs],
            }
        )
        trainer = SFTTrainer(model=model, args=args, train_dataset=data)
        ready()  # after its preparations, which count as start-up and so are not extrapolated
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "examples_per_step": len(pairs) / len(losses)}


def ours_generate(job: Job, ready: Ready) -> Result:
    """The generate stage of a run, engines, tokenizers and all."""
    from data.run import RUNS
    from data.shards import read_json
    from generate import main
    from peers.command import StageStep, run_steps

    ready()
    run_steps([StageStep("generate", 1, main)], job["run"], Path(job["config"]), job["set"])
    return {"generated_tokens": read_json(RUNS / job["run"] / "round=1" / "chains" / "_SUCCESS.json")["tokens"]}


def vllm_generate(job: Job, ready: Ready) -> Result:
    """A bare `LLM.generate` per peer: all its prompts at once, greedy, with the same limit and the same end tokens."""
    tokens = 0
    ready()
    for peer in job["peers"]:
        llm, params = _vllm(
            {**job, **peer}, max_tokens=job["max_tokens"], stop_token_ids=peer["stop_ids"], stop=peer["stop"] or None
        )
        outputs = llm.generate([{"prompt_token_ids": p} for p in peer["prompts"]], params, use_tqdm=False)
        # without the end token, as in ours
        tokens += sum(len(o.outputs[0].token_ids) - (o.outputs[0].finish_reason == "stop") for o in outputs)
        llm.llm_engine.engine_core.shutdown()
        del llm
    return {"generated_tokens": tokens}


def machine_limit(job: Job, ready: Ready) -> Result:
    """The time that bare GEMMs of a model's shapes take for the job's work (bench/limits.py)."""
    from dataclasses import asdict

    from bench.limits import flops, rates, seconds, shapes_of

    shapes = shapes_of(job["directory"])
    ready()
    work = flops(shapes, job["pairs"], job["budget"], job["steps"])
    found = {dtype: rates(shapes, job["budget"], dtype) for dtype in ("bfloat16", "float32")}
    return {
        "flops": asdict(work),
        "seconds_at_limit": seconds(work, *found[job["dtype"]]),
        "tflops": {dtype: [rate / 1e12 for rate in pair] for dtype, pair in found.items()},
    }


def _vllm(job: Job, **sampling: Any) -> tuple[Any, Any]:
    """(an engine with the same settings as ours on a CPU, greedy sampling parameters)."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))  # else vLLM leaves torch one thread
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=job["directory"],
        dtype=job["dtype"],
        max_model_len=job["context_tokens"],
        enforce_eager=True,
        max_num_seqs=job["max_num_seqs"],
        disable_log_stats=True,
        kv_cache_memory_bytes=int(job["kv_cache_gib"] * 2**30),
    )
    return llm, SamplingParams(temperature=0.0, **sampling)


def peak_mib() -> float:
    """This process's own largest resident set. (`ru_maxrss` would start from that of the parent process.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main(system: str, job_path: str, result_path: str) -> None:
    """Run one system on one job. `work_seconds` count from when the model is ready; the parent measures the whole."""
    job = json.loads(Path(job_path).read_text())
    if system != "lm_eval_score":  # only lm-eval installs it, but transformers imports it if it finds it
        sys.modules["sklearn"] = None  # type: ignore[assignment]
    begin: list[float] = []
    result = SYSTEMS[system](job, lambda: begin.append(time.monotonic()))
    work = time.monotonic() - begin[0]
    Path(result_path).write_text(json.dumps({**result, "work_seconds": work, "peak_mib": peak_mib()}))


SYSTEMS: dict[str, Callable[[Job, Ready], Result]] = {
    f.__name__: f
    for f in (
        ours_score,
        lm_eval_score,
        vllm_score,
        reference_score,
        ours_train,
        trl_train,
        ours_generate,
        vllm_generate,
        machine_limit,
    )
}

if __name__ == "__main__":
    main(*sys.argv[1:])
