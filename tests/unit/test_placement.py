"""Who runs where: the placement of three peers on 0 to 8 devices, the memory plan behind it, defaults by device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.config.load import differences, parse_config
from data.config.sections import Config, RuntimeSection
from data.errors import UserError
from data.run import Run
from peers import placement as module
from peers.devices import GB, Device, parse_devices
from peers.memory import GIB, Shape, footprint, kept_bytes, shape_in, shape_of
from peers.placement import Slot, by_device, place, placement_of, resolve_runtime
from tests.conftest import ROOT

GEMMA: dict[str, Any] = {
    "num_hidden_layers": 26, "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000, "attn_logit_softcapping": 50.0,
    "tie_word_embeddings": True,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip
QWEN: dict[str, Any] = {
    "num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES = {"gemma": shape_of(GEMMA), "llama": shape_of(LLAMA), "qwen": shape_of(QWEN)}
CPU = Device("cpu", 32 * GIB, "CPU")


def config(**sections: Any) -> Config:
    """Three peers."""
    peers = [{"name": name, "model": f"./{name}"} for name in SHAPES]
    return parse_config({"prompts": {"source": "q.jsonl"}, "peers": peers, **sections}, "x")


@pytest.mark.parametrize(
    ("given", "expected", "turns"),
    [
        ("cpu", {"gemma": "cpu", "llama": "cpu", "qwen": "cpu"}, "cpu"),
        ("1x24", {"gemma": "0", "llama": "0", "qwen": "0"}, "0"),
        ("1x80", {"gemma": "0", "llama": "0", "qwen": "0"}, "0"),
        ("2x24", {"gemma": "0", "llama": "1", "qwen": "0"}, "0"),
        ("2x80", {"gemma": "0", "llama": "1", "qwen": "0"}, "0"),
        ("3x24", {"gemma": "0", "llama": "1", "qwen": "2"}, ""),
        ("3x80", {"gemma": "0", "llama": "1", "qwen": "2"}, ""),
        ("8x24", {"gemma": "0 3 6", "llama": "1 4 7", "qwen": "2 5"}, ""),
        ("8x80", {"gemma": "0 3 6", "llama": "1 4 7", "qwen": "2 5"}, ""),
        ("2x24+1x80", {"gemma": "0", "llama": "1", "qwen": "2"}, ""),
    ],
)
def test_three_peers_are_placed_on_any_devices_and_fit(given: str, expected: dict[str, str], turns: str) -> None:
    devices = [CPU] if given == "cpu" else parse_devices(given)
    found = place(config(), devices, SHAPES)
    where = {peer: " ".join(slot.device.name for slot in found.slots_of(peer)) for peer in SHAPES}
    assert (where, " ".join(sorted(device.name for device in found.turns))) == (expected, turns)
    assert [slot.replica for slot in found.slots_of("gemma")] == [*range(len(expected["gemma"].split()))]
    assert len(found.reasons) == min(3, len({slot.device for slot in found.slots}))  # alike GPUs are one sentence
    fits_memory(found.slots, found.turns)


def fits_memory(slots: tuple[Slot, ...], turns: frozenset[Device]) -> None:
    """What is in a GPU's memory at once is within its share, the formula applied here once more."""
    for device in {slot.device for slot in slots if slot.device.is_gpu}:
        runtime = by_device(RuntimeSection(), device)
        here = [slot for slot in slots if slot.device == device]
        needs = {
            slot.peer: footprint(SHAPES[slot.peer], config().peer(slot.peer), config(), runtime, device)
            for slot in here
        }
        alone = [
            needs[slot.peer].process + max(needs[slot.peer].engine + slot.kv_cache_bytes, needs[slot.peer].stage)
            for slot in here
        ]
        assert (max if device in turns else sum)(alone) <= 0.85 * device.memory
        assert all(slot.apart and resolve_runtime(RuntimeSection(), slot).resident == "one" for slot in here)
        assert all(slot.kv_cache_bytes >= needs[slot.peer].kv_minimum for slot in here)
        assert all(slot.shared == (len(here) > 1) for slot in here)


def test_small_peers_live_side_by_side_on_one_gpu() -> None:
    found = place(config(generate={"context_tokens": 384, "max_new_tokens": 64}), parse_devices("1x80"), nano_shapes())
    assert not found.turns and all(slot.shared for slot in found.slots)
    assert "gemma, llama and qwen live side by side" in found.reasons[0] and found.reasons[0].count("\n") == 0


