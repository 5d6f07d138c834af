"""Groups hold similar labels, have the same size, and meta-labels are nodes of the same tree."""

import numpy as np
import torch

from engine.model.grouping import balanced_order, label_vectors
from engine.model.label_tree import split, tree_bounds


def test_clusters_end_up_in_the_same_groups():
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(8, 16, generator=generator), dim=1)
    cluster = torch.randint(0, 8, (512,), generator=generator)
    cluster = torch.arange(8).repeat(64)[torch.randperm(512, generator=generator)]
    vectors = centres[cluster] + 0.05 * torch.randn(512, 16, generator=generator)
    order = balanced_order(vectors, 32, seed=1)
    assert torch.equal(order.sort().values, torch.arange(512, dtype=torch.int32))
    purity = [torch.bincount(cluster[group]).max().item() / 32 for group in order.view(-1, 32)]
    assert np.mean(purity) > 0.9


def test_order_is_a_permutation_for_any_size_and_the_same_for_the_same_seed():
    for labels in (1, 2, 31, 33, 100, 257):
        vectors = torch.randn(labels, 8, generator=torch.Generator().manual_seed(labels))
        order = balanced_order(vectors, 16, seed=3)
        assert torch.equal(order.sort().values, torch.arange(labels, dtype=torch.int32))
        assert torch.equal(order, balanced_order(vectors, 16, seed=3))


def test_every_level_of_the_tree_cuts_between_groups():
    bounds = np.array([0, 1000])
    while len(finer := split(bounds, 32)) > len(bounds):
        bounds = finer
        assert (bounds[:-1] % 32 == 0).all()
    assert len(bounds) - 1 == -(-1000 // 32)
    assert np.diff(bounds).max() == 32


def test_meta_labels_are_at_most_as_many_as_asked():
    for most in (1, 2, 7, 16, 1000):
        bounds = tree_bounds(1000, 32, most)
        assert len(bounds) - 1 <= most
        assert bounds[0] == 0
        assert bounds[-1] == 1000


def test_label_vector_is_the_direction_of_its_instances_mean():
    x = torch.randn(5, 8)
    offsets, ids = np.array([0, 1, 3, 3, 4, 5]), np.array([2, 0, 2, 0, 1], dtype=np.int32)
    batches = [(x[:2], offsets[:3], ids[:3]), (x[2:], offsets[2:] - 3, ids[3:])]
    vectors = label_vectors(batches, 4, 8, seed=0)
    expected = torch.nn.functional.normalize(torch.stack([x[1] + x[3], x[4], x[0] + x[1], torch.zeros(8)]), dim=1)
    torch.testing.assert_close(vectors, expected)
