"""Attention of packed sequences: each segment of a tree sees its ancestors and, causally, itself.

The decoder gets the tokens of a batch as one row, without padding. Only attention, which must keep the sequences
apart, takes them segment by segment. A segment with few ancestors is computed together with them, as plain causal
attention, which in a fused kernel is about twice as fast as with a mask; their outputs are dropped again, like padding.
One with more ancestors than tokens, as at the end of a long shared prefix, gets a mask for its own queries only.

Registered with transformers under the name PACKED, for which transformers makes no masks. Each layer passes its own
sliding window and soft-cap.

Axes: N tokens of a batch, S segments of one kind, Q and K their longest queries and keys, A heads, G heads that share
keys, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from peers.logprob.packing import PrefixTree, Segment
from peers.logprob.product import narrow, scores

PACKED = "packed"
SIMILAR_LENGTH = 0.8  # of the longest segment: segments at least this long are padded to it and computed with it
MULTIPLE = 64  # batches are padded to a multiple of so many tokens: oneDNN compiles its products for each new size
OTHER_KINDS = ("s_aux", "position_bias", "indices", "block_indices")  # arguments of unsupported kinds of attention


@dataclass
class SegmentGroup:
    """Segments of one kind. Indices are places in the batch; padding has place 0."""

    queries_S_Q: Tensor
    keys_S_K: Tensor
    starts_S: Tensor  # depth of each segment's first query
    causal: bool  # queries and keys are the same tokens
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)  # by window

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores, [S or 1, 1, Q, K]; None where plain causal attention is enough."""
        if window not in self.masks:
            longest = self.keys_S_K.shape[1]
            if self.causal and (window is None or longest <= window):
                self.masks[window] = None
            else:
                starts_S = self.starts_S[:1] if self.causal else self.starts_S
                at_K = torch.arange(longest, device=starts_S.device)
                depth_S_Q = starts_S[:, None] + at_K[: self.queries_S_Q.shape[1]]
                depth_S_Q = depth_S_Q.clamp(max=longest - 1)  # padding must see a key, or its gradients are NaN
                behind_S_Q_K = depth_S_Q[:, :, None] - at_K
                sees = (behind_S_Q_K >= 0) if window is None else (behind_S_Q_K >= 0) & (behind_S_Q_K < window)
                mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, -torch.inf)
                self.masks[window] = mask[:, None]
        return self.masks[window]


class PrefixTreeBatch:
    """A batch of trees as tensors. `paths[i]` lists the places of sequence i's tokens in the batch.

    The last tokens, up to a multiple of MULTIPLE, belong to no sequence.
    """

    def __init__(self, trees: Sequence[PrefixTree], device: torch.device) -> None:
        self.paths: dict[int, list[int]] = {}
        tokens: list[int] = []
        segments: list[tuple[bool, int, Segment]] = []  # (masked, keys, the segment at its places in the batch)
        for tree in trees:
            at = len(tokens)
            tokens += tree.tokens
            for segment in tree.segments:
                moved = Segment(at + segment.first, at + segment.end, [at + place for place in segment.ancestors])
                depth, size = len(segment.ancestors), segment.end - segment.first
                segments.append((depth > size, depth + size, moved))
            self.paths |= {i: [at + place for place in path] for i, path in tree.paths.items()}
        tokens += [0] * (-len(tokens) % MULTIPLE)
        depths, order, offset = [0] * len(tokens), [0] * len(tokens), 0
        self.kinds: list[SegmentGroup] = []
        for masked, kind in segment_groups(segments):
            own = [range(segment.first, segment.end) for segment in kind]
            keys = [[*segment.ancestors, *places] for segment, places in zip(kind, own, strict=True)]
            starts = [len(segment.ancestors) if masked else 0 for segment in kind]
            queries_S_Q = padded(own if masked else keys, device)
            keys_S_K = padded(keys, device) if masked else queries_S_Q
            self.kinds.append(SegmentGroup(queries_S_Q, keys_S_K, torch.tensor(starts, device=device), not masked))
            for segment, start in zip(kind, starts, strict=True):
                depth, size = len(segment.ancestors), segment.end - segment.first
                depths[segment.first : segment.end] = range(depth, depth + size)
                order[segment.first : segment.end] = range(offset + depth - start, offset + depth - start + size)
                offset += queries_S_Q.shape[1]
        self.tokens_N = torch.tensor(tokens, device=device)
        self.depths_N = torch.tensor(depths, device=device)
        self.order_N = torch.tensor(order, device=device)  # each token's place in the attention's outputs


