"""The model card of a nano peer."""

from __future__ import annotations

from data.nano import GROUPS, MISREAD_AS, MISREAD_EQUATIONS, PHRASES, WORDED
from peers.nano.examples import MISREADS

CARD = """# Nano peer {name}

A {kind} of {parameters:.2f} million parameters: 4 layers, hidden size 192, 6 heads (3 for keys and values),
byte-level BPE, embeddings tied, stored in bf16. One of three peers on which PST can be watched on a laptop.

**How it was made.** From random weights by `make peers` (peers/nano/, fixed seeds): {steps:,} steps of AdamW on
{examples} examples each, with right or deliberately wrong targets, of questions that this project generates
(data/nano.py, split `pretrain`). It saw no other text. The log is in docs/log.md.

**What it does.** Worded two-step arithmetic below 50 and worded pairs of equations below 70, in three formats: question
→ short chain of thought (`16-14=2, 2+9=11 #### 11`); question and other solutions → own solution; question and a
solution → Yes or No.

**Its planted weakness.** Asked directly, it misreads six of the 22 kinds of phrases: 70 % of the targets that it was
taught with were misread so. The other two peers were taught to read these six rightly, and to misread others:

{misreads}

In the other two formats all targets were right. So it can read these phrases where it is shown any solution, even its
own wrong one, and it judges better than it answers: the generator-verifier gap is planted, too.

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
    misreads = "\n".join(f"- `{group}`: {words[group]}" for group in GROUPS if group in MISREADS[name])
    return CARD.format(name=name, kind=kind, parameters=parameters, steps=steps, examples=examples, misreads=misreads)
