"""What a machine with a GPU may lack, checked when a peer starts and not in the middle of a round.

`make setup` checks the same; this is for machines that changed, and for containers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

from data.errors import UserError
from peers.devices import WITHOUT, gpu_is_there

DRIVER = 580  # the first for CUDA 13, which the pinned torch is built for


@cache  # once per process
def check_gpu() -> None:
    """If there is a GPU, torch must see it, and Triton must find what it builds its launchers with. Imports torch.

    Raises UserError; else vLLM would fail with its own message, and score and train would silently run on the CPU.
    Passes for a CPU build of torch (KIND=cpu, KIND=transformers), which the user chose.
    """
    if not gpu_is_there():
        return
    import torch

    if torch.version.cuda is None:
        return
    check_driver(driver())
    if not torch.cuda.is_available():
        raise UserError(
            f"nvidia-smi lists a GPU but torch {torch.__version__} (CUDA {torch.version.cuda}) sees none; check "
            f"CUDA_VISIBLE_DEVICES and the driver, or {WITHOUT}"
        )
    lacking = lacking_to_build()
    if lacking:
        raise UserError(lacking)


def driver() -> str | None:
    """The driver's version as nvidia-smi reports it, None if it reports none."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        versions = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return versions[0] if versions else None


def check_driver(version: str | None) -> None:
    """Raises UserError for a driver that is too old; an unreadable version passes."""
    major = (version or "").partition(".")[0]
    if major.isdigit() and int(major) < DRIVER:
        raise UserError(
            f"the NVIDIA driver here is {version}; CUDA 13 needs {DRIVER} or newer: install one, or {WITHOUT} after "
            "`make setup KIND=cpu` in a new .venv"
        )


def lacking_to_build() -> str | None:
    """What Triton lacks to build its launchers, in one line with how to install it; None if it lacks nothing."""
    named: Any = os.environ.get("CC")
    if not any(map(shutil.which, [named.split()[0]] if named and named.split() else ["gcc", "clang"])):
        return f"no C compiler ({named or 'gcc'}), which Triton needs on a GPU: apt-get install gcc, or set CC"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.is_file():
        return f"no {header}, which Triton needs on a GPU: apt-get install python3-dev, of this Python's version"
    return None
