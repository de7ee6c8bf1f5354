"""Which questions fit the peers' contexts."""

from __future__ import annotations

from data import shards
from data.config.sections import GenerateSection
from data.errors import UserError
from data.run import Run
from data.schema import PromptRow
from peers.prompts import PeerPrompts


def check_questions(run: Run, prompts: dict[str, PeerPrompts]) -> None:
    """Raises UserError if no question fits all peers' contexts. Stops at the first shard with a question that does."""
    section = run.config.generate
    number = 0
    for path in shards.shard_paths(run.prompts_dir):
        rows = shards.rows_of(path, PromptRow)
        if len(too_long(rows, prompts, max_prompt_tokens(section))) < len(rows):
            return
        number += len(rows)
    raise UserError(
        f"all {number} questions are longer than the context: generate.context_tokens {section.context_tokens} "
        f"less max_new_tokens {section.max_new_tokens} leaves {max_prompt_tokens(section)} tokens for a prompt; "
        "raise context_tokens or lower max_new_tokens"
    )


def max_prompt_tokens(section: GenerateSection) -> int:
    """Longest prompt in tokens."""
    return section.context_tokens - section.max_new_tokens


def too_long(rows: list[PromptRow], prompts: dict[str, PeerPrompts], limit: int) -> dict[str, str]:
    """{id: reason} of the questions whose prompts take some peer more than `limit` tokens."""
    asked = [(row["question"], ()) for row in rows]
    lengths = {name: [len(ids) for ids in p.all_of("solve", asked)] for name, p in prompts.items()}
    found = {}
    for index, row in enumerate(rows):
        longest = max(lengths, key=lambda name: lengths[name][index])
        if lengths[longest][index] > limit:
            found[row["id"]] = f"{lengths[longest][index]} tokens for {longest}, room for {limit}"
    return found
