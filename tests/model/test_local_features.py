"""Features of clusters: their directions are principal components, and groups read those of their own cluster."""

import numpy as np
import pytest
import torch

from engine.config import Local
from engine.kernels import reference
from engine.kernels.layer import Positives, StepOptions
from engine.model.classifier import Classifier, ClassifierShape
from engine.model.encoder import FeatureHead
from engine.model.local_features import local_directions
from engine.model.local_layout import LocalLayout, local_features
from engine.model.rewiring import GrowthBatch, rewire_layer

WIDTH, LABELS = 12, 100
LAYOUT = LocalLayout(LABELS, 8, WIDTH, 4, 5)


def shape(fan_in=5, **more) -> ClassifierShape:
    sizes = {"words": 4, "head_words": 6, "vocabulary": 30} | more
    return ClassifierShape(LABELS + 10, 10, WIDTH, fan_in, 8, clusters=4, local=5, **sizes)


@pytest.mark.parametrize(
    ("clusters", "labels", "fan_in", "trained", "expected"),
    [
        ("auto", 100_000, 64, True, (16, 64)),
        ("auto", 100_000, 192, True, (16, 64)),
        ("auto", 100_000, 193, True, (0, 0)),
        ("auto", 100_000, 64, False, (0, 0)),
        ("auto", 1024, 16, True, (8, 16)),
        ("auto", 200, 16, True, (0, 0)),
        (3, 100_000, 64, False, (2, 64)),
        (1024, 96, 16, True, (3, 16)),
        (0, 100_000, 64, True, (0, 0)),
    ],
)
def test_how_many_there_are(clusters, labels, fan_in, trained, expected):
    assert local_features(Local(clusters), labels, 32, 384, fan_in, trained) == expected


def test_labels_of_their_own_have_none_by_themselves():
    assert local_features(Local(), 100_000, 1, 384, 64, True) == (0, 0)


def test_clusters_are_whole_groups_in_a_row():
    bounds = LAYOUT.bounds
    assert bounds[0] == 0
    assert bounds[-1] == LABELS
    assert all(bound % 8 == 0 for bound in bounds[:-1])
    firsts = LAYOUT.first_columns(0, 13)
    assert firsts.tolist() == [WIDTH + 5 * int(np.searchsorted(bounds, 8 * group, "right") - 1) for group in range(13)]
    assert LAYOUT.first_columns(9, 3).tolist() == firsts[9:12].tolist()
    assert LAYOUT.groups_a_cluster == max(np.bincount(firsts))


