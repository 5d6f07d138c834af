"""Features of clusters: directions in which their labels differ most, read by the groups of the cluster."""

import numpy as np
import pytest
import torch

from engine.config import Local
from engine.kernels import reference
from engine.kernels.layer import Positives, StepOptions
from engine.model import local_features as directions
from engine.model.classifier import Classifier, ClassifierShape
from engine.model.encoder import FeatureHead
from engine.model.local_features import MeanTexts, local_directions, one_thread
from engine.model.local_layout import LocalLayout, local_features
from engine.model.rewiring import GrowthBatch, rewire_layer

WIDTH, LABELS = 12, 100
LAYOUT = LocalLayout(LABELS, 8, WIDTH, 4, 2, 3)  # the first and last two of four clusters are a coarse one
BOUNDS = [0, 32, 56, 80, 100]


def shape(fan_in=6, **more) -> ClassifierShape:
    sizes = {"words": 4, "head_words": 6, "vocabulary": 30} | more
    return ClassifierShape(LABELS + 10, 10, WIDTH, fan_in, 8, clusters=4, coarse=2, local=3, **sizes)


@pytest.mark.parametrize(
    ("clusters", "labels", "fan_in", "trained", "expected"),
    [
        ("auto", 100_000, 64, True, (256, 32, 32)),
        ("auto", 100_000, 192, True, (256, 32, 32)),
        ("auto", 100_000, 193, True, (0, 0, 0)),
        ("auto", 100_000, 64, False, (0, 0, 0)),
        ("auto", 1024, 16, True, (8, 0, 16)),
        ("auto", 2048, 17, True, (16, 2, 8)),
        ("auto", 2048, 1, True, (16, 0, 1)),
        ("auto", 200, 16, True, (0, 0, 0)),
        (3, 100_000, 64, False, (2, 0, 64)),
        (1024, 96, 16, True, (3, 0, 16)),
        (0, 100_000, 64, True, (0, 0, 0)),
    ],
)
def test_how_many_there_are(clusters, labels, fan_in, trained, expected):
    assert local_features(Local(clusters), labels, 32, 384, fan_in, trained) == expected


def test_labels_of_their_own_have_none_by_themselves():
    assert local_features(Local(), 100_000, 1, 384, 64, True) == (0, 0, 0)


def test_clusters_are_whole_groups_in_a_row_and_coarse_ones_consist_of_them():
    coarse, fine = LAYOUT.levels
    assert coarse.tolist() == [0, 56, 100]
    assert fine.tolist() == BOUNDS
    columns = LAYOUT.columns(0, 13)
    assert columns[0].tolist() == [12, 13, 14, 18, 19, 20]
    assert columns[6].tolist() == [12, 13, 14, 21, 22, 23]
    assert columns[12].tolist() == [15, 16, 17, 27, 28, 29]
    assert LAYOUT.columns(9, 3).tolist() == columns[9:12].tolist()
    assert LAYOUT.groups_a_cluster == max(np.bincount(columns[:, 0])) == 7
    assert LocalLayout(LABELS, 8, WIDTH, 4, 0, 5).columns(12, 1).tolist() == [[27, 28, 29, 30, 31]]


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


def found_directions(x_ND, labels, place=lambda label: label):
    """Those of LAYOUT, where `place` says where in the tail a label is."""
    means = MeanTexts(np.arange(LABELS, dtype=np.int32), WIDTH)
    for batch in batches(x_ND, labels):
        means.add(*batch)
    return local_directions(means, LAYOUT, place(means.label_S))


def by_hand(x_ND, labels, bounds, above=None, count=3):
    """In whitened space, the `count` directions in which the mean texts of the labels differ most."""
    covariance = np.cov(x_ND.T, bias=True)
    variance, axes = np.linalg.eigh(covariance)
    whitening = axes / np.sqrt(variance + variance.mean()) @ axes.T
    scatter = np.zeros((WIDTH, WIDTH))
    for label in range(*bounds):
        own = x_ND[(labels == label).any(axis=1)]
        if len(own):
            away = (own.mean(0) - x_ND.mean(0)) @ whitening
            scatter += np.sqrt(len(own)) * np.outer(away, away)
    across = np.eye(WIDTH) if above is None else np.eye(WIDTH) - above.T @ above
    return whitening, np.linalg.eigh(across @ scatter @ across)[1].T[::-1][:count]


