"""The configuration: one frozen model per section of the TOML, unknown keys refused.

Every field has a default (where one makes sense), a bound and one sentence; the table in docs/config.md is made from
them (`python -m data.config.docs`). Three sections alone may change within a run: `runtime` and `guard`, which say how
fast and whether to go on, never what, and `wording`, which no stage reads; so may `gate.patience`. A key that came
later is left out of the dump where it is not set (`exclude_if`), so that fingerprints stay as they are.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9_-])?"  # in file names: none that a file system changes or takes apart
NAME_BYTES = 100
FILE_NAME_BYTES = 255  # what file systems allow
UNIT_NAME_BYTES = len("cross~~~~00000.parquet.tmp")  # of evaluate's longest file name, without the three names in it
Name = Field(
    pattern=f"^{NAME}$", max_length=NAME_BYTES, description="Short name, used in file names and tables; not mean."
)
MEAN = "mean"  # in tables, of all peers or benchmarks
MANY = 2**31 - 1  # of what is counted: the files have 32 bits for it
COLDEST = 0.01  # below, logits over the temperature leave the range of a float, and vLLM takes it for greedy


Text = Annotated[str, Field(min_length=1, pattern=r"\S")]


class Section(BaseModel):
    """A frozen section that refuses unknown keys.

    Numbers are numbers, and finite: no `true`, no "3"; a whole one may stand for a float, not the other way round. (A
    list stands for a tuple, TOML having no other, and a switch may be spelt True in --set: such fields are not strict.)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, strict=True)

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        texts = [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, str)]
        if any(re.search("[\0\ud800-\udfff]", text) for text in texts):
            raise ValueError("has a NUL character or bytes that are not UTF-8, which no prompt and no file can have")
        return value


def _paths(model: str | tuple[str, ...]) -> str | list[str]:
    return os.path.normpath(model) if isinstance(model, str) else [os.path.normpath(part) for part in model]


class Example(Section):
    """One worked example for the prompt."""

    question: Text = Field(description="The question.")
    solutions: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Earlier solutions shown with it (review and verify examples); empty for a plain example.",
    )
    response: Text = Field(description="The response the model is shown as the right way to answer.")


class RunSection(Section):
    """What belongs to the whole run."""

    seed: int = Field(17, ge=0, lt=2**31, description="Seed of the shuffle, the orders, sampling and training.")
    shard_questions: int = Field(
        512, ge=1, le=MANY, description="Questions per shard: the largest piece of work that a kill can cost."
    )
    adapters: Literal["merged", "unmerged"] = Field(
        "merged",
        description="How generate, score and evaluate use an adapter: merged into a temporary checkpoint "
        "(float32 sum, seeded stochastic rounding), or served beside the base weights.",
    )


class SourceSection(Section):
    """Where questions come from."""

    source: Text = Field(
        description="A .jsonl, .csv (also with .gz or .zst) or .parquet file, a folder (all such files in it), a "
        "pattern such as folder/**/*.jsonl, hf://datasets/..., the name of a dataset on the Hugging Face hub, or nano: "
        "the project's own questions (data/nano.py).",
    )
    split: Text | None = Field(
        None,
        description="Split; null is train for a hub name and for nano (which also has validation, test, and pretrain, "
        "which its peers were made from), and all files otherwise. Of files: those with this word in their path "
        "(data/test-1.parquet), where each file has just one such word.",
    )
    subset: Text | None = Field(
        None, description="Configuration (subset) of the dataset, for a hub name; arith or simul of nano."
    )
    revision: Text | None = Field(None, description="Revision of the dataset, for a hub name.")
    question_column: Text = Field("question", description="Column that holds the question.")
    rows: tuple[int, int] | None = Field(
        None,
        strict=False,
        description="Only rows [first, end) of the source, before the shuffle: splits one file in two.",
    )
    limit: int | None = Field(
        None,
        ge=1,
        le=MANY,
        description="At most this many questions, after the shuffle (of a benchmark: the same in all runs).",
    )

    @field_validator("rows")
    @classmethod
    def _rows_ascend(cls, rows: tuple[int, int] | None) -> tuple[int, int] | None:
        if rows is not None and not 0 <= rows[0] < rows[1] <= MANY:
            raise ValueError(f"rows must be [first, end) with 0 <= first < end, found {list(rows)} (at most {MANY})")
        return rows


