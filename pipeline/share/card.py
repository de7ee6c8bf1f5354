"""The model card of an exported adapter or merged checkpoint: README.md with the front matter that the hub reads."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from data import gate, shards
from data.config.sections import Config
from data.run import Run, metrics_path
from data.schema import METRICS
from data.shards import Row
from evaluate.intervals import estimate
from evaluate.items import item_values, matrices
from evaluate.tables import oracle_notice
from peers.policy import Policy
from peers.source import is_local
from pipeline.share.check import OutputAgreement
from pipeline.share.choose import is_hub_name, lineage

TEMPLATE = Path(__file__).with_name("card.md.j2")
FILL = "FILL-IN"
TAGS = ("self-training", "peer-prediction", "lora")
EXAMPLE = "QUESTION"  # stands for the question in the card's prompt
PLAIN_QUESTION = "Tom has 3 boxes with 4 pens each. How many pens does he have?"


def write_card(
    run: Run, round_: int, policy: Policy, base: str, checked: list[OutputAgreement], target: Path, merged: bool
) -> None:
    """Write a card. `round_` is the exported round; if the gate refused the peer's adapter of that round, the policy is
    of an earlier one."""
    from jinja2 import Environment, StrictUndefined

    config = run.config
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)  # Markdown: nothing to escape
    manifest = shards.read_json(run.stage_dir(policy.round, "adapters") / shards.SUCCESS)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        front=front_matter(base, merged),
        title=f"{run.name}, {policy.name}, round {policy.round}",
        kind="Merged checkpoint" if merged else "LoRA adapter",
        merged=merged,
        as_measured=policy.checkpoint is not None,
        peer=policy.name,
        run=run.name,
        round=policy.round,
        peers=config.peer_names,
        oracle=bool(oracle_notice(run.name)),
        base=_base(policy, base),
        data=_data(run, policy),
        method=_method(config),
        gate=_gate(run, round_, policy),
        results=results(run, round_, policy.name),
        checked=checked,
        **_prompt(policy),
        keep=f"{100 * config.evaluate.keep:g}",
        tokens=config.generate.max_new_tokens,
        rank=config.train.rank,
        versions=", ".join(f"{name} {number}" for name, number in manifest["versions"].items()),
    )
    target.write_text(text, encoding="utf-8")


def _prompt(policy: Policy) -> dict[str, Any]:
    """The peer's prompt, and what ends its responses."""
    prompts = policy.prompts
    ids = prompts.solve(EXAMPLE)
    text = str(prompts.tokenizer.decode(ids))
    exact = prompts.tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    return {
        "prompt": repr(text),
        "exact": exact,
        "question": PLAIN_QUESTION,
        "stops": prompts.stop_strings,
        "stop_ids": prompts.stop_ids,
    }


