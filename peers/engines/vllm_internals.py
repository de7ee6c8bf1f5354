"""What we patch, parse or use of vLLM beyond its documented interface. Written for vLLM 0.32; for another one check:

    Bar                the text that `_run_engine` writes (entrypoints/common/offline.py)
    start              v1/worker/cpu_worker.py, which replaces torch.set_num_threads and takes the number of threads
    give_back          compilation/decorators.py; model_executor/models/transformers/
    generate           v1/sample/ops/logprobs.py, whose `batched_count_greater_than` is compiled
    is_idle            `has_unfinished_requests` (v1/engine/llm_engine.py)
    renew              model_executor/model_loader/reload/; model_executor/layers/vocab_parallel_embedding.py
    shutdown           `engine_core` (v1/engine/core_client.py)
    set_environment    envs.py; data/cli.py sets what the whole command needs
    options_of         in vllm.py: config/compilation.py, config/model.py (`head_dtype`), v1/worker/utils.py
                       (`request_memory`)
    nucleus.py         v1/sample/logits_processor, from which it takes its base class
    import_early       what `LLM()` imports late, for peers/preload_vllm.py

This module imports vLLM only inside functions: the environment must be set first, and vLLM may not be installed.
"""

from __future__ import annotations

import gc
import inspect
import os
import re
import sys
import traceback
from functools import cache
from typing import Any

import torch

from data.console import console
from data.errors import UserError
from data.task import Advance

WRITTEN_FOR = "0.32"
# FlashInfer's sampler is compiled when first used, with an nvcc that few machines have. It would serve none of our
# requests: they are greedy, or have their own seeds.
SAMPLER = ("VLLM_USE_FLASHINFER_SAMPLER", "0")
OUTPUT_TOKENS = re.compile(r"output: (\d+(?:\.\d+)?) toks/s")


def import_early() -> None:
    """Import what takes seconds."""
    os.environ.setdefault(*SAMPLER)  # there may be a GPU; without one nothing reads it
    import vllm.entrypoints.llm
    import vllm.lora.request
    import vllm.model_executor.model_loader
    import vllm.v1.worker.cpu_worker  # noqa: F401


def set_environment(on_gpu: bool) -> None:
    """Set vLLM's environment variables, except those that the user has set. Call it before vLLM is imported."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine must end with the peer's process
    if on_gpu:
        os.environ.setdefault(*SAMPLER)
    if not on_gpu:  # else vLLM leaves torch one thread, which is right on a GPU only
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


@cache  # one line per process
def check_vllm_version() -> None:
    """Warn if the installed vLLM has another minor version: what we use of it may have changed."""
    found = _version()
    if found.split(".")[:2] != WRITTEN_FOR.split("."):
        console.print(
            f"  warning: vLLM {found} is installed; peers/engines/vllm_internals.py was written for vLLM {WRITTEN_FOR}",
            soft_wrap=True,
        )


def start(peer: str, **options: Any) -> Any:
    """`LLM(**options)`. Raises UserError if this vLLM lacks what the functions below use, or cannot run the model."""
    from vllm import LLM

    check_vllm_version()
    if "use_tqdm" not in inspect.signature(LLM.generate).parameters:
        raise _missing("LLM.generate has no use_tqdm")
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    set_threads(_threads_of_engines())
    try:
        llm = LLM(**options)
    except torch.OutOfMemoryError as error:
        raise _no_room(peer, error) from error
    except (ValueError, NotImplementedError, AttributeError, KeyError, TypeError, AssertionError) as error:
        raise _cannot_run(f"the model of peer {peer}", error) from error
    torch.set_num_threads = set_threads  # on a CPU vLLM replaces it by a function that does nothing
    set_threads(threads)
    give_back()
    try:
        _ = llm.llm_engine.engine_core.shutdown
    except AttributeError as error:
        raise _missing(str(error)) from error
    return llm


def check_serves_adapters(llm: Any, peer: str) -> None:
    """Raises UserError if vLLM cannot serve adapters beside this kind of model."""
    if not all(llm.apply_model(_serves_adapters)):
        raise UserError(
            f"peer {peer}: vLLM {_version()} cannot serve adapters beside this kind of model; set run.adapters = "
            "'merged' in a new run"
        )


def _serves_adapters(model: Any) -> bool:
    from vllm.model_executor.models.interfaces import supports_lora

    return bool(supports_lora(model))


def give_back() -> None:
    """Let transformers' classes be instantiated without vLLM again.

    Models that vLLM has no code for (OLMo 2, GPT-NeoX) run with transformers' code, whose classes' `__init__` vLLM
    replaces: from then on an engine can make such a model, but not the language model beside it.
    """
    if "vllm.compilation.wrapper" not in sys.modules:
        return
    from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper
    from vllm.config.vllm import get_current_vllm_config_or_none

    def begin_as(cls: Any) -> None:
        theirs, own = cls.__init__, inspect.getclosurevars(cls.__init__).nonlocals["old_init"]

        def begin(self: Any, *arguments: Any, **named: Any) -> None:
            if get_current_vllm_config_or_none() is None:
                own(self, *arguments, **named)
                self.do_not_compile = True
            else:
                theirs(self, *arguments, **named)

        cls.__init__, cls.given_back = begin, True

    for cls in TorchCompileWithNoGuardsWrapper.__subclasses__():
        if cls.__module__.startswith("transformers.") and not hasattr(cls, "given_back"):
            begin_as(cls)


@cache
def _threads_of_engines() -> int:
    """Torch's threads while an engine is made or renewed: as many as the process's first engine had. On a CPU an engine
    made with another number generates garbage, whatever the number is later."""
    return torch.get_num_threads()


def generate(llm: Any, prompts: list[Any], params: list[Any], lora: Any, advance: Advance, on_gpu: bool) -> list[Any]:
    """`LLM.generate`, reporting to `advance`."""

    def bar(*iterable: Any, **options: Any) -> Any:
        # vLLM calls it twice: around the iterable of prompts, and for the responses' bar
        return iterable[0] if iterable else Bar(advance, **options)

    # vLLM compiles a function that ranks tokens: on a CPU that takes seconds in every process and gains nothing
    with torch.compiler.set_stance("default" if on_gpu else "force_eager"):
        try:
            outputs: list[Any] = llm.generate(prompts, params, use_tqdm=bar, lora_request=lora)
        except RuntimeError as error:  # its kernels may not support the size of the heads
            if "attention configuration" not in str(error):
                raise
            raise _cannot_run("this model", error) from error
    return outputs


def is_idle(llm: Any) -> bool:
    """Whether an engine has no request left."""
    return not llm.llm_engine.has_unfinished_requests()


def renew(llm: Any, directory: str) -> None:
    """Write the weights of a model directory into a live engine of the same model. Compiled code and captured graphs
    stay valid; the prefix cache does not, and is reset."""
    threads = torch.get_num_threads()
    torch.set_num_threads(_threads_of_engines())  # on a CPU the weights are packed for this number
    try:
        llm.collective_rpc("reload_weights", kwargs={"weights_path": directory})
        llm.apply_model(_pack_heads)
    finally:
        torch.set_num_threads(threads)
    if not llm.reset_prefix_cache():
        raise RuntimeError("vLLM could not reset its prefix cache after its weights were replaced")


def _pack_heads(model: Any) -> None:
    """Pack the head again: a tied head shares the embeddings' tensor, but on a CPU it also has a packed copy, which
    reloading does not update."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def shutdown(llm: Any) -> None:
    """End the engine. vLLM also unfreezes what peers/preload.py froze."""
    llm.llm_engine.engine_core.shutdown()


