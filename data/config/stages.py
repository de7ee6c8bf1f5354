"""Sections of the run and of its stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from data.config.base import MAX_COUNT, MAX_TEMPERATURE, MIN_TEMPERATURE, Section, Text, ValidAnswerKind
from data.config.questions import INDEX, check_index


class RunSection(Section):
    """Settings of the whole run."""

    seed: int = Field(17, ge=0, lt=2**31, description="Seed of the shuffle, the orders, sampling and training.")
    shard_questions: int = Field(
        512,
        ge=1,
        le=MAX_COUNT,
        description="Questions per shard. A killed process loses at most its call in progress: in generate "
        "a unit (a peer's responses of one turn to a shard), with vLLM units of up to four full batches.",
    )
    adapters: Literal["merged", "unmerged"] = Field(
        "merged",
        description="How generate, score and evaluate use an adapter: merged into a temporary checkpoint "
        "(float32 sum, seeded stochastic rounding), or served alongside the base weights. train always continues the "
        "adapter alongside the unmerged base.",
    )


class GenerateSection(Section):
    """The chain."""

    order: Literal["rotate", "fixed", "random"] = Field(
        "rotate",
        description="Order of the peers: rotated by question and round, as listed, or a seeded permutation.",
    )
    aggregate: Literal["last", "vote", "synthesis", "self"] = Field(
        "last",
        description="The aggregate: last response, most frequent answer, one more response, or (a control "
        "without peers) each model's own response to the question alone. Where label and text need no aggregate, no "
        "chain is generated.",
    )
    temperature: float = Field(0.0, ge=0, le=MAX_TEMPERATURE, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling mass.")
    samples: int = Field(
        8,
        ge=2,
        le=MAX_COUNT,
        description="k: samples of each peer for the question alone, where label or text needs them.",
    )
    sample_temperature: float = Field(
        0.7, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description="Temperature of these samples."
    )
    sample_top_p: float = Field(0.9, gt=0, le=1, description="Nucleus mass of these samples.")
    max_new_tokens: int = Field(512, ge=1, le=MAX_COUNT, description="Longest response in tokens.")
    context_tokens: int = Field(
        4096,
        ge=16,
        le=MAX_COUNT,
        description="Longest prompt plus response in tokens. A model's own context must hold max_new_tokens more: "
        "score appends one more response.",
    )
    engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto",
        description="Inference engine; auto: vLLM where it is installed, else transformers. A run keeps the one that "
        "it began with.",
    )

    @field_validator("temperature")
    @classmethod
    def _temperature_is_not_tiny(cls, temperature: float) -> float:
        if 0 < temperature < MIN_TEMPERATURE:
            raise ValueError(f"must be 0 (greedy) or at least {MIN_TEMPERATURE}, found {temperature}")
        return temperature

    @model_validator(mode="after")
    def _prompts_have_room(self) -> GenerateSection:
        if self.max_new_tokens >= self.context_tokens:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} must be below context_tokens {self.context_tokens}, "
                "which include the prompt"
            )
        return self

    @property
    def alone(self) -> bool:
        """Whether no peer sees another's response: a control in which each peer writes its own aggregate."""
        return self.aggregate == "self"