class PromptsSection(SourceSection):
    """The unlabelled questions to train on."""

    shuffle: bool = Field(True, strict=False, description="Shuffle (seeded) before the limit is applied.")
    overlap: Literal["refuse", "drop", "transductive"] = Field(
        "refuse",
        description="What to do with training questions that a benchmark also has (but for case and typography: 3² is "
        "taken for 32, and both texts are shown): stop, drop them, or keep them (every report then says "
        "'transductive').",
    )


class BenchmarkSection(SourceSection):
    """Questions with gold answers, read by evaluate alone."""

    name: str = Name
    answer_column: Text = Field(
        "answer", description="Column that holds the gold answer: bare, or a solution that states one."
    )
    answers: Literal["math", "numbers"] = Field(
        "math", description="How answers are compared: by math-verify, or as unordered lists of numbers."
    )


class WordingSection(SourceSection):
    """The dev set on which `make wording` tries the wordings: questions neither trained on nor tested on."""

    answer_column: Text | None = Field(
        None,
        description="Column that holds the gold answer, as in a benchmark: wordings are compared by accuracy. Null: "
        "unlabelled, and they are compared by self-consistency.",
    )
    answers: Literal["math", "numbers"] = Field("math", description="How answers are compared, as in a benchmark.")
    samples: int = Field(
        4, ge=2, le=MANY, description="Samples per question for the self-consistency, where there is no gold answer."
    )
    overlap: Literal["refuse", "drop"] = Field(
        "refuse", description="What to do with questions that are also among the prompts or in a benchmark."
    )


class TemplateSection(Section):
    """Wording of the prompts, and worked examples."""

    instruction: str = Field(
        "Solve the problem step by step. Put the final answer in \\boxed{}.",
        description="Asks for a solution to the question alone.",
    )
    review: str = Field(
        "Others have proposed the solutions below; any of them may be wrong. Judge them, then solve the problem "
        "yourself step by step. Put the final answer in \\boxed{}.",
        description="Asks for an own solution after earlier ones (chain positions 2 and later).",
    )
    synthesis: str = Field(
        "Below are several solutions to the problem; any of them may be wrong. Write the final solution step by "
        "step. Put the final answer in \\boxed{}.",
        description="Asks for the final solution from all of them (aggregate = 'synthesis').",
    )
    verify: Text = Field(
        "Is the proposed solution correct? Answer Yes or No.", description="Asks the verifier for Yes or No."
    )
    verify_cot: Text = Field(
        "Check the proposed solution step by step in a few short sentences: is every step right, and does it answer "
        'the question? Then write a last line that is only "Yes" if it is correct or only "No" if it is not.',
        description="Asks the verifier for a critique that ends in Yes or No (verifier = 'cot').",
    )
    examples: tuple[Example, ...] = Field(
        (),
        strict=False,
        description="Worked examples; those with solutions are shown in review prompts, the others elsewhere.",
    )
    verify_examples: tuple[Example, ...] = Field(
        (),
        strict=False,
        description="Worked examples for the verifier: one solution each, response Yes or No. Not shown where it "
        "writes a critique.",
    )


