"""The torch classifier step against autograd over the whole dense layer, and its memory."""

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.kernels import products, reference
from engine.kernels.layer import FP8, LabelLayer, Positives, StepOptions
from engine.kernels.optimizers import new_state
from engine.kernels.rounding import stochastic_round


def make_layer(labels, width, fan_in, group_size, optimizer="rowwise", dtype=torch.float32, start=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = None
    if fan_in is not None:
        groups = -(-labels // group_size)
        noise = torch.rand(groups, width, generator=generator)
        index = noise.topk(fan_in, dim=1).indices.sort(dim=1).values.to(torch.uint16)
    value = torch.randn(labels, fan_in or width, generator=generator) * 0.1
    weight = (value * (32 if dtype == FP8 else 1)).to(dtype)
    bias = torch.randn(labels, generator=generator) - 2
    return LabelLayer(weight, bias, index, group_size, start, new_state(optimizer, weight))


def make_batch(batch, width, labels, seed=0, per_row=3):
    rng = np.random.default_rng(seed)
    sets = [np.sort(rng.choice(labels, min(labels, rng.integers(0, per_row + 1)), replace=False)) for _ in range(batch)]
    sets[0] = np.empty(0, dtype=np.int64)  # an instance without labels
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sets])])
    x_BD = torch.from_numpy(rng.standard_normal((batch, width), dtype=np.float32))
    return x_BD, offsets, np.concatenate(sets)


def full_weight(layer, width):
    """The layer as a dense [L, D] matrix."""
    rows = layer.rows(0, layer.labels)
    if layer.index is None:
        return rows.clone()
    index = layer.index.long().repeat_interleave(layer.group_size, dim=0)[: layer.labels]
    return torch.zeros(layer.labels, width).scatter(1, index, rows)


def dense_loss(weight_LD, bias_L, x_BD, target_BL, loss):
    logits = x_BD @ weight_LD.T + bias_L
    if loss == "bce":
        return nnf.binary_cross_entropy_with_logits(logits, target_BL, reduction="sum") / len(x_BD)
    return (1 - (2 * target_BL - 1) * logits).clamp(min=0).square().sum() / len(x_BD)


def targets(offsets, labels_of, labels):
    target = torch.zeros(len(offsets) - 1, labels)
    for row in range(len(offsets) - 1):
        target[row, labels_of[offsets[row] : offsets[row + 1]]] = 1
    return target


SHAPES = [
    pytest.param(70, 24, 8, 16, id="last group short"),
    pytest.param(70, 24, 8, 1, id="fixed fan-in per label"),
    pytest.param(5, 24, 24, 16, id="fewer labels than a group"),
    pytest.param(70, 300, 8, 16, id="gathered"),
    pytest.param(70, 24, None, 1, id="dense"),
]


