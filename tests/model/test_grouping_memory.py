"""Groups are formed in the memory that the caller grants: fewer dimensions rather than more bytes."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from engine.model.grouping import balanced_order, grouping_bytes, label_vectors, vector_layout
from engine.model.grouping_layout import LEAST_WIDTH, VECTOR_WIDTH

LABELS = 1_000_000
MEASURE = """
import re, sys
from pathlib import Path
import numpy as np, torch
from engine.model.grouping import balanced_order, label_vectors

labels, memory = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)

def resident(kind):
    return int(re.search(rf"Vm{kind}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def features():
    generator = torch.Generator().manual_seed(0)
    for first in range(0, labels, 2000):
        ids = np.arange(first, min(first + 2000, labels), dtype=np.int32)
        yield torch.randn(len(ids), 96, generator=generator), np.arange(len(ids) + 1), ids

few = [(torch.randn(10, 96), np.arange(11), np.arange(10, dtype=np.int32))]
balanced_order(label_vectors(few, 10, 96, 0), 4, 0)  # loads what is loaded on first use
before = resident("RSS")
Path("/proc/self/clear_refs").write_text("5")
balanced_order(label_vectors(features(), labels, 96, 0, memory), 32, 0)
print(resident("HWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
@pytest.mark.parametrize("memory", [60 * LABELS, 160 * LABELS])
def test_forming_groups_stays_within_the_memory_granted(memory):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(LABELS), str(memory)], capture_output=True, text=True, check=True
    )
    taken = int(done.stdout)
    print(f"{taken / LABELS:.1f} bytes a label of {memory / LABELS:.0f}")
    assert taken < memory


@pytest.mark.parametrize(("memory", "layout"), [
    (None, (VECTOR_WIDTH, torch.float32)),
    (grouping_bytes(LABELS, VECTOR_WIDTH, torch.float32), (VECTOR_WIDTH, torch.float32)),
    (grouping_bytes(LABELS, VECTOR_WIDTH, torch.float32) - 1, (VECTOR_WIDTH, torch.float16)),
    (grouping_bytes(LABELS, 20, torch.float16), (20, torch.float16)),
    (1, (LEAST_WIDTH, torch.float16)),
])  # fmt: skip
def test_vectors_are_as_wide_as_fits(memory, layout):
    assert vector_layout(LABELS, 384, memory) == layout


def test_large_nodes_are_cut_between_clusters_too():
    labels, width, clusters = 200_000, 16, 64
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(clusters, width, generator=generator), dim=1)
    cluster = torch.randint(0, clusters, (labels,), generator=generator)
    vectors = (centres[cluster] + 0.05 * torch.randn(labels, width, generator=generator)).half()
    order = balanced_order(vectors, 32, seed=1)
    assert torch.equal(order.sort().values, torch.arange(labels, dtype=torch.int32))
    groups = cluster[order].view(-1, 32)
    purity = torch.stack([(groups == c).sum(dim=1) for c in range(clusters)]).amax(dim=0).float().mean() / 32
    assert purity > 0.9
    assert torch.equal(order, balanced_order(vectors, 32, seed=1))


def test_labels_without_instances_are_cut_in_whole_groups_as_well():
    order = balanced_order(torch.zeros(150_001, 8), 32, seed=0)
    assert torch.equal(order.sort().values, torch.arange(150_001, dtype=torch.int32))


def test_only_the_labels_asked_for_are_ordered():
    vectors = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    chosen = torch.arange(3, 90, 2, dtype=torch.int32)
    order = balanced_order(vectors, 4, seed=0, labels=chosen)
    assert torch.equal(order.sort().values, chosen)
    assert torch.equal(order, chosen[balanced_order(vectors[chosen], 4, seed=0)])


def test_sums_of_many_instances_keep_their_direction_in_half_precision():
    generator = torch.Generator().manual_seed(0)
    x = 1000 * (torch.randn(5000, 8, generator=generator) + torch.linspace(-1, 1, 8))
    batches = [(part, np.arange(len(part) + 1), np.zeros(len(part), dtype=np.int32)) for part in x.split(50)]
    narrow, exact = (label_vectors(batches, 1, 8, seed=0, memory=memory) for memory in (1, None))
    assert narrow.dtype == torch.float16
    assert float((narrow.float() @ exact.T).squeeze()) > 0.999
