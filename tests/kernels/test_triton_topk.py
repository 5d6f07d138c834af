"""Streaming top-k against a sort of all logits, on a GPU where there is one, else on Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from engine.kernels.layer import FP8, FP8_SCALE, LabelLayer

pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()
READY = ON_GPU or os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if ON_GPU else "cpu"
case = pytest.mark.skipif(not READY, reason="run on the interpreter by test_on_the_interpreter")
if READY:
    from engine.kernels import triton_backend


@pytest.mark.skipif(READY, reason="the cases run in this process")
def test_on_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def make_layer(labels, width, fan_in, group, dtype=torch.bfloat16, start=0):
    random = torch.Generator().manual_seed(labels)
    index = None
    if fan_in is not None:
        order = torch.rand(-(-labels // group), width, generator=random).argsort(dim=1)[:, :fan_in]
        index = order.sort(dim=1).values.to(torch.uint16).to(DEVICE)
    weight = torch.randn(labels, fan_in or width, generator=random) * 0.1 * (FP8_SCALE if dtype == FP8 else 1)
    bias = torch.randn(labels, generator=random).to(DEVICE)
    return LabelLayer(weight.to(dtype).to(DEVICE), bias, index, group, start)


def logits(layer, x_BD):
    """[B, L] in fp64, of the features as the backend rounds them."""
    x_BD = x_BD.to(triton_backend.compute_dtype(layer.weight)).double()
    w_LF = layer.weight.float().double() / layer.scale
    if layer.index is None:
        return x_BD @ w_LF.T + layer.bias.double()
    columns = layer.index.long().repeat_interleave(layer.group_size, dim=0)[: layer.labels]
    w_LD = torch.zeros(layer.labels, x_BD.shape[1], dtype=torch.float64, device=DEVICE)
    return x_BD @ w_LD.scatter_(1, columns, w_LF).T + layer.bias.double()


def check_topk(layers, batch, k, width):
    x_BD = torch.randn(batch, width, generator=torch.Generator().manual_seed(batch)).to(DEVICE)
    value, label = triton_backend.topk(layers, x_BD, k)
    assert value.dtype == torch.float32 and label.dtype == torch.int64
    assert value.shape == label.shape == (batch, k)
    exact = torch.cat([logits(layer, x_BD) for layer in layers], dim=1)
    best = exact.topk(k, dim=1).values
    assert torch.allclose(value.double(), best, atol=1e-4, rtol=1e-5), (value.double() - best).abs().max()
    assert torch.allclose(exact.gather(1, label), best, atol=1e-4, rtol=1e-5), "a label that is not that good"
    assert all(len(set(row)) == k for row in label.tolist()), "a label twice"


@case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, FP8, torch.float32], ids=str)
def test_stored_types(dtype):
    check_topk([make_layer(700, 96, 48, 32, dtype)], 5, 10, 96)


@case
@pytest.mark.parametrize(
    ("labels", "width", "fan_in", "group", "batch", "k"),
    [(40, 64, 32, 32, 1, 40), (1000, 64, 16, 16, 3, 1), (600, 130, 128, 128, 2, 5), (290, 101, None, 1, 70, 3)],
)
def test_shapes(labels, width, fan_in, group, batch, k):
    check_topk([make_layer(labels, width, fan_in, group)], batch, k, width)


@case
def test_head_and_tail_that_read_words():
    head, tail = make_layer(30, 96, 70, 32), make_layer(500, 96, 40, 32, start=30)
    head.words, tail.words = 22, 8  # the last columns: any number of them is covered
    check_topk([head, tail], 4, 50, 96)


@case
def test_head_and_tail_together():
    head = make_layer(30, 96, None, 1)
    check_topk([head, make_layer(500, 96, 32, 32, start=30)], 4, 50, 96)


@case
def test_equal_logits_come_in_label_order():
    layer = make_layer(900, 64, 32, 32)
    layer.weight.zero_()
    layer.bias.zero_()
    layer.bias[::7] = 1.0
    layer.bias[5] = -0.0
    label = triton_backend.topk([layer], torch.randn(2, 64, device=DEVICE), 300)[1]
    bias = layer.bias.tolist()
    expected = sorted(range(900), key=lambda one: (-bias[one], one))[:300]
    assert label.tolist() == [expected, expected]


@case
def test_no_instances():
    value, label = triton_backend.topk([make_layer(64, 64, 32, 32)], torch.zeros(0, 64, device=DEVICE), 3)
    assert value.shape == label.shape == (0, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("batch", [1, 128, 1000])
def test_many_labels_in_little_memory(batch):
    layers = [make_layer(5_000, 256, None, 1), make_layer(300_000, 256, 128, 32, start=5_000)]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    x_BD = torch.randn(batch, 256, device=DEVICE)
    triton_backend.topk(layers, x_BD, 100)
    grown = torch.cuda.max_memory_allocated() - before
    assert grown <= 64 * 2**20, f"{grown / 2**20:.0f} MiB beside the weights"
    check_topk(layers, min(batch, 128), 10, 256)
