"""Which kinds of models can be peers, judged from a model without numbers.

Scoring needs a decoder and a head; training needs linear layers that hold the weights of the blocks. Whether we compute
the same logits as the model's own head is checked when the model is loaded (peers/logprob/model.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.errors import UserError

TURNED = ("GPT2LMHeadModel",)  # store the weights of their linear layers as [inputs, outputs]


def is_turned(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config.json stores its linear layers' weights as [inputs, outputs] (Conv1D)."""
    return bool(set(config.get("architectures") or ()) & set(TURNED))


def linear_layers(model: Any) -> list[str]:
    """Names of the modules that an adapter changes: all linear layers but the head."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [
        name for name, module in model.named_modules() if isinstance(module, Linear | Conv1D) and module is not head
    ]


def check_architecture(refusal: str, model: Any) -> None:
    """Raises UserError, which begins with `refusal`, for a kind of model that cannot be scored or trained."""
    kind = type(model).__name__
    if getattr(model, "_is_stateful", False):
        raise UserError(
            f"{refusal}: a {kind} reads a text into a state, but scoring and training need attention over the text; "
            "use a model of another kind"
        )
    large = next((name for name, weight in model.named_parameters() if weight.dim() > 2), None)
    if large is not None:
        raise UserError(
            f"{refusal}: a {kind} stores weights of several layers in one tensor ({large}), as for experts; an adapter "
            "of linear layers cannot change them; use a dense model"
        )
    if model.get_output_embeddings() is None or not linear_layers(model):
        what = "head" if model.get_output_embeddings() is None else "linear layers"
        raise UserError(f"{refusal}: no {what} found in a {kind}; use a model of another kind")
