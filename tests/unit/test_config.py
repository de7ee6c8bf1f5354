"""The config: every TOML parses, what is wrong is named, what may change is told from what may not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, get_args

import pytest

from data.config.docs import DEFAULTS, key_list
from data.config.load import differences, load_config, parse_config
from data.config.sections import Config, GenerateSection, ScoreSection, Section
from data.errors import UserError
from data.hashing import digest
from generate.aggregate import AGGREGATES
from score.chains import MEASURED
from score.label import LABELS
from score.text import TEXTS
from score.weights import weights
from tests.conftest import ROOT

TOMLS = sorted((ROOT / "configs").glob("*.toml"))
MINIMAL: dict[str, Any] = {
    "prompts": {"source": "train.jsonl"},
    "peers": [{"name": "a", "model": "models/a"}, {"name": "b", "model": "models/b"}],
    "benchmarks": [{"name": "t", "source": "test.jsonl"}],
}
TEXT = """
[prompts]
source = "train.jsonl"
[[peers]]
name = "a"
model = "models/a"
[[peers]]
name = "b"
model = "models/b"
[[benchmarks]]
name = "t"
source = "test.jsonl"
"""


def changed(**sections: Any) -> dict[str, Any]:
    """The minimal config with whole sections replaced."""
    return {**MINIMAL, **sections}


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def with_(toml: Path, *overrides: str) -> Config:
    """The minimal config from a file, with overrides."""
    return load_config(toml, list(overrides))


def test_there_are_configs() -> None:
    assert TOMLS


@pytest.mark.parametrize("path", TOMLS, ids=lambda path: path.name)
def test_every_config_parses_and_survives_json(path: Path) -> None:
    config = load_config(path, [])
    frozen = json.loads(json.dumps(config.model_dump(mode="json")))
    assert parse_config(frozen, "frozen") == config  # a run reads its config.json back


SAME = r"peers: 'a' and 'b' use the model .* and differ only by name"


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (changed(generate={"temprature": 1}), r"^x\.toml: unknown key 'generate\.temprature' \(docs/config\.md"),
        (changed(trian={}), "unknown key 'trian'"),
        (changed(peers=[{"name": "a", "model": "m", "modle": "n"}]), r"unknown key 'peers\.0\.modle'"),
        (changed(prompts={}), r"missing key 'prompts\.source'"),
        (changed(benchmarks=[], guard={"action": "stop"}), r"guard\.action 'stop' needs a benchmark"),
        (changed(gate={"margin": 0}), r"gate\.margin: .*greater than 0 \(found 0\)"),
        (changed(gate={"patience": 0}), r"gate\.patience: .*equal to 1 \(found 0\)"),
        (changed(runtime={"max_hours": 0}), r"runtime\.max_hours: .*greater than 0 \(found 0\)"),
        (changed(generate={"temperature": -0.1}), r"generate\.temperature: .*equal to 0 \(found -0\.1\)"),
        (changed(generate={"top_p": 0}), r"generate\.top_p: .*greater than 0 \(found 0\)"),
        (changed(train={"epochs": 0}), r"train\.epochs: .*\(found 0\)"),
        (changed(train={"epochs": 1.5}), r"train\.epochs: .*\(found 1\.5\)"),
        (changed(train={"warmup_ratio": 1}), r"train\.warmup_ratio: .*less than 1"),
        (changed(run={"seed": 2**31}), r"run\.seed: "),
        (changed(evaluate={"keep": 1}), r"evaluate\.keep: .*less than 1"),
        (changed(evaluate={"samples": 1}), r"evaluate\.samples: "),
        (changed(runtime={"compile": True}), r"runtime\.compile: .*'auto', 'on' or 'off' \(found True\)"),
        (changed(evaluate={"verifier": "vote"}), r"evaluate\.verifier: .*'logit' or 'cot'"),
        (
            changed(evaluate={"verifier": "cot", "verifier_tokens": 4096}),
            r"evaluate\.verifier_tokens 4096 must be below generate\.context_tokens 4096",
        ),
        (changed(score={"weighting": "sigmiod"}), r"score\.weighting: .*'sigmoid'.*\(found 'sigmiod'\)"),
        (changed(score={"center": "mean"}), r"score\.center"),
        (changed(score={"center": float("nan")}), r"score\.center"),
        (changed(train={"lr": float("inf")}), r"train\.lr: .*finite number \(found inf\)"),
        (changed(score={"weight_min": 2, "weight_max": 2}), r"score weight_min 2\.0 must be below weight_max 2\.0"),
        (changed(prompts={"source": "a.jsonl", "rows": [3, 3]}), r"prompts\.rows .*0 <= first < end, found \[3, 3\]"),
        (changed(prompts={"source": "a.jsonl", "rows": [-1, 3]}), r"found \[-1, 3\]"),
        (changed(prompts={"source": "a.jsonl", "limit": 0}), r"prompts\.limit: "),
        (changed(prompts={"source": ""}), r"prompts\.source: "),
        (changed(peers=MINIMAL["peers"][:1]), r"peers: found 1, expected at least 2"),
        (changed(peers=[]), "peers: found 0"),
        (changed(peers=[{"name": n, "model": f"m{i}"} for i, n in enumerate("aba")]), "peers: the name 'a' is used"),
        (changed(peers=[{"name": n, "model": "m"} for n in "ab"]), SAME),
        (changed(peers=[{"name": n, "model": ["p0", "p1"]} for n in "ab"]), SAME),
        (changed(peers=[{"name": n, "model": m} for n, m in (("a", "./m"), ("b", "./m/"))]), SAME),
        (changed(benchmarks=MINIMAL["benchmarks"] * 2), "benchmarks: the name 't' is used more than once"),
        (changed(benchmarks=[{"name": "mean", "source": "s"}]), "benchmarks: the name 'mean' stands for the mean"),
        (changed(peers=[{"name": n, "model": n} for n in ("a", "mean")]), "peers: the name 'mean' stands for the mean"),
        (changed(peers=[{"name": "a/b", "model": "m"}, {"name": "b", "model": "n"}]), r"peers\.0\.name: .*'a/b'"),
        (changed(peers=[{"name": "..", "model": "m"}, {"name": "b", "model": "n"}]), r"peers\.0\.name: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse_config(raw, "x.toml")


def peer(**keys: Any) -> dict[str, Any]:
    """The minimal config with another first peer."""
    return changed(peers=[{**MINIMAL["peers"][0], **keys}, MINIMAL["peers"][1]])


NUMBERS = [
    (f"{prefix}.{name}", field.annotation)
    for prefix, section in ((key, getattr(parse_config(MINIMAL, "x"), key)) for key in Config.model_fields)
    if isinstance(section, Section)
    for name, field in type(section).model_fields.items()
    if field.annotation in (int, float) or name in ("limit", "center")
]


@pytest.mark.parametrize(("key", "kind"), NUMBERS, ids=[key for key, _ in NUMBERS])
def test_a_number_is_a_finite_number_within_bounds(key: str, kind: Any) -> None:
    section, name = key.split(".")
    for value in (
        True,
        "3",
        float("nan"),
        float("inf"),
        float("-inf"),
        10**40,
        -(10**40),
        *([1.5] if kind is int else []),
    ):
        raw = changed(**{section: {**MINIMAL.get(section, {}), name: value}})
        with pytest.raises(UserError, match=f"{section}.{name}"):
            parse_config(raw, "x.toml")


def test_a_whole_number_may_stand_for_a_float() -> None:
    config = parse_config(changed(train={"lr": 1, "max_grad_norm": 2}, score={"center": 1}), "x")
    assert (config.train.lr, config.train.max_grad_norm, config.score.center) == (1.0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (peer(stop=[""]), r"peers\.0\.stop has an empty or blank string"),
        (peer(stop=["\nQuestion:", " \t"]), r"peers\.0\.stop has an empty or blank string"),
        (peer(stop="x"), r"peers\.0\.stop: .*tuple"),
        (peer(name="x" * 101), r"peers\.0\.name: .*100 characters \(found 'x{60}…'\)"),
        (peer(name="a."), r"peers\.0\.name: "),
        (peer(name="."), r"peers\.0\.name: "),
        (peer(name="a\n"), r"peers\.0\.name: "),
        (peer(name="B"), "peers: the names 'B' and 'b' differ only by case"),
        (peer(name="b.tmp"), "peers: the name 'b.tmp' ends in .tmp, like unfinished files"),
        (peer(model=""), r"peers\.0\.model"),
        (peer(model=["p0", ""]), r"peers\.0\.model"),
        (peer(model="a\0b"), r"peers\.0\.model has a NUL character"),
        (peer(stop=["\0"]), r"peers\.0\.stop has a NUL character"),
        (changed(templates={"review": "\udcff"}), r"templates\.review has a NUL character or bytes that are not UTF-8"),
        (changed(templates={"verify": ""}), r"templates\.verify: "),
        (changed(benchmarks=[{"name": "t" * 101, "source": "s"}]), r"benchmarks\.0\.name: "),
        (changed(benchmarks=[{"name": "../t", "source": "s"}]), r"benchmarks\.0\.name: "),
        (changed(benchmarks=[{"name": "t", "source": "s", "answer_column": ""}]), r"benchmarks\.0\.answer_column: "),
        (changed(prompts={"source": "a.jsonl", "rows": [0, True]}), r"prompts\.rows\.1: "),
        (changed(prompts={"source": "a.jsonl", "rows": [0, 10**20]}), r"prompts\.rows "),
        (changed(prompts={"source": "a.jsonl", "limit": True}), r"prompts\.limit: "),
        (changed(prompts={"source": "a.jsonl", "question_column": ""}), r"prompts\.question_column: "),
        (changed(generate={"temperature": 1e-9}), r"generate\.temperature must be 0 \(greedy\) or at least 0\.01"),
        (changed(evaluate={"temperature": 1e-9}), r"evaluate\.temperature: "),
        (
            changed(
                peers=[{"name": n * 100, "model": n} for n in "ab"],
                benchmarks=[{"name": "t" * 50, "source": "s"}],
                evaluate={"cross_verify": True},
            ),
            "a file name of 276 bytes under evaluate.cross_verify, 255 are allowed",
        ),
    ],
)
def test_what_would_go_wrong_later_is_refused(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse_config(raw, "x.toml")


def test_what_is_near_to_that_is_not() -> None:
    config = parse_config(peer(name="x" * 100, stop=["\n", "\n\n"]), "x")
    assert config.peers[0].stop == ("\n", "\n\n")
    assert parse_config(peer(stop=[]), "x").peers[0].stop == ()
    assert parse_config(changed(prompts={"source": "x", "shuffle": "False"}), "x").prompts.shuffle is False


def test_all_errors_come_at_once() -> None:
    with pytest.raises(UserError, match=r"run\.seed: .*; unknown key 'train\.rnak'"):
        parse_config(changed(train={"rnak": 3}, run={"seed": -1}), "x.toml")


def test_one_model_in_two_revisions_is_two_models() -> None:
    peers = [{"name": n, "model": "m", "revision": r} for n, r in (("a", "v1"), ("b", "v2"))]
    assert parse_config(changed(peers=peers), "x").peer_names == ["a", "b"]


def test_a_config_is_frozen() -> None:
    config = parse_config(MINIMAL, "x")
    with pytest.raises(ValueError, match="frozen"):
        config.generate.temperature = 1.0  # type: ignore[misc]


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml does not exist"):
        load_config(tmp_path / "none.toml", [])
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path, [])
    for content in (b"[run\n", b"\xff\xfe", b"a = 1\na = 2\n", b"a = 1" + b"0" * 5000, b"a = " + b"[" * 20000):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.toml is not valid TOML"):
            load_config(tmp_path / "bad.toml", [])


def test_overrides_have_the_types_of_toml(toml: Path) -> None:
    config = with_(
        toml, "generate.temperature=0.8", "run.seed = 5", "prompts.shuffle=false", "score.weighting=rank",
        'prompts.split="a=b"', "prompts.rows=[0, 10]", "peers.1.stop=['\\n', 'x']", "score.center=0.25",
        "benchmarks.0.source=owner/name", "templates.instruction=Solve: x = 1",
    )  # fmt: skip
    assert (config.generate.temperature, config.run.seed, config.prompts.shuffle) == (0.8, 5, False)
    assert (config.score.weighting, config.prompts.split, config.prompts.rows) == ("rank", "a=b", (0, 10))
    assert config.peers[1].stop == ("\\n", "x")  # a literal TOML string
    assert (config.score.center, config.benchmarks[0].source) == (0.25, "owner/name")
    assert config.templates.instruction == "Solve: x = 1"
    assert with_(toml, "run.seed=5", "run.seed=6").run.seed == 6  # the last one counts


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("generate.temperature", "expected section.key=value"),
        ("=1", "expected section.key=value"),
        ("generate.temprature=1", r"unknown key 'generate\.temprature'"),
        ("generate.temperature=hot", r"generate\.temperature: .*\(found 'hot'\)"),
        ("generate.temperature=9", r"generate\.temperature: .*\(found 9\)"),
        ("generate.temperature=2.1", r"generate\.temperature: .*less than or equal to 2 \(found 2\.1\)"),
        ("peers.2.name=c", "'2' is not an index into a list of 2 entries"),
        ("peers.a.name=c", "'a' is not an index"),
        ("peers.0=c", r"name one entry of the list, for example peers\.0\.0"),
        ("peers.-1.name=c", "'-1' is not an index"),
        ("prompts.source.x=1", "'source' is a value, not a section"),
        ("temperature=1", "unknown key 'temperature'"),
        ("peers=1", "peers"),
    ],
)
def test_bad_overrides_are_named(override: str, told: str, toml: Path) -> None:
    with pytest.raises(UserError, match=told):
        with_(toml, override)


THREE = 'peers=[{name="c",model="c"},{name="d",model="d"},{name="e",model="e"}]'


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        ("", ["train.lrr=1"], "; --set 'train.lrr=1': unknown key 'train.lrr' (docs/config.md lists all keys)"),
        ("", ["train.rank=4", "train.lr=0", "run.seed=1"], "; --set 'train.lr=0': train.lr: "),
        ("", ["score.weight_min=30"], "; --set 'score.weight_min=30': score weight_min 30.0 must be below"),
        ("", ["score.center=1", "score.weight_min=30"], "; --set 'score.center=1', 'score.weight_min=30': score weigh"),
        ("", ["run.seed=1", "peers.1.name=a"], "; c.toml with --set 'run.seed=1', 'peers.1.name=a': peers: the name"),
        ("", [THREE, "peers.2.name=c"], f"; c.toml with --set {THREE!r}, 'peers.2.name=c': peers: the name 'c' is"),
        ('[[benchmarks]]\nname = "t"\nsource = "s"', [], "; c.toml: benchmarks: the name 't' is used more than once"),
        ("", ["generate.temperature=1", "prompts={}"], "; --set 'prompts={}': missing key 'prompts.source'"),
        ("[train]\nlrr = 1", ["train.lr=0.1"], "; c.toml: unknown key 'train.lrr' (docs/config.md lists all keys)"),
        ("[train]\nlrr = 1", ["run.sed=1"], "; c.toml: unknown key 'train.lrr' (docs/config.md lists all keys)"),
        ("[train]\nlr = 0", ["train.lr=-1"], "; --set 'train.lr=-1': train.lr: "),
        ("[train]\nlr = 0", ["train.lr=1", "run.seed=-1"], "; --set 'run.seed=-1': run.seed: "),
    ],
)  # fmt: skip
def test_errors_name_the_file_or_the_override(text: str, overrides: list[str], told: str, toml: Path) -> None:
    toml.write_text(TEXT + text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        with_(toml, *overrides)
    assert told in f"; {error.value}".replace(f"{toml.parent}/", "")


def test_differences_lists_keys_and_ignores_runtime_and_guard(toml: Path) -> None:
    frozen = with_(toml)
    assert differences(frozen, with_(toml)) == []
    assert differences(frozen, with_(toml, "runtime.score_tokens=1", "guard.action=stop", "gate.patience=2")) == []
    given = with_(
        toml, "generate.temperature=0.5", "peers.1.model=models/c", "prompts.rows=[0, 2]", "runtime.resident=all"
    )
    assert differences(frozen, given) == [
        "generate.temperature: 0.0 -> 0.5",
        'peers.1.model: "models/b" -> "models/c"',
        "prompts.rows: null -> [0, 2]",
    ]
    third = {"name": "c", "model": "models/c"}
    more = parse_config(changed(peers=[*MINIMAL["peers"], third]), "x")
    added = differences(frozen, more)
    assert 'peers.2.name: (absent) -> "c"' in added
    assert all(line.startswith("peers.2.") for line in added)
    example = {"question": "q?", "response": "4"}
    shown = differences(frozen, parse_config(changed(templates={"examples": [example]}), "x"))
    assert 'templates.examples.0.question: (absent) -> "q?"' in shown
    assert "templates.examples: [] -> (absent)" in shown


SHORT = {"instruction": "Short steps."}


def test_a_peer_names_its_wording() -> None:
    peers = [{**MINIMAL["peers"][0], "wording": "short"}, {**MINIMAL["peers"][1], "templates": {"instruction": "Own."}}]
    config = parse_config(changed(wordings={"short": SHORT}, peers=peers), "x")
    assert [config.templates_of(peer).instruction for peer in config.peers] == ["Short steps.", "Own."]
    assert [config.wording_name(peer) for peer in config.peers] == ["short", "its own templates"]
    plain = parse_config(changed(wordings={"short": SHORT}, templates={"instruction": "All."}), "x")
    assert [plain.templates_of(peer).instruction for peer in plain.peers] == ["All."] * 2
    assert {plain.wording_name(peer) for peer in plain.peers} == {"[templates]"}
    assert parse_config(json.loads(json.dumps(config.model_dump(mode="json"))), "frozen") == config


@pytest.mark.parametrize(
    ("peer", "told"),
    [
        (
            {"wording": "shrot"},
            r"^x: peers: a has wording 'shrot', which is not in \[wordings\]; expected one of short$",
        ),
        ({"wording": "short", "templates": SHORT}, "peer a has both templates and wording 'short'"),
    ],
)
def test_a_wording_that_cannot_be(peer: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        first = {**MINIMAL["peers"][0], **peer}
        parse_config(changed(wordings={"short": SHORT}, peers=[first, MINIMAL["peers"][1]]), "x")
    with pytest.raises(UserError, match="wordings"):
        parse_config(changed(wordings={"a/b": SHORT}), "x")


def test_wordings_are_in_fingerprints_only_where_there_are_some() -> None:
    """A run that began before there were any goes on; and the dev set may change, since no stage reads it."""
    about = {"templates", "wordings", "peers"}
    before = parse_config(MINIMAL, "x")
    dumped = before.model_dump(mode="json", include=about)
    assert dumped.keys() == {"templates", "peers"} and all("wording" not in peer for peer in dumped["peers"])
    named = parse_config(changed(wordings={"short": SHORT}), "x").model_dump(mode="json", include=about)
    other = parse_config(changed(wordings={"short": {"instruction": "x"}}), "x").model_dump(mode="json", include=about)
    assert len({digest(each) for each in (dumped, named, other)}) == 3
    assert differences(before, parse_config(changed(wording={"source": "dev.jsonl"}), "x")) == []
    assert differences(before, parse_config(changed(wordings={"short": SHORT}), "x"))


def test_digest_is_stable() -> None:
    # sha256 of '{"a": 1, "b": [1, 2.5, null]}'; fingerprints of finished stages hold it, so it must not change
    value = {"b": [1, 2.5, None], "a": 1}
    assert digest(value) == digest(dict(reversed(value.items()))) == "253130eeb7195695"
    assert digest({**value, "a": 2}) != digest(value)
    assert digest([1, 2]) != digest([2, 1])


def _sections() -> list[tuple[str, type[Section]]]:
    """(prefix, model) of every section of a config, also those in lists and in other sections."""
    found: list[tuple[str, type[Section]]] = []

    def walk(prefix: str, annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found.append((prefix, annotation))
            for name, field in annotation.model_fields.items():
                walk(f"{prefix}.{name}".lstrip("."), field.annotation)
        for inner in get_args(annotation):
            walk(f"{prefix}[]" if annotation.__class__.__name__ == "GenericAlias" else prefix, inner)

    walk("", Config)
    return found


def test_the_list_has_every_field() -> None:
    items = [item.split("\n\n")[0] for item in f"\n{key_list()}".split("\n- ")[1:]]
    rows = {key: " ".join(rest.split()) for key, _, rest in (item.partition(" (") for item in items)}
    assert len(rows) == len(items)
    # [templates] and its examples are described once, though a peer may have its own, the verifier has others, and
    # [wordings] has more of them
    once = ("peers[].templates", "voters[].templates", "templates.verify_examples[]", "wordings[]")
    sections = [(prefix, model) for prefix, model in _sections() if prefix and not prefix.startswith(once)]
    expected = {f"`{prefix}.{name}`" for prefix, model in sections for name in model.model_fields}
    assert set(rows) == expected
    for prefix, model in sections:
        for name, field in model.model_fields.items():
            assert field.description, f"{prefix}.{name}"
            shown = rows[f"`{prefix}.{name}`"].replace("\\\\n", "\\n")
            assert " ".join(field.description.split()) in shown, f"{prefix}.{name}"
            stated = (
                "required"
                if field.is_required()
                else DEFAULTS.get(f"{prefix}.{name}", f"default `{json.dumps(field.default)}`")
            )
            assert shown.startswith(f"{stated}): "), f"{prefix}.{name}"


def test_defaults_pass_their_own_bounds() -> None:
    config = parse_config(MINIMAL, "x")
    order = list(MINIMAL)
    random.Random(0).shuffle(order)
    assert parse_config({key: MINIMAL[key] for key in order}, "x") == config
    assert parse_config(config.model_dump(mode="json"), "x") == config


def test_every_choice_of_the_config_has_its_strategy() -> None:
    def choices(section: type[Section], name: str) -> set[Any]:
        return set(get_args(section.model_fields[name].annotation))

    assert choices(GenerateSection, "aggregate") == AGGREGATES.keys()
    assert choices(ScoreSection, "label") == LABELS.keys()
    assert choices(ScoreSection, "text") == TEXTS.keys()
    assert choices(ScoreSection, "y_source") == MEASURED.keys()
    for weighting in choices(ScoreSection, "weighting"):  # each is a weighting of its own
        signed: Any = {"text": "samples", "label": "own-vote"} if weighting == "signed" else {}
        section = ScoreSection(weighting=weighting, **signed)
        assert len(weights([0.1, 0.4, 0.2], [1, 0, 1], [0.5, 0.1, 0.9], section, seed=3)) == 3
