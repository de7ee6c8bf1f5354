"""`make plan`: the memory plan; hours from a probe or a rule of thumb; what it prints."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from data import shards
from data.config.load import load_config
from data.errors import UserError
from data.run import RUNS
from peers import placement as placement_module
from peers.devices import Device, parse_devices
from peers.memory import GIB, Footprint
from peers.placement import Slot, place
from pipeline.memory_plan import _bytes, host_memory, memory_plan
from pipeline.plan import app, config_of, memory_table, placement_table, total
from pipeline.projection import COMMAND, Cost, project
from pipeline.rough import PAPER, likely_lengths, likely_shapes, rough_rates, size, sizing_table
from tests.conftest import ROOT
from tests.fake_engine import Here
from tests.pipeline.test_first_look import RATES, WORK
from tests.unit.test_placement import CPU, SHAPES, config, nano_shapes


def test_memory_of_each_device_and_stage_is_within_the_plan() -> None:
    for given in ("1x24", "1x80", "3x80", "8x24"):
        placement = place(config(), parse_devices(given), SHAPES)
        rows = memory_plan(config(), placement, SHAPES, 0)
        assert len(rows) == 3 * len(parse_devices(given)) and all(0 < row.bytes <= row.limit for row in rows)
    one = place(config(), parse_devices("1x80"), SHAPES)
    sleeping = 2 * sum(shape.weights for shape in SHAPES.values())
    assert host_memory(config(), one, SHAPES) == sleeping
    assert host_memory(config(), place(config(), parse_devices("3x80"), SHAPES), SHAPES) == sleeping  # alone or not
    in_float32 = config(runtime={"compute": "float32"})
    assert host_memory(in_float32, place(in_float32, parse_devices("3x80"), SHAPES), SHAPES) == 2 * sleeping
    assert host_memory(config(), place(config(), [CPU], SHAPES), SHAPES) == 0
    alone = config(generate={"engine": "transformers"})
    assert host_memory(alone, place(alone, parse_devices("3x80"), SHAPES), SHAPES) == 0


def test_what_is_in_memory_in_each_stage() -> None:
    """In evaluate the verifier is a model that scores, in turns, too."""
    needs = Footprint(process=1, engine=10, score=500, train=900, kv_token=0, kv_preferred=0, kv_minimum=0, weights=5,
                      apart=False)  # fmt: skip
    slot = Slot("gemma", 0, CPU, 100, False)

    def bytes_of(needs: Footprint, turns: bool) -> list[int]:
        return [_bytes(needs, slot, stage, turns) for stage in ("generate, evaluate", "score", "train")]

    assert bytes_of(needs, False) == [611, 611, 1011] and bytes_of(needs, True) == [501, 501, 901]
    assert bytes_of(replace(needs, apart=True), False) == [501, 501, 901]
    assert bytes_of(replace(needs, apart=True, score=50), False) == [111, 51, 901]


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
    off = {"gradient_checkpointing": "off"}
    long = config(generate={"max_new_tokens": 2048, "context_tokens": 8192}, runtime=off)
    placement = place(long, parse_devices("3x80"), SHAPES)
    assert {slot.peer: slot.train_tokens for slot in placement.slots} == {"gemma": 4096, "llama": 0, "qwen": 0}
    again = config(generate={"max_new_tokens": 2048, "context_tokens": 8192})
    assert not any(slot.train_tokens for slot in place(again, parse_devices("3x80"), SHAPES).slots)
    asked = config(generate={"max_new_tokens": 2048, "context_tokens": 8192}, runtime={"train_tokens": 8192, **off})
    with pytest.raises(Exception, match="train needs"):
        place(asked, parse_devices("3x80"), SHAPES)


def test_a_runs_cost_is_the_sum_over_its_rounds() -> None:
    costs = {"baseline": Cost(10, 100), "generate": Cost(5, 10, 7), "train": Cost(1, 1, 9)}
    assert total(costs, 3) == Cost(COMMAND + 10 + 3 * 6, 100 + 3 * 11, 9)


def test_hours_and_device_hours_by_hand() -> None:
    """Two peers on four devices: each has two, but trains on one."""
    two = {"a": RATES, "b": RATES}
    one, four = (size(WORK, two, devices, 2, 2.5) for devices in (1, 4))
    training, first, others = 2 * (2 + 45), 10 + 2 + 50 + 5.48, 100 + 2 + 20.5 + 6 + 50 + 10.96
    assert one.device_hours == one.hours and four.device_hours == 4 * four.hours
    assert one.hours * 3600 == pytest.approx(2 * (training + first + 2 * others))
    assert one.hours / 4 < four.hours < one.hours / 2 and four.cost == 2.5 * four.device_hours
    assert one.disk == four.disk and one.peak_disk == one.disk + 2 * 10**6


def test_rates_by_rule_of_thumb_are_near_to_what_was_measured() -> None:
    """13.5 k tokens/s were seen on an H100: Gemma-2-2B's shape, 128 requests of 200 + 200 tokens."""
    given = config(generate={"max_new_tokens": 200, "context_tokens": 400}, runtime={"max_num_seqs": 128})
    h100 = parse_devices("1x80")[0]
    rates = rough_rates(SHAPES["gemma"], given, h100, likely_lengths(given))
    assert 0.75 < rates.decode_rate / 13_500 < 1.25 and 5e4 < rates.forward_rate < 1e5
    slower = rough_rates(SHAPES["gemma"], given, parse_devices("1x24")[0], likely_lengths(given))
    assert slower.decode_rate < rates.decode_rate / 3 and slower.forward_rate < rates.forward_rate / 5


