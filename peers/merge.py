"""Merged checkpoints: base weights plus a LoRA update, as generate, score and evaluate use them.

    W' = round(W + (alpha / r) B A)

The sum is float32. Base weights are bf16 numbers, so rounding to nearest would undo every change below half a unit in
the last place, which is most of a small adapter's effect. *Stochastic* rounding rounds up with probability proportional
to the distance, so that E[W'] is the float32 sum. It is seeded by the run, round, peer and tensor: a deleted checkpoint
is made again bit for bit.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError
from data.hashing import request_seed
from peers.architecture import is_turned
from peers.weights import beside_weights, check_finite_weights, weight_files

if TYPE_CHECKING:
    from torch import Generator, Tensor

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX, LORA_A, LORA_B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"  # of the names of its tensors
TRAIN_AGAIN = "delete that round and train again, with a lower train.lr"


def write_merged(
    base: Path, adapter: Path, target: Path, dtype: str, seed: int, stochastic: bool = True, advice: str = TRAIN_AGAIN
) -> None:
    """Write base + adapter as a model directory, tensor by tensor.

    Raises UserError if the adapter does not fit, or if it or a sum is not finite; that message ends with `advice`.
    """
    import torch
    from safetensors.torch import load_file, save_file

    target.mkdir(parents=True, exist_ok=True)
    for file in beside_weights(base):
        shutil.copyfile(file, target / file.name)
    kind = getattr(torch, dtype)
    check_finite_weights(adapter / ADAPTER_WEIGHTS, advice)
    factors = load_file(adapter / ADAPTER_WEIGHTS)
    scale, turned = _scale(adapter), is_turned(json.loads((base / "config.json").read_text(encoding="utf-8")))
    pending = {name.removesuffix(LORA_A) for name in factors if name.endswith(LORA_A)}
    for file in weight_files(base):
        tensors = load_file(file)
        for name in tensors:
            module = PREFIX + name.removesuffix(".weight")
            if module not in pending:
                continue
            pending.remove(module)
            a, b = factors[module + LORA_A].float(), factors[module + LORA_B].float()
            update = (b @ a).T if turned else b @ a
            if update.shape != tensors[name].shape:
                raise UserError(f"{adapter}: {module} does not fit the base's {name} {tuple(tensors[name].shape)}")
            merged = tensors[name].float() + scale * update
            generator = torch.Generator().manual_seed(request_seed(seed, name))
            rounds = stochastic and kind is torch.bfloat16
            tensors[name] = stochastic_round(merged, generator) if rounds else merged.to(kind)
            if not tensors[name].isfinite().all():
                raise UserError(
                    f"{adapter}: merged with {name} of {base} it gives numbers that {dtype} cannot hold; {advice}"
                )
        tensors = {name: t.to(kind) if t.is_floating_point() else t for name, t in tensors.items()}
        save_file(tensors, target / file.name, metadata={"format": "pt"})
    if pending:
        raise UserError(f"{adapter}: {base} has no tensor for {sorted(pending)[0]} and {len(pending) - 1} others")


def _scale(adapter: Path) -> float:
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    rank, alpha = config["r"], config["lora_alpha"]
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def stochastic_round(values: Tensor, generator: Generator) -> Tensor:
    """Round float32 values (any shape) to bf16, up or down with probability by distance: E[result] = value.

    bf16 is the upper half of a float32: adding a uniform 16-bit number to the bits and dropping the lower half carries
    into the upper half with exactly that probability. bf16 numbers stay as they are.
    """
    import torch

    bits = values.float().contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, generator=generator)
    return ((bits + noise) & -65536).view(torch.float32).bfloat16()