def front_matter(base: str, merged: bool) -> str:
    """YAML for the hub. FILL marks what a person must fill in; until then the hub refuses the licence."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base if is_hub_name(base) else f"{FILL}/{FILL}",
        library_name="transformers" if merged else "peft",
        license=FILL,
        pipeline_tag="text-generation",
        tags=list(TAGS),
    )
    return str(data.to_yaml())


def _base(policy: Policy, base: str) -> dict[str, Any]:
    peer = policy.peer
    started = None if peer.adapter is None else _named(peer.adapter)
    return {
        "name": base,
        "on_hub": is_hub_name(base),
        "renamed": is_hub_name(base) and is_local(peer),
        "revision": peer.revision,
        "dtype": peer.dtype,
        "sha256": peer.sha256,
        "weights": policy.identity.partition("+")[0],
        "started": started,
    }


def _named(source: str) -> str:
    """A source's name without this machine's folders."""
    return PurePosixPath(source).name if source.startswith(("/", "~", "..")) else source


def _data(run: Run, policy: Policy) -> dict[str, Any]:
    prompts = shards.read_json(run.prompts_dir / shards.SUCCESS)
    section, origin = run.config.prompts, prompts["source"]
    rounds = [
        {"round": n, "examples": shards.read_json(run.stage_dir(n, "adapters") / shards.SUCCESS)["peers"][policy.name]}
        for n in lineage(run, policy)
    ]
    return {
        "questions": prompts["rows"],
        "source": _named(section.source),
        "rows": origin["rows"],
        "files": [{"name": PurePosixPath(f["name"]).name, "sha256": f["sha256"]} for f in origin["files"]],
        "rounds": [{**each, "examples": each["examples"]["examples"]} for each in rounds],
        "transductive": section.overlap == "transductive",
    }


def _method(config: Config) -> list[tuple[str, str]]:
    """The config keys that training depended on, with their values."""
    keys = {
        "run": ("seed",),
        "generate": ("order", "aggregate", "temperature", "samples", "max_new_tokens"),
        "score": ("label", "text", "scorer", "weighting", "beta", "center"),
        "train": ("rank", "alpha", "lr", "schedule", "batch_size", "epochs"),
    }
    return [
        (f"`{section}.{key}`", f"`{getattr(getattr(config, section), key)}`")
        for section, names in keys.items()
        for key in names
    ]


def _gate(run: Run, round_: int, policy: Policy) -> str:
    if not gate.is_on(run.config):
        return "No gate judged the adapter."
    found = (gate.decisions(run, policy.round) or {})[policy.name].comparisons[0]
    other = f"the adapter of round {found.against}" if found.against else "the untouched peer"
    text = (
        f"The gate accepted it: on {found.n} unlabelled questions kept apart it agrees with the votes of the untouched "
        f"peers in {100 * found.after:.1f} %, {other} in {100 * found.before:.1f} %."
    )
    return text if policy.round == round_ else f"{text} The gate refused this peer's adapter of round {round_}."


def results(run: Run, round_: int, peer: str) -> list[list[str]]:
    """A row per benchmark; none if round 0 or the round has no metrics."""
    if not all(metrics_path(run.name, n).is_file() for n in (0, round_)):
        return []
    before, after = (_metrics(run, n, peer) for n in (0, round_))
    changes = _changes(run, round_, peer)
    return [
        [
            name,
            str(row["n"]),
            *(shown(each, "em") for each in (before[name], row)),
            changes.get(name, "–"),
            *(shown(each, "gv_gap") for each in (before[name], row)),
        ]
        for name, row in after.items()
    ]


def _metrics(run: Run, round_: int, peer: str) -> dict[str, Row]:
    rows = shards.read_rows(metrics_path(run.name, round_), METRICS)
    return {row["benchmark"]: row for row in rows if row["peer"] == peer}


def _changes(run: Run, round_: int, peer: str) -> dict[str, str]:
    """{benchmark: paired change of exact match}; empty if evals are missing."""
    if not all((run.stage_dir(n, "evals") / shards.SUCCESS).is_file() for n in (0, round_)):
        return {}
    values = [item_values(run.root, n) for n in (0, round_)]
    found = {}
    for benchmark in run.config.benchmarks:
        mine = [{key: items for key, items in each.items() if key == (benchmark.name, peer)} for each in values]
        before, after = (matrices([each], "em", peer, mine)[0] for each in mine)
        change = estimate([after - before], run.config.evaluate.bootstrap, run.config.run.seed)
        found[benchmark.name] = _with_interval(change.mean, change.low, change.high, "+")
    return found


def shown(row: Row, name: str) -> str:
    """A share of a row in %, with its interval."""
    return _with_interval(row[name], row.get(f"{name}_lo"), row.get(f"{name}_hi"))


def _with_interval(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    if value is None:
        return "–"
    mean, *ends = (f"{round(100 * each, 1) + 0.0:{sign}.1f}" for each in (value, low, high) if each is not None)
    return f"{mean} ({ends[0]} to {ends[1]})" if len(ends) == 2 else mean