def nano_shapes() -> dict[str, Shape]:
    """Of the peers that come with the project, under the names here."""
    peers = zip(SHAPES, ("gemma2", "llama", "qwen2"), strict=True)
    return {name: shape_in(config().peer(name), ROOT / "peers" / folder) for name, folder in peers}


def test_runtime_resident_and_together_force() -> None:
    one_gpu = parse_devices("1x80")
    small = config(runtime={"resident": "all"}, generate={"context_tokens": 384, "max_new_tokens": 64})
    assert not place(small, one_gpu, nano_shapes()).turns
    with pytest.raises(UserError, match=r"gemma, llama and qwen cannot live side by side on GPU 0 .* they need .* GiB"):
        place(config(runtime={"resident": "all"}), parse_devices("1x24"), SHAPES)
    assert place(config(runtime={"resident": "one"}), one_gpu, nano_shapes()).turns == {*one_gpu}
    assert place(config(runtime={"resident": "one"}), [CPU], {}).turns == {CPU}
    assert not place(config(runtime={"resident": "one"}), [CPU], {}, together=True).turns
    assert place(config(runtime={"resident": "all"}), [CPU], {}, together=False).turns == {CPU}


def test_engine_and_model_are_side_by_side_where_the_engine_cannot_sleep() -> None:
    """With vLLM on a GPU the larger of the two counts; the engine of transformers has no sleep."""
    for gpus, turns in (("3x80", 0), ("3x24", 1), ("1x80", 1)):
        found = place(config(generate={"engine": "transformers"}), parse_devices(gpus), SHAPES)
        assert len(found.turns) == turns and not any(slot.apart for slot in found.slots)
    needs = footprint(SHAPES["gemma"], config().peer("gemma"), config(), by_device(RuntimeSection(), CPU), CPU)
    assert needs.at_once(5, 7) == needs.process + needs.engine + 12
    assert needs.at_once(5, 7, turns=True) == needs.process + needs.engine + 5
    assert replace(needs, apart=True).at_once(5, 10**12) == needs.process + 10**12


def test_caches_share_what_is_there() -> None:
    """Three peers on 80 GB whose wanted caches do not fit: each gets the same share of the way to it."""
    given = config(generate={"context_tokens": 640, "max_new_tokens": 320}, runtime={"train_tokens": 1024})
    (device,) = parse_devices("1x80")
    found = place(given, [device], SHAPES)
    needs = [footprint(SHAPES[s.peer], given.peer(s.peer), given, resolve_runtime(given.runtime, s), device)
             for s in found.slots]  # fmt: skip
    used = sum(n.at_once(s.kv_cache_bytes, n.stage) for n, s in zip(needs, found.slots, strict=True))
    assert not found.turns and 0.99 < used / (0.85 * device.memory) <= 1
    assert all(n.kv_minimum <= s.kv_cache_bytes < n.kv_preferred for n, s in zip(needs, found.slots, strict=True))


def test_processes_of_a_cluster_without_gpus_have_devices_of_their_own() -> None:
    """Each has a device of its own, though all are called cpu."""
    three = [Device("cpu", 32 * GIB, f"CPU, process {n} of the cluster") for n in range(3)]
    found = place(config(), three, {**SHAPES, "llama": nano_shapes()["llama"]})
    assert {slot.peer for slot in found.slots if found.takes_turns(slot)} == {"gemma", "qwen"}
    assert any(reason.startswith("CPU: side by side: while loading, the process may take") for reason in found.reasons)
    with pytest.raises(UserError, match="there is no device to place the peers on"):
        place(config(), [Device("cpu", 0, "CPU, process 0 of the cluster")], {})
    alike = place(config(), three, dict.fromkeys(SHAPES, nano_shapes()["llama"]))
    assert [reason.partition(":")[0] for reason in alike.reasons] == [
        "each of 3 processes on CPUs of the cluster, side by side"
    ]


def test_gradient_checkpointing_is_counted() -> None:
    """Gemma's 26 layers: `off` keeps them all, `on` their inputs, `auto` at most half of what is free."""
    (device,) = parse_devices("1x80")
    train = {}
    for choice in ("off", "auto", "on"):
        runtime = by_device(RuntimeSection(gradient_checkpointing=choice), device)
        train[choice] = footprint(SHAPES["gemma"], config().peer("gemma"), config(), runtime, device).train
    inputs = 26 * 8192 * 2304 * 2
    assert inputs < train["on"] < train["off"] / 2 and train["on"] < train["auto"] < train["off"]

    def kept(choice: str, free: int | None) -> int:
        return kept_bytes(SHAPES["gemma"], choice, 2, 1024, 1024, True, free)

    assert kept("auto", 10**12) == kept("auto", None) == kept("off", None) and kept("auto", 0) == kept("on", None)
    assert kept("on", None) < kept("auto", kept("off", None)) == kept("off", None) // 2


