"""A custom function that compares answers: `answers = "module:function"`.

The module is a file in the working directory (`module.py`, `package/module.py`). Only the grader's processes import it
(data/answers/grader.py), which are killed if it takes too long:

    def function(text: str, gold: str) -> bool              # is this answer right?
    def extract(response: str, question: str) -> str | None  # optional: the answer of a response

A stage's own process never runs it; a stage knows its name and the SHA-256 of its file.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from data.answers.kinds import AnswerKindName, is_own
from data.errors import UserError

OwnCall = tuple[str, str, str]  # "verdict", an answer, another; "extract", a response, its question; LOOK
RUNS = Path("runs")  # as in data/run.py, which imports this module
LOOK: OwnCall = ("look", "", "")  # asks whether there is an `extract`
EXPECTED_FUNCTION = "expected a function (text, gold) -> bool that this file defines (docs/answers.md)"


class UnusableError(Exception):
    """Why a function cannot be called."""


def path_of(kind: AnswerKindName) -> Path:
    """The module's file, relative to the working directory. Raises UserError if it is missing or not allowed."""
    stem = Path(*kind.partition(":")[0].split("."))
    paths = [stem.with_name(f"{stem.name}.py"), stem / "__init__.py"]
    for path in paths:
        if path.is_file():
            if RUNS.resolve() in path.resolve().parents:
                raise UserError(
                    f"answers = {kind!r}: {path} is in {RUNS}, and a run, which may come from anyone, must not bring "
                    "code; put the file elsewhere"
                )
            return path
    top = kind.partition(":")[0].partition(".")[0]
    if top in sys.stdlib_module_names:  # a file of that name would hide Python's
        raise UserError(
            f"answers = {kind!r}: {top!r} is a module of Python's own; expected one of yours: put the function into a "
            f"file with another name in {Path.cwd()}, such as my_answers.py (docs/answers.md)"
        )
    raise UserError(
        f"answers = {kind!r}: there is no file {paths[0]} in {Path.cwd()}; start from the folder that has it"
    )


def code_identity(kind: AnswerKindName) -> dict[str, str]:
    """A kind as it stands in a manifest: {} for "math", else its name; for a custom one also its file and checksum.

    Raises UserError if that file is missing.
    """
    if not is_own(kind):
        return {} if kind == "math" else {"kind": kind}
    path = path_of(kind)
    return {"kind": kind, "file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def kinds_fingerprint(*names: AnswerKindName) -> dict[str, Any]:
    """Kinds as they stand in a fingerprint: nothing for "math", which came first; else each one's `code_identity`."""
    found = {kind: code_identity(kind) for kind in names}
    return {"answers": {kind: each for kind, each in found.items() if each}} if any(found.values()) else {}


def load(kind: AnswerKindName) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """The function, and the module's `extract` if it has one. Raises UnusableError."""
    module_name, _, name = kind.partition(":")
    path = path_of(kind).resolve()
    sys.path.insert(0, os.getcwd())
    sys.dont_write_bytecode = True  # stale bytecode would hide a second change within a second
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UnusableError(f"{path.name} cannot be imported: {in_words(error)}") from error
    found = getattr(module, "__file__", None)  # built-in modules have none
    if Path(found or "").resolve() != path:
        raise UnusableError(
            f"another module is named {module_name!r} ({found or 'built into Python'}); rename {path.name}"
        )
    function, extract = _function(module, name, "text, gold"), None
    if function is None:
        raise UnusableError(f"{path.name} has no {name!r}; {EXPECTED_FUNCTION}")
    if hasattr(module, "extract"):
        extract = _function(module, "extract", "response, question")
    return function, extract


def _function(module: Any, name: str, arguments: str) -> Callable[..., Any] | None:
    function = getattr(module, name, None)
    if function is None:
        return None
    if not inspect.isfunction(function) or function.__module__ != module.__name__:
        raise UnusableError(
            f"{name!r} is not a function that {Path(module.__file__).name} defines; {EXPECTED_FUNCTION}"
        )
    try:
        inspect.signature(function).bind("", "")
    except TypeError:
        raise UnusableError(f"{name}{inspect.signature(function)} cannot be called as {name}({arguments})") from None
    return function


def in_words(error: BaseException) -> str:
    """An error in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200].rstrip(": ")


def serve(connection: Connection, timeout_seconds: float, kind: AnswerKindName) -> None:
    """A worker process: sends "ready", or why it cannot start; then does one job after another until its parent closes
    the pipe or dies. The reply to a job is (result, None) or (None, reason)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        function, extract = load(kind)
    except (UnusableError, UserError) as error:
        connection.send(str(error))
        return
    connection.send("ready")
    while True:
        try:
            what, first, second = connection.recv()
        except EOFError:
            return
        signal.alarm(int(timeout_seconds) + 10)  # if the parent is gone
        reply: tuple[Any, str | None] = (extract is not None, None)
        try:
            if what == "verdict":
                reply = (_verdict(function(first, second)), None)
            elif what == "extract" and extract is not None:
                reply = (_text(extract(first, second)), None)
        except (Exception, SystemExit) as error:
            reply = (None, in_words(error))
        signal.alarm(0)
        connection.send(reply)


def _verdict(value: Any) -> bool:
    if type(value).__name__ not in ("bool", "bool_"):
        raise TypeError(f"it returned {value!r:.40}, expected True or False")
    return bool(value)


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"extract returned {value!r:.40}, expected text or None")
    return (value or "").strip() or None
