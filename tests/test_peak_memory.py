"""What is freed within `bound_heap` is given back to the system, whatever lies between; what a peak counts."""

import platform
import subprocess
import sys

import pytest
import torch

from engine import peak_memory

CODE = """
from contextlib import nullcontext
import psutil
from engine.peak_memory import bound_heap

large = bytearray(24 << 20)
del large  # by itself, glibc takes blocks up to this size from its heap now
before = psutil.Process().memory_info().rss
with {context}:
    large, small = [], []
    for _ in range(40):
        large.append(bytearray(3 << 20))
        small.append(bytearray(100_000))  # stays between two large blocks
    del large
    print((psutil.Process().memory_info().rss - before) >> 20)
"""


def kept(context):
    """MiB that a process still has after it has freed 120 of 124."""
    done = subprocess.run([sys.executable, "-c", CODE.format(context=context)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_large_blocks_go_back_to_the_system():
    assert kept("nullcontext()") > 100
    assert kept("bound_heap()") < 20


def test_memory_that_only_graphs_use_counts_as_taken(monkeypatch):
    """On a GPU that is not here: what torch's allocator has now, and had at most since it was last asked to forget."""
    now, most = 50, 100

    def forget(device):
        nonlocal most
        most = now

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: most)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forget)
    monkeypatch.setattr(peak_memory, "_before", 0)
    monkeypatch.setattr(peak_memory, "_idle", {})
    card = torch.device("cuda")
    peak_memory.graphs_keep(card, 1, 30)
    assert peak_memory.memory_bytes(card) == 100
    most = 90
    assert peak_memory.memory_bytes(card) == 120
    peak_memory.graphs_keep(card, 2, 5)
    peak_memory.graphs_keep(card, 1, 0)  # one of two models' graphs are gone
    assert peak_memory.memory_bytes(card) == 120
    peak_memory.forget_peak(card)
    assert peak_memory.memory_bytes(card) == 55