class PeerSection(Section):
    """One peer: a base model and how to talk to it."""

    name: str = Name
    model: Text | Annotated[tuple[Text, ...], Field(min_length=1, strict=False)] = Field(
        description="Hub name, model directory, GGUF file, or package:MODULE/FILE for a file inside an installed "
        "package; a list is one GGUF file in pieces."
    )
    revision: Text | None = Field(None, description="Revision, for a hub name.")
    adapter: Text | None = Field(
        None,
        exclude_if=lambda adapter: adapter is None,
        description="LoRA adapter that the peer starts from: a folder that peft has saved (runs/<run>/round=<R>/"
        "adapters/<peer>, say), or a hub name. It is merged into the model once; the run trains a new one on top.",
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9A-Fa-f]{64}$",
        description="SHA-256 of a GGUF file, of its pieces joined; another file is refused.",
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Type of the weights in use.")
    template: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="The tokenizer's chat template or the plain one; auto: chat where the tokenizer has one.",
    )
    stop: tuple[str, ...] | None = Field(
        None,
        strict=False,
        description="Strings that end a response; default: none for chat, '\\nQuestion:' for plain.",
    )
    templates: TemplateSection | None = Field(None, description="This peer's own wording, instead of [templates].")
    wording: str | None = Field(
        None,
        exclude_if=lambda name: name is None,
        description="Name of this peer's wording, instead of [templates]: of a table [wordings.NAME] with the same "
        "keys, which have the same defaults where it leaves them out.",
    )

    @model_validator(mode="after")
    def _one_wording(self) -> PeerSection:
        if self.templates is not None and self.wording is not None:
            raise ValueError(
                f"peer {self.name} has both templates and wording {self.wording!r}; expected one of them at most: "
                "leave the other out"
            )
        return self

    @field_validator("stop")
    @classmethod
    def _stops_have_something_to_stop_at(cls, stop: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if any(not text.strip(" \t") for text in stop or ()):  # a line break is no blank: base models may stop at one
            raise ValueError(
                "has a string that is empty or blank, which would end every response at its beginning or after "
                "its first word; leave it out ([] for no stop strings)"
            )
        return stop


class VoterSection(Section):
    """One more wording of a peer: its samples join the votes, and it is not trained."""

    name: str = Name
    peer: str = Field(description="Name of the peer whose model it is.")
    wording: str | None = Field(None, description="Name of its wording, a table [wordings.NAME].")
    templates: TemplateSection | None = Field(None, description="Its wording itself, instead of a name.")

    @model_validator(mode="after")
    def _one_wording(self) -> VoterSection:
        if (self.templates is None) == (self.wording is None):
            raise ValueError(f"{self.name} must have either wording or templates, which make it another voice")
        return self


class GenerateSection(Section):
    """The chain."""

    order: Literal["rotate", "fixed", "random"] = Field(
        "rotate",
        description="Order of the peers: rotated by question and round, as listed, or a seeded permutation.",
    )
    aggregate: Literal["last", "vote", "synthesis", "self"] = Field(
        "last",
        description="The aggregate: last response, majority by equivalent answers, one more response, or (a control "
        "without peers) each model's own response to the question alone. Where label and text need no aggregate, no "
        "chain is generated.",
    )
    temperature: float = Field(0.0, ge=0, le=5, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling mass.")
    samples: int = Field(
        8, ge=2, le=MANY, description="k: samples of each peer to the question alone, where label or text need them."
    )
    sample_temperature: float = Field(0.7, ge=COLDEST, le=5, description="Temperature of these samples.")
    sample_top_p: float = Field(0.9, gt=0, le=1, description="Nucleus mass of these samples.")
    max_new_tokens: int = Field(512, ge=1, le=MANY, description="Longest response in tokens.")
    context_tokens: int = Field(
        4096,
        ge=16,
        le=MANY,
        description="Longest prompt plus response in tokens; score puts one more response after it.",
    )
    engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="Inference engine; auto: vLLM where it is installed, else transformers."
    )

    @field_validator("temperature")
    @classmethod
    def _cold_is_greedy(cls, temperature: float) -> float:
        if 0 < temperature < COLDEST:
            raise ValueError(f"must be 0 (greedy) or at least {COLDEST}, found {temperature}")
        return temperature

    @model_validator(mode="after")
    def _prompts_have_room(self) -> GenerateSection:
        if self.max_new_tokens >= self.context_tokens:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} must be below context_tokens {self.context_tokens}, "
                "which hold the prompt, too"
            )
        return self

    @property
    def alone(self) -> bool:
        """Whether no peer sees another's response: a control, in which each is its own aggregate's author."""
        return self.aggregate == "self"


