"""Tables of a run for the terminal: metrics, changes, cross-verification, and the config that they depend on."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from statistics import fmean

from rich import box
from rich.markup import escape
from rich.table import Table

from data import shards
from data.config.sections import Config
from data.fork import fork_notice
from data.keep import KEEP_FILE
from data.run import RUNS, load_frozen
from data.schema import CROSS, METRICS
from data.shards import Row
from evaluate.changes import MEAN, Change
from evaluate.gate import refused_notice
from evaluate.intervals import Estimate

OF_VERIFIER = (  # not shown of a verifier that decided nothing, even its accuracy, which is 1/2 by definition
    "gv_gap",
    "gv_gap_lo",
    "gv_gap_hi",
    "gv_gap_70",
    "gv_gap_global",
    "gv_gap_rel",
    "verifier_auroc",
    "verifier_accuracy",
)


def oracle_notice(run: str) -> str:
    """The notice in every table of a run whose training examples were chosen by gold answers; else nothing."""
    if any((RUNS / run).glob(f"round=*/{KEEP_FILE}")):
        return "\n[bold]oracle: gold answers chose the examples to train on[/bold]"
    return ""


def metrics_table(run: str, rounds: list[int]) -> Table:
    """benchmark × peer × round: exact match, accuracy of samples, gap under both verifiers, AUROC, pass@k, maj@k, and
    what a verifier that writes critiques left undecided; last the means over benchmarks and peers, each counted
    once."""
    rows: list[tuple[int, Row]] = [
        (round_, decided(row))
        for round_ in rounds
        for row in shards.read_rows(RUNS / run / f"round={round_}" / "metrics.parquet", METRICS)
    ]
    order = {name: i for i, name in enumerate(dict.fromkeys(row["benchmark"] for _, row in rows))}
    peers = {name: i for i, name in enumerate(dict.fromkeys(row["peer"] for _, row in rows))}
    rows.sort(key=lambda pair: (order[pair[1]["benchmark"]], peers[pair[1]["peer"]], pair[0]))
    sizes = {row["benchmark"]: (row["n"], row["k"]) for _, row in rows}
    shown = ", ".join(f"{name}: {n} questions, k = {k}" for name, (n, k) in sizes.items())
    title = f"run {run}, in %, with 95 % bootstrap intervals over questions\n{shown}"
    config = load_frozen(run)
    if config.prompts.overlap == "transductive":
        title += "\n[bold]transductive: training questions may also be benchmark questions[/bold]"
    title += (
        fork_notice(run)
        + oracle_notice(run)
        + refused_notice(run)
        + "".join(unscored_notice(run, round_) for round_ in rounds)
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("benchmark", "peer", "round"):
        table.add_column(name)
    columns = {
        "EM": "em",
        "samples": "sample_accuracy",
        "GV-Gap": "gv_gap",
        "frozen": "gv_gap_frozen",
        "AUROC": "verifier_auroc",
        "undecided": "verifier_undecided",
        "pass@k": "pass_at_k",
        "maj@k": "maj_at_k",
    }
    if config.evaluate.verifier != "cot":
        del columns["undecided"]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    if len(order) * len(peers) > 1:
        rows += [
            (round_, _mean([row for number, row in rows if number == round_], columns.values())) for round_ in rounds
        ]
    last = None
    for round_, row in rows:
        group = (row["benchmark"], row["peer"])
        if last not in (None, group):
            table.add_section()
        table.add_row(
            row["benchmark"] if group != last else "",
            row["peer"] if group != last else "",
            str(round_),
            *(_interval(row, name) for name in columns.values()),
        )
        last = group
    return table


def unscored_notice(run: str, round_: int) -> str:
    """The notice in the tables of a round with samples whose verifier scores were not finite; else nothing."""
    path = RUNS / run / f"round={round_}" / "evals" / shards.SUCCESS
    counts = shards.read_json(path).get("scores_not_finite", {}) if path.is_file() else {}
    named = ", ".join(f"{who} {count}" for who, count in counts.items())
    return (
        f"\n[bold]round {round_}: samples without a finite verifier score, left out of gaps and AUROC: {named}[/bold]"
        if named
        else ""
    )


def gap_table(run: str, rounds: list[int]) -> Table:
    """benchmark × peer × round: the gap under every threshold, and the verifier's accuracy."""
    title = "GV-Gap in full, in %; none kept: number of questions of which one threshold for all keeps no sample"
    table = Table(title=title + oracle_notice(run), title_justify="left")
    columns = {
        "gv_gap": f"top {100 * load_frozen(run).evaluate.keep:g} %",
        "gv_gap_frozen": "frozen verifier",
        "gv_gap_70": "top 70 %",
        "gv_gap_global": "one threshold for all",
        "gv_gap_rel": "share of the possible gain",
        "verifier_accuracy": "verifier accuracy",
    }
    for name in ("benchmark", "peer", "round", *columns.values(), "none kept"):
        table.add_column(name)
    for benchmark, peer, round_, row in _by_round(run, rounds):
        numbers = (_interval(decided(row), name) for name in columns)
        table.add_row(benchmark, peer, str(round_), *numbers, str(row["n_none_kept"]))
    return table


