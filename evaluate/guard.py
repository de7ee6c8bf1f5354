"""A guard against collapse: a peer's metrics of a round against those of the untouched peer.

Self-training can go wrong without a sign in the loss: answers become alike, vanish, or become wrong. The guard looks
for four signs, each against round 0 on the same benchmark:

- **alike**: different questions get the same answers (`distinct_answers` falls) and no more of them are right;
- **narrow**: the samples of a question agree more (`answer_entropy` falls), so do the peers (`peer_agreement` rises),
  and fewer questions have a right one among them (`pass_at_k` falls);
- **silent**: more greedy responses have no answer (`unanswered_rate` rises);
- **wrong**: far fewer samples are right (`sample_accuracy` falls).

A model that got better is narrow, too, but right: without the benchmarks' answers the two look the same. That is why
the guard belongs to evaluate. Who lets it stop a run should give it other questions than those of the final test.
"""

from __future__ import annotations

from data import shards
from data.config.sections import GuardSection
from data.guard import write_decision
from data.run import Run, metrics_path
from data.schema import METRICS
from data.shards import Row


def signs(before: Row, after: Row, section: GuardSection) -> list[str]:
    """The signs of collapse in a peer's metrics on a benchmark, with the figures."""
    found = []

    def fell(name: str) -> bool:
        return bool(after[name] < (1 - section.diversity_fall) * before[name])

    if fell("distinct_answers") and after["em"] <= before["em"]:
        found.append(f"different questions get the same answers: distinct {_change(before, after, 'distinct_answers')}")
    agreement = after["peer_agreement"] - before["peer_agreement"]
    less = before["pass_at_k"] - after["pass_at_k"]
    if fell("answer_entropy") and agreement > section.agreement_rise and less > section.pass_at_k_fall:
        found.append(
            f"samples agree more, fewer questions have a right one: entropy {before['answer_entropy']:.2f} → "
            f"{after['answer_entropy']:.2f} nats, agreement of the peers {_change(before, after, 'peer_agreement')}, "
            f"pass@k {_change(before, after, 'pass_at_k')}"
        )
    if after["unanswered_rate"] - before["unanswered_rate"] > section.silence_rise:
        found.append(f"responses without an answer {_change(before, after, 'unanswered_rate')}")
    if after["sample_accuracy"] < (1 - section.accuracy_fall) * before["sample_accuracy"]:
        found.append(f"right samples {_change(before, after, 'sample_accuracy')}")
    return found


def _change(before: Row, after: Row, name: str) -> str:
    return f"{100 * before[name]:.1f} → {100 * after[name]:.1f} %"


def findings(run: Run, round_: int) -> list[str]:
    """The signs in a round's metrics, a line per peer and benchmark; none for round 0 or without metrics."""
    paths = [run.round_dir(number) / "metrics.parquet" for number in (0, round_)]
    if round_ == 0 or not all(path.is_file() for path in paths):
        return []
    before, after = (shards.read_rows(path, METRICS) for path in paths)
    return find_signs(before, after, run.config.guard)


def find_signs(before: list[Row], after: list[Row], section: GuardSection) -> list[str]:
    """The signs in a round's metrics against those of round 0, a line per peer and benchmark. Pure."""
    base, now = ({(row["benchmark"], row["peer"]): row for row in rows} for rows in (before, after))
    found = {key: signs(base[key], now[key], section) for key in now if key in base}
    return [f"{peer} on {benchmark}: {'; '.join(seen)}" for (benchmark, peer), seen in found.items() if seen]


def decide(run: Run, round_: int) -> list[str]:
    """The round's findings. They are also written for the next round (data/guard.py), unless this is round 0 or the
    metrics of this round or of round 0 are missing."""
    found = findings(run, round_)
    if round_ and all(metrics_path(run.name, number).is_file() for number in (0, round_)):
        write_decision(run, round_, found)
    return found
