"""The torch classifier step on a GPU: the same numbers as on the CPU, and no more memory than a block."""

import pytest
import torch
from test_reference_step import make_batch, make_layer

from engine.kernels import reference
from engine.kernels.layer import LabelLayer, Positives, StepOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def to_gpu(layer):
    index = None if layer.index is None else layer.index.cuda()
    state = {name: tensor.cuda() for name, tensor in layer.state.items()}
    return LabelLayer(layer.weight.cuda(), layer.bias.cuda(), index, layer.group_size, layer.start, state)


@pytest.mark.parametrize("optimizer", ["rowwise", "sgd", "adamw8bit"])
@pytest.mark.parametrize(("fan_in", "group_size"), [(16, 16), (16, 1), (None, 1)])
def test_gpu_equals_cpu(optimizer, fan_in, group_size):
    torch.backends.cuda.matmul.allow_tf32 = False
    host = make_layer(1000, 96, fan_in, group_size, optimizer)
    device = to_gpu(host)
    for step in range(1, 6):
        x_BD, offsets, positive = make_batch(16, 96, 1000, seed=step)
        options = StepOptions(optimizer=optimizer, step=step, learning_rate=0.01, want_loss=True)
        dx_host, dx_device = torch.zeros_like(x_BD), torch.zeros_like(x_BD).cuda()
        loss = reference.step(host, x_BD, Positives.from_rows(offsets, positive), dx_host, options)
        there = Positives.from_rows(offsets, positive, "cuda")
        found = reference.step(device, x_BD.cuda(), there, dx_device, options)
        torch.testing.assert_close(found.cpu(), loss, rtol=1e-3, atol=1e-3)
        # A value between two 8-bit codes may round to either, and weights part from there.
        if optimizer != "adamw8bit" or step == 1:
            torch.testing.assert_close(dx_device.cpu(), dx_host, rtol=1e-3, atol=1e-5)
    moved = (host.weight - make_layer(1000, 96, fan_in, group_size).weight).abs().mean()
    assert (device.weight.cpu() - host.weight).abs().mean() < (0.1 if optimizer == "adamw8bit" else 1e-3) * moved
    value, _ = reference.topk([device], x_BD.cuda(), 5)
    expected, _ = reference.topk([device_to_host(device)], x_BD, 5)
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-4, atol=1e-4)


def device_to_host(layer):
    index = None if layer.index is None else layer.index.cpu()
    return LabelLayer(layer.weight.cpu(), layer.bias.cpu(), index, layer.group_size, layer.start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_a_step_needs_no_memory_the_size_of_the_layer(dtype):
    layer = to_gpu(make_layer(400_000, 96, 32, 32, "rowwise", dtype))
    x_BD, offsets, positive = make_batch(64, 96, 1000)
    there, x_BD = Positives.from_rows(offsets, positive, "cuda"), x_BD.cuda()
    dx_BD = torch.zeros_like(x_BD)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    reference.step(layer, x_BD, there, dx_BD, StepOptions(want_loss=True))
    assert torch.cuda.max_memory_allocated() - before < 6 * reference.BLOCK_BYTES["cuda"]
