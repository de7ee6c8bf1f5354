"""`make setup KIND=…`: the pinned lists, what make says to a wrong or another kind, and a round without vLLM."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from data.config.engine import engine_here, settled
from data.config.load import load_config
from data.errors import UserError
from data.run import open_run
from peers.engines.protocol import engine_kind
from tests.conftest import ROOT

KINDS = ("cpu", "gpu", "transformers")
# a Python that has everything but vLLM, and so have the processes that it starts
WITHOUT_VLLM = """
from importlib.machinery import PathFinder
found = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] == "vllm" else found(name, path, target)
PathFinder.find_spec = staticmethod(find_spec)
"""


def pins(name: str) -> dict[str, str]:
    """name -> the whole line of a list, without its marker; of torch's lines the one for Linux."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()[1:]
    return {line.split("==")[0]: line.split(" ;")[0] for line in lines if "darwin" not in line}


# --- the lists ---


def test_the_transformers_list_is_the_cpu_list_without_vllm() -> None:
    few, all_ = pins("transformers"), pins("cpu")
    assert few.items() <= all_.items()
    foreign = re.compile("vllm|nvidia|cuda|triton|xgrammar|outlines|ray")
    assert not [name for name in few if foreign.match(name)]


def test_the_transformers_list_has_what_the_project_asks_for() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    asked = {re.split("[=<>,]", line)[0] for line in groups["core"] + groups["dev"]}
    assert asked <= pins("transformers").keys()
    text = (ROOT / "requirements" / "transformers.txt").read_text(encoding="utf-8")
    assert re.findall(r"^torch==\S+ ; .*", text, re.MULTILINE) == [
        'torch==2.13.0 ; sys_platform == "darwin"',
        'torch==2.13.0+cpu ; sys_platform == "linux"',
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("extra", "version"), [("ray", "2.60.0"), ("trackio", "0.43.0")])
def test_the_lists_beside_any_kind_change_no_version_of_it(extra: str, version: str, kind: str) -> None:
    more, there = pins(extra), pins(kind)
    assert more[extra] == f"{extra}=={version}"
    assert {name: there.get(name, pin) for name, pin in more.items()} == more
    there = there | more
    needed = {"anyio", "click", "filelock", "packaging", "pyyaml", "requests"}  # of which they have no pin
    assert needed | ({"pillow", "h11", "numpy"} if extra == "trackio" else set()) <= there.keys()


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.stem)
def test_every_pin_but_torch_for_cpus_has_checksums(path: Path) -> None:
    summed = (path.parent / "sums" / path.name).read_text(encoding="utf-8").replace(" \\\n", "").splitlines()[1:]
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    without = [line for line in lines if line.startswith("torch==")] if path.stem in ("cpu", "transformers") else []
    assert [line.partition("    --hash")[0] for line in summed] == [line for line in lines if line not in without]
    assert all(re.search(r"    --hash=sha256:[0-9a-f]{64}$", line) for line in summed)


# --- the image ---