class ScoreSection(Section):
    """Label, text and weight of the examples to train on."""

    label: Literal["aggregate", "sample-vote", "own-vote", "teacher-vote", "none"] = Field(
        "aggregate",
        description="Which answer counts: the aggregate's; the vote of all peers' samples; of the peer's own; of those "
        "of the peer that the estimated reliability calls best (the teacher); none: any answer counts.",
    )
    reliability: Literal["self-consistency", "verifier", "none"] = Field(
        "self-consistency",
        description="What a vote in sample-vote weighs: the log-odds of its author's mean self-consistency, its "
        "author's p(Yes) of it as verifier, or all the same.",
    )
    least_share: float = Field(
        0.0, ge=0, le=1, description="A vote's winner is a label only with at least this share of the votes."
    )
    text: Literal["aggregate", "own", "solution", "own-solution", "teacher-solution", "samples"] = Field(
        "aggregate",
        description="Text to train on: the aggregate; the peer's own response in the chain; a sample that has the "
        "label (the peer's own, else another's; only its own; only the teacher's); or all the peer's own samples.",
    )
    solutions: int = Field(
        1, ge=1, le=MANY, description="Up to so many different solutions of a question, which share its weight."
    )
    scorer: Literal["own", "mean", "aggregator"] = Field(
        "own",
        description="Whose policy measures the PMI: the responder's, the mean over all peers, the author's of the text "
        "that is measured (the aggregate).",
    )
    y_source: Literal["chain", "alone"] = Field(
        "chain",
        description="Which response of a peer is measured with the aggregate: the one in the chain, or one to the "
        "question alone, which generate then asks for, too. With a sample as text it is always the latter.",
    )
    pmi_target: Literal["response", "answer"] = Field(
        "response", description="What is scored: the whole text, or its final-answer span."
    )
    weighting: Literal["sigmoid", "exp", "rank", "agreement", "entropy", "uniform", "shuffled", "signed"] = Field(
        "sigmoid",
        description="Weight as a decreasing function of PMI per token; agreement, entropy, uniform, shuffled: "
        "controls; signed (text = samples): 1 where a sample has the label, else 0, less the question's mean.",
    )
    beta: float = Field(5.0, gt=0, le=1e6, description="Steepness of sigmoid and exp, per nat/token.")
    center: Literal["median"] | Annotated[float, Field(ge=-1e6, le=1e6)] = Field(
        "median", description="c of sigmoid and exp, in nats/token; 'median' is taken over the peer's round."
    )
    weight_min: float = Field(0.05, ge=0, le=1e6, description="Lower clip, before the division by the mean.")
    weight_max: float = Field(20.0, gt=0, le=1e6, description="Upper clip, before the division by the mean.")
    train_final: bool = Field(
        False, strict=False, description="Also train the aggregate's author on it, at weight 1 (it gets no PMI)."
    )

    @model_validator(mode="after")
    def _clip_is_an_interval(self) -> ScoreSection:
        if self.weight_min >= self.weight_max:
            raise ValueError(f"weight_min {self.weight_min} must be below weight_max {self.weight_max}")
        return self

    @model_validator(mode="after")
    def _choices_go_together(self) -> ScoreSection:
        label, text, weighting = self.label, self.text, self.weighting
        found = f"found label {label!r}, text {text!r}, weighting {weighting!r}"
        if weighting == "signed" and (text != "samples" or label == "none"):
            raise ValueError(f"weighting 'signed' needs text 'samples' and a label: {found}")
        if text == "samples" and weighting not in ("signed", "uniform", "entropy"):
            raise ValueError(
                "text 'samples' has no response to measure a PMI of: its weighting is signed, uniform or entropy; "
                f"{found}"
            )
        if label == "none" and text != "teacher-solution" and text != "samples":
            raise ValueError(f"label 'none' needs text 'teacher-solution' or 'samples': {found}")
        if text == "own" and label != "aggregate":
            raise ValueError(f"text 'own' is a response of the chain and needs label 'aggregate': {found}")
        return self

    @property
    def needs_aggregate(self) -> bool:
        """Whether label or text is the aggregate's, so that a chain (or, alone, each peer's response) is needed."""
        return self.label == "aggregate" or self.text in ("aggregate", "own")

    @property
    def needs_samples(self) -> bool:
        """Whether label or text come from samples of the question alone."""
        return self.label not in ("aggregate", "none") or self.trains_on_samples

    @property
    def needs_solo(self) -> bool:
        """Whether the response whose PMI or agreement weighs is one to the question alone."""
        weighed = self.weighting in ("sigmoid", "exp", "rank", "shuffled", "agreement")
        return (weighed and self.trains_on_samples) or (self.y_source == "alone" and self.needs_aggregate)

    @property
    def trains_on_samples(self) -> bool:
        """Whether the text is a sample of the question alone."""
        return self.text not in ("aggregate", "own")


