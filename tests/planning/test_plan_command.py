"""`engine plan`: its table, its JSON, and what it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli import main
from engine.planning.hardware import cpu_compute

SOURCE = Path(__file__).parents[2]
CASE = "--labels 8000000 --vram 8 --encoder bert-base-uncased --tokens 128".split()


def plan(capsys, *arguments, code=0):
    assert main(["plan", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def test_a_plan_for_a_card_that_is_not_here_loads_no_torch():
    code = f"import sys; from engine.cli import main; main({['plan', *CASE]}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_table_with_bars_choice_reasons_and_larger_cards(capsys):
    out = plan(capsys, *CASE)
    sparse = "fan-in 192 of 768 (75% sparse) and 128 words, 288 clusters with 32 features of their own"
    assert f"{sparse}, groups of 32, 400,000 head labels dense, bf16" in out
    assert "fan-in 192: the largest that fits; 256 needs" in out
    assert "with more memory: fan-in 256 from" in out
    rows = [line for line in out.splitlines() if line.endswith("█")]
    assert {row.split("  ")[1] for row in rows} >= {"classifier weights", "encoder weights", "activation gradients"}
    assert max(rows, key=lambda row: row.count("█")).startswith("  classifier weights")


def test_few_labels_read_all_features(capsys):
    out = plan(capsys, "--labels", "39000", "--vram", "8")
    assert "classifier  dense, 384 features and 1,024 words a label, bf16" in out
    assert "- all 384 features: with so few labels the last layer takes no longer than the encoder" in out
    assert "fan-in" not in out


def test_json_for_programs(capsys):
    found = json.loads(plan(capsys, *CASE, "--json"))
    assert {"fan_in", "group_size", "micro_batch", "predicted_bytes", "budget_bytes", "components"} <= set(found)
    assert found["predicted_bytes"] == sum(found["components"].values()) <= found["budget_bytes"]
    assert [rung["fan_in"] for rung in found["larger"]] == [256, 384]
    assert found["larger"][0]["memory_bytes"] > 8 * 2**30


@pytest.mark.parametrize("labels", ["8000000", "12345678", "50000000"])
def test_the_memory_named_for_the_next_rungs_is_enough(capsys, labels):
    case = ["--labels", labels, "--encoder", "bert-base-uncased", "--vram"]
    (line,) = [line for line in plan(capsys, *case, "8").splitlines() if "with more memory" in line]
    rungs = re.findall(r"fan-in (\d+) from ([\d.]+) GiB on", line)
    assert rungs
    for fan_in, memory in rungs:
        assert json.loads(plan(capsys, *case, memory, "--json"))["fan_in"] >= int(fan_in)


def test_8_bit_weights_are_named_where_they_buy_fan_in(capsys):
    case = ["--labels", "20000000", "--vram", "3.1"]
    assert "in the same memory with 8-bit weights: fan-in 64 " in plan(capsys, *case)
    moments = ["--set", "classifier.optimizer=adamw8bit", "--set", "encoder.optimizer=adamw"]
    assert "8-bit weights" not in plan(capsys, *case, *moments)


def test_a_way_of_training_that_fewer_head_labels_would_avoid_says_what_it_saves(capsys):
    out = plan(capsys, "--labels", "75000000", "--vram", "6.55", "--tokens", "128")
    (line,) = [line for line in out.splitlines() if "micro_batch = 8" in line]
    assert "; without, " in line


def test_a_profile_names_the_memory_and_any_key_can_be_set(capsys):
    arguments = [
        "--labels",
        "100000",
        "--profile",
        "6gb",
        "--batch-size",
        "64",
        "--set",
        "classifier.fan_in=32",
        "--json",
    ]
    found = json.loads(plan(capsys, *arguments))
    assert (found["fan_in"], found["micro_batch"]) == (32, 64)
    assert 5 * 2**30 < found["budget_bytes"] < 6 * 2**30


def test_on_a_cpu_the_plan_is_against_host_memory(capsys):
    found = json.loads(plan(capsys, "--labels", "100000", "--profile", "cpu", "--vram", "4", "--json"))
    assert (found["device"], found["weight_dtype"], found["host_bytes"]) == ("cpu", "fp32", 0)
    assert "program" in found["components"]
    assert json.loads(plan(capsys, "--labels", "1000", "--profile", "cpu", "--json"))["device"] == "cpu"


def test_the_processor_is_planned_with_the_memory_that_a_training_would_find(capsys):
    from engine.planning.hardware import detect

    found = json.loads(plan(capsys, "--labels", "1000", "--profile", "cpu", "--json"))
    assert abs(found["budget_bytes"] + 2**29 - detect("cpu").free_bytes) < 2**30  # other programs move in between


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="only Linux tells what a processor can do")
def test_a_plan_without_torch_knows_the_numbers_that_torch_computes_fast():
    import torch

    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert cpu_compute() == ("bf16" if fast else "fp32")


def test_without_memory_or_profile_the_plan_is_for_this_machine(capsys):
    from engine.planning.hardware import auto_profile, detect

    found = json.loads(plan(capsys, "--labels", "1000", "--json"))
    here = detect()
    assert found["device"] == here.device
    assert found["budget_bytes"] < here.memory_bytes
    if auto_profile() == "cpu":  # which keeps the encoder as it is
        assert "encoder optimizer" not in found["components"]


def test_a_dataset_and_an_encoder_directory(capsys, tiny_dataset, tiny_encoder):
    arguments = ["--data", str(tiny_dataset), "--encoder", str(tiny_encoder), "--tokens", "16", "--vram", "2", "--json"]
    found = json.loads(plan(capsys, *arguments))
    assert (found["labels"], found["width"], found["fan_in"]) == (120, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--labels", "0", "--vram", "8"], "--labels 0 must be a whole number above 0"),
        (["--labels", "many", "--vram", "8"], "--labels many"),
        (["--labels", "10", "--vram", "-1"], "--vram -1 must be a number above 0"),
        (["--labels", "10", "--vram", "nan"], "--vram nan"),
        (["--labels", "10", "--vram", "8", "--encoder", "nobody/nothing"], "'nobody/nothing' is unknown here"),
        (["--labels", "10", "--vram", "8", "--tokens", "600"], "exceeds the encoder's 512 positions"),
        (["--labels", "10", "--vram", "8", "--tokens", "-5"], "data.max_tokens"),
        (["--labels", "10", "--vram", "8", "--set", "nonsense=1"], "unknown key"),
        (["--labels", "10", "--profile", "9gb"], "unknown profile"),
        (["--labels", "10", "--vram", "8", "--set", "classifier.fan_in=400"], "exceeds the 384 features"),
        ([], "--labels N, or --data DIR"),
    ],
)
def test_nonsense_gets_one_line(capsys, arguments, says):
    (line,) = plan(capsys, *arguments, code=2).splitlines()
    assert says in line


def test_too_little_memory_exits_4_with_advice(capsys):
    (line,) = plan(capsys, "--labels", "100000000", "--vram", "4", code=4).splitlines()
    assert line.partition("What would fit: ")[2].count("; or ") == 2


def test_the_readme_shows_what_the_program_prints(capsys):
    assert plan(capsys, *CASE) in (SOURCE / "README.md").read_text()
