"""What all command lines share: exit codes, one-line errors, and an environment without chatter."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable

import typer

from data.errors import UserError


def start(app: typer.Typer, module: str) -> None:
    """Run a command line; wrong options are one line and status 2, too."""
    try:
        app(prog_name=f"python -m {module}", standalone_mode=False)
    except typer.TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        print(f"error: {message} (python -m {module} --help lists the options)", file=sys.stderr)
        raise SystemExit(2) from None


def guarded(body: Callable[[], None]) -> None:
    """Run a command's body: a UserError is one line and status 2, Ctrl-C is status 130."""
    try:
        body()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on where it stopped", file=sys.stderr)
        raise SystemExit(130) from None


def quiet_environment() -> None:
    """Set before torch and vllm are imported; what the user has set stays."""
    # millions of objects that stay: looking for garbage among them took a sixth of the imports, and a second at exit
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    for key, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # torch asks for huge pages for large tensors: first touches of fresh memory were a third of a forward on CPU
        "THP_MEM_ALLOC_ENABLE": "1",
        # a forked engine would inherit a CUDA context it cannot use, and the run's lock, which it could outlive us with
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }.items():
        os.environ.setdefault(key, value)
