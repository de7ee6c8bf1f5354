"""A function of the user's that compares answers: `answers = "module:function"`.

The module is a file of the working directory (`module.py`, `package/module.py`). It is imported by processes of the
grader's alone (data/answers/grader.py), which are killed where it takes too long:

    def function(text: str, gold: str) -> bool              # is this answer right?
    def extract(response: str, question: str) -> str | None  # if it is there: the answer of a response

Nothing of it is run in the process of a stage; a stage knows it by its name and the SHA-256 of its file.
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
RUNS = Path("runs")  # data/run.py, which imports this
LOOK: OwnCall = ("look", "", "")  # whether there is an `extract`
EXPECTED = "expected a function (text, gold) -> bool that this file defines (docs/answers.md)"


class UnusableError(Exception):
    """Why a function cannot be called."""


def path_of(kind: AnswerKindName) -> Path:
    """The module's file, relative to the working directory. Raises UserError if it is not there."""
    stem = Path(*kind.partition(":")[0].split("."))
    paths = [stem.with_name(f"{stem.name}.py"), stem / "__init__.py"]
    for path in paths:
        if path.is_file():
            if RUNS.resolve() in path.resolve().parents:
                raise UserError(
                    f"answers = {kind!r}: {path} lies in {RUNS}, and a run, maybe from elsewhere, brings no code; "
                    "put a file of your own elsewhere"
                )
            return path
    top = kind.partition(":")[0].partition(".")[0]
    if top in sys.stdlib_module_names:  # a file of that name would stand before Python's
        raise UserError(
            f"answers = {kind!r}: {top!r} is a module of Python's own; expected one of yours: put the function into a "
            f"file of another name in {Path.cwd()}, my_answers.py for one (docs/answers.md)"
        )
    raise UserError(
        f"answers = {kind!r}: there is no file {paths[0]} in {Path.cwd()}; begin from the folder that has it"
    )


def code_identity(kind: AnswerKindName) -> dict[str, str]:
    """What a manifest says of a kind: nothing of "math"; else its name; of one's own also the file's checksum.

    Raises UserError if that is not there.
    """
    if not is_own(kind):
        return {} if kind == "math" else {"kind": kind}
    path = path_of(kind)
    return {"kind": kind, "file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def kinds_fingerprint(*names: AnswerKindName) -> dict[str, Any]:
    """What a fingerprint says of kinds: nothing of "math", which came first; else `identity` of each."""
    found = {kind: code_identity(kind) for kind in names}
    return {"answers": {kind: each for kind, each in found.items() if each}} if any(found.values()) else {}


def load(kind: AnswerKindName) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """The function, and the module's `extract` if it has one. Raises UnusableError."""
    module_name, _, name = kind.partition(":")
    path = path_of(kind).resolve()
    sys.path.insert(0, os.getcwd())
    sys.dont_write_bytecode = True  # a file that is changed twice within a second would be taken for the first one
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UnusableError(f"{path.name} cannot be imported: {in_words(error)}") from error
    found = getattr(module, "__file__", None)  # none of what is built in
    if Path(found or "").resolve() != path:
        raise UnusableError(
            f"another module is called {module_name!r} ({found or 'built into Python'}); rename {path.name}"
        )
    function, extract = _function(module, name, "text, gold"), None
    if function is None:
        raise UnusableError(f"{path.name} has no {name!r}; {EXPECTED}")
    if hasattr(module, "extract"):
        extract = _function(module, "extract", "response, question")
    return function, extract


def _function(module: Any, name: str, arguments: str) -> Callable[..., Any] | None:
    function = getattr(module, name, None)
    if function is None:
        return None
    if not inspect.isfunction(function) or function.__module__ != module.__name__:
        raise UnusableError(f"{name!r} is not a function that {Path(module.__file__).name} defines; {EXPECTED}")
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
    """A process: says that it is ready, or why it cannot be; then does one job after another until its parent closes
    the pipe or dies. The answer to a job is (what came out, None) or (None, why nothing did)."""
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