def _by_round(run: str, rounds: list[int]) -> list[tuple[str, str, int, Row]]:
    """(benchmark, peer, round, row of metrics), in this order."""
    rows = [
        (row["benchmark"], row["peer"], round_, row)
        for round_ in rounds
        for row in shards.read_rows(RUNS / run / f"round={round_}" / "metrics.parquet", METRICS)
    ]
    return sorted(rows, key=lambda entry: entry[:3])


def decided(row: Row) -> Row:
    """A row without the metrics of a verifier that decided nothing: a gap of 0 would look measured."""
    blank = list(OF_VERIFIER) if row["verifier_undecided"] == 1 else []
    if row.get("verifier_undecided_frozen") == 1:
        blank.append("gv_gap_frozen")
    return row | dict.fromkeys(blank)


def _mean(rows: list[Row], names: Iterable[str]) -> Row:
    """The mean of each number over the rows that have it, without an interval."""
    means: Row = {"benchmark": "mean", "peer": ""}
    for name in names:
        known = [row[name] for row in rows if row[name] is not None]
        means[name] = fmean(known) if known else None
    return means


def _number(value: float | None) -> str:
    return "–" if value is None else points(value)


def points(share: float, sign: str = "", digits: int = 1) -> str:
    """A share in percent, without "%"."""
    return f"{round(100 * share, digits) + 0.0:{sign}.{digits}f}"  # + 0.0: no -0.0


def _interval(row: Row, name: str) -> str:
    if row.get(f"{name}_lo") is None:
        return _number(row[name])
    return f"{_number(row[name])} ({_number(row[f'{name}_lo'])} to {_number(row[f'{name}_hi'])})"