@pytest.mark.parametrize(("labels", "width", "fan_in", "group_size"), SHAPES)
@pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
@pytest.mark.parametrize("optimizer", ["rowwise", "sgd"])
def test_step_equals_autograd_over_the_dense_layer(labels, width, fan_in, group_size, loss, optimizer):
    layer = make_layer(labels, width, fan_in, group_size, optimizer)
    x_BD, offsets, positive = make_batch(7, width, labels)
    weight = full_weight(layer, width).requires_grad_()
    bias = layer.bias.clone().requires_grad_()
    x = x_BD.clone().requires_grad_()
    value = dense_loss(weight, bias, x, targets(offsets, positive, labels), loss)
    value.backward()
    connected = full_weight(make_ones_like(layer), width) if fan_in is not None else torch.ones_like(weight)
    grad = weight.grad * connected

    options = StepOptions(loss=loss, optimizer=optimizer, learning_rate=0.1, weight_decay=0.01, want_loss=True)
    dx_BD = torch.zeros_like(x_BD)
    got = reference.step(layer, x_BD, Positives.from_rows(offsets, positive), dx_BD, options)

    rate = torch.full((labels,), 0.1)
    if optimizer == "rowwise":
        moment = 0.001 * grad.square().sum(1) / layer.fan_in
        torch.testing.assert_close(layer.state["second_moment"], moment, rtol=1e-4, atol=1e-12)
        rate = rate / ((moment / 0.001).sqrt() + 1e-8)
    expected = weight.detach() * (1 - 0.1 * 0.01) - rate[:, None] * grad
    torch.testing.assert_close(got, value.detach())
    torch.testing.assert_close(dx_BD, x.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(full_weight(layer, width), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(layer.bias, bias.detach() - rate * bias.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("width", "group_size"), [(24, 1), (300, 16)], ids=["written out over all columns", "gathered"]
)
@pytest.mark.parametrize("optimizer", ["rowwise", "sgd"])
def test_words_have_a_step_size_of_their_own_and_no_input_gradient(width, group_size, optimizer):
    layer = make_layer(70, width, 12, group_size, optimizer)
    layer.words, features = 5, width - 9  # the last 9 columns of x are words
    generator = torch.Generator().manual_seed(1)
    for first, last, columns in ((0, features, slice(0, 7)), (features, width, slice(7, 12))):
        noise = torch.rand(len(layer.index), last - first, generator=generator)
        count = columns.stop - columns.start
        layer.index[:, columns] = (first + noise.topk(count, dim=1).indices.sort(dim=1).values).to(torch.uint16)
    layer.state = new_state(optimizer, layer.weight, layer.words)
    x_BD, offsets, positive = make_batch(7, width, 70)
    weight, bias = full_weight(layer, width).requires_grad_(), layer.bias.clone()
    x = x_BD.clone().requires_grad_()
    dense_loss(weight, bias, x, targets(offsets, positive, 70), "bce").backward()
    grad = weight.grad * full_weight(make_ones_like(layer), width)

    options = StepOptions(optimizer=optimizer, learning_rate=0.1, word_learning_rate=0.5, weight_decay=0.01)
    dx_BD = torch.zeros(7, features)
    reference.step(layer, x_BD, Positives.from_rows(offsets, positive), dx_BD, options)

    expected = weight.detach().clone()
    for part, rate, count, name in (
        (slice(0, features), 0.1, 7, "second_moment"),
        (slice(features, None), 0.5, 5, "word_moment"),
    ):
        step = torch.full((70,), rate)
        if optimizer == "rowwise":
            moment = 0.001 * grad[:, part].square().sum(1) / count
            torch.testing.assert_close(layer.state[name], moment, rtol=1e-4, atol=1e-12)
            step = step / ((moment / 0.001).sqrt() + 1e-8)
        expected[:, part] = expected[:, part] * (1 - rate * 0.01) - step[:, None] * grad[:, part]
    torch.testing.assert_close(dx_BD, x.grad[:, :features], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(full_weight(layer, width), expected, rtol=1e-3, atol=1e-4)


def make_ones_like(layer):
    return LabelLayer(torch.ones_like(layer.weight), layer.bias, layer.index, layer.group_size)


def train(layer, width, steps=10, **options):
    for step in range(1, steps + 1):
        x_BD, offsets, positive = make_batch(16, width, layer.labels, seed=step)
        dx_BD = torch.zeros_like(x_BD)
        given = StepOptions(step=step, learning_rate=0.01, **options)
        reference.step(layer, x_BD, Positives.from_rows(offsets, positive), dx_BD, given)
    return dx_BD


@pytest.mark.parametrize("group_size", [1, 3, 16, 64])
@pytest.mark.parametrize("optimizer", ["rowwise", "sgd"])
def test_sparse_with_every_feature_equals_dense(group_size, optimizer):
    dense = make_layer(100, 32, None, 1, optimizer)
    index = torch.arange(32).expand(-(-100 // group_size), 32).to(torch.uint16)
    state = new_state(optimizer, dense.weight)
    sparse = LabelLayer(dense.weight.clone(), dense.bias.clone(), index, group_size, 0, state)
    dx_dense, dx_sparse = train(dense, 32, optimizer=optimizer), train(sparse, 32, optimizer=optimizer)
    torch.testing.assert_close(sparse.weight, dense.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(sparse.bias, dense.bias, rtol=0, atol=1e-5)
    torch.testing.assert_close(dx_sparse, dx_dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [64, 1500])
def test_groups_of_one_and_of_sixteen_agree_given_the_same_indices(width):
    grouped = make_layer(96, width, 24, 16)
    single = LabelLayer(
        grouped.weight.clone(),
        grouped.bias.clone(),
        grouped.index.repeat_interleave(16, dim=0),
        1,
        0,
        new_state("rowwise", grouped.weight),
    )
    dx_grouped, dx_single = train(grouped, width), train(single, width)
    torch.testing.assert_close(single.weight, grouped.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(dx_single, dx_grouped, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("fan_in", "group_size"), [(None, 16), (12, 16), (12, 1)])
def test_a_step_without_input_gradient_moves_the_weights_alike(fan_in, group_size):
    x_BD, offsets, labels_of = make_batch(9, 48, 100)
    positives = Positives.from_rows(offsets, labels_of)
    layers, gradients = [make_layer(100, 48, fan_in, group_size) for _ in range(2)], torch.zeros(2, 9, 48)
    for layer, dx_BD, wanted in zip(layers, gradients, (True, False), strict=True):
        reference.step(layer, x_BD, positives, dx_BD, StepOptions(wants_dx=wanted))
    assert torch.equal(layers[0].weight, layers[1].weight) and torch.equal(layers[0].bias, layers[1].bias)
    assert gradients[0].any() and not gradients[1].any()


def test_adamw8bit_follows_adamw():
    layer = make_layer(64, 32, None, 1, "adamw8bit")
    weight = layer.weight.clone().requires_grad_()
    bias = layer.bias.clone().requires_grad_()
    adamw = torch.optim.AdamW([weight, bias], lr=0.01, betas=(0.9, 0.999), weight_decay=0.0)
    for step in range(1, 11):
        x_BD, offsets, positive = make_batch(16, 32, 64, seed=step)
        adamw.zero_grad()
        dense_loss(weight, bias, x_BD, targets(offsets, positive, 64), "bce").backward()
        adamw.step()
    train(layer, 32, optimizer="adamw8bit")
    moved = (weight.detach() - make_layer(64, 32, None, 1).weight).abs().mean()
    assert (layer.weight - weight.detach()).abs().mean() < 0.15 * moved
    torch.testing.assert_close(layer.bias, bias.detach(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("optimizer", ["rowwise", "adamw8bit"])
def test_result_does_not_depend_on_how_the_layer_is_cut_into_blocks(optimizer, monkeypatch):
    whole = make_layer(1000, 40, 8, 16, optimizer)
    train(whole, 40, optimizer=optimizer)
    monkeypatch.setitem(reference.BLOCK_BYTES, "cpu", 20_000)
    cut = make_layer(1000, 40, 8, 16, optimizer)
    train(cut, 40, optimizer=optimizer)
    torch.testing.assert_close(cut.weight, whole.weight, rtol=1e-4, atol=1e-5)


class Allocations(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returned in memory of its own."""

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.total_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, tensor.nbytes)
                self.total_bytes += tensor.untyped_storage().nbytes()
        return result


@pytest.mark.parametrize(("fan_in", "group_size"), [(16, 32), (16, 1), (None, 1)])
@pytest.mark.parametrize("optimizer", ["rowwise", "sgd", "adamw8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_allocates_nothing_the_size_of_the_layer(fan_in, group_size, optimizer, dtype, monkeypatch):
    labels, width, batch = 70_000, 64, 32
    monkeypatch.setattr(products, "GROUPS", 1 << 14)
    monkeypatch.setitem(reference.BLOCK_BYTES, "cpu", 256 * 1024)
    layer = make_layer(labels, width, fan_in, group_size, optimizer, dtype)
    x_BD, offsets, positive = make_batch(batch, width, labels)
    positives = Positives.from_rows(offsets, positive)
    dx_BD = torch.zeros_like(x_BD)
    options = StepOptions(optimizer=optimizer, want_loss=True)
    with Allocations() as made:
        reference.step(layer, x_BD, positives, dx_BD, options)
    assert made.total_bytes > 0
    assert made.largest <= 256 * 1024
    assert made.largest < labels * min(batch, layer.fan_in) / 2


def test_topk_equals_sorting_all_logits(monkeypatch):
    monkeypatch.setitem(reference.BLOCK_BYTES, "cpu", 10_000)
    head = make_layer(37, 48, None, 16)
    tail = make_layer(501, 48, 12, 16, start=37, seed=1)
    x_BD, _, _ = make_batch(9, 48, 10)
    logits = torch.cat([x_BD @ full_weight(part, 48).T + part.bias for part in (head, tail)], dim=1)
    value, label = reference.topk([head, tail], x_BD, 7)
    expected = logits.topk(7, dim=1)
    torch.testing.assert_close(value, expected.values)
    assert torch.equal(label, expected.indices)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_stochastic_rounding_is_unbiased_and_picks_a_neighbour(dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0.0173, -1.7, 3.1e-5, 0.0, 2.0**-6, 0.25, 100.3])
    drawn = stochastic_round(values.expand(40_000, -1).contiguous(), dtype, generator).float()
    for column, value in enumerate(values):
        kinds = drawn[:, column].unique()
        assert len(kinds) <= 2
        spread = (kinds.max() - kinds.min()).item()
        assert kinds.min() <= value <= kinds.max()
        assert abs(drawn[:, column].mean() - value) <= 4 * spread / 2 / 200 + 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_narrow_weights_follow_fp32_training(dtype):
    exact = make_layer(64, 32, 16, 16)
    narrow = make_layer(64, 32, 16, 16, dtype=dtype)
    train(exact, 32, steps=50)
    train(narrow, 32, steps=50)
    moved = (exact.weight - make_layer(64, 32, 16, 16).weight).abs().mean()
    error = (narrow.rows(0, 64) - exact.weight).abs().mean()
    assert error < {torch.bfloat16: 0.05, torch.float16: 0.02, torch.float8_e4m3fn: 0.5}[dtype] * moved
