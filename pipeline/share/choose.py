"""The round to export, the training in its adapters, and public names of their bases."""

from __future__ import annotations

import re
from pathlib import Path

from data import gate, shards
from data.config.sections import PeerSection
from data.errors import UserError
from data.run import OUTPUT, Run
from evaluate.gate import best, gate_rounds
from peers.policy import Policy
from peers.source import base_model, is_local

HUB_NAME = r"[\w.-]+/[\w.-]+"
NAMED_BY = ("_model_name_or_path", "_name_or_path")  # keys of config.json; the first has a GGUF file's own name


def choose_round(run: Run, requested: int | None) -> tuple[int, str]:
    """(the round, why). Raises UserError if it has no adapters."""
    folders = run.root.glob(f"round=*/{OUTPUT['train']}/{shards.SUCCESS}")
    trained = sorted(int(path.parent.parent.name.split("=")[1]) for path in folders)
    if not trained:
        raise UserError(f"run {run.name!r} has no trained round yet: run `make round RUN={run.name} ROUND=1` first")
    if requested is not None:
        if requested not in trained:
            known = ", ".join(map(str, trained))
            raise UserError(f"round {requested} of run {run.name!r} has no adapters; trained rounds: {known}")
        return requested, "as requested"
    if not gate.is_on(run.config):
        return trained[-1], "the last trained one (without a gate to say which is best)"
    if 0 not in gate_rounds(run.name):
        raise UserError(f"the gate of run {run.name!r} has judged nothing yet: name a round (ROUND={trained[-1]})")
    found = best(run.name)
    if found.round == 0:
        raise UserError(
            f"the best round of run {run.name!r} by the gate is 0, the untouched peers, so there is no adapter to "
            f"export; ROUND={trained[-1]} exports that round's adapters anyway"
        )
    return found.round, f"the gate's best (agreement {100 * found.agreement:.1f} %)"


def lineage(run: Run, policy: Policy) -> list[int]:
    """The rounds whose training is in an adapter, in order: training never continues from a refused adapter."""
    rounds, round_ = [], policy.round
    while round_:
        rounds.append(round_)
        round_ = gate.in_use(run, round_ - 1)[policy.name]
    return rounds[::-1]


def parse_bases(given: list[str], run: Run) -> dict[str, str]:
    """{peer: hub name of its base} from PEER=OWNER/NAME. Raises UserError for anything else."""
    found = {}
    for text in given:
        peer, _, name = text.partition("=")
        if peer not in run.config.peer_names or not re.fullmatch(HUB_NAME, name):
            raise UserError(
                f"--base {text!r}: expected PEER=OWNER/NAME, a hub name for one of {', '.join(run.config.peer_names)}"
            )
        found[peer] = name
    return found


def public_base(policy: Policy, bases: dict[str, str]) -> str:
    """The base as named in an exported adapter: a hub name if there is one, a relative path if it is in the project,
    else "local: " and the model's own name. Never an absolute path of this machine."""
    peer = policy.peer
    if peer.name in bases:
        return bases[peer.name]
    if not is_local(peer) or peer.adapter is not None:
        return base_model(peer)
    if isinstance(peer.model, str) and _below_here(peer):
        return peer.model
    about = shards.read_json(policy.base / "config.json")
    called = [about[key] for key in NAMED_BY if isinstance(about.get(key), str) and about[key][:1] not in ("", *"./~")]
    return f"local: {called[0]}" if called else base_model(peer)


def is_hub_name(base: str) -> bool:
    """Whether a base can be downloaded by its name."""
    return re.fullmatch(f"{HUB_NAME}|[\\w.-]+", base) is not None and not Path(base).exists()


def _below_here(peer: PeerSection) -> bool:
    path = Path(str(peer.model))
    return path.is_dir() and not path.is_absolute() and ".." not in path.parts
