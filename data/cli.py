"""What all command lines share: exit codes, one-line errors, and a quiet environment."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

import typer

from data import events
from data.errors import UserError, trouble
from data.streams import flush_or_drop, open_streams
from data.visible import one_line, visible


def start(app: typer.Typer, module: str) -> None:
    """Run a command line; wrong options, too, end with one line and status 2."""
    open_streams()
    sys.excepthook = _defect
    events.log.on = events.FLAG in sys.argv[1:]  # wrong options are reported as events, too

    def call() -> None:
        try:
            app(prog_name=f"python -m {module}", standalone_mode=False)
        except typer.TyperException as error:
            message = getattr(error, "format_message", error.__str__)()
            raise UserError(f"{message} (python -m {module} --help lists the options)") from None

    guarded(call)


def _defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a defect's traceback, with control characters made visible: it may quote text from outside."""
    print(visible("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def guarded(body: Callable[[], None]) -> None:
    """Run a command's body. It ends with one line and status 2 for a UserError or trouble with the machine
    (`data.errors.trouble`), with 130 after Ctrl-C, with 141 (as by SIGPIPE) if nobody reads its output (`| head`)."""
    try:
        body()
        sys.stdout.flush()
        events.end(0)
    except UserError as error:
        _end(f"error: {error}", 2)
    except KeyboardInterrupt:
        _end("interrupted: run the same command again to go on where it stopped", 130)
    except BrokenPipeError:
        _end("stopped: nobody reads the output any more; run the same command again to go on where it stopped", 141)
    except Exception as error:
        message = trouble(error)
        if message is None:
            events.end(1, f"{type(error).__name__}: {error}")
            raise
        _end(f"error: {message}", 2)


def _end(line: str, status: int) -> NoReturn:
    events.end(status, line.removeprefix("error: "))
    with suppress(OSError):  # stderr may go to the full disk
        print(one_line(line), file=sys.stderr, flush=True)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        flush_or_drop(stream, number)
    raise SystemExit(status) from None


def quiet_environment() -> None:
    """Set variables that torch and vllm read when they are imported; what the user has set stays."""
    # imports make millions of objects that stay: collecting garbage took a sixth of their time, and a second at exit
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    for key, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # huge pages for torch's large tensors: first touches of fresh memory took a third of a forward pass on CPU
        "THP_MEM_ALLOC_ENABLE": "1",
        # a forked engine would inherit a CUDA context it cannot use, and the run's lock, which it might outlive us with
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }.items():
        os.environ.setdefault(key, value)
