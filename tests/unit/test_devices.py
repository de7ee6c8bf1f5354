"""Which devices there are: by CUDA_VISIBLE_DEVICES and a stand-in for nvidia-smi, or as they are given."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from data.errors import UserError
from peers import devices as module
from peers import host_memory
from peers.devices import Device, devices, gpu_is_there, parse_devices, torch_is_for_cpus

TWO = "1, GPU-bbb, 24564, NVIDIA A10\n0, GPU-aaa, 81559, NVIDIA H100 80GB HBM3\n"
H100 = Device("GPU-aaa", 81559 * 2**20, "NVIDIA H100 80GB HBM3")
A10 = Device("GPU-bbb", 24564 * 2**20, "NVIDIA A10")
SLICES = "GPU 0: NVIDIA H100 (UUID: GPU-aaa)\n  MIG 2g.20gb     Device  0: (UUID: MIG-ccc)\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for /dev, one GPU's file in it, and is the PATH."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(module, "DEV", tmp_path)
    monkeypatch.setattr(module, "torch_is_for_cpus", lambda: False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvidia_smi(tmp_path, TWO)
    return tmp_path


def nvidia_smi(folder: Path, says: str, status: int = 0) -> None:
    """A stand-in: -L lists slices, anything else prints `says`."""
    script = folder / "nvidia-smi"
    script.write_text(
        f"#!/bin/bash\nif [ \"$1\" = -L ]; then printf '%s' '{SLICES}'; exit; fi\nprintf '%s' '{says}'\nexit {status}\n"
    )
    script.chmod(0o755)


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, [A10, H100]),
        ("0", [Device("0", H100.memory, H100.model)]),
        ("1,0", [Device("1", A10.memory, A10.model), Device("0", H100.memory, H100.model)]),
        ("GPU-bb", [Device("GPU-bb", A10.memory, A10.model)]),
        ("MIG-ccc", [Device("MIG-ccc", 20 * 10**9, "MIG 2g.20gb")]),
    ],
)
def test_visible_gpus_are_found_with_their_memory(
    machine: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, found: list[Device]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices() == found and all(device.is_gpu for device in found)


@pytest.mark.parametrize(
    ("version", "found"), [("2.13.0+cpu", "cpu"), ("2.13.0", "GPU-bbb"), ("2.13.0+cu130", "GPU-bbb")]
)
def test_a_torch_that_is_built_for_cpus_has_no_gpu(
    machine: Path, monkeypatch: pytest.MonkeyPatch, version: str, found: str
) -> None:
    monkeypatch.setattr(module, "torch_is_for_cpus", torch_is_for_cpus.__wrapped__)
    monkeypatch.setattr(metadata, "version", lambda _: version)
    assert devices()[0].name == found


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_hidden_gpu_is_none(machine: Path, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert not gpu_is_there() and [device.name for device in devices()] == ["cpu"]


def test_a_machine_without_a_gpu_has_its_cpu_alone(machine: Path) -> None:
    (machine / "nvidia0").unlink()
    (only,) = devices()
    assert not only.is_gpu and only.model == "CPU" and only.memory > 2**28
    (machine / "dxg").touch()  # WSL, whose GPU is another maker's
    (machine / "nvidia-smi").unlink()
    assert [device.name for device in devices()] == ["cpu"]


@pytest.mark.parametrize(
    ("says", "status", "visible", "told"),
    [
        (
            "No devices were found",
            6,
            None,
            r"nvidia-smi fails with status 6 \(No devices were found\); fix the driver",
        ),
        ("", 0, None, "lists no GPU"),
        ("N/A", 0, None, "says 'N/A'; expected index"),
        (TWO, 0, "7", r"names '7'; expected one of 1 \(GPU-bbb\), 0 \(GPU-aaa\)"),
        (TWO, 0, "GPU-", "names 'GPU-'"),
        (TWO, 0, "0,", "names ''"),
    ],
)
def test_a_gpu_that_cannot_be_used(
    machine: Path, monkeypatch: pytest.MonkeyPatch, says: str, status: int, visible: str | None, told: str
) -> None:
    nvidia_smi(machine, says, status)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError, match=told) as error:
        devices()
    assert "\n" not in str(error.value)


def test_a_gpu_without_nvidia_smi(machine: Path) -> None:
    (machine / "nvidia-smi").unlink()
    with pytest.raises(UserError, match=r"nvidia-smi cannot be run \(FileNotFoundError\)"):
        devices()


def test_devices_are_read_as_they_are_given_or_refused() -> None:
    assert [device.memory for device in parse_devices("2x24+1x80")] == [24 * 10**9] * 2 + [80 * 10**9]
    assert [device.name for device in parse_devices("2x24+1x80")] == ["0", "1", "2"]
    assert all(device.is_gpu for device in parse_devices("8x80")) and len(parse_devices("8x80")) == 8
    assert [parse_devices(text)[0].name for text in ("0", "cpu", "CPU")] == ["cpu"] * 3
    for text in ("", "8", "x80", "-1x80", "8x80+", "gpu"):
        with pytest.raises(UserError, match="expected 8x80"):
            parse_devices(text)
    for text in ("0x80", "8x0", "5000x1", "1x0.5", "1x20000"):
        with pytest.raises(UserError, match="expected 1 to 4096 devices of 1 to 10000 GB each"):
            parse_devices(text)


def test_a_containers_memory_is_its_limit_less_what_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of the machine's and all cgroups' above this process, what is read from files not counted as used."""
    monkeypatch.setattr(host_memory, "CGROUPS", tmp_path / "cgroups")
    monkeypatch.setattr(host_memory, "MINE", tmp_path / "mine")
    machine = host_memory.memory_total()
    assert machine == parse_devices("cpu")[0].memory
    limits(tmp_path / "cgroups/job", {"memory.max": 2**30, "memory.current": 2**29, "memory.stat": "inactive_file 99"})
    limits(tmp_path / "cgroups/job/step", {"memory.max": "max", "memory.current": 5, "memory.stat": ""})
    (tmp_path / "mine").write_text("0::/job/step\n")
    assert (host_memory.memory_total(), host_memory.memory_free()) == (2**30, 2**29 + 99)
    assert parse_devices("cpu")[0].memory == 2**30
    old = {"limit_in_bytes": 2**28, "usage_in_bytes": 2**27, "stat": "total_inactive_file 7"}
    limits(tmp_path / "cgroups/memory", {f"memory.{name}": value for name, value in old.items()})
    (tmp_path / "mine").write_text("11:cpu:/x\n4:memory,hugetlb:/gone\n")
    assert (host_memory.memory_total(), host_memory.memory_free()) == (2**28, 2**27 + 7)
    (tmp_path / "mine").write_text("0::/elsewhere\n")
    assert host_memory.memory_total() == machine


def limits(folder: Path, files: dict[str, object]) -> None:
    """A cgroup."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
