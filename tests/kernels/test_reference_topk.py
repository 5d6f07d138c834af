"""The plain torch top-k against a sort of all logits: every layout, every stored type, in bounded memory."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.kernels import reference
from engine.kernels.layer import FP8, FP8_SCALE, LabelLayer, decode_fp8
from engine.kernels.running_best import RunningBest

LAYOUTS = {  # labels, width, fan-in (None: dense), group size
    "grouped": (501, 96, 16, 32),
    "one label a group": (301, 48, 12, 1),
    "small groups of wide features": (203, 640, 4, 2),
    "dense": (301, 48, None, 32),
    "fewer labels than a run": (7, 48, None, 32),
}


def make_layer(labels, width, fan_in, group, dtype=torch.float32, start=0):
    random = torch.Generator().manual_seed(labels)
    index = None
    if fan_in is not None:
        order = torch.rand(-(-labels // group), width, generator=random).argsort(dim=1)[:, :fan_in]
        index = order.sort(dim=1).values.to(torch.uint16)
    weight = torch.randn(labels, fan_in or width, generator=random) * 0.1 * (FP8_SCALE if dtype == FP8 else 1)
    return LabelLayer(weight.to(dtype), torch.randn(labels, generator=random), index, group, start)


def all_logits(layer, x_BD):
    w_LF = layer.weight.double() / layer.scale
    if layer.index is None:
        return x_BD.double() @ w_LF.T + layer.bias.double()
    columns = layer.index.long().repeat_interleave(layer.group_size, dim=0)[: layer.labels]
    w_LD = torch.zeros(layer.labels, x_BD.shape[1], dtype=torch.float64).scatter_(1, columns, w_LF)
    return x_BD.double() @ w_LD.T + layer.bias.double()


def check(layers, x_BD, k):
    value, label = reference.topk(layers, x_BD, k)
    expected = torch.cat([all_logits(layer, x_BD) for layer in layers], dim=1).topk(k, dim=1)
    assert value.dtype == torch.float32 and label.dtype == torch.int64
    torch.testing.assert_close(value.double(), expected.values, atol=1e-5, rtol=1e-5)
    assert torch.equal(label, expected.indices)


def features(batch, width):
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("block_bytes", [10_000, 2**22], ids=["many blocks", "one block"])
def test_every_layout(layout, batch, block_bytes, monkeypatch):
    monkeypatch.setitem(reference.BLOCK_BYTES, "cpu", block_bytes)
    layer = make_layer(*LAYOUTS[layout])
    for k in (1, 5, layer.labels):
        check([layer], features(batch, LAYOUTS[layout][1]), k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, FP8], ids=str)
def test_stored_types_lose_nothing(dtype):
    check([make_layer(501, 96, 16, 32, dtype)], features(3, 96), 10)


def test_head_and_tail_together(monkeypatch):
    monkeypatch.setitem(reference.BLOCK_BYTES, "cpu", 10_000)
    head = make_layer(37, 48, None, 16)
    check([head, make_layer(501, 48, 12, 16, start=37)], features(5, 48), 60)


def test_labels_that_get_better_and_better(monkeypatch):
    """Every block holds all of the best labels so far; and, the other way round, only the first does."""
    monkeypatch.setitem(reference.BLOCK_BYTES, "cpu", 10_000)
    layer = make_layer(900, 64, 16, 32)
    for bias in (torch.arange(900.0), -torch.arange(900.0)):
        layer.bias.copy_(bias)
        check([layer], features(4, 64), 40)


def test_what_is_not_a_number_is_not_hidden():
    x_BD = features(3, 96)
    x_BD[1] = torch.nan
    value, label = reference.topk([make_layer(501, 96, 16, 32)], x_BD, 4)
    assert value.isnan().any(dim=1).tolist() == [False, True, False]
    assert ((label >= 0) & (label < 501)).all()


@pytest.mark.parametrize("fan_in", [16, 96, None])
def test_no_instances(fan_in):
    value, label = reference.topk([make_layer(64, 96, fan_in, 32)], torch.zeros(0, 96), 3)
    assert value.shape == label.shape == (0, 3)


def test_runs_of_one_block_may_be_fewer_than_the_labels_kept():
    best = RunningBest.empty(1, 5, torch.device("cpu"))
    best.add(torch.tensor([[[0.5, 2.0]]]), 10)
    best.add(torch.tensor([[[1.0, 3.0]], [[0.0, -1.0]]]), 20)
    assert best.id_BK.tolist() == [[21, 11, 20, 10, 22]]
    assert best.value_BK.tolist() == [[3.0, 2.0, 1.0, 0.5, 0.0]]


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that was made."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor._base is None:
                self.nbytes = max(self.nbytes, tensor.numel() * tensor.element_size())
        return out


@pytest.mark.parametrize("batch", [1, 40])
def test_memory_does_not_grow_with_the_labels(batch, monkeypatch):
    monkeypatch.setitem(reference.BLOCK_BYTES, "cpu", 256 * 1024)
    layer = make_layer(60_000, 64, 16, 32, torch.bfloat16)
    x_BD = features(batch, 64)
    with Largest() as made:
        reference.topk([layer], x_BD, 10)
    assert 0 < made.nbytes <= 256 * 1024


def test_fp8_is_decoded_as_torch_does():
    codes = torch.arange(256, dtype=torch.uint8).view(FP8)
    torch.testing.assert_close(decode_fp8(codes), codes.float(), rtol=0, atol=0, equal_nan=True)
    finite = codes[~codes.float().isnan()]
    assert torch.equal(decode_fp8(finite).view(torch.int32), finite.float().view(torch.int32))