def test_the_dockerfile_names_what_is_there() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (?:--\S+ )*(\S+) \S+$", text, re.MULTILINE)
    assert copied == ["Makefile", "requirements", "."]  # the pins first: a change of code installs nothing anew
    assert all(path == "." or list(ROOT.glob(path)) for path in copied)
    assert text.index("requirements requirements") < text.index("RUN make setup") < text.index("COPY --chown=1000 . .")
    assert re.search(r"^USER \d+$", text, re.MULTILINE)
    assert set(re.findall(r"KIND=(\w+)", text)) <= set(KINDS)
    used = set(re.findall(r"\bmake (\w+)", text.split("RUN apt")[0])) | {"setup", "help"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert used <= targets


def test_the_image_takes_nothing_that_git_leaves_out() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    names = {line.rstrip("/") for line in ignored if line and not line.startswith("#")}
    assert names - {line.removeprefix("**/") for line in left_out} <= {"*.swp", ".DS_Store"}
    for needed in ("Makefile", "requirements", "configs", "peers", "bench", "tests", "docs", "README.md"):
        assert needed not in left_out


# --- make ---

STAND_INS = {
    "uname": 'echo "$SYSTEM"',
    "gcc": "",
    "Python.h": "",
    "nvidia-smi": "[[ -n $GPUS ]] && echo 'GPU 0: a stand-in'",
    # a Python whose pip writes down what it is asked for; its venv is a folder with itself
    "python3": """
case "$*" in
    *sys.version*) echo 3.11 ;;
    *sysconfig*) echo "$HEADERS" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *" install "*) echo "$*" >> pip.log ;;
esac""",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the Makefile and the lists, and stand-ins for what it asks of the machine."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "stand-ins").mkdir()
    for name, body in STAND_INS.items():
        (tmp_path / "stand-ins" / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (tmp_path / "stand-ins" / name).chmod(0o755)
    return tmp_path


def make(place: Path, *arguments: str, system: str = "Linux x86_64", gpus: bool = False) -> tuple[int, str]:
    """Status and output of make."""
    environment = os.environ | {
        "PATH": f"{place / 'stand-ins'}:{os.environ['PATH']}",
        "SYSTEM": system,
        "HEADERS": str(place / "stand-ins"),
        "GPUS": "1" if gpus else "",
    }
    done = subprocess.run(["make", *arguments], cwd=place, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def stamps(place: Path) -> list[str]:
    """What is installed."""
    return sorted(path.name.removeprefix(".stamp-") for path in place.glob(".venv/.stamp-*"))


@pytest.mark.parametrize(
    ("arguments", "system", "gpus", "installed"),
    [
        ([], "Linux x86_64", False, ["cpu"]),
        ([], "Linux x86_64", True, ["gpu"]),
        ([], "Linux aarch64", False, ["transformers"]),
        ([], "Darwin arm64", False, ["transformers"]),
        (["KIND=gpu"], "Linux x86_64", False, ["gpu"]),  # where an image is built there is no GPU
        (["KIND=transformers", "EXTRA=ray"], "Linux x86_64", False, ["ray", "transformers"]),
    ],
)
def test_which_kind_is_installed(
    place: Path, arguments: list[str], system: str, gpus: bool, installed: list[str]
) -> None:
    status, told = make(place, "setup", *arguments, system=system, gpus=gpus)
    assert status == 0, told
    assert stamps(place) == installed
    log = (place / "pip.log").read_text(encoding="utf-8")
    assert all(f"--require-hashes -r requirements/sums/{name}.txt" in log for name in installed)


def test_a_kind_that_was_chosen_stays(place: Path) -> None:
    assert make(place, "setup", "KIND=transformers")[0] == 0
    for arguments in ([], ["KIND=transformers"]):
        assert make(place, "setup", *arguments) == (0, "environment is up to date (.venv, transformers)\n")
    status, told = make(place, "setup", "KIND=cpu")
    assert status == 2
    assert ".venv holds the transformers set and KIND asks for the cpu set; remove .venv and try again" in told
    assert stamps(place) == ["transformers"]


@pytest.mark.parametrize(
    ("arguments", "system", "words"),
    [
        (["setup", "KIND=vllm"], "Linux x86_64", "KIND must be one of cpu gpu transformers, not 'vllm'"),
        (["setup", "KIND=cpu gpu"], "Linux x86_64", "KIND must be one of cpu gpu transformers, not 'cpu gpu'"),
        (["setup", "EXTRA=transformers"], "Linux x86_64", "EXTRA must name an optional list"),
        (["setup", "KIND=cpu"], "Darwin arm64", "the cpu set is for Linux on x86_64 and this is Darwin arm64"),
        (["setup"], "Darwin x86_64", "this is Darwin x86_64"),
        (["setup", "KIND=transformers", "EXTRA=bench"], "Linux x86_64", "EXTRA=bench compares with vLLM"),
        (["round", "ROUND=1", "KIND=gpu"], "Linux x86_64", "nvidia-smi lists none"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_installed(
    place: Path, arguments: list[str], system: str, words: str
) -> None:
    status, told = make(place, *arguments, system=system)
    assert status == 2
    assert words in told
    assert not (place / ".venv").exists()


@pytest.mark.parametrize("settings", ["executor.kind=ray executor.address=auto", ""])
def test_the_head_of_a_ray_cluster_needs_no_gpu(place: Path, settings: str) -> None:
    (place / "mine.toml").write_text('[executor]\nkind = "ray"\n', encoding="utf-8")
    arguments = ["generate", "ROUND=1", "KIND=gpu", f"SET={settings}", "CONFIG=mine.toml"]
    assert make(place, *arguments)[0] == 0
    assert stamps(place) == ["gpu"]


# --- the engine of a run ---


def test_a_run_keeps_its_engine(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(*names: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in names else None)

    def begin(*overrides: str, config: Path | None = Path("tiny.toml")) -> str:
        with open_run("t", config, list(overrides)) as run:
            run.freeze(lambda: None)
            (run.root / "round=1" / "chains").mkdir(parents=True, exist_ok=True)
            return engine_kind(run.config.generate)

    here("vllm")
    assert begin("generate.engine=auto") == "vllm"
    assert json.loads(Path("runs/t/config.json").read_text())["generate"]["engine"] == "vllm"
    here()
    for arguments in (["generate.engine=auto"], ["generate.engine=vllm"]):
        with pytest.raises(UserError, match="a run keeps the engine that it began with"):
            begin(*arguments)
    with pytest.raises(UserError, match=r'generate\.engine: "vllm" -> "transformers"'):
        begin("generate.engine=transformers")
    here("vllm")
    assert begin(config=None) == "vllm"


def test_auto_of_a_run_without_vllm_stays_transformers(project: Path) -> None:
    auto = load_config(Path("tiny.toml"), ["generate.engine=auto"])
    assert settled(auto).generate.engine == engine_here()
    begun = load_config(Path("tiny.toml"), ["generate.engine=transformers"])
    assert settled(auto, begun).generate.engine == "transformers"
    assert settled(begun, settled(auto)).generate.engine == "transformers"  # what is asked for is left to differ


def test_a_round_where_vllm_is_not(project: Path, tmp_path: Path) -> None:
    """Through the command line and the peers' own processes."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT_VLLM, encoding="utf-8")
    text = Path("tiny.toml").read_text(encoding="utf-8")
    Path("tiny.toml").write_text(re.sub(r"\[\[benchmarks\]\][^[]*", "", text), encoding="utf-8")
    settings = ("generate.engine=auto", "prompts.limit=4", "generate.max_new_tokens=4")
    command = [sys.executable, "-m", "pipeline.round", "--run", "t", "--round", "1", "--config", "tiny.toml"]
    command += [part for setting in settings for part in ("--set", setting)]
    environment = {
        **os.environ, "PYTHONPATH": f"{tmp_path / 'without'}:{ROOT}", "HF_HUB_OFFLINE": "1",
        "PST_CACHE": str(ROOT / ".cache"),
    }  # fmt: skip
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(Path("runs/t/config.json").read_text())["generate"]["engine"] == "transformers"
    assert json.loads(Path("runs/t/round=1/chains/_SUCCESS.json").read_text())["engine"] == "transformers"
    assert Path("runs/t/round=1/adapters/_SUCCESS.json").is_file()