class ScoreSection(Section):
    """Label, text and weight of the examples to train on."""

    label: Literal["aggregate", "sample-vote", "own-vote", "teacher-vote", "none"] = Field(
        "aggregate",
        description="Which answer counts: the aggregate's; the vote of all peers' samples, of the peer's own, or of "
        "those of the teacher (the peer with the highest mean self-consistency, whatever score.reliability says); "
        "none: any answer counts.",
    )
    reliability: Literal["self-consistency", "verifier", "none"] = Field(
        "self-consistency",
        description="Weight of a vote in sample-vote: the log-odds of its author's mean self-consistency, its "
        "author's p(Yes) for it as verifier, or 1 for all.",
    )
    least_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The winner of a vote is a label only with at least this share of the weight of all votes.",
    )
    text: Literal["aggregate", "own", "solution", "own-solution", "teacher-solution", "samples"] = Field(
        "aggregate",
        description="Text to train on: the aggregate; the peer's own response in the chain; a sample that has the "
        "label (the peer's own, else another's; only its own; only the teacher's); or all the peer's own samples.",
    )
    solutions: int = Field(
        1,
        ge=1,
        le=MAX_COUNT,
        description="Train on up to this many different solutions of a question; the weight of each is divided by "
        "their number.",
    )
    scorer: Literal["own", "mean", "aggregator"] = Field(
        "own",
        description="Whose policy measures the PMI: the peer's own, the mean over all peers', or the text's "
        "author's (the aggregate's).",
    )
    y_source: Literal["chain", "alone"] = Field(
        "chain",
        description="Which response of a peer is measured with the aggregate: the one in the chain, or one to the "
        "question alone, which generate then also makes (the aggregate's author keeps its response in the chain). With "
        "a sample as text it is always one to the question alone.",
    )
    pmi_target: Literal["response", "answer"] = Field(
        "response", description="What is scored: the whole text, or its final-answer span."
    )
    weighting: Literal["sigmoid", "exp", "rank", "agreement", "entropy", "uniform", "shuffled", "signed"] = Field(
        "sigmoid",
        description="sigmoid, exp, rank: falls as PMI per token rises; agreement: 1 or 0; entropy: by that of the "
        "answers; uniform: 1; shuffled: those of sigmoid, permuted; "
        "signed (text = samples): 1 where a sample has the label, else 0, minus the question's mean.",
    )
    beta: float = Field(5.0, gt=0, le=1e6, description="Steepness of sigmoid and exp, per nat/token.")
    center: Literal["median"] | Annotated[float, Field(ge=-1e6, le=1e6)] = Field(
        "median", description="c of sigmoid and exp, in nats/token; 'median' is taken over the peer's round."
    )
    weight_min: float = Field(0.05, ge=0, le=1e6, description="Lower clip, before dividing by the mean.")
    weight_max: float = Field(20.0, gt=0, le=1e6, description="Upper clip, before dividing by the mean.")
    train_final: bool = Field(
        False, strict=False, description="Also train the aggregate's author on it, at weight 1 (it has no PMI)."
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
                "text 'samples' has no response whose PMI to measure; expected weighting signed, uniform or entropy; "
                f"{found}"
            )
        if label == "none" and text != "teacher-solution" and text != "samples":
            raise ValueError(f"label 'none' needs text 'teacher-solution' or 'samples': {found}")
        if label == "none" and weighting == "agreement":
            raise ValueError(f"weighting 'agreement' needs a label to agree with: {found}")
        if self.least_share > 0 and label in ("aggregate", "none"):
            raise ValueError(f"least_share {self.least_share} needs a vote, but label {label!r} has none; leave it out")
        if self.solutions > 1 and not text.endswith("solution"):
            raise ValueError(
                f"solutions {self.solutions} needs text 'solution', 'own-solution' or 'teacher-solution', found "
                f"text {text!r}"
            )
        if text == "own" and label != "aggregate":
            raise ValueError(f"text 'own' is a response of the chain and needs label 'aggregate': {found}")
        return self

    @property
    def needs_aggregate(self) -> bool:
        """Whether label or text is the aggregate's, and so needs a chain (or, for `self`, each peer's response)."""
        return self.label == "aggregate" or self.text in ("aggregate", "own")

    @property
    def needs_samples(self) -> bool:
        """Whether label or text comes from samples of the question alone."""
        return self.label not in ("aggregate", "none") or self.trains_on_samples

    @property
    def needs_solo(self) -> bool:
        """Whether a response to the question alone is measured: with a sample as text only if the weights need it."""
        return self.weighs_by_response if self.trains_on_samples else self.y_source == "alone"

    @property
    def weighs_by_response(self) -> bool:
        """Whether weights follow from the PMI or the agreement of a peer's own response."""
        return self.weighting in ("sigmoid", "exp", "rank", "shuffled", "agreement")

    @property
    def trains_on_samples(self) -> bool:
        """Whether the text is a sample of the question alone."""
        return self.text not in ("aggregate", "own")


class TrainSection(Section):
    """LoRA."""

    rank: int = Field(16, ge=1, le=512, description="LoRA rank.")
    alpha: int = Field(32, ge=1, le=MAX_COUNT, description="LoRA alpha; the update is scaled by alpha / rank.")
    clip_ratio: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="For signed weights: how far the ratio of a token's probability to that at the start of the round "
        "may be from 1 before the token adds no more gradient (PPO's clip).",
    )
    lr: float = Field(2e-4, gt=0, le=10, description="Peak learning rate of AdamW.")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="Decay after the warm-up.")
    warmup_ratio: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps during which the learning rate rises."
    )
    weight_decay: float = Field(0.0, ge=0, le=10, description="AdamW weight decay of the adapter.")
    max_grad_norm: float = Field(1.0, gt=0, le=1e6, description="Gradient clipping by global norm.")
    batch_size: int = Field(32, ge=1, le=MAX_COUNT, description="Examples per optimiser step.")
    epochs: int = Field(1, ge=1, le=MAX_COUNT, description="Passes over the round's examples.")
    merge_fidelity: bool = Field(
        False,
        strict=False,
        description="Measure merge fidelity: how much of the adapter's effect on the loss the merged checkpoint keeps. "
        "Uses the first 8 training examples and three more float32 models per peer; only with run.adapters = 'merged'.",
    )


