"""Checks that an export answers like the run's own policy, in vLLM, transformers and peft separately.

The peer's process generates with the round's policy in the run's own engine; then with the same engine on the exported
files alone; then with plain transformers on the merged checkpoint, and with peft on the base and the adapter. The last
two use nothing of this project but the tokens of the prompts. peft runs in float32: beside bf16 weights an adapter
loses small steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data import shards
from data.answers import kinds
from data.errors import UserError
from data.run import Run
from data.schema import PromptRow
from data.task import Advance, task
from peers import policy_cache
from peers.devices import gpu_is_there
from peers.engines.protocol import Sampling, complete, engine_kind
from peers.lengths import max_prompt_tokens
from peers.policy import Policy
from pipeline.unrecorded import processes

MERGED = "merged"  # folder of the merged checkpoint in an export
MIN_EQUAL = 0.94  # least share of equal answers: 47 of 50
BATCH_TEXTS = 16


@dataclass(frozen=True)
class OutputAgreement:
    """How often one way of loading an export answered like the run's own policy."""

    way: str
    what: str  # "texts" or "answers"
    same: int
    of: int
    least: int

    def __str__(self) -> str:
        return f"{self.way}: {self.same} of {self.of} {self.what}"


def check_exports(
    run: Run, policies: dict[str, Policy], folder: Path, n: int, tokens: int | None
) -> dict[str, list[OutputAgreement]]:
    """{peer: agreements of its export below `folder` on n questions}. Raises UserError if one is too low."""
    config = run.config
    try:
        engine_kind(config.generate)
    except UserError as error:
        raise UserError(f"{error}; CHECK=0 exports without it") from None
    questions = first_questions(run, n)
    limit = min(tokens or config.generate.max_new_tokens, config.generate.max_new_tokens)
    found: dict[str, list[OutputAgreement]] = {}
    with processes(run, f"export-{run.name}") as workers:
        total = sum(len(questions) * (4 if (folder / name / MERGED).is_dir() else 3) for name in policies)
        with task("check", total, "responses") as line:
            for name, policy in policies.items():
                workers.submit(name, check_peer, policy, folder / name, questions, limit)
            for job, agreements in workers.results(line):
                found[job.peer] = agreements
    for name, agreements in found.items():
        for each in agreements:
            if each.same < each.least:
                raise UserError(
                    f"peer {name}: the export does not answer like the run's own policy ({each}; expected at least "
                    f"{each.least}), so nothing was exported; CHECK=0 exports without the check"
                )
    return {name: found[name] for name in policies}


def first_questions(run: Run, n: int) -> list[str]:
    """The first n of the run's questions, or all if there are fewer."""
    rows: list[PromptRow] = []
    for path in shards.shard_paths(run.prompts_dir):
        rows += shards.rows_of(path, PromptRow)
        if len(rows) >= n:
            break
    return [row["question"] for row in rows[:n]]


def check_peer(
    run: Run, policy: Policy, exported: Path, questions: list[str], limit: int, advance: Advance
) -> list[OutputAgreement]:
    """One peer's agreements, computed in its process."""
    ask = partial(_greedy, run, questions=questions, limit=limit, advance=advance)
    own = ask(policy)
    engine, merged = engine_kind(run.config.generate), exported / MERGED
    prompts = policy.prompts
    found, agreement = [], partial(_agreement, run.config.prompts.answers, questions)
    if merged.is_dir():
        alone = replace(policy, base=merged, adapter=None, checkpoint=None, identity="")
        exact = policy.checkpoint is not None and not gpu_is_there()  # on a GPU, bf16 results depend on the batch
        texts, prompts = ask(alone), alone.prompts  # the exported tokenizer's
        found.append(agreement(f"{engine}, merged", own, texts, exact))
    else:
        texts = ask(replace(policy, adapter=exported, checkpoint=None, identity=""))
        found.append(agreement(f"{engine}, adapter served", own, texts, False))
    policy_cache.drop_all()
    prompt_ids = prompts.all_of("solve", [(question, ()) for question in questions])
    if merged.is_dir():
        texts = _plain(merged, None, policy.dtype, prompts, prompt_ids, limit, advance)
        found.append(agreement("transformers, merged", own, texts, False))
    texts = _plain(policy.base, exported, "float32", prompts, prompt_ids, limit, advance)
    return [*found, agreement("peft, adapter in float32", own, texts, False)]


def _greedy(run: Run, policy: Policy, *, questions: list[str], limit: int, advance: Advance) -> list[str]:
    """A policy's greedy responses from the run's engine."""
    prompt_ids = policy.prompts.all_of("solve", [(question, ()) for question in questions])
    engine = partial(policy_cache.engine, policy, run.config)
    sampling = Sampling(0.0, 1.0, limit, logprobs=False)
    return [
        each.text
        for each in complete(
            engine, prompt_ids, [0] * len(prompt_ids), sampling, max_prompt_tokens(run.config.generate), advance
        )
    ]


def _plain(
    directory: Path,
    adapter: Path | None,
    dtype: str,
    prompts: Any,
    prompt_ids: list[list[int]],
    limit: int,
    advance: Advance,
) -> list[str]:
    """Greedy responses from plain transformers, or with peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True
    )
    model.generation_config = GenerationConfig()  # the checkpoint's may have a repetition penalty
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    model = model.eval().to("cuda" if gpu_is_there() else "cpu")
    texts = []
    for first in range(0, len(prompt_ids), BATCH_TEXTS):
        batch = prompt_ids[first : first + BATCH_TEXTS]
        longest = max(map(len, batch))
        ids = [[prompts.end_id] * (longest - len(each)) + each for each in batch]
        mask = [[0] * (longest - len(each)) + [1] * len(each) for each in batch]
        with torch.no_grad():
            out = model.generate(
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                do_sample=False,
                max_new_tokens=limit,
                eos_token_id=prompts.stop_ids,
                pad_token_id=prompts.end_id,
            )
        texts += [prompts.text(prompts.cut(row.tolist())) for row in out[:, longest:]]
        advance(len(batch), 0)
    del model
    policy_cache.collect()
    return texts


def _agreement(
    kind: kinds.AnswerKindName,
    questions: Sequence[str],
    way: str,
    own: Sequence[str],
    texts: Sequence[str],
    exact: bool,
) -> OutputAgreement:
    n = len(own)
    if exact:
        return OutputAgreement(way, "texts", sum(a == b for a, b in zip(own, texts, strict=True)), n, n)
    missed = max(int(n >= 8), int((1 - MIN_EQUAL) * n + 1e-9))  # even of a few questions, one may be a near-tie
    return OutputAgreement(way, "answers", sum(map(partial(same_answer, kind), own, texts, questions)), n, n - missed)


def same_answer(kind: kinds.AnswerKindName, one: str, two: str, question: str) -> bool:
    """Whether two responses to a question have the same answer; without an answer, compare the texts."""
    first, second = (kinds.of(kind).find(each, question) for each in (one, two))
    if first is None or second is None:
        return one == two
    return first.answer == second.answer
