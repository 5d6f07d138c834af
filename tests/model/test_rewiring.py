"""Rewiring keeps index rows ascending and distinct, drops the weakest, and moves optimizer state along."""

import pytest
import torch

from engine.config import Rewire
from engine.kernels import reference
from engine.kernels.layer import Positives, StepOptions
from engine.model.classifier import Classifier, ClassifierShape
from engine.model.rewiring import GrowthBatch, replaced_share, rewire_layer, rewires_at


def make(labels=100, width=40, fan_in=16, group_size=16, optimizer="rowwise", dtype="fp32"):
    shape = ClassifierShape(labels, 0, width, fan_in, group_size, optimizer, dtype)
    return Classifier.new(shape, reference, "cpu", seed=0).layers[0]


def batch(labels=100, width=40, size=8):
    generator = torch.Generator().manual_seed(1)
    x_BD = torch.randn(size, width, generator=generator)
    offsets = torch.arange(0, 2 * size + 1, 2).numpy()
    return x_BD, Positives.from_rows(offsets, torch.randint(0, labels, (2 * size,), generator=generator).numpy())


def as_dense(layer, width):
    index = layer.index.long().repeat_interleave(layer.group_size, dim=0)[: layer.labels]
    return torch.zeros(layer.labels, width).scatter(1, index, layer.rows(0, layer.labels))


@pytest.mark.parametrize("group_size", [1, 16])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_drops_the_weakest_and_grows_zeros(group_size, dtype):
    layer = make(group_size=group_size, dtype=dtype)
    before_index, before = layer.index.clone(), as_dense(layer, 40)
    assert rewire_layer(layer, 40, 0.25, torch.Generator().manual_seed(0)) == 4
    after = as_dense(layer, 40)
    assert (layer.index[:, 1:].int() > layer.index[:, :-1].int()).all()
    for group in range(layer.index.shape[0]):
        rows = slice(group * group_size, (group + 1) * group_size)
        old, new = set(before_index[group].tolist()), set(layer.index[group].tolist())
        assert len(old - new) == len(new - old) == 4
        strength = before[rows].square().mean(0).sqrt()
        assert max(strength[list(old - new)]) <= min(strength[list(old & new)])
        assert torch.equal(after[rows][:, list(old & new)], before[rows][:, list(old & new)])
        assert (after[rows][:, list(new - old)] == 0).all()


def test_rigl_grows_where_the_gradient_is_largest():
    layer = make(labels=32)
    x_BD, positives = batch(labels=32)
    logits = x_BD @ as_dense(layer, 40).T + layer.bias
    gradient = logits.sigmoid()
    gradient[positives.instance, positives.label] -= 1
    wanted = (gradient.T @ x_BD).view(2, 16, 40).norm(dim=1)
    before = layer.index.clone()
    rewire_layer(layer, 40, 0.25, torch.Generator(), GrowthBatch(reference, x_BD, positives, "bce"))
    for group in range(2):
        free = [f for f in range(40) if f not in before[group].tolist()]
        best = sorted(free, key=lambda f: -wanted[group, f])[:4]
        assert set(layer.index[group].tolist()) - set(before[group].tolist()) == set(best)


def test_eight_bit_moments_follow_their_weights():
    layer = make(labels=96, fan_in=16, optimizer="adamw8bit")
    x_BD, positives = batch(labels=96)
    for step in range(1, 4):
        reference.step(layer, x_BD, positives, torch.zeros_like(x_BD), StepOptions(optimizer="adamw8bit", step=step))
    weight = layer.weight.clone()
    # A weight is where its moments are: mark one connection a group by weight and by moment.
    code = layer.state["moment1"].clone()
    index = layer.index.clone()
    rewire_layer(layer, 40, 0.25, torch.Generator().manual_seed(0))
    for group in range(layer.index.shape[0]):
        row = group * 16
        kept = set(index[group].tolist()) & set(layer.index[group].tolist())
        for feature in kept:
            old, new = index[group].tolist().index(feature), layer.index[group].tolist().index(feature)
            assert layer.weight[row, new] == weight[row, old]
            assert abs(int(layer.state["moment1"][row, new]) - int(code[row, old])) <= 12
    zero = layer.state["moment1"][layer.weight == 0]
    assert len(zero) == 96 * 4
    assert len(zero.unique()) == 1


def test_only_as_many_connections_as_there_are_free_features():
    layer = make(width=20, fan_in=16)
    assert rewire_layer(layer, 20, 0.9, torch.Generator().manual_seed(0)) == 4
    full = make(width=16, fan_in=16)
    assert rewire_layer(full, 16, 0.9, torch.Generator().manual_seed(0)) == 0


def test_schedule_decays_and_ends():
    rewire = Rewire(interval=10, fraction=0.2, stop_at=0.5)
    shares = [replaced_share(step, 100, rewire) for step in (0, 25, 50)]
    assert shares == pytest.approx([0.2, 0.1, 0.0])
    assert [step for step in range(1, 101) if rewires_at(step, 100, rewire)] == [10, 20, 30, 40]
    assert not rewires_at(10, 100, Rewire(method="none"))
