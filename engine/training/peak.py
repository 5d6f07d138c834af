"""The most memory that this process has taken so far."""

from __future__ import annotations

import sys

import torch


def memory_bytes(device: torch.device) -> int:
    """Peak memory so far: of torch's allocator on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return host_peak_bytes()


def host_peak_bytes() -> int:
    """Largest resident size that this process has had."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