def texts(count=600):
    """Texts with two labels each, batch by batch; a third of the labels are of the head (negative places)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(-50, LABELS, (count, 2))
    labels[:, 1] = np.where(labels[:, 1] == labels[:, 0], labels[:, 0] - 1, labels[:, 1])
    center = rng.normal(size=(LABELS + 51, WIDTH))
    x_ND = (center[labels].sum(1) + 0.3 * rng.normal(size=(count, WIDTH)) + 1.0).astype(np.float32)
    return x_ND, np.sort(labels, axis=1)


def batches(x_ND, labels):
    for first in range(0, len(x_ND), 64):
        some = slice(first, first + 64)
        size = len(x_ND[some])
        yield torch.from_numpy(x_ND[some]), np.arange(0, 2 * size + 1, 2), labels[some].reshape(-1)


def test_directions_are_that_of_the_cluster_and_the_principal_components_of_its_texts():
    x_ND, labels = texts()
    share_L = np.random.default_rng(1).uniform(0.2, 1.0, LABELS).astype(np.float32)
    weight, bias = local_directions(batches(x_ND, labels), share_L, LAYOUT)
    assert weight.shape == (20, WIDTH)
    assert bias.shape == (20,)
    for cluster, (low, high) in enumerate(zip(LAYOUT.bounds[:-1], LAYOUT.bounds[1:], strict=True)):
        own = (labels >= low) & (labels < high)
        counts = np.where(own, share_L[np.maximum(labels, 0)], 0.0).sum(1).astype(np.float64)
        mean = (counts[:, None] * x_ND).sum(0) / counts.sum()
        first = mean - x_ND.mean(0)
        first /= np.linalg.norm(first)
        rest = x_ND - mean
        rest = rest - np.outer(rest @ first, first)
        covariance = (rest * counts[:, None]).T @ rest / counts.sum()
        _, vectors = np.linalg.eigh(covariance)
        expected = np.vstack([first, vectors.T[::-1][:4]])
        found = weight[5 * cluster : 5 * cluster + 5].double().numpy()
        np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-5)
        np.testing.assert_allclose(np.abs((found * expected).sum(1)), 1.0, atol=1e-3)
        offsets = bias[5 * cluster : 5 * cluster + 5].numpy()
        np.testing.assert_allclose(offsets[0], -found[0] @ x_ND.mean(0), atol=1e-4)
        np.testing.assert_allclose(offsets[1:], -found[1:] @ mean, atol=1e-4)


def test_a_cluster_without_texts_has_directions_too():
    x_ND, labels = texts()
    labels = np.where(labels < LAYOUT.bounds[1], -1, labels)
    weight, bias = local_directions(batches(x_ND, labels), np.ones(LABELS, np.float32), LAYOUT)
    np.testing.assert_allclose(weight[:5] @ weight[:5].T, np.eye(5), atol=1e-5)
    assert torch.isfinite(bias).all()


def test_the_head_puts_them_behind_the_others():
    head = FeatureHead(WIDTH, 0, 0.0)
    head.add_local(20)
    x_BD = torch.randn(3, WIDTH)
    assert torch.equal(head(x_BD), torch.cat([x_BD, torch.zeros(3, 20)], dim=1))
    with torch.no_grad():
        head.local.weight[7, 2], head.local.bias[7] = 2.0, 0.5
    read_BX = head(x_BD)
    torch.testing.assert_close(read_BX[:, WIDTH + 7], 2.0 * x_BD[:, 2] + 0.5)
    assert not read_BX[:, [WIDTH, WIDTH + 19]].any()


@pytest.mark.parametrize(("fan_in", "words"), [(5, 4), (9, 4), (9, 0)])
def test_groups_read_those_of_their_cluster_and_head_labels_none(fan_in, words):
    more = {} if words else {"words": 0, "head_words": 0, "vocabulary": 0}
    classifier = Classifier.new(shape(fan_in, **more), reference, "cpu", seed=0)
    classifier.read_local()
    head, tail = classifier.layers
    assert (head.index[:, :WIDTH] == torch.arange(WIDTH)).all()
    index = tail.index[:, :fan_in]
    assert (index[:, 1:] > index[:, :-1]).all()
    expected = torch.from_numpy(LAYOUT.first_columns(0, 13))[:, None] + torch.arange(5)
    assert torch.equal(index[:, fan_in - 5 :].long(), expected)
    assert (index[:, : fan_in - 5] < WIDTH).all()
    if words:
        assert tail.index[:, fan_in:].min() >= WIDTH + 20
    assert tail.readers == LAYOUT.groups_a_cluster


def test_a_step_gives_gradients_to_all_features_and_none_to_words():
    classifier = Classifier.new(shape(), reference, "cpu", seed=0)
    classifier.read_local()
    x_BX = torch.randn(6, WIDTH + 20 + 30)
    positives = Positives.from_rows(np.arange(0, 13, 2), np.arange(12) * 9)
    dx_BD, loss = classifier.step(x_BX, positives, StepOptions(want_loss=True))
    assert dx_BD.shape == (6, WIDTH + 20)
    assert dx_BD.any(dim=0).all()
    assert loss > 0


def test_a_fan_in_below_the_features_of_a_cluster_can_be_loaded_and_rewired():
    wide = Classifier.new(shape(), reference, "cpu", seed=0)
    wide.read_local()
    wide.narrow(3)
    loaded = Classifier.new(wide.shape, reference, "cpu", seed=1)
    for name, tensor in loaded.tensors().items():
        tensor.copy_(wide.tensors()[name])
    tail = loaded.layers[1]
    assert tail.index.shape == (13, 3 + 4)
    assert rewire_layer(tail, WIDTH, 0.5, torch.Generator().manual_seed(0), local=LAYOUT) == 2
    assert (tail.index[:, 1:] > tail.index[:, :-1]).all()


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_rewiring_stays_within_the_cluster(method):
    classifier = Classifier.new(shape(), reference, "cpu", seed=0)
    classifier.read_local()
    tail = classifier.layers[1]
    x_BX = torch.randn(6, WIDTH + 20 + 30)
    positives = Positives.from_rows(np.arange(0, 13, 2), np.arange(12) * 9)
    words, own = tail.index[:, 5:].clone(), torch.from_numpy(LAYOUT.first_columns(0, 13))[:, None]
    seen = set()
    for seed in range(8):
        before = tail.index.clone()
        growth = GrowthBatch(reference, x_BX, positives, "bce") if method == "rigl" else None
        generator = torch.Generator().manual_seed(seed)
        assert rewire_layer(tail, WIDTH, 0.4, generator, growth, LAYOUT) == 2
        index = tail.index[:, :5].long()
        assert (index[:, 1:] > index[:, :-1]).all()
        is_local = index >= WIDTH
        assert ((index >= own) & (index < own + 5))[is_local].all()
        for group in range(13):
            assert len(set(before[group].tolist()) - set(tail.index[group].tolist())) == 2
        seen |= set(index[0].tolist())
        tail.weight.normal_()
    assert torch.equal(tail.index[:, 5:], words)
    assert len(seen & set(range(WIDTH))) > 1
    if method == "set":
        assert {int(own[0]), int(own[0]) + 4} <= seen, "dropped ones can come back"


def test_rigl_grows_what_gains_most_of_both_kinds():
    classifier = Classifier.new(shape(words=0, head_words=0, vocabulary=0), reference, "cpu", seed=0)
    classifier.read_local()
    tail = classifier.layers[1]
    tail.index[0, :5] = torch.tensor([0, 1, 2, 3, 4])
    x_BX = torch.randn(6, WIDTH + 20)
    x_BX[:, WIDTH + 3] *= 50.0
    x_BX[:, WIDTH + 5 : WIDTH + 20] *= 1000.0  # of other clusters
    positives = Positives.from_rows(np.arange(0, 13, 2), 10 + np.arange(12))
    rewire_layer(tail, WIDTH, 0.2, torch.Generator(), GrowthBatch(reference, x_BX, positives, "bce"), LAYOUT)
    assert set(tail.index[0].tolist()) - {0, 1, 2, 3, 4} == {WIDTH + 3}
