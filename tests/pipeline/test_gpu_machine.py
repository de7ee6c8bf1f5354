"""One line says what a machine with a GPU lacks, and what to do: stand-ins for nvidia-smi, gcc and torch's CUDA."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from peers import gpu
from peers.logprob.model import compiler_is_there
from tests.conftest import ROOT

SMI = '#!/bin/sh\ncase "$1" in -L) echo "GPU 0: NVIDIA H100 (UUID: GPU-1)";; *) echo "{driver}";; esac\n'
TOOLS = ("bash", "make", "sh", "cmp", "grep", "head", "uname", "env", "rm", "cp", "mv", "cat")


def script(folder: Path, name: str, text: str) -> None:
    """An executable file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def setup(tmp_path: Path) -> Callable[..., str]:
    """`make setup` in a checkout whose pip is a stand-in that says so and fails."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    pip = f'#!/bin/sh\ncase "$*" in "-c "*) exec {sys.executable} "$@";; *--version*) exit 0;; esac\n'
    script(tmp_path / ".venv/bin", "python", f"{pip}echo PIP\nexit 1\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(shutil.which(name) or name)

    def run(driver: str, compiler: str | None = "gcc", header: bool = True, **environment: str) -> str:
        script(tools, "nvidia-smi", SMI.format(driver=driver))
        if compiler:
            script(tools, compiler, "#!/bin/sh\n")
        if not header:
            without = pip.replace(f'exec {sys.executable} "$@"', "echo /none; exit")
            script(tmp_path / ".venv/bin", "python", f"{without}echo PIP\nexit 1\n")
        done = subprocess.run(
            ["make", "setup", "KIND=gpu"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": str(tools), **environment},
        )  # fmt: skip
        assert done.returncode != 0
        return done.stdout + done.stderr

    return run


def test_setup_takes_a_machine_that_has_all(setup: Callable[..., str]) -> None:
    assert "PIP" in setup("580.65.06")
    assert "PIP" in setup("N/A")  # what cannot be read is not refused


@pytest.mark.parametrize(
    ("driver", "compiler", "header", "told"),
    [
        ("575.57.08", "gcc", True, "driver here is 575.57.08; CUDA 13 needs 580 or newer: .*KIND=cpu"),
        ("580.65.06", None, True, "C compiler .* apt-get install gcc"),
        ("580.65.06", "clang", False, "/none/Python.h .*python3-dev"),
    ],
)
def test_setup_says_what_is_lacking(
    setup: Callable[..., str], driver: str, compiler: str | None, header: bool, told: str
) -> None:
    text = setup(driver, compiler, header)
    lines = [line for line in text.splitlines() if line.startswith("make setup: ")]
    assert "PIP" not in text and len(lines) == 1

    assert re.search(told, lines[0]), lines


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has all, as far as Python is told: its tools' folder, which is all of PATH."""
    script(tmp_path, "nvidia-smi", SMI.format(driver="580.65.06"))
    script(tmp_path, "gcc", "#!/bin/sh\n")
    (tmp_path / "Python.h").write_text("")
    (tmp_path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(gpu, "gpu_is_there", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    gpu.check_gpu.cache_clear()
    return tmp_path


def refusal() -> str:
    with pytest.raises(UserError) as raised:
        gpu.check_gpu()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_whole_machine_passes(machine: Path) -> None:
    gpu.check_gpu()
    assert compiler_is_there()


def test_an_old_driver_is_refused_with_both_versions(machine: Path) -> None:
    script(machine, "nvidia-smi", SMI.format(driver="570.1"))
    assert "570.1" in refusal() and "580" in refusal() and "KIND=cpu" in refusal()


def test_a_gpu_that_torch_does_not_see_is_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch" in refusal() and "sees none" in refusal() and "CUDA_VISIBLE_DEVICES" in refusal()
    monkeypatch.setattr(torch.version, "cuda", None)  # a list for the CPU was chosen
    gpu.check_gpu()


@pytest.mark.parametrize("lacking", ["gcc", "Python.h"])
def test_a_missing_compiler_or_header_is_refused(machine: Path, lacking: str) -> None:
    os.unlink(machine / lacking)
    assert lacking in refusal() and "apt-get install" in refusal()
    assert not compiler_is_there()


def test_a_compiler_named_by_cc_is_enough(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.rename(machine / "gcc", machine / "gcc-12")
    monkeypatch.setenv("CC", "gcc-12 -O2")
    gpu.check_gpu()


def test_without_a_gpu_nothing_is_asked(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "gpu_is_there", lambda: False)
    os.unlink(machine / "gcc")
    gpu.check_gpu()
