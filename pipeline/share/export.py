"""`make export`: each peer's adapter of a round in peft's format, with a card; on request also merged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from data import shards
from data.console import console
from data.errors import UserError
from data.locks import locked
from data.run import RUNS, Run, check_run, load_frozen
from data.stage import FORMAT, versions
from peers.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS, write_merged
from peers.policy import Policy, resolve_all
from peers.source import is_local
from peers.start import PROOF
from pipeline.share.archive import hidden_sibling, put, undo_partial_put
from pipeline.share.card import write_card
from pipeline.share.check import MERGED, check_exports
from pipeline.share.choose import choose_round, parse_bases, public_base
from pipeline.share.files import CARD, EXPORT


def export(
    name: str, round_: int | None, out: Path | None, merged: bool, check: int, tokens: int | None, bases: list[str]
) -> Path:
    """Write runs/<run>/export, or `out`, with a folder per peer; replaces an earlier export as a whole.

    Raises UserError if there is no adapter to export, one does not answer like the run's policy, `out` is anything but
    an export, or another process holds the run.
    """
    check_run(name)
    run = Run(name, load_frozen(name))
    named = parse_bases(bases, run)
    target = out or run.root / EXPORT
    with locked(run.root, "wait for it or stop it, then export"):
        undo_partial_put(target)
        _check_target(target)
        chosen, why = choose_round(run, round_)
        console.print(f"round {chosen} of run {name}: {why}", markup=False)
        policies = _with_adapters(run, chosen)
        work = hidden_sibling(target, "exporting")
        shutil.rmtree(work, ignore_errors=True)  # left by a killed command
        try:
            _write(run, chosen, policies, work, merged, named, check, tokens)
            put(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    console.print(f"{target}: {', '.join(policies)}", markup=False)
    return target


def _check_target(target: Path) -> None:
    """Raises UserError if the target is no export, or if someone has edited its cards."""
    if not target.exists() or (target.is_dir() and _empty(target)):
        return
    if not (target / shards.SUCCESS).is_file():
        raise UserError(f"{target} exists and is no finished export, so it is kept: give another OUT=FOLDER")
    for name, checksum in shards.read_json(target / shards.SUCCESS).get("cards", {}).items():
        card = target / name
        if card.is_file() and shards.checksum(card) != checksum:
            raise UserError(f"{card} was edited, so it is not replaced: give another OUT=FOLDER, or move it away")


def _empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def _with_adapters(run: Run, round_: int) -> dict[str, Policy]:
    """The policies after a round that have an adapter. Raises UserError if none has."""
    policies = resolve_all(run, round_)
    for name, policy in policies.items():
        if policy.adapter is None:
            console.print(f"  {name}: the gate let no adapter through, so the peer is untouched: nothing to export")
        elif policy.round != round_:
            console.print(
                f"  {name}: the gate refused its adapter of round {round_}: exporting that of round {policy.round}"
            )
    found = {name: policy for name, policy in policies.items() if policy.adapter is not None}
    if not found:
        raise UserError(f"after round {round_} of run {run.name!r} every peer is untouched: there is nothing to export")
    return found


def _write(
    run: Run,
    round_: int,
    policies: dict[str, Policy],
    work: Path,
    merged: bool,
    bases: dict[str, str],
    check: int,
    tokens: int | None,
) -> None:
    names = {name: public_base(policy, bases) for name, policy in policies.items()}
    for name, policy in policies.items():
        write_adapter(policy, names[name], work / name)
        if merged:
            write_checkpoint(policy, work / name / MERGED)
        if names[name].startswith("local: "):
            console.print(
                f"  {name}: its base has no public name (it is written as {names[name]!r}): "
                f"BASE={name}=OWNER/NAME gives it a name on the hub",
                markup=False,
                soft_wrap=True,
            )
    checked = check_exports(run, policies, work, check, tokens) if check else {}
    for name, agreements in checked.items():
        console.print(f"  {name}: {'; '.join(map(str, agreements))}", markup=False)
    for name, policy in policies.items():
        write_card(run, round_, policy, names[name], checked.get(name, []), work / name / CARD, False)
        if merged:
            write_card(run, round_, policy, names[name], checked.get(name, []), work / name / MERGED / CARD, True)
    cards = sorted(work.rglob(CARD))
    about: dict[str, Any] = {
        "run": run.name,
        "round": round_,
        "format": FORMAT,
        "merged": merged,
        "peers": {name: {"round": policy.round, "base": names[name]} for name, policy in policies.items()},
        "cards": {str(card.relative_to(work)): shards.checksum(card) for card in cards},
        "checks": {name: [vars(each) for each in found] for name, found in checked.items()},
        "versions": versions(),
    }
    shards.write_manifest(work, about, sorted(p for p in work.rglob("*") if p.is_file() and p not in cards))


def write_adapter(policy: Policy, base: str, target: Path) -> None:
    """Write the adapter as peft loads it, with the public name of its base."""
    assert policy.adapter is not None
    target.mkdir(parents=True)
    shutil.copyfile(policy.adapter / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS)
    config = shards.read_json(policy.adapter / ADAPTER_CONFIG)
    revision = None if is_local(policy.peer) else policy.peer.revision
    shards.write_json({**config, "base_model_name_or_path": base, "revision": revision}, target / ADAPTER_CONFIG)
    about = {key: value for key, value in shards.read_json(policy.adapter / PROOF).items() if key != "adapter"}
    shards.write_json({**about, "base": base}, target / PROOF)


def write_checkpoint(policy: Policy, target: Path) -> None:
    """Write base and adapter merged as the run merges them, bit for bit, with tokenizer and config."""
    assert policy.adapter is not None
    write_merged(policy.base, policy.adapter, target, policy.peer.dtype, policy.rounding_seed)


def exported(run: str, out: Path | None) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished export and its manifest. Raises UserError if it is missing or damaged."""
    folder = out or RUNS / run / EXPORT
    manifest = shards.read_manifest(folder)
    if manifest is None:
        raise UserError(f"there is no export in {folder}: run `make export RUN={run}` first")
    return folder, manifest
