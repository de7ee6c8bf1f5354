"""What is patched or parsed of vLLM, with a stand-in for it: no engine is started."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.console import console
from data.errors import UserError
from peers.engines import vllm_internals
from peers.engines.vllm_internals import WRITTEN_FOR, Bar
from tests.conftest import ROOT

PARTS = "vllm.v1.sample.logits_processor"


class FakeLLM:
    """What `vllm_internals` uses of vLLM's LLM."""

    def __init__(self, **options: Any) -> None:
        self.options, self.ended, self.stance = options, False, ""
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.end))
        torch.set_num_threads = lambda nthreads: None

    def end(self) -> None:
        """The engine's shutdown."""
        self.ended = True

    def generate(self, prompts: list[str], params: list[Any], use_tqdm: Any, lora_request: Any) -> list[str]:
        """As `_add_requests` and `_run_engine` do: ten tokens per response."""
        self.stance = torch._dynamo.eval_frame._stance.stance
        outputs = list(use_tqdm(prompts, desc="Rendering prompts"))
        bar = use_tqdm(total=len(outputs), desc="Processed prompts", dynamic_ncols=True, postfix="")
        for i in range(len(outputs)):
            rate = 10 * (i + 1) / bar.format_dict["elapsed"]
            bar.postfix = f"est. speed input: {0:.2f} toks/s, output: {rate:.2f} toks/s"
            bar.update(1)
        if bar.n == len(outputs):
            bar.refresh()
        bar.close()
        return outputs


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A stand-in of the version that the module was written for."""
    fake = SimpleNamespace(__version__=f"{WRITTEN_FOR}.0", LLM=FakeLLM)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(torch, "set_num_threads", torch.set_num_threads)  # put back whatever a test does
    vllm_internals.check_vllm_version.cache_clear()
    yield fake
    vllm_internals.check_vllm_version.cache_clear()


def advances(*postfixes: object) -> list[tuple[int, int]]:
    """What a bar reports for one finished request per text."""
    heard: list[tuple[int, int]] = []
    bar = Bar(lambda *step: heard.append(step), total=len(postfixes), desc="Processed prompts", postfix="")
    for postfix in postfixes:
        bar.postfix = postfix
        bar.update(1)
    assert bar.n == bar.total
    return heard


def warned() -> str:
    """What the version check prints."""
    with console.capture() as captured:
        vllm_internals.check_vllm_version()
    return captured.get()


def test_the_bar_reads_output_tokens() -> None:
    text = "est. speed input: {:.2f} toks/s, output: {:.2f} toks/s"
    texts = [text.format(70, 12), text.format(1400, 1030), text.format(2000, 1030)]
    assert advances(*texts) == [(1, 12), (1, 1018), (1, 0)]


@pytest.mark.parametrize("text", ["", "12 tokens", "output: fast toks/s", "output: nan toks/s", None, {"output": 3}])
def test_an_unknown_text_counts_requests_without_tokens(text: object) -> None:
    assert advances(text, text) == [(1, 0), (1, 0)]


def test_generate_reports_and_does_not_compile_on_a_cpu(vllm: SimpleNamespace) -> None:
    llm = FakeLLM()
    heard: list[tuple[int, int]] = []
    before = torch._dynamo.eval_frame._stance.stance
    for on_gpu, stance in ((False, "force_eager"), (True, "default")):
        heard.clear()
        outputs = vllm_internals.generate(llm, ["a", "b"], [], None, lambda *step: heard.append(step), on_gpu)
        assert (outputs, heard, llm.stance) == (["a", "b"], [(1, 10), (1, 10)], stance)
    assert torch._dynamo.eval_frame._stance.stance == before


def test_start_puts_set_num_threads_back(vllm: SimpleNamespace) -> None:
    before = torch.set_num_threads
    with console.capture() as captured:
        llm = vllm_internals.start("p", model="m")
    assert torch.set_num_threads is before and llm.options == {"model": "m"} and not captured.get()
    vllm_internals.shutdown(llm)
    assert llm.ended


def test_written_for_the_pinned_version() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    pins = [line for name in ("cpu", "gpu") for line in groups[name] if "vllm" in line]
    assert len(pins) == 2 and all(pin.partition("==")[2].startswith(f"{WRITTEN_FOR}.") for pin in pins)


@pytest.mark.parametrize("found", [f"{WRITTEN_FOR}.0", f"{WRITTEN_FOR}.7.dev3+cpu"])
def test_the_same_minor_version_is_silent(vllm: SimpleNamespace, found: str) -> None:
    vllm.__version__ = found
    assert warned() == ""


@pytest.mark.parametrize("found", ["0.33.0", "1.32.0", "0.3.2", "dev"])
def test_another_version_is_one_warning(vllm: SimpleNamespace, found: str) -> None:
    vllm.__version__ = found
    text = warned()
    assert text.count("\n") == 1 and f"vLLM {found} " in text and f"vLLM {WRITTEN_FOR}" in text
    assert warned() == ""  # once per process


@pytest.mark.parametrize("lacking", ["use_tqdm", "engine_core", "shutdown"])
def test_an_engine_without_what_is_used_is_refused(vllm: SimpleNamespace, lacking: str) -> None:
    class Other(FakeLLM):
        def __init__(self) -> None:
            super().__init__()
            del (self.llm_engine if lacking == "engine_core" else self.llm_engine.engine_core).__dict__[lacking]

    class NoBar(FakeLLM):
        def generate(self, prompts: list[str]) -> list[str]:  # type: ignore[override]
            return prompts

    vllm.LLM, vllm.__version__ = NoBar if lacking == "use_tqdm" else Other, "0.33.0"
    with console.capture(), pytest.raises(UserError, match=rf"^vLLM 0\.33\.0 .*{WRITTEN_FOR}.*{lacking}.*$") as raised:
        vllm_internals.start("p")
    assert "\n" not in str(raised.value)


def test_a_gpu_that_is_full_is_told_in_one_line(vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 160.00 MiB.")

    vllm.LLM = full
    full.generate = FakeLLM.generate  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * 2**20, 80 * 2**30))
    with pytest.raises(UserError, match=r"engine of peer p .* 0\.0 of the GPU's 80\.0 GiB are free.*gpu_memory_utiliz"):
        vllm_internals.start("p")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("1 validation error for ModelConfig\n  Value error, ['M'] is not supported. [type=x]\n  More"),
         "Value error, ['M'] is not supported"),
        (AttributeError("no attribute 'block_dim'"), "no attribute 'block_dim'"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)  # fmt: skip
def test_a_model_that_vllm_cannot_run_is_refused_in_one_line(
    error: Exception, told: str, vllm: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: Any) -> None:
        raise error

    refuse.generate = FakeLLM.generate  # type: ignore[attr-defined]
    vllm.LLM = refuse
    with pytest.raises(UserError) as stop:
        vllm_internals.start("p", model="m")
    assert str(stop.value) == (
        f"vLLM {WRITTEN_FOR}.0 cannot run the model of peer p ({told}); set generate.engine = 'transformers' in a new "
        "run, or use another model"
    )
    assert type(error).__name__ in capfd.readouterr().err  # into the stage's log
