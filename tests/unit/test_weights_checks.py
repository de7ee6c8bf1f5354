"""Weights are all there, the model's, and finite, or one line says what is wrong before anything is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data import shards
from data.config.sections import GenerateSection, PeerSection, TrainSection
from data.errors import UserError
from peers import source, weights, weights_check
from peers.checks import check_directory
from peers.logprob.model import load_model
from peers.merge import write_merged
from peers.policy import check_adapter, publish_adapter
from peers.source import check_peers, model_directory
from peers.weights import is_pattern, non_finite, read_header, weights_fingerprint
from train.loop import open_adapter

GENERATE = GenerateSection(context_tokens=512, max_new_tokens=16)
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDINGS, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
Q = "model.layers.0.self_attn.q_proj.weight"
Tensors = dict[str, Tensor]


def config_of(*peers: PeerSection) -> Any:
    """The part of a config that the checks read."""
    return SimpleNamespace(peers=list(peers), generate=GENERATE)


def peer_of(model: Path | str, **more: Any) -> PeerSection:
    """A peer named p."""
    return PeerSection(name="p", model=str(model), **more)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees which models another test has found sound."""
    monkeypatch.setattr(source, "CACHE", tmp_path / "cache" / "models")
    monkeypatch.setattr(weights_check, "_sound", set())
    return tmp_path / "cache"