class TrainSection(Section):
    """LoRA."""

    rank: int = Field(16, ge=1, le=512, description="LoRA rank.")
    alpha: int = Field(32, ge=1, le=MANY, description="LoRA alpha; the update is scaled by alpha / rank.")
    clip_ratio: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Of signed weights: how far the probability of a token may leave the round's before its example no "
        "longer pushes it on (PPO's clip).",
    )
    lr: float = Field(2e-4, gt=0, le=10, description="Peak learning rate of AdamW.")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="Decay after the warm-up.")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of the steps with rising learning rate.")
    weight_decay: float = Field(0.0, ge=0, le=10, description="AdamW weight decay of the adapter.")
    max_grad_norm: float = Field(1.0, gt=0, le=1e6, description="Gradient clipping by global norm.")
    batch_size: int = Field(32, ge=1, le=MANY, description="Examples per optimiser step.")
    epochs: int = Field(1, ge=1, le=MANY, description="Passes over the round's examples.")
    merge_fidelity: bool = Field(
        False,
        strict=False,
        description="Measure merge fidelity: how much of the adapter's effect on the loss the merged checkpoint keeps. "
        "Three float32 models more per peer and round.",
    )


class EvaluateSection(Section):
    """Exact match and the generator-verifier gap."""

    samples: int = Field(
        8, ge=2, le=MANY, description="k: sampled responses per question, for the gap, pass@k and maj@k."
    )
    temperature: float = Field(0.7, ge=COLDEST, le=5, description="Temperature of the samples.")
    top_p: float = Field(0.9, gt=0, le=1, description="Nucleus mass of the samples.")
    keep: float = Field(0.5, gt=0, lt=1, description="Share of samples kept by verifier score for the gap.")
    verifier: Literal["logit", "cot"] = Field(
        "logit",
        description="How a sample is verified: by log p(Yes) - log p(No), or by a short greedy critique, written "
        "first, that ends in Yes or No.",
    )
    verifier_tokens: int = Field(256, ge=1, le=MANY, description="Longest critique in tokens.")
    cross_verify: bool = Field(
        False,
        strict=False,
        description="Every peer also verifies the samples of all others: cross.parquet; N times the verifier's work.",
    )
    bootstrap: int = Field(
        2000, ge=100, le=1_000_000, description="Bootstrap resamples over items for the 95 % intervals."
    )
    label_column: Text | None = Field(
        None,
        description="Column of prompts.source that holds gold answers, if it has one. Read by `python -m "
        "pipeline.labels` and the arm `oracle` of an ablation, by nothing that trains otherwise.",
    )
    label_answers: Literal["math", "numbers"] = Field("math", description="How those are compared.")
    answer_timeout_seconds: float = Field(5.0, gt=0, le=3600, description="Longest comparison of two answers.")


