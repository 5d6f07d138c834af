"""The backend is chosen once; a fallback says why, and an explicit wish is never quietly overruled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.errors import ConfigError, EnvironmentProblem
from engine.kernels import reference
from engine.kernels.dispatch import resolve_backend
from engine.kernels.self_test import cause, self_test

ROOT = Path(__file__).parents[2]
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def run_python(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()


def test_a_cpu_gets_torch_and_hears_why():
    backend, line = resolve_backend("auto", "cpu")
    assert backend is reference
    assert "need a CUDA device" in line
    assert resolve_backend("torch", "cpu")[0] is reference


def test_triton_on_a_cpu_is_refused():
    with pytest.raises(EnvironmentProblem, match="use auto or torch"):
        resolve_backend("triton", "cpu")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="'cuda' is unknown"):
        resolve_backend("cuda", "cpu")


def test_a_step_that_computes_right_passes():
    assert self_test(reference.step, "cpu") is None


def test_the_fused_step_passes_on_the_interpreter():
    pytest.importorskip("triton")
    program = """
from engine.kernels import self_test, triton_backend
print(self_test.self_test(triton_backend.step, "cpu"))
"""
    assert run_python(program, TRITON_INTERPRET="1") == "None"


@pytest.mark.parametrize("part", ["dx", "weight", "bias", "second_moment", "not a number"])
def test_a_step_that_computes_wrong_is_found_out(part):
    def step(layer, x_BD, positives, dx_BD, options):
        loss = reference.step(layer, x_BD, positives, dx_BD, options)
        if part == "not a number":
            return loss * torch.nan
        wrong = {"dx": dx_BD, "weight": layer.weight, "bias": layer.bias, **layer.state}[part]
        wrong[-1] *= 2
        return loss

    assert "computes wrong results here" in self_test(step, "cpu")


def test_a_step_that_raises_is_reported_in_one_line():
    def step(*_):
        raise RuntimeError("\n  PTX was compiled with an unsupported toolchain\nmany\nmore lines")

    assert self_test(step, "cpu") == "PTX was compiled with an unsupported toolchain"


def test_running_out_of_memory_is_not_the_kernels_fault():
    def step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        self_test(step, "cpu")


def test_causes_say_what_helps():
    missing = RuntimeError(
        "Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl."
    )
    assert "install gcc" in cause(missing) and "triton-windows" in cause(missing)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        subprocess.run([sys.executable, "-c", "raise SystemExit(1)"], check=True)
    assert cause(failed.value).endswith("install gcc and the C headers of Python (python3-dev)")
    with pytest.raises(ModuleNotFoundError) as absent:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")
    assert "triton-windows" in cause(absent.value)
    assert cause(KeyError()) == "KeyError"


@pytest.mark.parametrize("name", [pytest.param("auto", marks=gpu), pytest.param("triton", marks=gpu)])
def test_a_gpu_without_a_c_compiler(name, tmp_path):
    program = f"""
from engine.errors import EnvironmentProblem
from engine.kernels.dispatch import resolve_backend
try:
    print(resolve_backend({name!r}, "cuda")[1])
except EnvironmentProblem as error:
    print("refused:", error)
"""
    environment = {"PATH": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path)}
    line = run_python("import os; os.environ.pop('CC', None)\n" + program, **environment)
    assert line.startswith("torch" if name == "auto" else "refused:")
    assert "install gcc" in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recent_gpu_gets_triton():
    backend, line = resolve_backend("auto", "cuda")
    assert backend.__name__.endswith("triton_backend")
    assert line.startswith("triton")
