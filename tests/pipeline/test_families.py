"""A tiny model of each of twenty families runs, or is refused in one line (tests/families.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from data.config.sections import PeerSection, TemplateSection
from data.errors import UserError
from peers import source, weights_check
from peers.checks import check_directory
from peers.engines.vllm import length_to_tell
from peers.logprob.model import LanguageModel, Pair, load_model, logit_scale
from peers.memory import shape_in
from peers.positions import longest
from peers.prompts import prompts_for
from tests.conftest import ROOT, _tokenizer
from tests.families import COLUMNS, DEFECT, GENERATE, RUNS, row, table
from tests.tiny_families import FAMILIES, make
from tests.unit.test_packing import SHAPE

QUICK = ("Llama with dynamic RoPE", "GPT-2", "Bloom")  # the logit scales have a test of their own
REFUSED = {"Mixtral (experts)": "stores weights of several layers in one tensor", "Mamba": "reads a text into a state"}
DOCS = ROOT / "docs" / "models.md"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees which models another test has found sound."""
    monkeypatch.setattr(source, "CACHE", tmp_path / "cache" / "models")
    monkeypatch.setattr(weights_check, "_sound", set())


@pytest.mark.parametrize("family", QUICK)
def test_a_family_is_generated_scored_trained_and_exported(family: str) -> None:
    assert set(row(family, COLUMNS[1:5]).values()) == {RUNS}


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_trained_is_refused_before_anything_is_loaded(family: str) -> None:
    (line,) = set(row(family).values())
    assert line.startswith("peer p: ") and REFUSED[family] in line and "\n" not in line


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_every_family_runs_in_both_engines_or_is_refused_in_one_line() -> None:
    """In one process, as a peer's: an engine and a language model beside each other. The docs show its table."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "tests.families"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = done.stdout[done.stdout.index("| family |") :].strip()
    assert DEFECT not in found, found
    assert all(f"\n| {family} | " in found for family in FAMILIES) and len(FAMILIES) >= 20
    rows = found.partition("\n\n")[0]  # what vLLM says of a size differs by processor
    assert rows in DOCS.read_text(encoding="utf-8"), f"docs/models.md has another table than this one:\n{found}"


def test_a_line_of_refusal_is_written_once() -> None:
    rows = {"a": dict.fromkeys(COLUMNS, RUNS), "b": dict.fromkeys(COLUMNS, "peer p: no"), "c": {
        **dict.fromkeys(COLUMNS, RUNS), "vllm": "peer p: no", "train": f"{DEFECT} x"}}  # fmt: skip
    assert table(rows).splitlines()[2:] == [
        "| a | runs | runs | runs | runs | runs | runs |", "| b | (1) | (1) | (1) | (1) | (1) | (1) |",
        "| c | (1) | runs | runs | (2) | runs | runs |", "", "1. `peer p: no`", f"2. `{DEFECT} x`",
    ]  # fmt: skip


# --- positions --------------------------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}


@pytest.mark.parametrize(
    ("config", "reach"),
    [
        ({"max_position_embeddings": 100}, 100),
        ({"n_positions": 100}, 100),
        ({"max_position_embeddings": 100, "model_type": "cohere2", "sliding_window": 64}, 64),
        ({}, None),
        ({"max_position_embeddings": 100, "rope_scaling": None}, 100),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 100),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 2.0}}, 200),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "dynamic", "factor": 2.5}}, 250),
        ({"max_position_embeddings": 100, "rope_parameters": YARN}, 400),  # as Qwen 2.5 says to write it
        ({"max_position_embeddings": 400, "rope_parameters": YARN}, 400),
        ({"max_position_embeddings": 400, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 400),
        ({"max_position_embeddings": 400, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
          "original_max_position_embeddings": 100}}, 400),
        ({"max_position_embeddings": 400, "original_max_position_embeddings": 100,
          "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}}, 100),
        ({"max_position_embeddings": 400, "rope_parameters": {  # Gemma 3's
          "full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}},
         400),
    ],
)  # fmt: skip
def test_the_longest_text_follows_from_each_familys_positions(config: dict[str, Any], reach: int | None) -> None:
    assert longest(config) == reach


def test_the_scaled_length_is_the_context(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    about = json.loads((tiny_models["chatty"] / "config.json").read_text(encoding="utf-8"))
    for file in tiny_models["chatty"].iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    peer = PeerSection(name="p", model=str(tmp_path))
    changed = about | {"max_position_embeddings": 100, "rope_parameters": {"rope_theta": 1e4, **YARN}}
    (tmp_path / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    check_directory(peer, tmp_path, 400)
    with pytest.raises(UserError, match=r"its context is 400 tokens \(its yarn scaling included\); .* is 401"):
        check_directory(peer, tmp_path, 401)
    assert (length_to_tell(tmp_path, 100), length_to_tell(tmp_path, 101)) == (None, 400)  # vLLM believes what it reads
    assert length_to_tell(tiny_models["chatty"], 5000) is None


def test_dynamic_positions_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    """transformers' own frequencies are those of a batch's longest sequence."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    config = transformers.LlamaConfig(**{**SHAPE, "max_position_embeddings": 16}, rope_parameters=rope)
    torch.manual_seed(1)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    model = load_model(tmp_path, "float32")
    short, long = torch.arange(1, 9)[None], torch.arange(1, 60)[None]
    with torch.no_grad():
        before = model(short).logits
        whole = model(long).logits
        assert torch.equal(model(short).logits, before)
        torch.testing.assert_close(whole[:, :8], before, rtol=0, atol=1e-5)
        theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        assert (theirs(short).logits - theirs(long).logits[:, :8]).abs().max() > 1e-4