def test_peers_are_together_on_a_cpu_only_where_memory_allows_it() -> None:
    """8 × the files + 3 × (cache + 2 GiB) < 0.7 × what is free."""
    shapes = nano_shapes()
    need = 8 * sum(shape.stored for shape in shapes.values()) + 3 * (2 + 2) * GIB
    for free, turns in ((need / 0.7 - 8, {CPU}), (need / 0.7 + 8, set())):
        assert place(config(), [CPU], shapes, free=int(free)).turns == turns
    smaller = place(config(runtime={"kv_cache_gib": 0.25}), [CPU], shapes, free=int(need / 0.7) - 8)
    assert not smaller.turns and {slot.kv_cache_bytes for slot in smaller.slots} == {GIB // 4}


def test_each_peer_has_as_many_workers_as_the_config_says() -> None:
    two = place(config(executor={"workers": 2}, runtime={"resident": "all"}), [CPU], {})
    assert [(slot.peer, slot.replica) for slot in two.slots] == [(p, r) for r in (0, 1) for p in SHAPES]
    fewer = place(config(executor={"workers": 1}), parse_devices("4x80"), SHAPES)
    assert len(fewer.slots) == 3 and fewer.reasons[-1] == "Unused with executor.workers = 1: 3."
    more = place(config(executor={"workers": 2}), parse_devices("3x80"), SHAPES)
    assert [slot.device.name for slot in more.slots] == ["0", "1", "2", "0", "1", "2"]


@pytest.mark.parametrize(
    ("given", "runtime", "told"),
    [
        ("1x8", {}, r"peer gemma does not fit GPU 0 \(GPU of 8 GB\): .* needs \d+\.\d GiB, but may use \d"),
        (
            "1x24",
            {"train_tokens": 16384, "gradient_checkpointing": "off"},
            r"train needs .* lower runtime.train_tokens \(16384 here\), or use a larger",
        ),
        ("1x24", {"score_tokens": 10**6}, r"score needs .* lower runtime.score_tokens \(1000000 here\)"),
        ("1x24", {"kv_cache_gib": 30}, "its engine needs"),
        ("1x24", {"gpu_memory_utilization": 0.3}, "of 22.4 GiB, runtime.gpu_memory_utilization 0.3; lower"),
    ],
)
def test_a_peer_that_does_not_fit_is_refused(given: str, runtime: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        place(config(runtime=runtime), parse_devices(given), SHAPES)
    assert "\n" not in str(error.value)


def test_a_peer_that_does_not_fit_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peers.memory._cpu_multiplies_bf16", lambda: False)  # float32, whatever the processor
    with pytest.raises(UserError, match=r"fit the CPU: .* may use 16.0 GiB of 16.0 GiB; lower"):
        place(config(), [Device("cpu", 16 * GIB, "CPU")], SHAPES)
    # nothing that could be lowered would help
    with pytest.raises(
        UserError, match=r"may use 4.0 GiB of 4.0 GiB; its process and weights alone take 10.2 GiB: use a larger"
    ):
        place(config(), [Device("cpu", 4 * GIB, "CPU")], SHAPES)
    with pytest.raises(UserError, match=r"may use 0.00 GiB of 0.93 GiB, .* use a larger device or a smaller peer$"):
        place(config(), parse_devices("1x1"), SHAPES)


def test_a_config_that_tells_no_sizes(tmp_path: Path) -> None:
    """On a CPU its files are what counts, as ever; on a GPU it is refused."""
    (tmp_path / "config.json").write_text('{"n_layer": 4}')
    (tmp_path / "model.safetensors").write_bytes((ROOT / "peers/llama/model.safetensors").read_bytes())
    strange = shape_in(config().peer("gemma"), tmp_path)
    assert strange.layers == 0 and strange.stored == nano_shapes()["llama"].stored
    shapes = {**nano_shapes(), "gemma": strange}
    assert len(place(config(), [CPU], shapes).slots) == 3
    with pytest.raises(UserError, match=r"peer gemma: its config.json uses names for its sizes that"):
        place(config(), parse_devices("1x80"), shapes)


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ("cpu", (128, 2048, 1024)),
        ("1x12", (128, 4096, 1024)),
        ("1x24", (256, 8192, 1024)),
        ("1x48", (256, 16384, 4096)),
        ("1x80", (512, 16384, 8192)),
    ],
)
def test_batch_sizes_follow_the_device_unless_they_are_given(given: str, numbers: tuple[int, int, int]) -> None:
    device = CPU if given == "cpu" else parse_devices(given)[0]
    slot = Slot("gemma", 0, device, 2 * GIB, shared=True)
    found = resolve_runtime(RuntimeSection(), slot)
    assert (found.max_num_seqs, found.score_tokens, found.train_tokens) == numbers
    assert (found.kv_cache_gib, found.resident) == (2, "all") and resolve_runtime(
        RuntimeSection(), slot, True
    ).resident == "one"
    given_ = RuntimeSection(max_num_seqs=3, score_tokens=4, train_tokens=5)
    kept = resolve_runtime(given_, slot)
    assert (kept.max_num_seqs, kept.score_tokens, kept.train_tokens) == (3, 4, 5)


