"""How a run uses this machine, and where its peers' processes are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from data.config.base import MAX_COUNT, Section, Text


class RuntimeSection(Section):
    """How the machine is used; may differ from command to command, and changes results at most by rounding.

    One exception: sampled responses of the transformers engine depend on its batches, so on `score_tokens`.
    """

    resident: Literal["auto", "all", "one"] = Field(
        "auto",
        description="Whether the peers of one device run side by side (all) or in turns (one); auto: side by side if "
        "they fit into its memory (`make plan` shows it).",
    )
    compute: Literal["auto", "weights", "float32"] = Field(
        "auto",
        description="Data type of the arithmetic: that of the weights, or float32 on the same weights; auto: float32 "
        "on CPUs without bf16 instructions (AMX or avx512_bf16), where it is faster (and closer to exact).",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether score and train compile a model's layers (torch.compile), if there is a C++ compiler; "
        "auto: if the remaining work, tokens times weights, outweighs the compilation.",
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether train recomputes a layer's activations instead of keeping them: less memory, more "
        "time (docs/gpu.md); auto: on a GPU, if those of a micro-batch would take more than half of the free memory.",
    )
    kv_cache_gib: float = Field(
        0,
        ge=0,
        le=2**16,
        description="vLLM's key-value cache per engine, in GiB; 0: by device (CPU: 2; GPU: what max_num_seqs requests "
        "need, as far as memory allows).",
    )
    gpu_memory_utilization: float = Field(
        0.85, gt=0, le=1, description="Share of a GPU's memory that all processes on it may use together."
    )
    max_num_seqs: int = Field(
        0,
        ge=0,
        le=MAX_COUNT,
        description="Requests that vLLM decodes at once; 0: by device (CPU: 128; GPU of 24 GB: 256; of 80 GB: 512).",
    )
    score_tokens: int = Field(
        0,
        ge=0,
        le=MAX_COUNT,
        description="Tokens of one scoring batch, counting shared ones once; 0: by device (CPU: 2,048; GPU of 24 GB: "
        "8,192; of 80 GB: 16,384).",
    )
    train_tokens: int = Field(
        0,
        ge=0,
        le=MAX_COUNT,
        description="Tokens of one training micro-batch; 0: by device (CPU: 1,024; GPU of 24 GB: 1,024; of 80 GB: "
        "8,192).",
    )
    checkpoint_steps: int = Field(10, ge=1, le=MAX_COUNT, description="Optimiser steps between training checkpoints.")
    grader_workers: int = Field(2, ge=1, le=256, description="Processes that compare answers.")
    max_hours: float | None = Field(
        None,
        gt=0,
        description="End the run before its next stage once its finished stages and this command have taken this many "
        "hours; null: no limit.",
    )
    quarantine_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="A stage stops once more than this share of its questions (and more than 10) is quarantined; 0: at "
        "the first one.",
    )
    places: dict[str, str] = Field(
        {},
        exclude_if=lambda places: not places,
        description='New places of files and folders that the config names by old paths, {"/old" = "/new"}: models, '
        "start adapters, prompts and benchmarks of a run that came from another machine (`make unpack "
        "PLACES=/old=/new` writes it).",
    )


class ExecutorSection(Section):
    """Where the peers' processes run; may differ from command to command. docs/reliability.md says what it changes."""

    kind: Literal["local", "ray"] = Field(
        "local", description="Processes on this machine, or actors of a Ray cluster (`make setup EXTRA=ray`)."
    )
    address: Text | None = Field(
        None, description="Ray's address, such as 10.0.0.1:6379; null: Ray's own lookup (RAY_ADDRESS, a local cluster)."
    )
    workers: int = Field(
        0,
        ge=0,
        le=MAX_COUNT,
        description="Processes of each peer; 0: one, or on GPUs as many as there are devices for.",
    )
    cpus_per_worker: int = Field(
        0,
        ge=0,
        le=MAX_COUNT,
        description="Cores of a process; 0: locally an equal share of the cores in use, under Ray 1.",
    )
    gpus_per_worker: float | Literal["auto"] = Field(
        "auto", description="GPUs that Ray counts for a process, at most 1; auto: 1 where there are GPUs."
    )

    @field_validator("gpus_per_worker")
    @classmethod
    def _is_a_share(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 <= value <= 1:
            raise ValueError("must be between 0 and 1 (a peer has one device), or auto")
        return value
