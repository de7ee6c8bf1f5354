"""Every command in README and the docs is one that the program accepts; a test runs each program that they start.

Not checked: what the notebooks tell, and configs of commands with variables of the shell."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from data.config.load import load_config
from pipeline.__main__ import COMMANDS
from pipeline.arms import load_arm
from tests.conftest import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "data/README.md", "peers/*/README.md")
NOTEBOOKS = ("docs/log.md", "docs/results/nano-three-seeds.md")  # of days when commands were others
EXAMPLE = "configs/mine.toml"  # a user's own config: README has an example
VARIABLES = set(re.findall(r"^([A-Z_]+) *(?:\?|:)=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
OF_OTHERS = ("pytest", "ruff", "mypy")
ARGUMENTS = {  # of scripts without options, how many they take at most
    "bench.data_plane": 2, "data.columns": 0, "data.config.docs": 0, "tests.families": 0,
    "tests.page_picture": 2, "tests.page_runs": 1, "tests.pipeline.test_inspect": 0, "tests.soak": 0,
}  # fmt: skip


def shell_commands(block: str) -> list[str]:
    """The commands of a shell block, each joined over its lines."""
    found: list[str] = []
    held = ""
    for line in block.replace("\\\n", " ").splitlines():
        held = f"{held} {line.strip()}".strip()
        try:
            shlex.split(held, comments=True)
        except ValueError:  # a quote is open
            continue
        found.append(held)
        held = ""
    return found


def commands_of(page: str) -> list[list[str]]:
    """The words of each `make …` and `python -m …` in a page's shell blocks and inline code."""
    fence = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.M | re.S)
    lines = [line for kind, block in fence.findall(page) if kind in ("", "bash") for line in shell_commands(block)]
    lines += re.findall(r"(?<!`)`((?:make|python -m)\s[^`]+)`(?!`)", fence.sub("", page))
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        starts = [n for n, word in enumerate(words) if word == "make" or word.endswith("python")]
        if starts and (starts[0] == 0 or words[0] in ("docker", "srun")):
            found.append(words[starts[0] :])
    return found


def commands() -> list[tuple[str, str]]:
    """(page, command) of all pages, each command once."""
    found: dict[str, str] = {}
    for path in [each for pattern in PAGES for each in sorted(ROOT.glob(pattern))]:
        name = str(path.relative_to(ROOT))
        if name in NOTEBOOKS:
            continue
        for words in commands_of(path.read_text(encoding="utf-8")):
            found.setdefault(shlex.join(words), name)
    return [(path, command) for command, path in found.items()]


@cache
def modules_started(command: str) -> list[list[str]]:
    """Module and arguments of each `python -m` that a command runs; for make, by a dry run."""
    words = shlex.split(command)
    if words[0] != "make":
        return [words[2:]]
    unknown = {word.partition("=")[0] for word in words[2:]} - VARIABLES
    assert not unknown, f"the Makefile has no {unknown}"
    if len(words) == 2:  # a target in a sentence, which may need a round
        words.append("ROUND=1")
    # without the words of a `make test EXTRA=…` that runs this
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES and key[:4] != "MAKE"}
    dry = ["make", "-n", *words[1:]]
    done = subprocess.run(dry, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith(".venv/bin/python -m ")]


@cache
def parser_of(module: str) -> Any:
    """The parser of a module's command line."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"python -m {module}: there is no such module"
    found = importlib.import_module(f"{module}.__main__" if spec.submodule_search_locations else module)
    if hasattr(found, "app"):
        return get_command(found.app)
    app = typer.Typer()  # as typer.run does
    app.command()(found.command if hasattr(found, "command") else found.main)
    return get_command(app)


def parse(module: str, arguments: list[str]) -> dict[str, Any]:
    """The options that a module's command line reads from the arguments."""
    if module == "pipeline":
        module = COMMANDS[arguments[0]][0].removesuffix(".__main__")
        arguments = arguments if hasattr(parser_of(module), "commands") else arguments[1:]
    parser = parser_of(module)
    if hasattr(parser, "commands"):
        chosen = parser.commands.get(arguments[0])
        assert chosen is not None, f"python -m {module} has no command {arguments[0]!r}"
        parser, arguments = chosen, arguments[1:]
    with parser.make_context(module, list(arguments)) as context:
        return dict(context.params)


def existing(config: Path, folder: Path) -> Path:
    """The config that a command names; for a user's own, README's example."""
    if str(config) != EXAMPLE:
        return ROOT / config
    example = re.search(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert example is not None
    (folder / "mine.toml").write_text(example[1], encoding="utf-8")
    return folder / "mine.toml"


@pytest.mark.parametrize(("page", "command"), commands())
def test_the_program_accepts_each_command(page: str, command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    if len(words) == (2 if words[0] == "make" else 3):  # a name in a sentence
        known = f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
        assert known if words[0] == "make" else importlib.util.find_spec(words[2]), page
        return
    for module, *arguments in modules_started(command):
        if module in ARGUMENTS:
            assert len(arguments) <= ARGUMENTS[module], page
        if module in (*OF_OTHERS, *ARGUMENTS):
            continue
        options = parse(module, arguments)
        if options.get("config") and "$" not in command:
            load_config(existing(Path(options["config"]), tmp_path), list(options.get("set_") or ()))
        if module == "pipeline.ablation":
            for arm in f"{options['arms'] or ''} {options['against'] or ''}".split():
                load_arm(arm)


def test_each_program_that_a_command_starts_is_started_by_a_test() -> None:
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    texts = "\n".join(path.read_text(encoding="utf-8") for path in tests)
    found: set[str] = set()
    for _, command in commands():
        for module, *arguments in modules_started(command):
            found.add(COMMANDS[arguments[0]][0].removesuffix(".__main__") if module == "pipeline" else module)
    for module in found - {*OF_OTHERS, "tests.pipeline.test_inspect"}:
        package, _, name = module.rpartition(".")
        used = rf'"{module}"|^ *from {module}[. ].*import|^ *from {package or "-"} import .*\b{name}\b'
        assert re.search(used, texts, re.M), module
    assert len(found) > 25