def change_table(run: str, found: list[Change]) -> Table | None:
    """benchmark × peer × round: the change of exact match and gap since round 0 (`evaluate.changes`), in points, with
    paired bootstrap intervals over questions; last the means. The gap's change is also a share of round 0's gap if the
    interval of that gap excludes 0. None without changes."""
    if not found:
        return None
    title = "change since round 0, in points, with 95 % paired bootstrap intervals over questions" + oracle_notice(run)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("benchmark", "peer", "round"):
        table.add_column(name)
    for name in ("EM", "GV-Gap", "of round 0's gap"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = [each for each in found if each.group[0] != MEAN or not each.group[1]]  # no peer's own mean
    for group, of in groupby(shown, key=lambda each: each.group):
        for number, each in enumerate(of):
            share, before = "–", each.gap_before
            if each.gap is not None and before is not None and not before.contains_zero:
                share = f"{points(each.gap.mean / before.mean, '+', 0)} %"
            names = group if number == 0 else ("", "")
            cells = (_change(each.em, each.em_same), _change(each.gap, each.gap_same))
            table.add_row(*names, str(each.round), *cells, share)
        table.add_section()
    return table


def _change(found: Estimate | None, same: bool) -> str:
    if found is None:
        return "–"
    if same:
        return "+0.0 (none differs)"
    if found.low is None or found.high is None:
        return points(found.mean, "+")
    return f"{points(found.mean, '+')} ({points(found.low, '+')} to {points(found.high, '+')})"


def cross_table(run: str, rounds: list[int]) -> Table | None:
    """A matrix per benchmark and round: the gap of a generator's samples (rows) under a verifier (columns), with what a
    verifier that writes critiques left undecided. None if no round was cross-verified."""
    paths = {n: RUNS / run / f"round={n}" / "cross.parquet" for n in rounds}
    found = {n: shards.read_rows(path, CROSS) for n, path in paths.items() if path.is_file()}
    if not found:
        return None
    rows = [(row["benchmark"], n, row) for n, rows in found.items() for row in rows]
    benchmarks, verifiers = (list(dict.fromkeys(row[key] for *_, row in rows)) for key in ("benchmark", "verifier"))
    title = "cross-verification: GV-Gap in %, samples of a generator (rows) under a verifier (columns)"
    writes = load_frozen(run).evaluate.verifier == "cot"
    title += f"{'; after the semicolon what it left undecided' if writes else ''}{oracle_notice(run)}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)

    def cell(row: Row) -> str:
        undecided = f"; {_number(row['verifier_undecided'])}" if writes else ""
        return _interval(decided(row), "gv_gap") + undecided

    for name in ("benchmark", "round", "generator"):
        table.add_column(name)
    for name in verifiers:
        table.add_column(name, justify="right")
    for benchmark in benchmarks:
        for n in found:
            cells = {(row["peer"], row["verifier"]): row for row in found[n] if row["benchmark"] == benchmark}
            for number, peer in enumerate(dict.fromkeys(generator for generator, _ in cells)):
                names = (benchmark, str(n)) if number == 0 else ("", "")
                table.add_row(*names, peer, *(cell(cells[peer, verifier]) for verifier in verifiers))
            table.add_section()
    return table


def diversity_table(run: str, rounds: list[int]) -> Table:
    """benchmark × peer × round: what the guard against collapse looks at (evaluate/guard.py)."""
    title = "diversity, in % except for entropy (nats) and length (tokens)" + oracle_notice(run)
    table = Table(title=title, title_justify="left")
    columns = {
        "EM": "em",
        "pass@k": "pass_at_k",
        "distinct answers": "distinct_answers",
        "agreement of peers": "peer_agreement",
        "without answer": "unanswered_rate",
    }
    for name in ("benchmark", "peer", "round", *columns, "entropy", "length"):
        table.add_column(name)
    for benchmark, peer, round_, row in _by_round(run, rounds):
        shares = (_number(row[column]) for column in columns.values())
        table.add_row(
            benchmark, peer, str(round_), *shares, f"{row['answer_entropy']:.2f}", f"{row['mean_tokens']:.1f}"
        )
    return table


def choices_table(config: Config) -> Table:
    """The resolved config keys that the numbers depend on."""
    table = Table(title="choices", title_justify="left")
    table.add_column("key")
    table.add_column("value")
    gate = ("gate",) if config.gate.questions else ()
    for section in ("run", "generate", "score", "train", "evaluate", *gate, "guard"):
        for key, value in getattr(config, section).model_dump().items():
            table.add_row(f"{section}.{key}", escape(str(value)))
    for peer in config.peers:
        table.add_row(f"peer {peer.name}", escape(f"{peer.model} ({peer.dtype})"))
        table.add_row(f"wording of {peer.name}", escape(config.wording_name(peer)))
    return table


def training_table(run: str, rounds: list[int]) -> Table:
    """Per round and peer: examples and loss, and merge fidelity if it was measured."""
    title = "training; loss in nats/token, weighted (signed weights: the clipped surrogate)"
    table = Table(title=title, title_justify="left")
    manifests = {n: shards.read_manifest(RUNS / run / f"round={n}" / "adapters") for n in rounds}
    reports = [(n, *item) for n, manifest in manifests.items() for item in (manifest or {}).get("peers", {}).items()]
    measured = any("merge_fidelity" in report for *_, report in reports)
    for name in ("round", "peer", "examples", "loss", *(["merge fidelity (%)"] if measured else [])):
        table.add_column(name)
    for round_, name, report in reports:
        fidelity = [_number(report.get("merge_fidelity", {}).get("fidelity"))] if measured else []
        table.add_row(str(round_), name, str(report["examples"]), report["loss"], *fidelity)
    return table
