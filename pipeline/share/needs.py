"""What a run needs beyond its archive: the peers' models and the files of questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data import shards
from data.config.sections import Config, SourceSection
from data.errors import UserError
from data.files import list_files, looks_like_files
from data.run import OUTPUT, Run
from peers.source import is_local, missing_files


def models_of(run: Run) -> list[dict[str, Any]]:
    """Each peer's model as the config names it, and what identifies its weights: `weights` is the fingerprint of the
    model directory (peers/weights.py), None if the run has not used it yet."""
    weights = _fingerprints(run)
    return [
        {
            "peer": peer.name,
            "model": peer.model,
            "revision": peer.revision,
            "adapter": peer.adapter,
            "dtype": peer.dtype,
            "sha256": peer.sha256,
            "weights": weights.get(peer.name),
            "local": is_local(peer),
        }
        for peer in run.config.peers
    ]


def _fingerprints(run: Run) -> dict[str, str]:
    """{peer: identity of its untouched base}, as recorded by the first stages of the run."""
    for round_, stage in ((0, "evaluate"), (1, "generate"), (1, "train")):
        path = run.stage_dir(round_, OUTPUT[stage]) / shards.SUCCESS
        if path.is_file():
            return dict(zip(run.config.peer_names, shards.read_json(path)["fingerprint"]["policies"], strict=True))
    return {}


def not_here(config: Config, models: list[dict[str, Any]]) -> list[str]:
    """A line for each model and each file of questions that the config names by a path and that is missing here."""
    about = {each["peer"]: each for each in models}
    lines = []
    for peer in config.peers:
        try:
            missing = missing_files(peer, about.get(peer.name, {}).get("local", False))
        except UserError as error:  # a package that is not installed
            lines.append(str(error))
            continue
        weights = about.get(peer.name, {}).get("weights")
        known = f" (weights with the fingerprint {weights})" if weights else ""
        lines += [f"peer {peer.name}{known}: {path} is not here: {_way_out(path)}" for path in missing]
    sections: list[tuple[str, SourceSection]] = [("prompts", config.prompts)]
    sections += [(f"benchmark {benchmark.name}", benchmark) for benchmark in config.benchmarks]
    for what, section in sections:
        source = section.here(section.source)
        if looks_like_files(source) and "://" not in source:
            try:
                list_files(source, section.split, what)
            except UserError:
                lines.append(f"{what}: {source} is not here: {_way_out(source)}")
    return list(dict.fromkeys(lines))


def _way_out(path: Path | str) -> str:
    return f"put it there, or say where it is with `make unpack PLACES={path}=/NEW/PLACE`"
