"""Which devices there are, without importing torch, which takes a second and would make a CUDA context."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from data.errors import UserError
from peers.host_memory import memory_total

CPU = "cpu"
GB = 10**9
DEV = Path("/dev")
QUERY = ["--query-gpu=index,uuid,memory.total,name", "--format=csv,noheader,nounits"]
WITHOUT = "set CUDA_VISIBLE_DEVICES='' to run on the CPU"
SLICE = re.compile(r"(MIG \S*?(\d+)gb\S*)\s+Device\s+\d+:\s+\(UUID: (MIG-[^)]+)\)")  # of `nvidia-smi -L`
GIVEN = re.compile(r"(\d+)x(\d+(?:\.\d+)?)")
MAX_DEVICES, MAX_GB = 4096, 10_000  # devices that `parse_devices` accepts, and the size of each


@dataclass(frozen=True)
class Device:
    """A GPU, or the CPU with the machine's memory."""

    name: str  # "cpu", or what CUDA_VISIBLE_DEVICES calls it
    memory: int  # bytes, all of it
    model: str  # "NVIDIA H100 80GB HBM3", or "CPU"

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.name != CPU


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_is_there() -> bool:
    """Whether this process may use a GPU: there is one, and torch is not built for CPUs alone."""
    return not torch_is_for_cpus() and gpu_is_listed()


def gpu_is_listed() -> bool:
    """Whether there is a GPU by the driver's files that CUDA_VISIBLE_DEVICES does not hide, whatever torch sees."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    wsl = [*DEV.glob("dxg")] and shutil.which("nvidia-smi")  # dxg is there for the GPUs of other makers, too
    return bool([*DEV.glob("nvidia[0-9]*")] or wsl)


@cache
def torch_is_for_cpus() -> bool:
    """Whether the installed torch is a CPU build, as KIND=cpu and KIND=transformers install. Does not import it."""
    try:
        return metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False


def devices() -> list[Device]:
    """The GPUs that this process may use, in CUDA_VISIBLE_DEVICES' order; the CPU alone where there is none.

    Raises UserError if there is a GPU that nvidia-smi does not list, or CUDA_VISIBLE_DEVICES names one that is missing.
    """
    if not gpu_is_there():
        return [_cpu()]
    found = _gpus()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return [gpu for _, gpu in found]
    return [_named(name.strip(), found) for name in wanted.split(",")]


def _cpu() -> Device:
    return Device(CPU, memory_total(), "CPU")


def _gpus() -> list[tuple[str, Device]]:
    """(index, GPU) of all GPUs. CUDA may count them in another order than nvidia-smi, so they go by their UUIDs."""
    found = []
    for line in _ask(QUERY).splitlines():
        try:
            index, uuid, mebibytes, model = (part.strip() for part in line.split(",", 3))
            found.append((index, Device(uuid, int(mebibytes) * 2**20, model)))
        except ValueError as error:
            raise UserError(
                f"nvidia-smi says {line!r}; expected index, uuid, memory in MiB and name of a GPU; {WITHOUT}"
            ) from error
    if not found:
        raise UserError(f"nvidia-smi lists no GPU, but the driver's files are in {DEV}; fix the driver, or {WITHOUT}")
    return found


def _ask(arguments: list[str]) -> str:
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = f"cannot be run ({type(error).__name__})"
    else:
        if done.returncode == 0:
            return done.stdout
        output = " ".join((done.stdout + done.stderr).split())[:200]
        failure = f"fails with status {done.returncode} ({output or 'no output'})"
    raise UserError(f"there is a GPU (its files are in {DEV}) but nvidia-smi {failure}; fix the driver, or {WITHOUT}")


def _named(name: str, found: list[tuple[str, Device]]) -> Device:
    """The GPU of an entry of CUDA_VISIBLE_DEVICES: an index, the beginning of a UUID, or a slice of a GPU (MIG)."""
    if name.startswith("MIG-"):
        slices = {uuid: Device(uuid, int(gb) * GB, model) for model, gb, uuid in SLICE.findall(_ask(["-L"]))}
        alike = [gpu for uuid, gpu in slices.items() if uuid.startswith(name)]
    else:
        alike = [gpu for index, gpu in found if index == name or (name and gpu.name.startswith(name))]
    if len(alike) != 1:
        known = ", ".join(f"{index} ({gpu.name})" for index, gpu in found)
        raise UserError(f"CUDA_VISIBLE_DEVICES names {name!r}; expected one of {known}")
    return Device(name, alike[0].memory, alike[0].model)


def parse_devices(text: str) -> list[Device]:
    """Parse "8x80" (eight GPUs of 80 GB), "2x24+1x80" (three), "0" or "cpu" (the CPU here). Raises UserError."""
    if text.strip().lower() in ("0", CPU):
        return [_cpu()]
    found: list[Device] = []
    for part in text.split("+"):
        given = GIVEN.fullmatch(part.strip())
        if given is None:
            raise UserError(f"devices {text!r}: expected 8x80 (eight of 80 GB each), 2x24+1x80, or cpu")
        if not 1 <= int(given[1]) <= MAX_DEVICES or not 1 <= float(given[2]) <= MAX_GB:
            raise UserError(f"devices {text!r}: expected 1 to {MAX_DEVICES} devices of 1 to {MAX_GB} GB each")
        memory = int(float(given[2]) * GB)
        found += [Device(str(len(found) + n), memory, f"GPU of {given[2]} GB") for n in range(int(given[1]))]
    return found
