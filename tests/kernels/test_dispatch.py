"""The backend is chosen once; a fallback says why, and an explicit wish is never quietly overruled."""

import pytest
import torch

from engine.errors import ConfigError, EnvironmentProblem
from engine.kernels import reference
from engine.kernels.dispatch import resolve_backend


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recent_gpu_gets_triton():
    backend, line = resolve_backend("auto", "cuda")
    assert backend.__name__.endswith("triton_backend")
    assert line.startswith("triton")
