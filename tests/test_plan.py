"""`make plan`: the memory plan; hours from finished rounds, a probe or a rule of thumb; what it prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data import shards
from data.config.load import load_config
from data.run import RUNS
from peers import placement as placement_module
from peers.devices import Device, parse_devices
from peers.memory import GIB
from peers.placement import place
from pipeline.measured import measured_stages, rows_of, scaled
from pipeline.memory_plan import host_memory, memory_plan
from pipeline.plan import app, total
from pipeline.projection import COMMAND, Cost
from pipeline.rough import PAPER, likely_lengths, rough_rates, size, sizing_table
from tests.fake_engine import Here
from tests.test_first_look import RATES, WORK
from tests.test_placement import CPU, SHAPES, config, nano_shapes


def test_memory_of_each_device_and_stage_is_within_the_plan() -> None:
    for given in ("1x24", "1x80", "3x80", "8x24"):
        placement = place(config(), parse_devices(given), SHAPES)
        rows = memory_plan(config(), placement, SHAPES, 0)
        assert len(rows) == 3 * len(parse_devices(given)) and all(0 < row.bytes <= row.limit for row in rows)
    one = place(config(), parse_devices("1x80"), SHAPES)
    assert host_memory(one, SHAPES) == 2 * sum(shape.weights for shape in SHAPES.values())
    assert host_memory(place(config(), [CPU], SHAPES), SHAPES) == 0


def test_memory_of_a_nano_round_on_a_cpu() -> None:
    """4.45 GiB were measured (PSS of all processes), docs/log.md."""
    given = config(runtime={"kv_cache_gib": 0.25, "train_tokens": 2048, "compute": "float32"},
                   generate={"context_tokens": 384, "max_new_tokens": 64})  # fmt: skip
    placement = place(given, [CPU], nano_shapes())
    most = max(row.bytes for row in memory_plan(given, placement, nano_shapes(), CPU.memory))
    assert 0.75 <= most / (4.45 * GIB) <= 1.25
    apart = place(given, [CPU], nano_shapes(), together=False)
    assert max(row.bytes for row in memory_plan(given, apart, nano_shapes(), CPU.memory)) < most / 2


def test_train_tokens_are_halved_until_a_peer_fits() -> None:
    long = config(generate={"max_new_tokens": 2048, "context_tokens": 8192})
    placement = place(long, parse_devices("3x80"), SHAPES)
    assert {slot.peer: slot.train_tokens for slot in placement.slots} == {"gemma": 4096, "llama": 0, "qwen": 0}
    asked = config(generate={"max_new_tokens": 2048, "context_tokens": 8192}, runtime={"train_tokens": 8192})
    with pytest.raises(Exception, match="train needs"):
        place(asked, parse_devices("3x80"), SHAPES)


def manifest(folder: Path, **content: Any) -> None:
    """Of a finished stage, with a file of 1,000 bytes beside it."""
    folder.mkdir(parents=True)
    (folder / "part-00000.parquet").write_bytes(b"x" * 1000)
    (folder / shards.SUCCESS).write_text(json.dumps(content))


def test_finished_stages_tell_what_the_next_take(project: Path) -> None:
    given = load_config(project / "tiny.toml", [])
    for name, seconds in (("mine", 8.0), ("other", 99.0)):
        shards.write_json(given.model_dump(mode="json"), RUNS / name / "config.json")
        manifest(RUNS / name / "round=0/evals", seconds=seconds, rows=48)
        manifest(RUNS / name / "round=1/chains", seconds=seconds + 1, rows=24)
    manifest(RUNS / "mine/round=2/chains", seconds=20.0, rows=24)
    manifest(RUNS / "other/round=1/scores", seconds=5.0, rows=24)
    changed = load_config(project / "tiny.toml", ["generate.max_new_tokens=99"])
    shards.write_json(changed.model_dump(mode="json"), RUNS / "changed/config.json")
    manifest(RUNS / "changed/round=1/adapters", seconds=5.0, rows=24)
    found = measured_stages(given, "mine")
    assert {stage: (each.seconds, each.where) for stage, each in found.items()} == {
        "baseline": (8.0, "mine, round 0"), "generate": (20.0, "mine, round 2"), "score": (5.0, "other, round 1"),
    }  # fmt: skip
    twice = scaled("generate", found["generate"], 48, 3.0)
    size_ = sum(path.stat().st_size for path in (RUNS / "mine/round=2/chains").iterdir())
    assert twice == Cost(40.0, 2 * size_, 3.0)
    assert scaled("train", found["generate"], 48, 0).bytes == size_
    assert rows_of(replace(WORK, gate=5, votes=2), 3) == {
        "baseline": 300, "evaluate": 300, "votes": 45, "gate": 15, "generate": 300, "score": 300, "train": 150,
    }  # fmt: skip


def test_the_sum_of_a_run() -> None:
    costs = {"baseline": Cost(10, 100), "generate": Cost(5, 10, 7), "train": Cost(1, 1, 9)}
    assert total(costs, 3) == Cost(COMMAND + 10 + 3 * 6, 100 + 3 * 11, 9)


def test_a_size() -> None:
    """Two peers on four devices: each has two, but trains on one."""
    two = {"a": RATES, "b": RATES}
    one, four = (size(WORK, two, devices, 2, 2.5) for devices in (1, 4))
    training, first, others = 2 * (2 + 45), 10 + 2 + 50 + 5.48, 100 + 2 + 20.5 + 6 + 50 + 10.96
    assert one.device_hours == one.hours and four.device_hours == 4 * four.hours
    assert one.hours * 3600 == pytest.approx(2 * (training + first + 2 * others))
    assert one.hours / 4 < four.hours < one.hours / 2 and four.cost == 2.5 * four.device_hours
    assert one.disk == four.disk and one.peak_disk == one.disk + 2 * 10**6


def test_the_rule_of_thumb() -> None:
    """13.5 k tokens/s were seen on an H100: Gemma-2-2B's shape, 128 requests of 200 + 200 tokens."""
    given = config(generate={"max_new_tokens": 200, "context_tokens": 400}, runtime={"max_num_seqs": 128})
    h100 = parse_devices("1x80")[0]
    rates = rough_rates(SHAPES["gemma"], given, h100, likely_lengths(given))
    assert 0.75 < rates.decode_rate / 13_500 < 1.25 and 5e4 < rates.forward_rate < 1e5
    slower = rough_rates(SHAPES["gemma"], given, parse_devices("1x24")[0], likely_lengths(given))
    assert slower.decode_rate < rates.decode_rate / 3 and slower.forward_rate < rates.forward_rate / 5


