"""head.c, built with the machine's C compiler when first used, and called from as many threads as torch has.

For CPUs with AMX, and for bf16, whole tiles and no soft-cap (`takes`). Otherwise, or without a compiler, head.py does
the same with torch's products, two to three times slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("head.c")
CHUNK = 256  # tokens that the kernel takes at a time
FLAGS = [
    "-O3",
    "-shared",
    "-fPIC",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mamx-tile",
    "-mamx-bf16",
    f"-DCHUNK={CHUNK}",
]
GRADIENTS = 2**26  # bytes of all threads' float32 gradients


@cache
def library() -> Any | None:
    """The kernel, None if this machine cannot build or run it."""
    if not torch.cpu._is_amx_tile_supported() or not torch.cpu._init_amx():
        return None
    compiler = shlex.split(os.environ.get("CC") or "cc")
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:12]
    path = Path(os.environ.get("PST_CACHE", ".cache")).resolve() / "kernels" / f"head-{key}.so"
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # other processes may build it, too
                built = Path(folder, path.name)
                subprocess.run([*compiler, *FLAGS, str(SOURCE), "-o", str(built)], capture_output=True, check=True)
                os.replace(built, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError):  # no compiler, one without AMX, or an unusable folder
        return None


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


os.register_at_fork(after_in_child=_threads.cache_clear)  # a fork has no threads


def takes(hidden_R_H: Tensor, head_V_H: Tensor, softcap: float | None, dtype: torch.dtype) -> bool:
    """Whether the kernel computes this: bf16 on a CPU with AMX, no soft-cap, whole tiles."""
    kinds = dtype, head_V_H.dtype
    fits = head_V_H.is_contiguous() and head_V_H.shape[1] % 32 == 0 and hidden_R_H.device.type == "cpu"
    return softcap is None and kinds == (torch.bfloat16, torch.bfloat16) and fits and library() is not None


def rows_at_once(size: int) -> int:
    """Rows of which the gradients of all threads stay within GRADIENTS bytes; at least 32."""
    return max(32, GRADIENTS // (4 * size * torch.get_num_threads()) // 32 * 32)


def logsumexp(
    hidden_R_H: Tensor, head_V_H: Tensor, bias_V: Tensor | None, wants_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Natural-log normaliser of each row, float32 [R], and its gradient, float32 [R, H] (empty if not wanted).

    Raises MemoryError if the kernel cannot allocate its buffers.
    """
    rows, size = hidden_R_H.shape
    tokens, padded = len(head_V_H), (rows + 31) // 32 * 32
    packed = hidden_R_H.new_zeros(padded, size, dtype=torch.bfloat16)
    packed[:rows] = hidden_R_H
    packed = packed.view(padded // 16, 16, size // 2, 2).transpose(1, 2).contiguous()
    chunks = (tokens + CHUNK - 1) // CHUNK
    count = min(torch.get_num_threads(), chunks)
    edges = [min(tokens, chunks * i // count * CHUNK) for i in range(count + 1)]
    top_S_R, sum_S_R = torch.empty(count, padded), torch.empty(count, padded)
    gradient_S_H_R = torch.empty(count, size, padded) if wants_gradient else None
    kernel, pointer = library(), ctypes.c_void_p
    assert kernel is not None

    def part(i: int) -> int:
        first = edges[i]
        status: int = kernel.logsumexp(
            pointer(packed.data_ptr()),
            pointer(head_V_H.data_ptr() + 2 * first * size),
            None if bias_V is None else pointer(bias_V.data_ptr() + 4 * first),
            *map(ctypes.c_ssize_t, (padded, size, edges[i + 1] - first)),
            pointer(top_S_R[i].data_ptr()),
            pointer(sum_S_R[i].data_ptr()),
            None if gradient_S_H_R is None else pointer(gradient_S_H_R[i].data_ptr()),
        )
        return status

    if any(_threads(count).map(part, range(count)) if count > 1 else [part(0)]):
        raise MemoryError("the head's kernel could not allocate memory")
    top_R = top_S_R.amax(0)
    share_S_R = (top_S_R - top_R).exp_()
    sum_R = (share_S_R * sum_S_R).sum(0)
    lse_R = (top_R + sum_R.log())[:rows]
    if gradient_S_H_R is None:
        return lse_R, hidden_R_H.new_empty(0)
    share_S_R /= sum_R
    return lse_R, torch.einsum("shr,sr->rh", gradient_S_H_R, share_S_R)[:rows]
