"""The dense schemes that the classifier is measured beside do what their names say."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from engine.bench import dense
from engine.kernels.layer import Positives

LABELS, WIDTH, BATCH = 300, 48, 20


def make_batch(device="cpu", labels=LABELS, width=WIDTH, batch=BATCH):
    """Features that bf16 holds exactly, two labels an instance, none for the first."""
    x_BD = torch.randn(batch, width, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    rng = np.random.default_rng(0)
    label = [rng.choice(labels, 2, replace=False) for _ in range(batch - 1)]
    offsets = np.concatenate([[0], np.arange(0, 2 * batch, 2)])
    return x_BD.to(device), Positives.from_rows(offsets, np.concatenate(label), device)


def make_weight(labels=LABELS, width=WIDTH):
    """fp32 values that bf16 holds exactly."""
    return (torch.randn(labels, width, generator=torch.Generator().manual_seed(0)) * 0.1).bfloat16().float()


def autograd_step(weight_LD, x_BD, positives, rate):
    """(weights after one SGD step, dx) of the whole layer in fp32."""
    weight_LD, x_BD = weight_LD.clone().requires_grad_(), x_BD.clone().requires_grad_()
    target = torch.zeros(len(x_BD), len(weight_LD))
    target[positives.instance, positives.label] = 1.0
    logits = x_BD @ weight_LD.T
    (nnf.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(x_BD)).backward()
    return (weight_LD - rate * weight_LD.grad).detach(), x_BD.grad


@pytest.mark.parametrize("chunk_bytes", [4 * WIDTH * 37, 2**20], ids=["in chunks", "at once"])
def test_the_chunked_step_is_an_sgd_step(monkeypatch, chunk_bytes):
    monkeypatch.setitem(dense.CHUNK_BYTES, "cpu", chunk_bytes)
    weight_LD = make_weight()
    x_BD, positives = make_batch()
    expected_LD, expected_dx_BD = autograd_step(weight_LD, x_BD, positives, rate=1.0)
    layer = dense.ChunkedSGD(weight_LD.bfloat16(), learning_rate=1.0)
    dx_BD = layer.step(x_BD, positives)
    moved, expected = layer.weight_LD.float() - weight_LD, expected_LD - weight_LD
    assert (moved - expected).norm() < 0.02 * expected.norm()
    assert (dx_BD - expected_dx_BD).norm() < 0.01 * expected_dx_BD.norm()


def test_chunks_cover_the_labels_and_stay_small():
    rows = dense.chunk_rows(128, 768, 2_812_281, "cuda")
    assert rows * 768 * 4 <= dense.CHUNK_BYTES["cuda"]
    assert dense.chunk_rows(128, 768, 10, "cpu") == 10


def test_steps_far_below_the_spacing_add_up():
    weight_RD = torch.ones(64, 64, dtype=torch.bfloat16)  # spacing below 1 is 2**-8
    grad_RD = torch.ones_like(weight_RD)
    generator = torch.Generator().manual_seed(0)
    for _ in range(16):
        noise = torch.empty(64, 64, dtype=torch.int32).random_(0, 2**16, generator=generator)
        dense.sgd_(weight_RD, grad_RD, 2.0**-12, noise)
    assert weight_RD.unique().numel() > 1
    assert weight_RD.float().mean().item() == pytest.approx(1 - 16 * 2.0**-12, abs=3e-4)


def test_the_autograd_step_learns():
    x_BD, positives = make_batch()
    layer = dense.AutogradAdam(make_weight(), learning_rate=1e-2)
    losses = [layer.step(x_BD, positives)[1].item() for _ in range(10)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]


def test_both_schemes_give_the_same_gradient_of_the_features():
    x_BD, positives = make_batch()
    chunked = dense.ChunkedSGD(make_weight().bfloat16(), 1e-3).step(x_BD, positives)
    autograd, _ = dense.AutogradAdam(make_weight(), 1e-3).step(x_BD, positives)
    assert (chunked - autograd).norm() < 0.01 * autograd.norm()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the step on the GPU runs it")
def test_the_fused_update_rounds_to_a_neighbour_of_the_exact_value():
    pytest.importorskip("triton")
    code = """
import torch
from engine.bench.dense_triton import sgd_
weight = torch.randn(100, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
grad = torch.randn(100, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
exact = weight.float() - 0.25 * grad.float()
results = torch.stack([(w := weight.clone(), sgd_(w, grad, 0.25, step, 7))[0].float() for step in range(40)])
spacing = torch.ldexp(torch.ones(()), torch.frexp(exact).exponent - 8)
assert ((results - exact).abs() <= spacing).all(), "not a neighbour"
assert ((results.mean(0) - exact).abs() / spacing).mean() < 0.1, "biased"
assert not torch.equal(results[0], results[1]), "every step the same noise"
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_fused_step_on_a_gpu_is_an_sgd_step():
    weight_LD = make_weight()
    x_BD, positives = make_batch("cuda")
    _, on_cpu = make_batch()
    expected_LD, _ = autograd_step(weight_LD, x_BD.cpu(), on_cpu, rate=1.0)
    layer = dense.ChunkedSGD(weight_LD.bfloat16().cuda(), learning_rate=1.0)
    layer.step(x_BD, positives)
    moved, expected = layer.weight_LD.cpu().float() - weight_LD, expected_LD - weight_LD
    assert (moved - expected).norm() < 0.02 * expected.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_predicted_peaks_hold_on_a_gpu():
    labels, width, batch = 200_000, 256, 64
    x_BD, positives = make_batch("cuda", labels, width, batch)
    for scheme, dtype, predicted in (
        (dense.ChunkedSGD, torch.bfloat16, dense.chunked_sgd_bytes(labels, width, batch, x_BD.device)),
        (dense.AutogradAdam, torch.float32, dense.autograd_adam_bytes(labels, width, batch)),
    ):
        layer = scheme(torch.zeros(labels, width, dtype=dtype, device="cuda"), 1e-3)
        layer.step(x_BD, positives)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        layer.step(x_BD, positives)
        state = 12 if scheme is dense.AutogradAdam else 2
        peak = torch.cuda.max_memory_allocated() - before + state * labels * width
        assert 0.6 * predicted < peak < 1.1 * predicted
        del layer