class GateSection(Section):
    """Whether a new adapter is used: by its agreement with votes of the untouched peers, on questions kept for that."""

    questions: int = Field(
        0,
        ge=0,
        le=MANY,
        description="Unlabelled questions kept apart for the gate, never trained on: those of prompts.source that "
        "follow the ones to train on (so prompts.limit must leave some); 0: no gate.",
    )
    samples: int = Field(4, ge=2, le=MANY, description="k: samples of each untouched peer that vote on a question.")
    temperature: float = Field(0.7, ge=COLDEST, le=5, description="Temperature of these samples.")
    top_p: float = Field(0.9, gt=0, le=1, description="Nucleus mass of these samples.")
    margin: float = Field(
        0.03, gt=0, lt=1, description="Non-inferiority: the fall of agreement that must be excluded, as a share."
    )
    level: float = Field(
        0.05, gt=0, lt=0.5, description="Error probability: one-sided for non-inferiority, two-sided for the harm stop."
    )
    harm_below: int = Field(
        800,
        ge=0,
        le=MANY,
        description="From so many questions on an adapter is used only if a fall by the margin is excluded "
        "(non-inferiority); with fewer, which could not show that, unless its interval lies below 0 (a harm stop).",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="End the run after so many rounds in a row in which no peer's adapter was accepted; null: never. "
        "May differ from call to call.",
    )


class GuardSection(Section):
    """When a round looks like collapse, measured against round 0; may differ from call to call."""

    action: Literal["warn", "stop", "ignore"] = Field(
        "warn",
        description="After evaluate, warn; or also stop before the next round; or neither. The signs of collapse are "
        "told with the benchmarks' answers, so a run that may be stopped wants other questions than the final test.",
    )
    diversity_fall: float = Field(
        0.5, ge=0, le=1, description="Relative fall of distinct answers, or of the entropy of samples, that counts."
    )
    agreement_rise: float = Field(
        0.05, ge=0, le=1, description="Rise of the agreement among peers that, with falling entropy and pass@k, counts."
    )
    pass_at_k_fall: float = Field(0.02, ge=0, le=1, description="Fall of pass@k that must go with those two.")
    silence_rise: float = Field(0.25, ge=0, le=1, description="Rise of the share of responses without an answer.")
    accuracy_fall: float = Field(0.5, ge=0, le=1, description="Relative fall of the share of right samples.")


class RuntimeSection(Section):
    """How the machine is used; may differ from call to call, and changes results by rounding at most.

    One exception: sampled responses of the transformers engine depend on its batches, so on `score_tokens`.
    """

    resident: Literal["auto", "all", "one"] = Field(
        "auto",
        description="The peers' processes side by side or one at a time; auto: side by side on CPU if they fit into "
        "memory, one at a time on GPU.",
    )
    compute: Literal["auto", "weights", "float32"] = Field(
        "auto",
        description="Type of the arithmetic: that of the weights, or float32 on the same weights; auto: float32 on "
        "CPUs without bf16 instructions (AMX or AVX-512), where it is faster (and closer to exact).",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether score and train compile a model's layers (torch.compile), where there is a C++ compiler; "
        "auto: where the work that is left, tokens times weights, outweighs the compiling.",
    )
    kv_cache_gib: float = Field(2, gt=0, le=2**16, description="vLLM's key-value cache per engine on CPU, in GiB.")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="vLLM's share of GPU memory.")
    max_num_seqs: int = Field(128, ge=1, le=MANY, description="Requests that vLLM decodes at once.")
    score_tokens: int = Field(2048, ge=1, le=MANY, description="Tokens of one scoring batch; shared ones count once.")
    train_tokens: int = Field(1024, ge=1, le=MANY, description="Tokens of one training micro-batch.")
    checkpoint_steps: int = Field(10, ge=1, le=MANY, description="Optimiser steps between training checkpoints.")
    grader_workers: int = Field(2, ge=1, le=256, description="Processes that compare answers.")
    max_hours: float | None = Field(
        None,
        gt=0,
        description="End the run before its next stage once its finished stages and this call have taken so many "
        "hours; null: no limit.",
    )