# --- logits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "keys", "scale"),
    [("GraniteConfig", {"logits_scaling": 3.0}, 1 / 3), ("CohereConfig", {"logit_scale": 0.25}, 0.25),
     ("GraniteConfig", {"logits_scaling": 8.0}, 0.125), ("Qwen2Config", {}, 1.0)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_scaled_as_the_model_scales_them(
    dtype: torch.dtype, kind: str, keys: dict[str, float], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    torch.manual_seed(3)
    config = getattr(transformers, kind)(**SHAPE, **keys, pad_token_id=0)
    assert logit_scale(config) == scale
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    lm = LanguageModel(model)
    hidden, tokens = torch.randn(5, SHAPE["hidden_size"]).to(dtype).requires_grad_(), torch.tensor([3, 1, 4, 1, 5])
    head = model.get_output_embeddings().weight.double()
    exact = (scale * hidden.double() @ head.T).log_softmax(1).gather(1, tokens[:, None])[:, 0]
    (wanted,) = torch.autograd.grad(exact.sum(), hidden, retain_graph=True)
    found = lm.row_logprobs(hidden, tokens)
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)
    tolerance = 1e-6 if dtype is torch.float32 else 2e-3 * float(wanted.abs().max())
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=tolerance)
    exact_products = dtype if scale in (1, 0.25, 0.125) else torch.float32  # thirds of bf16 numbers are none

    def note(*arguments: Any) -> torch.Tensor:
        held.append(arguments[-1])
        return hidden.new_zeros(5)

    with monkeypatch.context() as patch:
        patch.setattr("peers.logprob.model.logsumexp", note)
        lm.row_logprobs(hidden, tokens)
    assert held == [exact_products]
    pair = Pair([5, 6, 7, 8], [9, 10])
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0, -2:].double().log_softmax(1)
        (scored,) = lm.target_logprobs([pair])
    close = 2e-5 if dtype is torch.float32 else 0.05
    assert scored.tolist() == pytest.approx([float(logits[0, 9]), float(logits[1, 10])], abs=close)


# --- tokens -----------------------------------------------------------------------------------------------------


def test_a_turn_token_beyond_the_vocabulary_is_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Even where the template puts its name together, so that it is in no file."""
    tokenizer = _tokenizer(chat=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ '<|' + 'turn' + '|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    number = tokenizer.convert_tokens_to_ids("<|turn|>")
    told = rf"peer p: its chat template writes '<\|turn\|>', .* its id is {number}, .* embeddings for {number} ids only"
    with pytest.raises(UserError, match=told):
        prompts_for(tiny_models["chatty"], tokenizer, PeerSection(name="p", model="m"), TemplateSection())


# --- before anything is fetched ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", REFUSED)
def test_a_hub_model_is_refused_by_its_config_before_its_weights_are_fetched(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "hub", family, _tokenizer(chat=True))
    asked: list[list[str]] = []

    def fetch(name: str, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    config: Any = SimpleNamespace(generate=GENERATE)
    with pytest.raises(UserError, match=REFUSED[family]):
        source.model_directory(PeerSection(name="p", model="org/model"), config)
    assert asked == [["config.json"]]


# --- sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "inner"), [("GPT-2", 512), ("OPT", 128), ("Falcon", 512), ("Bloom", 512)])
def test_sizes_are_read_under_each_familys_names(family: str, inner: int, tmp_path: Path) -> None:
    folder = make(tmp_path / "model", family, _tokenizer(chat=True))
    shape = shape_in(PeerSection(name="p", model=str(folder)), folder)
    assert (shape.layers, shape.hidden, shape.heads, shape.inner) == (2, 128, 4, inner)
    assert shape.linear > 0