def test_counted_sizes_are_those_of_the_files() -> None:
    """Against sums by hand: 1.75 million weights, of which the files hold two bytes each."""
    for name, shape in nano_shapes().items():
        header = 8 + int.from_bytes((ROOT / "peers" / folder_of(name) / "model.safetensors").read_bytes()[:8], "little")
        assert shape.stored == (ROOT / "peers" / folder_of(name) / "model.safetensors").stat().st_size - header
        assert shape.stored == 2 * shape.weights and 1.7e6 < shape.weights < 1.8e6
        assert shape.kv_token(4) == 2 * 4 * 3 * 32 * 4  # layers, heads, head size, float32; keys and values
        assert shape.linear == 4 * (4 * 192 + 2 * 192 + 2 * 96 + 3 * (192 + 512))  # q, o; k, v; MLP
    counted, there = shape_of(GEMMA), SHAPES["gemma"]
    assert counted == there and 2.6e9 < there.weights < 2.62e9 and there.kv_token(2) == 106_496
    assert 1.23e9 < SHAPES["llama"].weights < 1.24e9 and 1.54e9 < SHAPES["qwen"].weights < 1.55e9


def folder_of(name: str) -> str:
    """The nano peer that stands for a peer here."""
    return dict(zip(SHAPES, ("gemma2", "llama", "qwen2"), strict=True))[name]


def test_a_larger_budget_takes_more_memory() -> None:
    device, peer = parse_devices("1x80")[0], config().peer("gemma")
    runtime = by_device(RuntimeSection(gradient_checkpointing="off"), device)
    found = footprint(SHAPES["gemma"], peer, config(), runtime, device)
    doubled = runtime.model_copy(update={"score_tokens": 2 * runtime.score_tokens, "train_tokens": 16384})
    more = footprint(SHAPES["gemma"], peer, config(), doubled, device)
    assert more.score > found.score and more.engine == found.engine
    assert 1.8 < (more.train - 2 * SHAPES["gemma"].weights) / (found.train - 2 * SHAPES["gemma"].weights) < 2.1
    assert found.weights == 2 * SHAPES["gemma"].weights and found.stage == found.train
    in_float32 = footprint(SHAPES["gemma"], peer, config(), runtime.model_copy(update={"compute": "float32"}), device)
    assert in_float32.kv_token == 2 * found.kv_token and in_float32.score > found.score + 2 * SHAPES["gemma"].weights


def test_the_placement_of_a_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "devices", lambda: [CPU])
    monkeypatch.chdir(ROOT)
    peers = [{"name": name, "model": f"./peers/{folder_of(name)}"} for name in SHAPES]
    run = Run(
        "r", config(peers=peers, runtime={"kv_cache_gib": 0.25}, generate={"context_tokens": 384, "max_new_tokens": 64})
    )
    assert [slot.peer for slot in placement_of(run).slots] == list(SHAPES)
    assert placement_of(run, together=False).turns == {CPU}


def test_the_executor_may_differ_from_call_to_call_and_is_not_in_dumps() -> None:
    local, ray = config(), config(executor={"kind": "ray", "gpus_per_worker": 0.5, "workers": 2})
    assert differences(local, ray) == [] and "executor" not in local.model_dump()
    assert ray.model_dump(mode="json")["executor"]["kind"] == "ray"
    with pytest.raises(UserError, match="gpus_per_worker"):
        config(executor={"gpus_per_worker": 2})
    with pytest.raises(UserError, match="gpus_per_worker"):
        config(executor={"gpus_per_worker": "many"})


def test_devices_of_a_gigabyte_and_more() -> None:
    """Whatever machine is lent: the table of defaults has no gaps."""
    for gb in range(1, 200):
        assert by_device(RuntimeSection(), Device("0", gb * GB, "x")).score_tokens >= 4096