def test_the_sizing_table() -> None:
    rows = sizing_table(80, 2.5, 1).splitlines()
    assert len(rows) == 2 + 4 * 2 * 3 and len(PAPER) == 3
    hours = [float(row.split("|")[4].replace(",", "")) for row in rows[2:]]
    assert hours[-3] > hours[-2] > hours[-1] > hours[2]  # a million questions, 1, 8, 64 GPUs; a thousand on 64


def test_make_plan_prints_all_of_it(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.unrecorded.Pool", Here)
    monkeypatch.setattr("pipeline.unrecorded.warm", lambda *_, **__: None)
    monkeypatch.setattr("pipeline.probe.LONGEST", 0.1)
    given = load_config(project / "tiny.toml", [])
    shards.write_json(given.model_dump(mode="json"), RUNS / "tiny/config.json")
    manifest(RUNS / "tiny/round=0/evals", seconds=30.0, rows=48)
    app(["--config", "tiny.toml", "--round", "2", "--price", "3"], standalone_mode=False)
    out = capfd.readouterr().out
    assert "side by side: 2 processes may take" in out and "measured in tiny, round 0" in out
    assert "measured by a probe" in out and "make round ROUND=2" in out and "at 3 per device hour" in out
    assert max(map(len, out.splitlines())) <= 120


def test_make_plan_for_devices_that_are_not_here(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    app(["--config", "tiny.toml", "--devices", "2x80", "--json"], standalone_mode=False)
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [slot["device"]["name"] for slot in found["slots"]] == ["0", "1"] and found["turns"] == []
    assert {stage["from"] for stage in found["stages"].values()} == {"estimated, not measured"}
    assert found["run"]["seconds"] > 60 and len(found["memory"]) == 6
    app(["--config", "tiny.toml", "--devices", "2x80"], standalone_mode=False)
    out = capfd.readouterr().out
    assert "times are estimated, not measured: a roofline of H100" in out and "may use" in out


def test_a_peer_that_does_not_fit_is_one_line(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["--config", "tiny.toml", "--devices", "1x1", "--set", "runtime.kv_cache_gib=4"], standalone_mode=False)
    said = capfd.readouterr()
    assert ended.value.code and "peer chatty does not fit GPU 0 (GPU of 1 GB): its engine needs" in said.out + said.err
    assert placement_module.gib(GIB / 2) == "0.50 GiB" and isinstance(CPU, Device)
