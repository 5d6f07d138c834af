"""The fused AdamW step against bitsandbytes' own, on a GPU where there is one, else on Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from engine.kernels.adamw8bit import QUANTIZATION_BLOCK, adamw8bit_, new_moments
from engine.training.optimizers import join, split

pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()
READY = ON_GPU or os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if ON_GPU else "cpu"
case = pytest.mark.skipif(not READY, reason="run on the interpreter by test_on_the_interpreter")
settings = {"learning_rate": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
if READY:
    from engine.kernels.triton_adamw8bit import adamw8bit_halves_


@pytest.mark.skipif(READY, reason="the cases run in this process")
def test_on_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "-x", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def halves(weight):
    value, low = split(weight.clone())
    return value.contiguous(), low.contiguous()


@case
@pytest.mark.gpu
@pytest.mark.parametrize("count", [256, 1024, 2600])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_the_same_steps_as_bitsandbytes(count, dtype, clip_norm):
    whole, first = 4096, 512
    generator = torch.Generator().manual_seed(count)
    weight = torch.randn(whole, generator=generator).to(DEVICE)
    weight[first + count : -(-(first + count) // QUANTIZATION_BLOCK) * QUANTIZATION_BLOCK] = 0.0  # padding
    value, low = halves(weight)
    mine, theirs = new_moments(whole, DEVICE), new_moments(whole, DEVICE)
    before, untouched = weight.clone(), [t.clone() for t in mine.values()]
    for step in range(1, 6):
        grad = (torch.randn(count, generator=generator) * torch.linspace(0.01, 1, count)).to(DEVICE, dtype)
        norm = torch.linalg.vector_norm(grad, dtype=torch.float32)
        scale = min(1.0, clip_norm / (float(norm) + 1e-6)) if clip_norm else 1.0
        part = weight[first : first + count].clone()
        adamw8bit_(part, grad.float() * scale, theirs, first, step=step, **settings)
        weight[first : first + count] = part
        adamw8bit_halves_(value, low, grad, mine, first, norm, clip_norm, step=step, **settings)
        if step == 1:
            assert torch.allclose(join(value, low), weight, atol=1e-5)
    moved = (weight - before)[first : first + count].abs()
    off = (join(value, low) - weight).abs()
    # codes on the border between two may be rounded differently: most weights agree, and none is far off
    assert off[first : first + count].mean() < 0.01 * moved.mean()
    assert off.max() < 0.2 * moved.max()
    for name, start in zip(mine, untouched, strict=True):
        unit = QUANTIZATION_BLOCK if name.startswith("absmax") else 1
        end = -(-(first + count) // QUANTIZATION_BLOCK) * QUANTIZATION_BLOCK
        assert torch.equal(mine[name][: first // unit], start[: first // unit])
        assert torch.equal(mine[name][end // unit :], start[end // unit :])
    assert torch.equal(join(value, low)[:first], before[:first])
    for name in ("moment1", "moment2"):
        agree = (mine[name] == theirs[name]).float().mean()
        assert agree > 0.97, f"{float(1 - agree):.3%} of {name} have another code"
    assert torch.allclose(mine["absmax2"], theirs["absmax2"], rtol=1e-3)


@case
@pytest.mark.gpu
def test_gradients_that_are_not_finite_move_nothing():
    weight = torch.randn(512).to(DEVICE)
    value, low = halves(weight)
    grad = torch.ones(512, device=DEVICE)
    grad[3], grad[300] = float("nan"), float("inf")
    adamw8bit_halves_(value, low, grad, new_moments(512, DEVICE), 0, grad.sum(), 0.0, step=1, **settings)
    moved = join(value, low) != weight
    assert not moved[3] and not moved[300]
    assert int(moved.sum()) == 510
