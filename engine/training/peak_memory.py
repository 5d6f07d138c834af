"""The most memory that this process has taken so far."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LINUX_STATUS = Path("/proc/self/status")


def memory_bytes(device: torch.device) -> int:
    """Peak memory so far: of torch's allocator on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return host_peak_bytes()


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
