"""A peer that starts from a LoRA adapter, and one model as several peers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from data import shards
from data.config.load import load_config, parse_config
from data.config.sections import PeerSection
from data.errors import UserError
from data.run import Run
from peers import policy, source, start
from peers.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS, write_merged
from peers.prompts import token_identity
from peers.source import base_model, check_peers, model_directory
from peers.weights import weights_fingerprint
from tests.fake_engine import run_inline
from tests.unit.test_peers import CONFIG

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def save_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """A LoRA adapter with random numbers, as peft saves it."""
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    adapted: Any = get_peft_model(model, LoraConfig(**{**given, **options}))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.005)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.fixture
def adapter(tiny_models: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the tiny model `chatty`, of the test's own; made once, then copied."""
    kept = tmp_path_factory.getbasetemp() / "adapter"
    if not kept.exists():
        save_adapter(tiny_models["chatty"], kept)
    shutil.copytree(kept, tmp_path / "lora")
    return tmp_path / "lora"


@pytest.fixture
def peer(adapter: Path, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PeerSection:
    """A peer that starts from it, with an empty cache."""
    monkeypatch.setattr(source, "CACHE", tmp_path / "models")
    return PeerSection(name="a", model=str(tiny_models["chatty"]), adapter=str(adapter), dtype="float32")


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["LoRA", "rsLoRA"])
def test_the_peer_is_its_base_with_the_adapter_merged_as_peft_merges_it(
    options: dict[str, Any], peer: PeerSection, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    if options:
        save_adapter(tiny_models["chatty"], tmp_path / "other", **options)
        peer = peer.model_copy(update={"adapter": str(tmp_path / "other")})
    found = load_file(model_directory(peer, CONFIG) / "model.safetensors")
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_models["chatty"], dtype=torch.float32)
    wanted = PeftModel.from_pretrained(model, str(peer.adapter)).merge_and_unload().state_dict()
    before = load_file(tiny_models["chatty"] / "model.safetensors")
    changed = [name for name in found if not torch.equal(found[name], before[name].float())]
    assert len(changed) == 4 and all(name.endswith(("q_proj.weight", "down_proj.weight")) for name in changed)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], msg=name)


def test_the_merge_is_made_once_and_is_of_the_adapters_content(
    peer: PeerSection, adapter: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    peer = peer.model_copy(update={"dtype": "bfloat16"})
    first = model_directory(peer, CONFIG)
    assert model_directory(peer, CONFIG) == first and capfd.readouterr().out.count("converting lora") == 1
    again = peer.model_copy(update={"name": "b"})
    assert weights_fingerprint(model_directory(again, CONFIG)) == weights_fingerprint(first)  # its rounding is seeded
    base = weights_fingerprint(model_directory(peer.model_copy(update={"adapter": None}), CONFIG))
    edit(lambda tensors: {name: tensor * 2 for name, tensor in tensors.items()})(adapter)
    other = model_directory(peer, CONFIG)
    assert len({base, weights_fingerprint(first), weights_fingerprint(other)}) == 3
    assert base_model(peer) == "local: chatty + adapter lora"  # no name that could be loaded without the adapter


def edit(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], object]:
    """Write the adapter's tensors anew."""

    def write(folder: Path) -> None:
        tensors = change(load_file(folder / ADAPTER_WEIGHTS))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / ADAPTER_WEIGHTS)

    return write


def configure(**keys: Any) -> Callable[[Path], object]:
    """Change keys of the adapter's config."""

    def write(folder: Path) -> None:
        path = folder / ADAPTER_CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **keys}), encoding="utf-8")

    return write


def pickled(folder: Path) -> None:
    """The same weights as a pickle."""
    torch.save(load_file(folder / ADAPTER_WEIGHTS), folder / "adapter_model.bin")
    (folder / ADAPTER_WEIGHTS).unlink()


def swap(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], object]:
    """Change one tensor."""
    return edit(lambda tensors: {**tensors, name: change(tensors[name])})


REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "nothing there": (shutil.rmtree, ("lora does not exist", "hub name")),
    "no config": (lambda f: (f / ADAPTER_CONFIG).unlink(), ("has no adapter_config.json",)),
    "no weights": (lambda f: (f / ADAPTER_WEIGHTS).unlink(), ("has no weights", ADAPTER_WEIGHTS)),
    "a pickle": (pickled, ("only pickled weights (adapter_model.bin), which are refused",)),
    "not LoRA": (configure(peft_type="IA3"), ("'IA3'; expected LORA", "merge_and_unload")),
    "DoRA": (configure(use_dora=True), ("use_dora = True", "merge_and_unload")),
    "whole modules": (configure(modules_to_save=["lm_head"]), ("modules_to_save = ['lm_head']",)),
    "biases": (configure(bias="all"), ("bias = all",)),
    "tokens": (configure(trainable_token_indices=[3]), ("trainable_token_indices = [3]",)),
    "many ranks": (configure(rank_pattern={"q_proj": 8}), ("rank_pattern",)),
    "many alphas": (configure(alpha_pattern={"q_proj": 8}), ("alpha_pattern",)),
    "other layers": (configure(layer_replication=[[0, 2]]), ("layer_replication",)),
    "an option of tomorrow": (configure(use_xlora=True), ("use_xlora = True",)),
    "PiSSA": (configure(init_lora_weights="pissa"), ("'pissa'", "may change the base")),
    "no rank": (configure(r=0), ("r = 0",)),
    "another rank": (configure(r=8), ("which does not have the rank r = 8",)),
    "no alpha": (configure(lora_alpha=None), ("lora_alpha = None",)),
    "no tensors": (edit(lambda _: {}), ("has no tensors",)),
    "a magnitude": (edit(lambda t: {**t, f"{Q}.lora_magnitude_vector": torch.ones(4)}), ("lora_magnitude_vector",)),
    "embeddings": (edit(lambda t: {**t, "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 9)}),
                   ("lora_embedding_A (1 such tensors)",)),
    "half a pair": (edit(lambda t: {n: x for n, x in t.items() if n != f"{Q}.lora_B.weight"}),
                    ("q_proj.lora_A.weight without its other half",)),
    "integers": (swap(f"{Q}.lora_A.weight", lambda t: t.to(torch.int8)), ("stored as I8",)),
    "a NaN": (swap(f"{Q}.lora_A.weight", lambda t: t * torch.nan), ("not finite", "lora_A")),
    "other shapes": (swap(f"{Q}.lora_A.weight", lambda t: t[:, :32]), ("q_proj.weight of [128, 32]", "is [128, 64]")),
    "another model's": (edit(lambda t: {n.replace("layers.0", "layers.7"): x for n, x in t.items()}),
                        ("changes model.layers.7", "does not have")),
    "cut off": (lambda f: (f / ADAPTER_WEIGHTS).write_bytes((f / ADAPTER_WEIGHTS).read_bytes()[:-9]), ("damaged",)),
    "no JSON": (lambda f: (f / ADAPTER_CONFIG).write_text("{"), ("cannot be read",)),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_an_adapter_that_is_no_plain_lora_of_this_base_is_refused_at_once(
    what: str, peer: PeerSection, adapter: Path
) -> None:
    config: Any = type("Some", (), {"peers": (peer,), "generate": CONFIG.generate})
    check_peers(config)
    spoil, told = REFUSED[what]
    spoil(adapter)
    for call in (lambda: check_peers(config), lambda: model_directory(peer, CONFIG)):
        with pytest.raises(UserError) as refused:
            call()
        assert all(part in str(refused.value) for part in told) and "\n" not in str(refused.value), refused.value


def test_a_merge_that_its_type_cannot_hold_is_refused_and_nothing_is_kept(peer: PeerSection, adapter: Path) -> None:
    edit(lambda tensors: {name: torch.full_like(tensor, 1e20) for name, tensor in tensors.items()})(adapter)
    with pytest.raises(UserError, match="numbers that float32 cannot hold; use another adapter"):
        model_directory(peer, CONFIG)
    folders = [path for path in source.CACHE.iterdir() if path.is_dir()]
    assert len(folders) == 1  # the base as float32


def test_another_base_is_told_by_name_and_refused_by_content(
    peer: PeerSection, adapter: Path, tiny_models: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    start._warn.cache_clear()
    model_directory(peer, CONFIG)
    assert "says that its base is" not in capfd.readouterr().out  # peft has written the folder's path
    configure(base_model_name_or_path="org/Chatty-v2")(adapter)
    model_directory(peer, CONFIG)
    model_directory(peer, CONFIG)
    assert capfd.readouterr().out.count("says that its base is org/Chatty-v2") == 1
    theirs = {"base": "org/Chatty-v2", "base_fingerprint": "0123"}
    (adapter / "pst.json").write_text(json.dumps(theirs), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"was trained on org/Chatty-v2 \(0123\); this peer's model is .*chatty as float"
    ):
        model_directory(peer, CONFIG)


def test_a_hub_name_is_fetched_for_its_weights_alone(
    peer: PeerSection, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(name: str, **options: Any) -> str:
        asked.append((name, options["allow_patterns"]))
        return str(adapter)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    local = model_directory(peer, CONFIG)
    assert model_directory(peer.model_copy(update={"adapter": "org/lora"}), CONFIG) == local
    assert asked == [("org/lora", [ADAPTER_CONFIG, ADAPTER_WEIGHTS, "pst.json"])]


# --- one model, several peers -----------------------------------------------------------------------------------

RAW: dict[str, Any] = {"prompts": {"source": "a.jsonl"}, "benchmarks": [{"name": "t", "source": "b.jsonl"}],
                       "wordings": {"w": {"instruction": "W."}}}  # fmt: skip


@pytest.mark.parametrize(
    "keys",
    [{"templates": {"instruction": "Other."}}, {"template": "plain"}, {"stop": ["\n"]}, {"adapter": "x/y/z"},
     {"dtype": "float32"}, {"wording": "w"}],
    ids=str,
)  # fmt: skip
def test_one_model_may_be_several_peers_that_differ(keys: dict[str, Any]) -> None:
    first, second = {"name": "a", "model": "m"}, {"name": "b", "model": "./m/", **keys}
    assert parse_config({**RAW, "peers": [first, second]}, "x").peer_names == ["a", "b"]
    with pytest.raises(UserError, match=r"x: peers: 'b' and 'c' use the model .* differ only by name"):
        parse_config({**RAW, "peers": [first, second, {**second, "name": "c"}]}, "x")


def test_a_peers_own_wording_that_is_the_shared_one_makes_no_difference() -> None:
    peers = [{"name": "a", "model": "m"}, {"name": "b", "model": "m", "templates": {"instruction": "Solve."}}]
    parse_config({**RAW, "peers": peers}, "x")
    with pytest.raises(UserError, match="differ only by name"):
        parse_config({**RAW, "peers": peers, "templates": {"instruction": "Solve."}}, "x")


ONE_MODEL = """
[[peers]]
name = "lora"
model = "{model}"
adapter = "{adapter}"
[[peers]]
name = "short"
model = "{model}"
[[peers]]
name = "long"
model = "{model}"
templates = {{ instruction = "Solve it step by step.", review = "Judge and solve." }}
"""


def test_a_round_with_one_model_as_three_peers(
    project: Path, adapter: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "CACHE", project / "models")
    text = (project / "tiny.toml").read_text(encoding="utf-8")
    peers = ONE_MODEL.format(model=tiny_models["chatty"], adapter=adapter)
    (project / "one.toml").write_text(peers + text[text.index("[run]") :], encoding="utf-8")
    few = ["prompts.limit=6", "benchmarks.0.limit=4", "generate.order=fixed", "runtime.compute=float32"]
    run_inline("one", project / "one.toml", few)
    root = Path("runs/one")
    chains = pl.read_parquet(root / "round=1/chains/*.parquet")
    assert chains.group_by("peer").len().sort("peer").rows() == [("long", 6), ("lora", 6), ("short", 6)]
    scores = pl.read_parquet(root / "round=1/scores/*.parquet")
    assert scores.filter(pl.col("pmi").is_not_null())["peer"].unique().sort().to_list() == ["lora", "short"]
    manifest = shards.read_json(root / "round=1/scores/_SUCCESS.json")
    assert manifest["re_encoded"] == 0  # one tokenizer and one template: token ids are passed on
    bases = {p: shards.read_json(root / f"round=1/adapters/{p}/pst.json") for p in ("short", "long", "lora")}
    assert bases["short"]["base_fingerprint"] == bases["long"]["base_fingerprint"] != bases["lora"]["base_fingerprint"]
    assert bases["lora"]["adapter"] == str(adapter) and "adapter" not in bases["long"]
    assert all((root / f"round=1/adapters/{peer}" / ADAPTER_WEIGHTS).is_file() for peer in bases)
    _starts_from_a_published_adapter(root, tiny_models["chatty"])
    _asks_each_in_its_wording(Run("one", load_config(project / "one.toml", few)))
    # on top of a merged adapter it is worth nothing without that one, and is refused
    lost = PeerSection(name="b", model=str(tiny_models["chatty"]), adapter=str(root / "round=1/adapters/lora"))
    with pytest.raises(UserError, match=r"was trained on .*chatty with the adapter .*lora merged into it"):
        model_directory(lost, CONFIG)


def _starts_from_a_published_adapter(root: Path, base: Path) -> None:
    """What this project publishes is taken, and makes the peer that the run's next round would use."""
    published = root / "round=1/adapters/short"
    peer = PeerSection(name="b", model=str(base), adapter=str(published))
    found = load_file(model_directory(peer, CONFIG) / "model.safetensors")
    exact = root / "exact"
    write_merged(base, published, exact, "float32", seed=0)
    wanted, before = load_file(exact / "model.safetensors"), load_file(base / "model.safetensors")
    moved = [name for name in found if not torch.equal(found[name], before[name])]
    assert moved
    for name in moved:
        assert (found[name].float() - wanted[name]).abs().max() <= wanted[name].abs().max() * 2**-7, name
        assert abs((found[name].float() - wanted[name]).mean()) < 1e-4, name  # up and down alike


def _asks_each_in_its_wording(run: Run) -> None:
    policies = policy.resolve_all(run, 0)
    asked = {name: policies[name].prompts.solve("How many?") for name in policies}
    assert asked["short"] == asked["lora"] != asked["long"]
    assert "Solve it step by step." in policies["long"].prompts.decode(asked["long"])
    assert len({token_identity(each.prompts) for each in policies.values()}) == 1
    assert policies["short"].base == policies["long"].base != policies["lora"].base
    assert policies["short"] != policies["long"]  # what a process has loaded is kept by policy
