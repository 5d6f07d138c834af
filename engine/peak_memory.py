"""The most memory that this process has taken so far, and how it keeps that low."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LINUX_STATUS = Path("/proc/self/status")
# Of glibc's malloc, see mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
OWN_MAPPING_BYTES, LARGEST_OWN_MAPPING, KEPT_BYTES = 2 * 2**20, 32 * 2**20, 128 * 2**20
_before = 0  # peak of this process up to the last call of `graphs_keep`
_idle: dict[int, int] = {}  # what that said, by whose graphs they are


@contextmanager
def bound_heap() -> Iterator[None]:
    """Within, large blocks of host memory go back to the system as soon as they are free.

    By itself glibc takes ever larger blocks from a heap that batches of many lengths leave full of holes: 230 MiB of
    them after MiniLM had read 19,000 texts. Not for training steps: blocks of the same sizes come and go there, and the
    system takes a third of the time to map them. Does nothing with another libc, or where the person has set glibc's
    MALLOC_ variables.
    """
    mallopt = None
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with suppress(OSError, AttributeError, TypeError):
            mallopt = ctypes.CDLL(None).mallopt
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, LARGEST_OWN_MAPPING)


def bound_workspaces(deterministic: bool = False) -> None:
    """Keeps cuBLAS to 8 MiB a thread; has to come before the first product of a process.

    On Hopper it takes 32 MiB by itself, on other cards so much already. Products that are the same bits every time
    need one of two sizes that torch checks for, of which this is the larger one (CUBLAS_WORKSPACE_CONFIG, cuBLAS
    documentation, section 2.1.4). A size that the person has set stays.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8" if deterministic else ":4096:2:16:8")


def memory_bytes(device: torch.device) -> int:
    """Peak memory so far: of torch's allocator on a GPU, with what CUDA graphs keep for themselves; of the process on
    a CPU."""
    if device.type == "cuda":
        import torch

        return max(_before, torch.cuda.max_memory_allocated(device) + sum(_idle.values()))
    return host_peak_bytes()


def graphs_keep(device: torch.device, owner: int, idle: int) -> None:
    """From here on so many bytes are taken that torch's allocator counts as free, because only CUDA graphs of `owner`
    (an id) use them."""
    import torch

    global _before
    _before, _idle[owner] = memory_bytes(device), idle
    torch.cuda.reset_peak_memory_stats(device)


def forget_peak(device: torch.device) -> None:
    """`memory_bytes` begins anew, on a GPU."""
    import torch

    global _before
    _before = 0
    torch.cuda.reset_peak_memory_stats(device)


def host_peak_bytes() -> int:
    """Largest resident size that this process has had; takes some 20 µs."""
    if LINUX_STATUS.is_file():  # the figure of getrusage starts with that of the process that launched this one
        for line in LINUX_STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