@pytest.fixture
def model(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    """A tiny Llama with tied embeddings, which a test may spoil."""
    return Path(shutil.copytree(tiny_models["chatty"], tmp_path / "model"))


def refusal(peer: PeerSection) -> str:
    """The one line with which a peer is refused, before anything is cached."""
    with pytest.raises(UserError) as raised:
        check_peers(config_of(peer))
        model_directory(peer, config_of(peer))
    assert not list(source.CACHE.parent.rglob("*.json")), "a refused model is cached"
    line = str(raised.value)
    assert "\n" not in line and line.startswith("peer p: "), line
    return line


def edit(folder: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    """Change the tensors of a model in place, or by what `change` returns."""
    tensors = load_file(folder / WHOLE)
    tensors = change(tensors) or tensors
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / WHOLE, metadata={"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    """Change config.json; None removes a key."""
    edit_json(folder / "config.json", **changes)
    config = shards.read_json(folder / "config.json")
    shards.write_json({key: config[key] for key in config if changes.get(key, "") is not None}, folder / "config.json")


def edit_json(path: Path, **changes: Any) -> None:
    """Change an object of JSON."""
    shards.write_json(shards.read_json(path) | changes, path)


def cut(folder: Path, unlisted: tuple[str, ...] = (), more: dict[str, str] | None = None, twice: bool = False) -> None:
    """Cut the weights in two files with an index that does not list some tensors, or lists more."""
    tensors = load_file(folder / WHOLE)
    (folder / WHOLE).unlink()
    names, files = sorted(tensors), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    parts = (names[:5], names[4 if twice else 5 :])
    listed: dict[str, str] = {}
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        listed |= {name: file for name in part if name not in unlisted}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed | (more or {})}), encoding="utf-8")


def without(*names: str) -> Callable[[Path], None]:
    """Leave tensors out."""
    return lambda folder: edit(folder, lambda t: {name: tensor for name, tensor in t.items() if name not in names})


def prefixed(prefix: str) -> Callable[[Path], None]:
    """Every name begins with what DataParallel or torch.compile puts before it."""
    return lambda folder: edit(folder, lambda t: {prefix + name: tensor for name, tensor in t.items()})


def put(name: str, tensor: Callable[[Tensors], Tensor]) -> Callable[[Path], None]:
    """Add or replace a tensor."""
    return lambda folder: edit(folder, lambda t: {**t, name: tensor(t)})


def spoilt(name: str, value: float) -> Callable[[Path], None]:
    """Change one number of a tensor."""

    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[-3] = value

    return lambda folder: edit(folder, change)


def few_rows(folder: Path) -> None:
    """A model that knows fewer tokens than its tokenizer has, and says so."""
    put(EMBEDDINGS, lambda t: t[EMBEDDINGS][:300])(folder)
    configure(folder, vocab_size=300)


def sharded_beside_whole(folder: Path) -> None:
    """An older model.safetensors was left beside the files of an index."""
    shutil.copyfile(folder / WHOLE, folder / "old")
    cut(folder)
    (folder / "old").rename(folder / WHOLE)


def sharded_beside_consolidated(folder: Path) -> None:
    """As on the hub for some models: the weights twice, under two kinds of names."""
    shutil.copyfile(folder / WHOLE, folder / "consolidated.safetensors")
    cut(folder)


def without_index(folder: Path) -> None:
    """The index of a model in several files was lost."""
    cut(folder)
    (folder / INDEX).unlink()


def adapter(folder: Path) -> None:
    """An adapter's folder with the base's files."""
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")


def quantised(method: str, **more: Any) -> Callable[[Path], None]:
    """config.json says that the weights are codes."""
    return lambda folder: configure(folder, quantization_config={"quant_method": method, **more})


BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a tensor is missing": (without(Q), ("LlamaForCausalLM wants", Q, "not in its files", "1 such")),
    "a norm is missing": (without(NORM), (NORM, "not in its files")),
    "embeddings are missing": (without(EMBEDDINGS), (EMBEDDINGS, "not in its files")),
    "untied without a head": (lambda f: configure(f, tie_word_embeddings=False), (HEAD, "not in its files")),
    "nothing said of ties": (lambda f: configure(f, tie_word_embeddings=None), (HEAD, "not in its files")),
    "module.": (prefixed("module."), ("not in its files", "20 such", "module.model.")),
    "_orig_mod.": (prefixed("_orig_mod."), ("not in its files", "20 such", "_orig_mod.model.")),
    "no prefix": (
        lambda f: edit(f, lambda t: {name.removeprefix("model."): tensor for name, tensor in t.items()}),
        ("under that name", "save_pretrained"),
    ),
    "head alone": (
        lambda f: edit(f, lambda t: {HEAD if name == EMBEDDINGS else name: tensor for name, tensor in t.items()}),
        (f"have {HEAD} but not {EMBEDDINGS}",),
    ),
    "another head than tied": (put(HEAD, lambda t: t[EMBEDDINGS] * 2), (HEAD, EMBEDDINGS, "tie_word_embeddings")),
    "an extra tensor": (put("model.extra.weight", lambda t: t[NORM].clone()), ("has no model.extra.weight",)),
    "an extra bias": (put(Q.replace("weight", "bias"), lambda t: torch.ones(128).bfloat16()), ("q_proj.bias",)),
    "an extra layer": (lambda f: configure(f, num_hidden_layers=1), ("has no model.layers.1.", "9 such")),
    "a layer too few": (lambda f: configure(f, num_hidden_layers=3), ("wants model.layers.2.", "9 such")),
    "a row too few": (put(EMBEDDINGS, lambda t: t[EMBEDDINGS][:-1]), (EMBEDDINGS, "config.json says")),
    "transposed": (put(Q, lambda t: t[Q].T), ("q_proj.weight is [64, 128]", "[128, 64]")),
    "nothing in it": (put(NORM, lambda t: torch.zeros(0).bfloat16()), (f"{NORM} is [0]",)),
    "few rows for the tokenizer": (few_rows, ("tokenizer", "embeddings for 300 ids")),
    "int8": (put(Q, lambda t: t[Q].to(torch.int8)), (Q, "I8", "plain weights")),
    "uint8": (put(Q, lambda t: torch.ones(64, 64).to(torch.uint8)), (Q, "U8", "plain weights")),
    "float8": (put(Q, lambda t: t[Q].to(torch.float8_e4m3fn)), (Q, "F8_E4M3", "plain weights")),
    "block FP8": (quantised("fp8", weight_block_size=[128, 128]), ("is quantised", "fp8", "not quantised")),
    "GPTQ": (quantised("gptq", bits=4), ("is quantised", "gptq")),
    "AWQ": (quantised("awq"), ("is quantised", "awq")),
    "bitsandbytes": (quantised("bitsandbytes", load_in_4bit=True), ("is quantised", "bitsandbytes")),
    "compressed": (lambda f: configure(f, compression_config={"format": "x"}), ("compression_config",)),
    "GPTQ's own file": (lambda f: (f / "quantize_config.json").write_text("{}"), ("quantize_config.json",)),
    "consolidated": (lambda f: shutil.copyfile(f / WHOLE, f / "consolidated.safetensors"), ("consolidated",)),
    "consolidated beside several": (sharded_beside_consolidated, ("has consolidated.safetensors beside",)),
    "whole beside several": (sharded_beside_whole, ("has model.safetensors beside", "index")),
    "several without an index": (without_index, ("has model-00001-of-00002.safetensors", INDEX)),
    "another name": (lambda f: (f / WHOLE).rename(f / "weights.safetensors"), ("has weights.safetensors",)),
    "listed but not there": (lambda f: cut(f, more={"x": "model-00001-of-00002.safetensors"}), ("has no x", "index")),
    "listed elsewhere": (lambda f: cut(f, more={NORM: "model-00001-of-00002.safetensors"}), (NORM, "index")),
    "twice": (lambda f: cut(f, twice=True), ("twice, in model-00001-of-00002.safetensors and",)),
    "no map": (lambda f: (f / INDEX).write_text('{"weight_map": {}}'), ("weight_map",)),
    "an adapter": (adapter, ("is an adapter", "adapter_config.json", "base")),
    "one NaN": (spoilt(EMBEDDINGS, float("nan")), (EMBEDDINGS, "not finite")),
    "one infinity": (spoilt(NORM, float("-inf")), (NORM, "not finite")),
    "NaN in float32": (
        lambda f: edit(f, lambda t: {n: x.float() + (torch.nan if n == Q else 0) for n, x in t.items()}),
        (Q, "not finite"),
    ),
    "two architectures": (lambda f: configure(f, model_type="mistral"), ("LlamaForCausalLM", "mistral")),
    "no such kind": (lambda f: configure(f, model_type="nosuch"), ("config.json", "nosuch")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_refused_in_one_line(case: str, model: Path) -> None:
    spoil, has = BROKEN[case]
    spoil(model)
    line = refusal(peer_of(model))
    assert all(word in line for word in has), line


def padded(folder: Path) -> None:
    """More rows than the tokenizer has ids."""
    put(EMBEDDINGS, lambda t: torch.cat([t[EMBEDDINGS], torch.zeros(60, 64).bfloat16()]))(folder)
    configure(folder, vocab_size=len(load_file(folder / WHOLE)[EMBEDDINGS]))


def untied(folder: Path) -> None:
    """A separate head."""
    put(HEAD, lambda t: t[EMBEDDINGS] * 2)(folder)
    configure(folder, tie_word_embeddings=False)


def picture(folder: Path) -> None:
    """A special token without a row, which no prompt has."""
    config = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    token = {"id": 340, "content": "<picture>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    config["added_tokens"].append(token | flags)
    (folder / "tokenizer.json").write_text(json.dumps(config), encoding="utf-8")


SOUND: dict[str, Callable[[Path], object]] = {
    "as it is": lambda folder: None,
    "a stored head though tied": put(HEAD, lambda t: t[EMBEDDINGS].clone()),
    "untied": untied,
    "a padded vocabulary": padded,
    "several files": cut,
    "an index that lists less": lambda folder: cut(folder, unlisted=(NORM,)),
    "an index of one file": lambda f: (f / INDEX).write_text(json.dumps({"weight_map": {NORM: WHOLE}})),
    "frequencies of old checkpoints": put("model.layers.0.self_attn.rotary_emb.inv_freq", lambda t: torch.ones(16)),
    "not quantised": lambda f: edit_json(f / "config.json", quantization_config=None),
    "a token of pictures": picture,
    "largest number": spoilt(NORM, 3.38e38),
    "float16": lambda folder: edit(folder, lambda t: {name: tensor.half() for name, tensor in t.items()}),
}


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_model_that_looks_like_a_broken_one_runs(case: str, model: Path) -> None:
    SOUND[case](model)
    check_peers(config_of(peer_of(model)))
    directory = model_directory(peer_of(model), config_of())
    loaded: Any = load_model(directory, "float32")
    stored = load_file(next(iter(sorted(directory.glob("*.safetensors")))))
    assert stored and all(tensor.is_floating_point() for tensor in stored.values())
    for name, tensor in stored.items():
        if "inv_freq" not in name:
            assert torch.equal(loaded.state_dict()[name].cpu(), tensor.float()), name


def test_the_names_are_compared_once_and_again_when_a_file_changes(
    model: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_directory(peer_of(model), config_of())
    seals = list((own_cache / "checked").iterdir())
    assert len(seals) == 1 and seals[0].stat().st_size == 0

    def compare(*_: object) -> None:
        raise AssertionError("compared again")

    with monkeypatch.context() as patch:
        patch.setattr(weights_check, "_check_names", compare)
        model_directory(peer_of(model), config_of())
        patch.setattr(weights_check, "_sound", set())  # another process
        patch.setattr(weights_check, "non_finite", compare)
        model_directory(peer_of(model), config_of())
    spoilt(EMBEDDINGS, float("nan"))(model)
    assert "not finite" in refusal(peer_of(model))
    assert list((own_cache / "checked").iterdir()) == seals


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_non_finite_numbers_are_found_in_every_type_and_place(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "BLOCK_NUMBERS", 7)
    largest = torch.finfo(dtype).max
    sound = torch.tensor([0.0, -0.0, largest, -largest, torch.finfo(dtype).tiny, *range(15)], dtype=dtype)
    file = tmp_path / "x.safetensors"
    for place in (None, 0, 6, 7, 19):
        for value in (float("nan"), float("inf"), -float("inf")):
            tensor = sound.clone()
            tensor[place if place is not None else 5] = value if place is not None else 1.0
            save_file({"whole": sound, "numbers": torch.arange(3), "odd": tensor}, file)
            assert non_finite(read_header(file)) == (None if place is None else "odd")


def test_a_pattern_in_a_path_hides_no_weights(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "m[1]" / "*"))
    assert model_directory(peer_of(folder), config_of()) == folder
    assert weights_fingerprint(folder) == weights_fingerprint(model)
    edit(folder, lambda t: {name: tensor * 1.01 for name, tensor in t.items()})
    assert weights_fingerprint(folder) != weights_fingerprint(model)
    assert is_pattern(folder) and not is_pattern(model)


def test_vllm_gets_a_path_without_a_pattern(model: Path, tmp_path: Path) -> None:
    from peers.engines.vllm import VllmEngine

    engine = VllmEngine.__new__(VllmEngine)
    assert engine._without_pattern(model) == model
    folder = Path(shutil.copytree(model, tmp_path / "m[1]"))
    link = engine._without_pattern(folder)
    assert not is_pattern(link) and link.resolve() == folder.resolve()
    assert engine._without_pattern(folder) == link  # a second process finds it there


# --- conversions ------------------------------------------------------------------------------------------------


def test_numbers_that_the_dtype_cannot_hold_are_refused(model: Path) -> None:
    edit(model, lambda t: {name: tensor.float() for name, tensor in t.items()})
    spoilt(NORM, 3.4e38)(model)  # bf16 ends at 3.39e38
    line = refusal(peer_of(model))
    assert NORM in line and "3.4e+38" in line and "bfloat16 cannot hold" in line
    assert model_directory(peer_of(model, dtype="float32"), config_of()) == model


def test_a_damaged_copy_in_the_cache_is_refused(model: Path) -> None:
    peer = peer_of(model, dtype="float32")
    copy = model_directory(peer, config_of())
    spoilt(Q, float("nan"))(copy)
    with pytest.raises(UserError, match=r"cache/models/[0-9a-f]{12}/.*q_proj.weight has numbers that are not finite"):
        model_directory(peer, config_of())


def test_a_model_is_not_loaded_with_weights_that_are_made_up(model: Path) -> None:
    """The second net, for what the headers did not show."""
    without(Q)(model)
    with pytest.raises(UserError, match=r"model: 1 tensors are missing, such as .*q_proj.weight"):
        load_model(model, "float32")


# --- GGUF -------------------------------------------------------------------------------------------------------

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers.": "blk.",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(
    model: Path,
    path: Path,
    change: Callable[[Tensors], Tensors | None] = lambda t: None,
    more: dict[str, int] | None = None,
) -> None:
    """The tiny Llama as a GGUF file; `more` are numbers of its header."""
    from gguf import GGUFWriter

    tensors = {name: tensor.float() for name, tensor in load_file(model / WHOLE).items()}
    for old, new in sorted(NAMES.items(), key=lambda pair: -len(pair[0])):
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    tensors = change(tensors) or tensors
    writer = GGUFWriter(path, "llama")
    numbers = {
        "llama.block_count": 2, "llama.context_length": 2048, "llama.embedding_length": 64,
        "llama.feed_forward_length": 128, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 32, "llama.vocab_size": len(tensors["token_embd.weight"]), **(more or {}),
    }  # fmt: skip
    for key, number in numbers.items():
        writer.add_uint32(key, number)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    vocabulary = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([" ".join(merge) for merge in vocabulary["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_sound_gguf_is_converted(model: Path, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "m.gguf", more={"split.count": 1})
    found = load_file(model_directory(peer_of(tmp_path / "m.gguf"), config_of()) / WHOLE)
    stored = load_file(model / WHOLE)
    assert found.keys() == stored.keys() and torch.equal(found[EMBEDDINGS], stored[EMBEDDINGS])
    data = (tmp_path / "m.gguf").read_bytes()
    pieces = [tmp_path / f"m.gguf.part{i}" for i in (9, 10)]
    for piece, part in zip(pieces, (data[:70000], data[70000:]), strict=True):
        piece.write_bytes(part)
    peer = PeerSection(name="p", model=tuple(map(str, pieces)))
    assert load_file(model_directory(peer, config_of()) / WHOLE).keys() == stored.keys()


def test_a_gguf_of_another_sum_is_refused(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_gguf(model, tmp_path / "m.gguf")
    found, other = shards.checksum(tmp_path / "m.gguf"), "a" * 64
    pieces = _pieces(tmp_path, ["m.gguf.0", "m.gguf.1"], [(0, 70000), (70000, None)])
    for peer in (peer_of(tmp_path / "m.gguf", sha256=other), pieces.model_copy(update={"sha256": other})):
        line = refusal(peer)
        assert found in line and f"expected {other}" in line, line
    assert not source.CACHE.exists()
    right = model_directory(peer_of(tmp_path / "m.gguf", sha256=found.upper()), config_of())
    capfd.readouterr()
    # a conversion belongs to what the file holds, not to the peer, nor to the file's name
    again = [PeerSection(name="q", model=str(tmp_path / "m.gguf")), pieces.model_copy(update={"sha256": found})]
    assert [model_directory(peer, config_of()) for peer in again] == [right] * 2
    assert "converting" not in capfd.readouterr().out
    with pytest.raises(UserError, match="has the SHA-256"):  # though it is converted
        model_directory(again[1].model_copy(update={"sha256": other}), config_of())
    with (tmp_path / "m.gguf").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="has the SHA-256"):
        model_directory(peer_of(tmp_path / "m.gguf", sha256=found), config_of())


def test_a_sum_is_of_a_gguf(model: Path) -> None:
    assert "sha256 is set" in refusal(peer_of(model, sha256="a" * 64))


def _pieces(tmp_path: Path, names: list[str], cuts: list[tuple[int, int | None]]) -> PeerSection:
    data = (tmp_path / "m.gguf").read_bytes()
    for name, (first, end) in zip(names, cuts, strict=True):
        (tmp_path / name).write_bytes(data[first:end])
    return PeerSection(name="p", model=tuple(str(tmp_path / name) for name in names))


GGUF: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "split": ({"more": {"split.count": 3}}, ("one of 3 files", "llama-gguf-split --merge")),
    "missing": (
        {"change": lambda t: {n: x for n, x in t.items() if n != "blk.1.attn_q.weight"}},
        ("no tensor blk.1.attn_q.weight",),
    ),
    "scaled positions": (
        {"change": lambda t: {**t, "rope_freqs.weight": torch.ones(16)}},
        ("rope_freqs.weight", "leave out"),
    ),
    "a bias": ({"change": lambda t: {**t, "blk.0.attn_q.bias": torch.ones(128)}}, ("blk.0.attn_q.bias", "leave out")),
    "shape": (
        {"more": {"llama.feed_forward_length": 64}},
        ("converted: model.layers.0.mlp.down_proj.weight is [64, 128]",),
    ),
    "NaN": ({"change": lambda t: {**t, "output_norm.weight": torch.full((64,), torch.nan)}}, (NORM, "not finite")),
}


@pytest.mark.parametrize("case", GGUF)
def test_a_broken_gguf_is_refused(case: str, model: Path, tmp_path: Path) -> None:
    more, has = GGUF[case]
    write_gguf(model, tmp_path / "m.gguf", **more)
    line = refusal(peer_of(tmp_path / "m.gguf"))
    assert all(word in line for word in has), line


def test_wrong_pieces_of_a_gguf_are_refused(model: Path, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "m.gguf")
    shutil.copyfile(tmp_path / "m.gguf", tmp_path / "n.gguf")
    size, a, b = (tmp_path / "m.gguf").stat().st_size, 100_000, 200_000
    cases: list[tuple[list[str], list[tuple[int, int | None]], str]] = [
        (["m.gguf.0"], [(0, size - 4000)], "complete GGUF|fewer"),
        (["m.gguf.0"], [(0, 500)], "complete GGUF"),
        (["m.gguf.0", "m.gguf.1"], [(0, a), (b, None)], "complete GGUF|fewer"),
        (["m.gguf.0", "m.gguf.2", "m.gguf.1"], [(0, a), (b, None), (a, b)], "in the order of their numbers"),
        (["m.gguf.aa", "m.gguf.ac", "m.gguf.ab"], [(0, a), (b, None), (a, b)], "in the order of their numbers"),
        (["m.gguf.1", "m.gguf.0"], [(a, None), (0, a)], "does not begin like a GGUF"),
        (["m.gguf.0", "m.gguf.1", "m.gguf.2"], [(0, a), (a, None), (a, b)], "bytes more"),
        (["m.gguf.0", "m.gguf.1"], [(0, None), (0, None)], "a GGUF file of its own.*llama-gguf-split"),
    ]
    for names, cuts, has in cases:
        line = refusal(_pieces(tmp_path, names, cuts))
        assert re.search(has, line), line


# --- adapters ---------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(model: Path, tmp_path: Path) -> Path:
    """An adapter of the tiny Llama, as peft saves it."""
    adapted: Any = open_adapter(model, "float32", TrainSection(rank=2), None, seed=1)
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    return tmp_path / "adapter"


def test_an_exported_adapter_names_its_base(model: Path, trained: Path) -> None:
    pieces = PeerSection(name="p", model=("one/m.gguf.part0", "one/m.gguf.part1"))
    for peer, named in (
        (PeerSection(name="p", model="Qwen/Qwen2.5-0.5B", revision="abc"), "Qwen/Qwen2.5-0.5B"),
        (pieces, "local: m.gguf.part0"),
        (peer_of(model), "local: model"),
    ):
        publish_adapter(peer, model, trained, 1)
        config = shards.read_json(trained / "adapter_config.json")
        assert (config["base_model_name_or_path"], config["revision"]) == (named, peer.revision)
        for file in trained.iterdir():
            assert file.name == "pst.json" or str(model).encode() not in file.read_bytes(), file
    check_adapter(peer_of(model), model, trained)
    # the next round goes on with it, and asks no hub for its base
    shards.write_json({**config, "base_model_name_or_path": "no/such"}, trained / "adapter_config.json")
    again: Any = open_adapter(model, "float32", TrainSection(rank=2), trained, seed=1)
    again.save_pretrained(str(trained / "again"), save_embedding_layers=False)


def test_an_adapter_of_a_run_that_names_a_module_is_refused(model: Path, trained: Path) -> None:
    """peft would import it: a run that came from elsewhere may bring the file along."""
    publish_adapter(peer_of(model), model, trained, 1)
    config = shards.read_json(trained / "adapter_config.json")
    named = {"megatron_config": {"a": 1}, "megatron_core": "runs.x.evil"}
    shards.write_json({**config, **named}, trained / "adapter_config.json")
    with pytest.raises(UserError, match=r"megatron_config = .*only from plain LoRA"):
        check_adapter(peer_of(model), model, trained)


def test_an_adapter_that_is_not_finite_is_refused(model: Path, trained: Path, tmp_path: Path) -> None:
    publish_adapter(peer_of(model), model, trained, 1)
    file = trained / "adapter_model.safetensors"
    factors = load_file(file)
    name = sorted(factors)[3]
    factors[name].view(-1)[5] = float("inf")
    save_file(factors, file)
    calls: list[Callable[[], object]] = [
        lambda: check_adapter(peer_of(model), model, trained),
        lambda: publish_adapter(peer_of(model), model, trained, 1),
        lambda: write_merged(model, trained, tmp_path / "merged", "bfloat16", 1),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"adapter_model.safetensors: .*lora_.* not finite .*train.lr"):
            call()


def test_a_merge_that_is_not_finite_is_refused(model: Path, trained: Path, tmp_path: Path) -> None:
    file = trained / "adapter_model.safetensors"
    save_file({name: torch.full_like(factor, 1e19) for name, factor in load_file(file).items()}, file)
    with pytest.raises(UserError, match=r"adapter: merged with .* it gives numbers that bfloat16 cannot hold"):
        write_merged(model, trained, tmp_path / "merged", "bfloat16", 1)


def test_every_byte_of_the_weights_counts(model: Path, tmp_path: Path) -> None:
    """Also in a file whose size and time of change were put back, as rsync does."""
    folder = tmp_path / "same"
    shutil.copytree(model, folder)
    before, file = weights_fingerprint(folder), folder / "model.safetensors"
    assert before == weights_fingerprint(folder) == weights_fingerprint(model)
    about = file.stat()
    for place in (about.st_size - 1, about.st_size * 2 // 3):
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        with file.open("r+b") as target:
            target.write(content)
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
        assert weights_fingerprint(folder) != before
        before = weights_fingerprint(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", ""), ("tokenizer.json", "{}"), ("tokenizer_config.json", "{"), ("tokenizer_config.json", "[]")],
)
def test_a_broken_tokenizer_is_refused_in_one_line(name: str, content: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer .*cannot be read") as stop:
        source.load_tokenizer(folder)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("value", ["1024", 1e3, True, 0, [512]])
def test_a_context_that_is_no_number_is_refused(value: object, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": value}), encoding="utf-8")
    with pytest.raises(UserError, match=r"max_position_embeddings .*expected a whole number"):
        check_directory(peer_of(folder), folder, 64)