def release_gpu() -> None:
    """Free the GPU's memory after `shutdown` and a collection. The compiled model hangs on hooks that the first
    collection's finalizer removes, so a second one frees it (a gc.freeze() before would keep it for good); then torch
    gives up the memory that it caches."""
    gc.collect()
    torch.cuda.empty_cache()


class Bar:
    """The part of tqdm's interface that vLLM uses, reporting to our own progress line."""

    def __init__(self, advance: Advance, total: int = 0, **_: object) -> None:
        self.advance, self.total, self.n, self.seen = advance, total, 0, 0
        self.postfix: object = ""
        self.format_dict = {"elapsed": 1.0}  # vLLM divides token counts by it: with 1 the postfix holds the counts

    def update(self, n: int = 1) -> None:
        """Called for each finished request, after `postfix` was set; a postfix of another form counts no tokens."""
        self.n += n
        found = OUTPUT_TOKENS.search(str(self.postfix))
        tokens = int(float(found[1])) if found else self.seen
        self.advance(n, tokens - self.seen)
        self.seen = tokens

    def refresh(self) -> None:
        """Nothing to draw."""

    def close(self) -> None:
        """Nothing to close."""


def _version() -> str:
    from vllm import __version__

    return str(__version__)


def _cannot_run(model: str, error: Exception) -> UserError:
    """An error for a kind or size of model that vLLM does not support; the traceback goes to the log."""
    traceback.print_exception(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = lines[1] if len(lines) > 1 and "validation error" in lines[0] else lines[0]
    reason = reason.partition(" [type=")[0].rstrip(".")[:300]
    return UserError(
        f"vLLM {_version()} cannot run {model} ({reason}); set generate.engine = 'transformers' in a new run, or "
        "use another model"
    )


def _no_room(peer: str, error: Exception) -> UserError:
    """An error for a full GPU: other programs may hold memory, since the plan counts only this command's processes."""
    traceback.print_exception(error)
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
    return UserError(
        f"the engine of peer {peer} ran out of memory: {free:.1f} of the GPU's {total:.1f} GiB are free; if others "
        "use it (see nvidia-smi), wait for them or set runtime.gpu_memory_utilization to the share that is left; else "
        "lower runtime.kv_cache_gib or runtime.max_num_seqs"
    )


def _missing(what: str) -> UserError:
    return UserError(
        f"vLLM {_version()} does not fit peers/engines/vllm_internals.py, written for vLLM {WRITTEN_FOR}: "
        f"{what}; install that version (`make setup`) or set generate.engine = 'transformers'"
    )