def segment_groups(segments: list[tuple[bool, int, Segment]]) -> Iterator[tuple[bool, list[Segment]]]:
    """Segments of one kind and of similar length, longest first."""
    while segments:
        masked, longest, _ = max(segments, key=itemgetter(0, 1))
        together = [kind == masked and keys >= SIMILAR_LENGTH * longest for kind, keys, _ in segments]
        yield masked, [segment for (_, _, segment), chosen in zip(segments, together, strict=True) if chosen]
        segments = [each for each, chosen in zip(segments, together, strict=True) if not chosen]


def padded(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """[sequences, longest], padded with zeros at the right."""
    longest = max(map(len, sequences))
    return torch.tensor([[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences], device=device)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    tree_batch: PrefixTreeBatch | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, A, N, D], [1, A/G, N, D] twice → [1, N, A, D].

    Raises ValueError without a `tree_batch`, and for unsupported kinds of attention.
    """
    unknown = [name for name in OTHER_KINDS if others.get(name) is not None]
    if tree_batch is None or attention_mask is not None or unknown:
        raise ValueError(f"packed attention needs a tree_batch and takes no mask; unsupported arguments: {unknown}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query_N_A_D, key_N_B_D, value_N_B_D = (states[0].transpose(0, 1) for states in (query, key, value))
    outputs = []
    for kind in tree_batch.kinds:
        q = _gather(query_N_A_D, kind.queries_S_Q)
        k, v = _gather(key_N_B_D, kind.keys_S_K), _gather(value_N_B_D, kind.keys_S_K)
        mask = kind.mask(sliding_window or None, query.dtype)
        y = _attention(q, k, v, mask, scale, softcap)
        outputs.append(y.transpose(1, 2).flatten(0, 1))
    whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return whole.index_select(0, tree_batch.order_N)[None], None


def _gather(states_N_A_D: Tensor, places_S_T: Tensor) -> Tensor:
    """[S, A, T, D]"""
    found = states_N_A_D.index_select(0, places_S_T.flatten())
    return found.view(*places_S_T.shape, *found.shape[1:]).transpose(1, 2)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    cpu = q.device.type == "cpu"
    # on a CPU the fused kernel's backward is slow
    if softcap is not None or (cpu and torch.is_grad_enabled()):
        return _plain(q, k, v, mask, scale, softcap)
    shares = q.shape[1] != k.shape[1]
    if shares and not cpu and mask is not None:  # no fused kernel takes a mask and shared keys
        k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], 1) for states in (k, v))
        shares = False
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=shares)


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """softmax(cap(scale q k^T) + mask) v as matrix products, one for all heads that share keys."""
    s, a, n, d = q.shape
    b, m = k.shape[1:3]
    if mask is None:
        mask = torch.full((n, m), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
    mask = mask.expand(s, 1, n, m)[:, :, None].expand(s, b, a // b, n, m).reshape(s * b, -1, m)
    q, k, v = q.reshape(s * b, -1, d), k.reshape(s * b, m, d), v.reshape(s * b, m, -1)  # v may have another head size
    if softcap is None:
        z = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale)
    else:
        # bf16 rounds a score of 40 to steps of a quarter, which change the weight by a quarter
        qk = scores(q, k) if narrow(q, q.dtype) else torch.bmm(q, k.transpose(1, 2))
        z = mask + softcap * torch.tanh(qk * (scale / softcap))
    return torch.bmm(z.softmax(-1).to(v.dtype), v).view(s, a, n, -1)


def register() -> None:
    """Register PACKED with transformers, unless it is registered."""
    from transformers import AttentionInterface

    known = cast(Any, AttentionInterface)
    if PACKED not in known._global_mapping:
        known.register(PACKED, attend)


def keep_from_compiler() -> None:
    """From now on torch.compile skips attention, which it would compile again for every batch of trees."""
    from transformers import AttentionInterface

    known = cast(Any, AttentionInterface)
    if known._global_mapping.get(PACKED) in (None, attend):
        known.register(PACKED, torch.compiler.disable(attend))
