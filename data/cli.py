"""What all command lines share: exit codes, one-line errors, and an environment without chatter."""

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
    """Run a command line; wrong options are one line and status 2, too."""
    open_streams()
    sys.excepthook = _defect
    events.log.on = events.FLAG in sys.argv[1:]  # wrong options are told as events, too

    def call() -> None:
        try:
            app(prog_name=f"python -m {module}", standalone_mode=False)
        except typer.TyperException as error:
            message = getattr(error, "format_message", error.__str__)()
            raise UserError(f"{message} (python -m {module} --help lists the options)") from None

    guarded(call)


def _defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A defect's traceback, in which a text from outside may be quoted."""
    print(visible("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def guarded(body: Callable[[], None]) -> None:
    """Run a command's body: a UserError, and what the machine lacks (`data.errors.trouble`), is one line and status 2,
    Ctrl-C is status 130, an output without a reader (`| head`) status 141, as if SIGPIPE had ended it."""
    try:
        body()
        sys.stdout.flush()
        events.end(0)
    except UserError as error:
        _end(f"error: {error}", 2)
    except KeyboardInterrupt:
        _end("interrupted: run the same command again to go on where it stopped", 130)
    except BrokenPipeError:
        _end("stopped, since nobody reads the output any more: the same command goes on where it stopped", 141)
    except Exception as error:
        told = trouble(error)
        if told is None:
            events.end(1, f"{type(error).__name__}: {error}")
            raise
        _end(f"error: {told}", 2)


def _end(line: str, status: int) -> NoReturn:
    events.end(status, line.removeprefix("error: "))
    with suppress(OSError):  # stderr may be what is full
        print(one_line(line), file=sys.stderr, flush=True)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        flush_or_drop(stream, number)
    raise SystemExit(status) from None


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