def test_the_sizing_table_has_fewer_hours_on_more_devices() -> None:
    rows = sizing_table(parse_devices("1x80"), 2.5, 1).splitlines()
    assert len(rows) == 2 + 4 * 2 * 3 and len(PAPER) == 3
    hours = [float(row.split("|")[4].replace(",", "")) for row in rows[2:]]
    assert hours[-3] > hours[-2] > hours[-1] > hours[2] > 0  # a million questions, 1, 8, 64 GPUs; a thousand on 64
    memory = [int(row.split("|")[7].split()[0]) for row in rows[2:4]]
    assert memory[0] != memory[1]  # three peers on a GPU, or one
    four = sizing_table(parse_devices("4x24"), 2.5, 1).splitlines()
    assert len(four) == 2 + 4 * 2 and all("| 4 |" in row for row in four[2:])
    for given in ("cpu", "1x24+1x80"):
        with pytest.raises(UserError, match="--sizing needs GPUs of one kind"):
            sizing_table(parse_devices(given), 2.5, 1)


def test_make_plan_prints_all_of_it(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.unrecorded.Pool", Here)
    monkeypatch.setattr("pipeline.unrecorded.warm", lambda *_, **__: None)
    monkeypatch.setattr("pipeline.probe.MEASURE_SECONDS", 0.1)
    app(["--config", "tiny.toml", "--round", "2", "--price", "3", "--set", "executor.kind=ray"], standalone_mode=False)
    out = capfd.readouterr().out
    assert "2 processes may take" in out and "times measured by a probe" in out and "make round ROUND=2" in out
    assert "cost" in out and "warning: executor.kind is ray, but this plan" in out
    assert max(map(len, out.splitlines())) <= 120
    given = load_config(project / "tiny.toml", ["evaluate.samples=3"])
    shards.write_json(given.model_dump(mode="json"), RUNS / "mine/config.json")
    app(["--run", "mine", "--json"], standalone_mode=False)
    said = capfd.readouterr()
    assert json.loads(said.out)["from"] == "measured by a probe" and "plan: " in said.err  # nothing but JSON
    assert not (RUNS / "mine/round=0").exists()


def test_a_plan_needs_a_config_or_a_run(project: Path) -> None:
    given = load_config(project / "tiny.toml", ["evaluate.samples=3"])
    shards.write_json(given.model_dump(mode="json"), RUNS / "mine/config.json")
    assert config_of(None, "mine", ["train.rank=3"]).train.rank == 3 and config_of(None, "mine", []) == given
    assert config_of(Path("tiny.toml"), "mine", []).evaluate.samples == 2
    for run, told in (("", "no config is named"), ("none", "does not exist yet"), ("../x", "expected a name")):
        with pytest.raises(UserError, match=told):
            config_of(None, run, [])


def test_make_gives_the_run_alone_where_it_has_frozen_a_config(tmp_path: Path) -> None:
    def told(*words: str) -> str:
        make = ["make", "-n", "-f", str(ROOT / "Makefile"), "plan", *words]
        return subprocess.run(make, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.splitlines()[-2]

    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/config.json").write_text("{}")
    assert "--config" not in told("RUN=mine") and "--run 'mine'" in told("RUN=mine")
    assert "--config 'x.toml' --run 'mine'" in told("RUN=mine", "CONFIG=x.toml")
    assert "--config 'configs/nano.toml' --run 'nano'" in told()


def test_the_questions_are_read_before_a_model_is_fetched(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--devices", "1x24"]):
        with pytest.raises(SystemExit):
            app(["--config", "tiny.toml", *more, "--set", "prompts.source=gone.jsonl", "--set", "peers.0.model=./gone"],
                standalone_mode=False)  # fmt: skip
        assert "gone.jsonl" in capfd.readouterr().err


def test_of_a_hub_model_the_config_alone_is_fetched(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = load_config(project / "tiny.toml", ["peers.0.model=owner/model"])
    (project / "hub").mkdir()
    (project / "hub/config.json").write_text(json.dumps(PAPER["gemma-2-2b"]))
    asked: list[list[str]] = []

    def fetched(peer: object, name: str, revision: str | None, files: list[str]) -> Path:
        asked.append(files)
        return Path("hub")

    monkeypatch.setattr("peers.source._fetched", fetched)
    found = likely_shapes(given)
    assert asked == [["config.json"]] and list(found) == list(given.peer_names)
    assert found[given.peer_names[0]] == SHAPES["gemma"]


def test_the_cpu_of_a_machine_with_a_gpu_is_not_guessed(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.plan.gpu_is_there", lambda: True)
    with pytest.raises(SystemExit):
        app(["--config", "tiny.toml", "--devices", "cpu"], standalone_mode=False)
    assert "set CUDA_VISIBLE_DEVICES='' to plan for the CPU" in capfd.readouterr().err


def test_many_devices_are_few_rows() -> None:
    placement = place(config(), parse_devices("64x80"), SHAPES)
    assert (
        placement_table(placement).row_count == 3 == memory_table(memory_plan(config(), placement, SHAPES, 0)).row_count
    )
    assert placement.reasons[0].startswith("GPUs 0, 3, 6 … 63 (22) (GPU of 80 GB): gemma alone")


def test_devices_that_differ_have_rates_of_their_own() -> None:
    """One that is four times as fast takes four fifths of a peer's work, whichever comes first."""
    quick = replace(RATES, chain_rate=400)
    for places in (["0", "1"], ["1", "0"]):
        found = project(WORK, {"a": RATES}, {"a": places}, {"0": {"a": RATES}, "1": {"a": quick}})
        assert found["generate"].seconds == pytest.approx(20)
    alone = project(WORK, {"a": RATES}, {"a": ["1"]}, {"1": {"a": quick}})
    assert alone["generate"].seconds == pytest.approx(25)


def test_make_plan_for_devices_that_are_not_here(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    app(["--config", "tiny.toml", "--devices", "2x80", "--json"], standalone_mode=False)
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [slot["device"]["name"] for slot in found["slots"]] == ["0", "1"] and found["turns"] == []
    assert found["from"].startswith("estimated, not measured: a roofline of H100")
    assert found["run"]["seconds"] > 60 and len(found["memory"]) == 6
    app(["--config", "tiny.toml", "--devices", "2x80"], standalone_mode=False)
    out = capfd.readouterr().out
    assert "times estimated, not measured: a roofline of H100" in out and "may use" in out


def test_a_peer_that_does_not_fit_is_one_line(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["--config", "tiny.toml", "--devices", "1x1", "--set", "runtime.kv_cache_gib=4"], standalone_mode=False)
    said = capfd.readouterr()
    assert ended.value.code and "peer chatty does not fit GPU 0 (GPU of 1 GB): its engine needs" in said.err
    assert placement_module.gib(GIB / 2) == "0.50 GiB" and isinstance(CPU, Device)
