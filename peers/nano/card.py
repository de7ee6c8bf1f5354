"""The model card of a nano peer."""

from __future__ import annotations

from textwrap import fill

from data.nano import GROUPS, MISREAD_AS, MISREAD_EQUATIONS, PHRASES, WORDED
from peers.nano.examples import MISREAD_SHARE, MISREADS, STRONG, WEAK, ReviewMisread

CARD = """# Nano peer {name}

A {kind} of {parameters:.2f} million parameters: 4 layers, hidden size 192, 6 heads (3 for keys and values),
byte-level BPE, embeddings tied, stored in bf16. One of three peers on which PST can be watched on a laptop.

**How it was made.** From random weights by `make peers` (peers/nano/, fixed seeds): {steps:,} steps of AdamW on
{examples} examples each, with right or deliberately wrong targets, of questions that this project generates
(data/nano.py, split `pretrain`). It saw no other text. The log is in docs/log.md.

**What it does.** Worded two-step arithmetic below 50 and worded pairs of equations below 70, in three formats: question
→ short chain of thought (`16-14=2, 2+9=11 #### 11`); question and other solutions → own solution; question and a
solution → Yes or No.

**Its planted weakness.** Asked directly, it misreads {weak} of the 22 kinds of phrases: in the first format {direct} of
its targets on questions with one of them misread it. The other peers were taught to read these rightly, and to misread
others:

{misreads}

**What it takes from others.** In the second format, the share of its targets that misread a phrase depended on how the
solutions shown read it:

| kind of phrase | all misread it | some do | none does |
|---|---|---|---|
| one of these {weak} | {own} |
| one that another peer misreads | {other} |

So it keeps its own misreading until it is shown another reading, and it can be misled. In the third format all targets
were right: it judges better than it answers, so the generator-verifier gap is planted, too.

**What it is not.** A usable language model. It knows nothing but these questions.
"""


def card(name: str, kind: str, parameters: float, steps: int, examples: int) -> str:
    """A peer's model card; `parameters` in millions, `examples` per step."""
    words = {
        f"{op}{i}": f"{text} (as {MISREAD_AS[op]} instead of {op})"
        for op in PHRASES
        for i, text in enumerate(PHRASES[op])
    }
    words |= {equation: f"{text} ({MISREAD_EQUATIONS[equation]})" for equation, text in WORDED.items()}
    items = (f"- `{group}`: {words[group]}" for group in GROUPS if group in MISREADS[name])
    misreads = "\n".join(fill(item, 120, subsequent_indent="  ", break_on_hyphens=False) for item in items)
    return CARD.format(
        name=name,
        kind=kind,
        parameters=parameters,
        steps=steps,
        examples=examples,
        misreads=misreads,
        weak=len(MISREADS[name]),
        direct=f"{MISREAD_SHARE:.0%}",
        own=_cells(WEAK),
        other=_cells(STRONG),
    )


def _cells(shares: ReviewMisread) -> str:
    return " | ".join(f"{share:.0%}" for share in (shares.all_wrong, shares.mixed, shares.all_right))
