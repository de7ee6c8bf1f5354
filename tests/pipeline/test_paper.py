"""configs/paper.toml with small models of its three architectures and their chat templates, and files for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from data import shards
from data.config.load import load_config
from data.config.sections import Config
from data.files import looks_like_files
from evaluate.benchmarks import load_benchmarks
from peers.prompts import PeerPrompts, load_prompts
from peers.source import check_peers, load_tokenizer, model_directory
from tests.conftest import ROOT, questions, teach, write_jsonl
from tests.fake_engine import run_inline
from tests.unit.test_controls import TEMPLATES, tokenizer_json

PAPER = ROOT / "configs" / "paper.toml"
FORM = "The answer is \\boxed{{{}}}."
STAND_INS = {  # peer: (config, kind of tokenizer, chat template, end of turn, beginning of a text)
    "gemma2": ("Gemma2Config", "blanks", "gemma2", "<end_of_turn>", "<s>"),
    "llama": ("LlamaConfig", "bytes", "llama32", "<|eot_id|>", "<s>"),
    "qwen2": ("Qwen2Config", "bytes", "chatml", "<|im_end|>", None),
}
COLUMNS = {"math500": ("problem", "answer"), "multiarith": ("question", "final_ans"),
           "simuleq": ("input", "output_answer")}  # fmt: skip


def make_stand_in(peer: str, folder: Path) -> Any:
    """A random model of a peer's architecture with its chat template, saved; returns it."""
    name, kind, template, end, begin = STAND_INS[peer]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json(kind)), bos_token=begin, eos_token=end, unk_token="<unk>"
    )
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8").strip()
    torch.manual_seed(len(name))
    config = getattr(transformers, name)(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=8192, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
        **({"query_pre_attn_scalar": 32, "sliding_window": 256} if peer == "gemma2" else {}),
    )  # fmt: skip
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides that put small models and files in the place of those of the hub."""
    monkeypatch.chdir(tmp_path)
    settings = ["prompts.source=train.jsonl", "prompts.subset=null", "prompts.split=null"]
    write_jsonl(tmp_path / "train.jsonl", questions(0, 24))
    for number, (peer, _) in enumerate(STAND_INS.items()):
        make_stand_in(peer, tmp_path / peer)
        settings.append(f"peers.{number}.model=./{peer}")
    for number, (name, (question, answer)) in enumerate(COLUMNS.items()):
        rows = [{question: row["question"], answer: row["answer"]} for row in questions(100 * (number + 1), 6)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        settings += [f"benchmarks.{number}.source={name}.jsonl", f"benchmarks.{number}.split=null"]
    return settings


def test_the_file_says_what_the_abstract_says() -> None:
    config = load_config(PAPER, [])
    assert [peer.model for peer in config.peers] == [
        "google/gemma-2-2b-it", "meta-llama/Llama-3.2-1B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct",
    ]  # fmt: skip
    assert [benchmark.name for benchmark in config.benchmarks] == list(COLUMNS)
    assert [looks_like_files(b.source) for b in (config.prompts, *config.benchmarks)] == [False, False, False, True]
    assert config.generate.aggregate == "last" and config.score.weighting == "sigmoid"
    assert config.score.label == config.score.text == "aggregate"
    sources = {(b.source, part) for b in config.benchmarks for part in (b.split or "").split("+")}
    assert (config.prompts.source, config.prompts.split) not in sources  # trained on no test question
    assert config.prompts.overlap == "drop"


def test_its_peers_are_resolved_and_their_prompts_made(stand_ins: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    config = load_config(PAPER, stand_ins)
    check_peers(config)  # context_tokens and max_new_tokens fit into Gemma 2's 8,192
    assert [len(items) for items in load_benchmarks(config).values()] == [6, 6, 6]
    for peer in config.peers:
        assert model_directory(peer, config) == Path(peer.model if isinstance(peer.model, str) else "")
        prompts = load_prompts(config, peer.name)
        assert prompts.is_chat and not prompts.stop_strings
        assert prompts.tokenizer.convert_ids_to_tokens(prompts.end_id) == STAND_INS[peer.name][3]
        _check_prompts(prompts, config)


def _check_prompts(prompts: PeerPrompts, config: Config) -> None:
    """What is asked stands in the prompt as it is in the config, once, in one turn."""
    tokenizer: Any = prompts.tokenizer
    for ids, request, shown in (
        (prompts.solve("How many?"), config.templates.instruction, 0),
        (prompts.review("How many?", ["One.", "Two."]), config.templates.review, 2),
    ):
        text = tokenizer.decode(ids)
        assert text.count(request) == 1 and text.count("Question: How many?") == 1
        assert "\\boxed{};" in request and "\\\\" not in request and "\n" not in request
        assert ("Solution 2: Two." in text) == (shown == 2)
        begin = tokenizer.bos_token_id
        assert begin is None or (ids[0] == begin and ids.count(begin) == 1)
    response = FORM.format(7)
    assert prompts.text(prompts.encode_response(response)) == response


@pytest.mark.slow
def test_a_round_of_the_papers_config_runs(stand_ins: list[str]) -> None:
    few = ["generate.engine=transformers", "generate.max_new_tokens=24", "generate.context_tokens=1024",
           "evaluate.samples=2", "evaluate.bootstrap=100", "train.batch_size=4", "prompts.limit=12",
           "runtime.compute=float32", *[f"peers.{n}.dtype=float32" for n in range(3)]]  # fmt: skip
    config = load_config(PAPER, [*stand_ins, *few])
    for peer in config.peers:
        directory = Path(str(peer.model))
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager" if peer.name == "gemma2" else "sdpa"
        )
        teach(model, PeerPrompts(load_tokenizer(directory), peer, config.templates), seed=1, form=FORM)
        model.save_pretrained(directory)
    run_inline("paper", PAPER, [*stand_ins, *few])
    root = Path("runs/paper/round=1")
    chains = pl.read_parquet(root / "chains/*.parquet")
    assert chains.group_by("peer", "position").len()["len"].to_list() == [4] * 9  # each peer at each place
    right_form = chains.filter(pl.col("response").str.contains(r"^The answer is \\boxed\{\d+\}\.$"))
    assert len(right_form) > len(chains) / 2
    adapters = shards.read_json(root / "adapters/_SUCCESS.json")
    assert all(count >= 4 for count in adapters["examples"].values())
    scores = pl.read_parquet(root / "scores/*.parquet").filter(pl.col("pmi").is_not_null())
    assert set(scores["peer"]) == set(STAND_INS) and scores["pmi"].is_finite().all()
    metrics = pl.read_parquet("runs/paper/round=0/metrics.parquet")
    assert set(metrics["benchmark"]) >= set(COLUMNS)