class EvaluateSection(Section):
    """Exact match and the generator-verifier gap."""

    samples: int = Field(
        8, ge=2, le=MAX_COUNT, description="k: sampled responses per question, for the gap, pass@k and maj@k."
    )
    temperature: float = Field(0.7, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description="Temperature of the samples.")
    top_p: float = Field(0.9, gt=0, le=1, description="Nucleus mass of the samples.")
    keep: float = Field(0.5, gt=0, lt=1, description="Share of samples kept by verifier score for the gap.")
    verifier: Literal["logit", "cot"] = Field(
        "logit",
        description="How a sample is verified: by log p(Yes) - log p(No), or by first writing a short greedy "
        "critique that ends in Yes or No.",
    )
    verifier_tokens: int = Field(256, ge=1, le=MAX_COUNT, description="Longest critique in tokens.")
    cross_verify: bool = Field(
        False,
        strict=False,
        description="Every peer also verifies the samples of all others (cross.parquet): N times the verifier's work.",
    )
    bootstrap: int = Field(
        2000, ge=100, le=1_000_000, description="Bootstrap resamples over items for the 95 % intervals."
    )
    gold_column: Text | None = Field(
        None,
        description="Column of prompts.source that holds *gold* answers, if it has one (they are not the labels of "
        "score.label). Read only to show what is right (`make labels`, `make show`, the report) and by arms with "
        "`oracle = true`; no other training uses it.",
    )
    gold_answers: ValidAnswerKind = Field("math", description="Kind of those gold answers.")
    gold_index: Literal[0, 1] | None = Field(None, exclude_if=lambda index: index is None, description=INDEX)
    answer_timeout_seconds: float = Field(5.0, gt=0, le=3600, description="Longest time for comparing two answers.")

    @model_validator(mode="after")
    def _options_are_numbered(self) -> EvaluateSection:
        check_index(self.gold_index, self.gold_answers, "gold_index")
        return self


class GateSection(Section):
    """Whether a new adapter is used, by its agreement with the untouched peers' votes on questions kept for that."""

    questions: int = Field(
        0,
        ge=0,
        le=MAX_COUNT,
        description="Unlabelled questions kept apart for the gate and never trained on: those in prompts.source after "
        "the ones to train on (so prompts.limit must leave some); 0: no gate.",
    )
    samples: int = Field(
        4, ge=2, le=MAX_COUNT, description="k: samples of each untouched peer that vote on a question."
    )
    temperature: float = Field(0.7, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description="Temperature of these samples.")
    top_p: float = Field(0.9, gt=0, le=1, description="Nucleus mass of these samples.")
    margin: float = Field(
        0.03, gt=0, lt=1, description="Non-inferiority margin: the drop in agreement to exclude, as a share."
    )
    level: float = Field(
        0.05, gt=0, lt=0.5, description="Error probability: one-sided for non-inferiority, two-sided for the harm stop."
    )
    harm_below: int = Field(
        800,
        ge=0,
        le=MAX_COUNT,
        description="With at least this many questions, an adapter is used only if a drop by the margin is excluded "
        "(non-inferiority). Fewer cannot show that: it is then used unless its interval lies below 0 (harm stop).",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="End the run after this many rounds in a row in which no peer's adapter was accepted; null: never. "
        "May differ from command to command.",
    )


class GuardSection(Section):
    """When a round looks like collapse, measured against round 0; may differ from command to command."""

    action: Literal["warn", "stop", "ignore"] = Field(
        "warn",
        description="After evaluate, warn; or also stop before the next round; or neither. The signs of collapse need "
        "the benchmarks' answers, so a run that may be stopped needs other questions than the final test.",
    )
    diversity_fall: float = Field(
        0.5, ge=0, le=1, description="Relative drop in distinct answers, or in the entropy of samples, that counts."
    )
    agreement_rise: float = Field(
        0.05, ge=0, le=1, description="Rise in agreement among peers that, with falling entropy and pass@k, counts."
    )
    pass_at_k_fall: float = Field(0.02, ge=0, le=1, description="Drop in pass@k that must accompany those two.")
    silence_rise: float = Field(
        0.25, ge=0, le=1, description="Rise in the share of responses without an answer that counts."
    )
    accuracy_fall: float = Field(
        0.5, ge=0, le=1, description="Relative drop in the share of correct samples that counts."
    )