class Config(Section):
    """One experiment."""

    run: RunSection = RunSection()
    prompts: PromptsSection
    templates: TemplateSection = TemplateSection()
    wordings: dict[Annotated[str, Name], TemplateSection] = Field({}, exclude_if=lambda wordings: not wordings)
    wording: WordingSection | None = Field(None, exclude_if=lambda section: section is None)
    peers: tuple[PeerSection, ...] = Field(strict=False)
    voters: tuple[VoterSection, ...] = Field((), strict=False, exclude_if=lambda voters: not voters)
    generate: GenerateSection = GenerateSection()
    score: ScoreSection = ScoreSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    benchmarks: tuple[BenchmarkSection, ...] = Field((), strict=False)  # none: a run without gold answers
    gate: GateSection = GateSection()
    guard: GuardSection = GuardSection()
    runtime: RuntimeSection = RuntimeSection()

    @model_validator(mode="after")
    def _names_are_usable(self) -> Config:
        if len(self.peers) < 2:
            raise ValueError(f"peers: found {len(self.peers)}, expected at least 2 ([[peers]] tables)")
        called = "peers and voters" if self.voters else "peers"
        for kind, names in ((called, self.raters), ("benchmarks", [b.name for b in self.benchmarks])):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{kind}: the name {twice[0]!r} is used more than once")
            folded = Counter(name.lower() for name in names)
            alike = [name for name in names if folded[name.lower()] > 1]
            if alike:  # some file systems take them for one
                raise ValueError(f"{kind}: the names {alike[0]!r} and {alike[1]!r} differ by case alone; change one")
            temporary = [name for name in names if name.lower().endswith(".tmp")]
            if temporary:  # beside a peer `a` the unfinished checkpoint is `a.tmp`
                raise ValueError(f"{kind}: the name {temporary[0]!r} ends as unfinished files do; take another")
            if MEAN in names:  # the tables would take it for the mean of all of them
                raise ValueError(f"{kind}: the name {MEAN!r} stands for the mean of all {kind} in tables; take another")
        return self

    @model_validator(mode="after")
    def _names_fit_a_file_name(self) -> Config:
        peers, benchmark = sorted(map(len, self.peer_names)), max((len(b.name) for b in self.benchmarks), default=0)
        longest = UNIT_NAME_BYTES + sum(peers[-2:]) + benchmark
        if self.evaluate.cross_verify and longest > FILE_NAME_BYTES:
            raise ValueError(
                f"names of peers and benchmarks: two peers and a benchmark make a file name of {longest} bytes under "
                f"evaluate.cross_verify, {FILE_NAME_BYTES} are allowed; take shorter ones"
            )
        return self

    @model_validator(mode="after")
    def _control_has_no_samples(self) -> Config:
        if self.generate.alone and self.score.needs_samples:
            raise ValueError(
                f"generate.aggregate 'self' goes with label and text 'aggregate' or 'own', found label "
                f"{self.score.label!r} and text {self.score.text!r}"
            )
        return self

    @model_validator(mode="after")
    def _critiques_have_room(self) -> Config:
        tokens, context = self.evaluate.verifier_tokens, self.generate.context_tokens
        if self.evaluate.verifier == "cot" and tokens >= context:
            raise ValueError(
                f"evaluate.verifier_tokens {tokens} must be below generate.context_tokens {context}, which hold the "
                "prompt, too"
            )
        return self

    @model_validator(mode="after")
    def _guard_has_something_to_judge(self) -> Config:
        if self.guard.action == "stop" and not self.benchmarks:
            raise ValueError(
                "guard.action 'stop' needs a benchmark: collapse is told from its metrics; without gold answers "
                "gate.questions and gate.patience are what can end a run"
            )
        return self

    @model_validator(mode="after")
    def _wordings_are_there(self) -> Config:
        named: list[tuple[str, PeerSection | VoterSection]] = [("peers", peer) for peer in self.peers]
        named += [("voters", voter) for voter in self.voters]
        for kind, each in named:
            if each.wording is not None and each.wording not in self.wordings:
                known = f"expected one of {', '.join(self.wordings)}" if self.wordings else "there is none"
                raise ValueError(
                    f"{kind}: {each.name} has wording {each.wording!r}, not a table of [wordings]; {known}"
                )
        return self

    @model_validator(mode="after")
    def _peers_differ(self) -> Config:
        """One model may be several peers, but what differs by its name alone would answer the same."""
        first: dict[str, PeerSection] = {}
        for peer in self.peers:
            other = first.setdefault(self._peer_identity(peer), peer)
            if other is not peer:
                raise ValueError(
                    f"peers: {other.name!r} and {peer.name!r} are the model {other.model!r} and differ by their names "
                    "alone, so they would answer the same; give one of them other templates, stop strings or an "
                    "adapter, or another model"
                )
        return self

    def _peer_identity(self, peer: PeerSection) -> str:
        """All of a peer but its name; a path may be spelt in several ways."""
        given = peer.model_dump(mode="json", exclude={"name", "templates", "wording", "sha256"})
        paths = {"model": _paths(peer.model), "adapter": peer.adapter and _paths(peer.adapter)}
        return json.dumps({**given, **paths, "templates": self.templates_of(peer).model_dump(mode="json")})

    @model_validator(mode="after")
    def _voters_have_a_model(self) -> Config:
        for voter in self.voters:
            if voter.peer not in self.peer_names:
                raise ValueError(
                    f"voters: {voter.name} is of peer {voter.peer!r}; expected one of {', '.join(self.peer_names)}"
                )
        if self.voters and self.score.label != "sample-vote":
            raise ValueError(
                f"voters: they vote where score.label is 'sample-vote', found {self.score.label!r}; set it, or leave "
                "the voters out"
            )
        return self

    @property
    def raters(self) -> list[str]:
        """All whose samples vote: the peers, and the voters after them."""
        return [*self.peer_names, *(voter.name for voter in self.voters)]

    def model_of(self, rater: str) -> str:
        """The peer whose model a rater is."""
        return next((voter.peer for voter in self.voters if voter.name == rater), rater)

    @property
    def peer_names(self) -> list[str]:
        """Names of the peers in the config's order."""
        return [peer.name for peer in self.peers]

    def peer(self, name: str) -> PeerSection:
        """The peer called `name`."""
        return next(peer for peer in self.peers if peer.name == name)

    def templates_of(self, peer: PeerSection) -> TemplateSection:
        """Wording for a peer: the one that it names or its own, else the shared one."""
        return self.wordings[peer.wording] if peer.wording is not None else peer.templates or self.templates

    def templates_of_voter(self, voter: VoterSection) -> TemplateSection:
        """Wording of a voter."""
        if voter.templates is not None:
            return voter.templates
        assert voter.wording is not None, "a voter has one of them"
        return self.wordings[voter.wording]

    def wording_name(self, peer: PeerSection) -> str:
        """What a peer's wording is called in tables."""
        return peer.wording or ("[templates]" if peer.templates is None else "its own templates")
