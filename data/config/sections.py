"""The configuration: one frozen model per section of the TOML, unknown keys refused.

Every field has a default (where one makes sense), a bound and a description; `python -m data.config.docs` makes the
list in docs/config.md from them. Only five sections may change within a run: `runtime` and `executor` (how fast and
where), `guard` (whether to go on), `tracking` and `wording` (which change nothing); so may `gate.patience`. Keys that
were added later are left out of the dump when unset (`exclude_if`), so that fingerprints stay the same.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any

from pydantic import Field, model_validator

from data.answers.kinds import is_kind
from data.config.base import NAME, NAME_BYTES, Name, Section
from data.config.peers import Example, PeerSection, TemplateSection, VoterSection, normal_paths
from data.config.questions import BenchmarkSection, PromptsSection, SourceSection, WordingSection
from data.config.runtime import ExecutorSection, RuntimeSection
from data.config.stages import (
    EvaluateSection,
    GateSection,
    GenerateSection,
    GuardSection,
    RunSection,
    ScoreSection,
    TrainSection,
)
from data.config.tracking import TrackingSection

__all__ = [
    "MEAN",
    "NAME",
    "NAME_BYTES",
    "BenchmarkSection",
    "Config",
    "EvaluateSection",
    "Example",
    "ExecutorSection",
    "GateSection",
    "GenerateSection",
    "GuardSection",
    "PeerSection",
    "PromptsSection",
    "RunSection",
    "RuntimeSection",
    "ScoreSection",
    "Section",
    "SourceSection",
    "TemplateSection",
    "TrackingSection",
    "TrainSection",
    "VoterSection",
    "WordingSection",
]

FILE_NAME_BYTES = 255  # the limit of file systems
UNIT_NAME_BYTES = len("cross~~~~00000.parquet.tmp")  # evaluate's longest file name, without the three names in it
MEAN = "mean"  # in tables: over all peers or benchmarks


class Config(Section):
    """One experiment."""

    run: RunSection = RunSection()
    prompts: PromptsSection
    templates: TemplateSection = TemplateSection()
    wordings: dict[Annotated[str, Name], TemplateSection] = Field({}, exclude_if=lambda wordings: not wordings)
    wording: WordingSection | None = Field(None, exclude_if=lambda section: section is None)
    peers: tuple[PeerSection, ...] = Field(strict=False)
    voters: tuple[VoterSection, ...] = Field((), strict=False, exclude_if=lambda voters: not voters)
    generate: GenerateSection = GenerateSection()
    score: ScoreSection = ScoreSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    benchmarks: tuple[BenchmarkSection, ...] = Field((), strict=False)  # none: a run without gold answers
    gate: GateSection = GateSection()
    guard: GuardSection = GuardSection()
    runtime: RuntimeSection = RuntimeSection()
    executor: ExecutorSection = Field(ExecutorSection(), exclude_if=lambda section: section == ExecutorSection())
    tracking: TrackingSection = Field(TrackingSection(), exclude_if=lambda section: section == TrackingSection())

    @model_validator(mode="before")
    @classmethod
    def _labels_are_of_the_prompts_kind(cls, given: Any) -> Any:
        """`evaluate.gold_answers` and `wording.answers` default to `prompts.answers`."""
        prompts = given.get("prompts") if isinstance(given, dict) else None
        kind = prompts.get("answers") if isinstance(prompts, dict) else getattr(prompts, "answers", None)
        if not isinstance(kind, str) or not is_kind(kind):  # reported for prompts.answers alone
            return given
        defaults: dict[str, dict[str, Any]] = {"evaluate": {"gold_answers": kind}, "wording": {"answers": kind}}
        for section, default in defaults.items():
            if isinstance(found := given.get(section, {} if section == "evaluate" else None), dict):
                given = {**given, section: {**default, **found}}
        return given

    @model_validator(mode="after")
    def _files_are_where_places_says(self) -> Config:
        for section in (*self.peers, self.prompts, *self.benchmarks):
            section._places.clear()
            section._places.update(self.runtime.places)
        return self

    @model_validator(mode="after")
    def _names_are_usable(self) -> Config:
        if len(self.peers) < 2:
            raise ValueError(f"peers: found {len(self.peers)}, expected at least 2 ([[peers]] tables)")
        called = "peers and voters" if self.voters else "peers"
        everyone = [*self.peer_names, *(voter.name for voter in self.voters)]
        for kind, names in ((called, everyone), ("benchmarks", [b.name for b in self.benchmarks])):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{kind}: the name {twice[0]!r} is used more than once")
            folded = Counter(name.lower() for name in names)
            alike = [name for name in names if folded[name.lower()] > 1]
            if alike:  # some file systems treat them as one
                raise ValueError(f"{kind}: the names {alike[0]!r} and {alike[1]!r} differ only by case; change one")
            temporary = [name for name in names if name.lower().endswith(".tmp")]
            if temporary:  # the unfinished checkpoint of a peer `a` is `a.tmp`
                raise ValueError(f"{kind}: the name {temporary[0]!r} ends in .tmp, like unfinished files; use another")
            if MEAN in names:  # the tables would take it for the mean of all of them
                raise ValueError(f"{kind}: the name {MEAN!r} stands for the mean of all {kind} in tables; use another")
        return self

    @model_validator(mode="after")
    def _names_fit_a_file_name(self) -> Config:
        peers, benchmark = sorted(map(len, self.peer_names)), max((len(b.name) for b in self.benchmarks), default=0)
        longest = UNIT_NAME_BYTES + sum(peers[-2:]) + benchmark
        if self.evaluate.cross_verify and longest > FILE_NAME_BYTES:
            raise ValueError(
                f"names of peers and benchmarks: two peers and a benchmark make a file name of {longest} bytes under "
                f"evaluate.cross_verify, {FILE_NAME_BYTES} are allowed; use shorter names"
            )
        return self

    @model_validator(mode="after")
    def _labels_can_be_compared(self) -> Config:
        """`prompts.answers` finds the answers that `evaluate.gold_answers` compares."""
        found, compared = self.prompts.answers, self.evaluate.gold_answers
        alike = ({"math", "numbers"}, {"choice"})
        if any((found in names) != (compared in names) for names in alike):
            raise ValueError(
                f"evaluate.gold_answers {compared!r} cannot compare the answers that prompts.answers {found!r} finds; "
                f"leave it out, or set it to {found!r}"
            )
        return self

    @model_validator(mode="after")
    def _control_has_no_samples(self) -> Config:
        if self.generate.alone and self.score.needs_samples:
            raise ValueError(
                f"generate.aggregate 'self' needs label and text 'aggregate' or 'own', found label "
                f"{self.score.label!r} and text {self.score.text!r}"
            )
        return self

    @model_validator(mode="after")
    def _critiques_have_room(self) -> Config:
        tokens, context = self.evaluate.verifier_tokens, self.generate.context_tokens
        if self.evaluate.verifier == "cot" and tokens >= context:
            raise ValueError(
                f"evaluate.verifier_tokens {tokens} must be below generate.context_tokens {context}, which include "
                "the prompt"
            )
        return self

    @model_validator(mode="after")
    def _guard_has_something_to_judge(self) -> Config:
        if self.guard.action == "stop" and not self.benchmarks:
            raise ValueError(
                "guard.action 'stop' needs a benchmark, whose metrics show a collapse; without gold answers, use "
                "gate.questions and gate.patience to end a run"
            )
        return self

    @model_validator(mode="after")
    def _wordings_are_there(self) -> Config:
        named: list[tuple[str, PeerSection | VoterSection]] = [("peers", peer) for peer in self.peers]
        named += [("voters", voter) for voter in self.voters]
        for kind, each in named:
            if each.wording is not None and each.wording not in self.wordings:
                known = f"expected one of {', '.join(self.wordings)}" if self.wordings else "there is none"
                raise ValueError(
                    f"{kind}: {each.name} has wording {each.wording!r}, which is not in [wordings]; {known}"
                )
        return self

    @model_validator(mode="after")
    def _peers_differ(self) -> Config:
        """Several peers may share a model, but those that differ only by name would answer the same."""
        first: dict[str, PeerSection] = {}
        for peer in self.peers:
            other = first.setdefault(self._peer_identity(peer), peer)
            if other is not peer:
                raise ValueError(
                    f"peers: {other.name!r} and {peer.name!r} use the model {other.model!r} and differ only by "
                    "name, so they would answer the same; give one of them other templates, stop strings, an "
                    "adapter, or another model"
                )
        return self

    def _peer_identity(self, peer: PeerSection) -> str:
        """All of a peer except its name, as JSON, with normalised paths and its resolved wording."""
        given = peer.model_dump(mode="json", exclude={"name", "templates", "wording", "sha256"})
        paths = {"model": normal_paths(peer.model), "adapter": peer.adapter and normal_paths(peer.adapter)}
        return json.dumps({**given, **paths, "templates": self.templates_of(peer).model_dump(mode="json")})

    @model_validator(mode="after")
    def _voters_have_a_model(self) -> Config:
        for voter in self.voters:
            if voter.peer not in self.peer_names:
                raise ValueError(
                    f"voters: {voter.name} is of peer {voter.peer!r}; expected one of {', '.join(self.peer_names)}"
                )
        return self

    @property
    def answer_kinds(self) -> list[str]:
        """All kinds of answers in the config."""
        named = [self.prompts.answers, self.evaluate.gold_answers, *(b.answers for b in self.benchmarks)]
        return list(dict.fromkeys([*named, *([self.wording.answers] if self.wording else [])]))

    @property
    def raters(self) -> list[str]:
        """All who give samples: the peers, followed by the voters under score.label = "sample-vote"."""
        voting = self.voters if self.score.label == "sample-vote" else ()
        return [*self.peer_names, *(voter.name for voter in voting)]

    def model_of(self, rater: str) -> str:
        """The peer whose model a rater uses."""
        return next((voter.peer for voter in self.voters if voter.name == rater), rater)

    @property
    def peer_names(self) -> list[str]:
        """Names of the peers in the config's order."""
        return [peer.name for peer in self.peers]

    def peer(self, name: str) -> PeerSection:
        """The peer called `name`."""
        return next(peer for peer in self.peers if peer.name == name)

    def templates_of(self, peer: PeerSection) -> TemplateSection:
        """A peer's wording: the one that it names, or its own, else the shared one."""
        return self.wordings[peer.wording] if peer.wording is not None else peer.templates or self.templates

    def templates_of_voter(self, voter: VoterSection) -> TemplateSection:
        """A voter's wording."""
        if voter.templates is not None:
            return voter.templates
        assert voter.wording is not None, "a voter has templates or wording"
        return self.wordings[voter.wording]

    def wording_name(self, peer: PeerSection) -> str:
        """The name of a peer's wording in tables."""
        return peer.wording or ("[templates]" if peer.templates is None else "its own templates")