def test_directions_are_those_in_which_labels_differ_most():
    x_ND, labels = texts()
    weight, bias = found_directions(x_ND, labels)
    assert weight.shape == (18, WIDTH)
    assert bias.shape == (18,)
    np.testing.assert_allclose(np.linalg.norm(weight, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(bias, -weight.numpy() @ x_ND.mean(0), atol=1e-4)
    for number, bounds in enumerate([(0, 56), (56, 100), (0, 32), (32, 56), (56, 80), (80, 100)]):
        above = None if number < 2 else by_hand(x_ND, labels, (0, 56) if bounds[0] < 56 else (56, 100))[1]
        whitening, expected = by_hand(x_ND, labels, bounds, above)
        expected = expected @ whitening
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        found = weight[3 * number : 3 * number + 3].double().numpy()
        np.testing.assert_allclose(np.abs((found * expected).sum(1)), 1.0, atol=1e-3)


def test_labels_are_where_their_order_puts_them():
    x_ND, labels = texts()
    order = np.random.default_rng(1).permutation(LABELS)
    id_at = np.append(order, np.arange(-51, 0))  # of a place; what is not in the tail stays as it is
    expected, _ = found_directions(x_ND, labels)
    weight, _ = found_directions(x_ND, np.sort(id_at[labels], axis=1), np.argsort(order).__getitem__)
    torch.testing.assert_close(weight.abs(), expected.abs(), atol=1e-3, rtol=0)


def test_texts_without_a_label_of_the_sample_change_nothing_but_how_texts_differ():
    means = MeanTexts(np.arange(10, 20, dtype=np.int32), WIDTH)
    means.add(torch.ones(2, WIDTH), np.array([0, 1, 3]), np.array([3, 25, 30], dtype=np.int32))
    assert means.texts == 2 and not means.texts_S.any() and not means.sum_SD.any()


def test_directions_keep_no_more_than_themselves():
    own = directions._directions(torch.randn(20, 40), None, 3)
    assert own.shape == (3, 40) and own.untyped_storage().nbytes() == 3 * 40 * 8


def test_as_many_threads_go_on_as_before():
    threads = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads


def test_a_sample_of_the_labels_has_to_do_where_they_are_many(monkeypatch):
    x_ND, labels = texts()
    all_of_them, _ = found_directions(x_ND, labels)
    monkeypatch.setattr(directions, "MEANS", 50 * WIDTH)
    half, _ = found_directions(x_ND, labels)
    odd_alone, _ = found_directions(x_ND, np.where(labels % 2, -1, labels))
    torch.testing.assert_close(half.abs(), odd_alone.abs(), atol=1e-3, rtol=0)
    assert not torch.allclose(half.abs(), all_of_them.abs(), atol=1e-2)


def test_a_cluster_without_texts_has_directions_too():
    x_ND, labels = texts()
    labels = np.where(labels < BOUNDS[1], -1, labels)
    weight, bias = found_directions(x_ND, labels)
    own = torch.cat([weight[:3], weight[6:9]])
    assert torch.linalg.matrix_rank(own) == 6
    assert torch.isfinite(bias).all()


def test_the_head_puts_them_behind_the_others():
    head = FeatureHead(WIDTH, 0, 0.0)
    head.add_local(18)
    x_BD = torch.randn(3, WIDTH)
    assert torch.equal(head(x_BD), torch.cat([x_BD, torch.zeros(3, 18)], dim=1))
    with torch.no_grad():
        head.local.weight[7, 2], head.local.bias[7] = 2.0, 0.5
    read_BX = head(x_BD)
    torch.testing.assert_close(read_BX[:, WIDTH + 7], 2.0 * x_BD[:, 2] + 0.5)
    assert not read_BX[:, [WIDTH, WIDTH + 17]].any()


@pytest.mark.parametrize(("fan_in", "words"), [(6, 4), (9, 4), (9, 0)])
def test_groups_read_those_of_their_cluster_and_head_labels_none(fan_in, words):
    more = {} if words else {"words": 0, "head_words": 0, "vocabulary": 0}
    classifier = Classifier.new(shape(fan_in, **more), reference, "cpu", seed=0)
    classifier.read_local()
    head, tail = classifier.layers
    assert (head.index[:, :WIDTH].int() == torch.arange(WIDTH)).all()
    index = tail.index[:, :fan_in].long()
    assert (index[:, 1:] > index[:, :-1]).all()
    assert torch.equal(index[:, fan_in - 6 :], torch.from_numpy(LAYOUT.columns(0, 13)))
    assert (index[:, : fan_in - 6] < WIDTH).all()
    if words:
        assert tail.index[:, fan_in:].int().min() >= WIDTH + 18
    assert tail.readers == LAYOUT.groups_a_cluster


def test_a_step_gives_gradients_to_all_features_and_none_to_words():
    classifier = Classifier.new(shape(), reference, "cpu", seed=0)
    classifier.read_local()
    x_BX = torch.randn(6, WIDTH + 18 + 30)
    positives = Positives.from_rows(np.arange(0, 13, 2), np.arange(12) * 9)
    dx_BD, loss = classifier.step(x_BX, positives, StepOptions(want_loss=True))
    assert dx_BD.shape == (6, WIDTH + 18)
    assert dx_BD.any(dim=0).all()
    assert loss > 0


def test_a_fan_in_below_the_features_of_clusters_can_be_loaded_and_has_nothing_to_rewire():
    wide = Classifier.new(shape(), reference, "cpu", seed=0)
    wide.read_local()
    wide.narrow(3)
    loaded = Classifier.new(wide.shape, reference, "cpu", seed=1)
    for name, tensor in loaded.tensors().items():
        tensor.copy_(wide.tensors()[name])
    tail = loaded.layers[1]
    assert tail.index.shape == (13, 3 + 4)
    assert rewire_layer(tail, WIDTH, 0.5, torch.Generator().manual_seed(0), local=loaded.shape.local_read) == 0


@pytest.mark.parametrize("method", ["set", "rigl"])
@pytest.mark.parametrize("fan_in", [10, 8])
def test_rewiring_leaves_them_and_words(method, fan_in):
    classifier = Classifier.new(shape(10), reference, "cpu", seed=0)
    classifier.read_local()
    if fan_in < 10:
        classifier.layers[1].weight.normal_()
        classifier.narrow(fan_in)
    tail, local = classifier.layers[1], classifier.shape.local_read
    assert local == 6
    x_BX = torch.randn(6, WIDTH + 18 + 30)
    positives = Positives.from_rows(np.arange(0, 13, 2), np.arange(12) * 9)
    stays = [set(row[row >= WIDTH].tolist()) for row in tail.index.int()]
    for seed in range(8):
        before = tail.index.int()
        growth = GrowthBatch(reference, x_BX, positives, "bce") if method == "rigl" else None
        count = rewire_layer(tail, WIDTH, 0.5, torch.Generator().manual_seed(seed), growth, local)
        assert count == (fan_in - 6) / 2
        assert (tail.index[:, 1:].int() > tail.index[:, :-1].int()).all()
        for group, row in enumerate(tail.index.int()):
            assert set(row[row >= WIDTH].tolist()) == stays[group]
            assert len(set(before[group].tolist()) - set(row.tolist())) == count
        tail.weight.normal_()


def test_rigl_grows_what_gains_most_of_all_features():
    classifier = Classifier.new(shape(9, words=0, head_words=0, vocabulary=0), reference, "cpu", seed=0)
    classifier.read_local()
    tail = classifier.layers[1]
    tail.index[0, :3] = torch.tensor([0, 1, 2])
    x_BX = torch.randn(6, WIDTH + 18)
    x_BX[:, 7] *= 50.0
    x_BX[:, WIDTH:] *= 1000.0
    positives = Positives.from_rows(np.arange(0, 13, 2), 10 + np.arange(12))
    growth = GrowthBatch(reference, x_BX, positives, "bce")
    rewire_layer(tail, WIDTH, 0.4, torch.Generator(), growth, classifier.shape.local_read)
    assert set(tail.index[0, :3].tolist()) - {0, 1, 2} == {7}
