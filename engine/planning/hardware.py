"""What this machine offers: the device to train on, its memory, and the number formats that it computes fast."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from engine.errors import EnvironmentProblem

GIB = 2**30
CUDA_CONTEXT = int(0.45 * GIB)  # of a process, beside torch's allocator: driver, kernels, libraries' handles


@dataclass(frozen=True)
class Hardware:
    """device: cpu or cuda · memory_bytes: of that device · compute: bf16, fp16 or fp32, the fast type ·
    free_bytes: of it while this process has none; None: all."""

    device: str
    name: str
    memory_bytes: int
    cores: int
    compute: str
    free_bytes: int | None = None


def detect(device: str = "auto") -> Hardware:
    """The machine's first GPU, or its CPU. Raises EnvironmentProblem if a GPU is asked for and there is none."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        compute = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        free = min(
            properties.total_memory, torch.cuda.mem_get_info(0)[0] + torch.cuda.memory_reserved(0) + CUDA_CONTEXT
        )
        return Hardware("cuda", properties.name, properties.total_memory, _cores(), compute, free)
    if device == "cuda":
        built = "this torch has no CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        raise EnvironmentProblem(f"hardware.device = cuda, but {built}; check the driver, or train with --device cpu")
    compute = "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return Hardware("cpu", "CPU", host_memory(), _cores(), compute, available_memory())


def _cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> int:
    """Bytes of host memory this process may use: the machine's, or its control group's limit if smaller."""
    import psutil

    limits = [psutil.virtual_memory().total]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(path).read_text().strip() if Path(path).is_file() else ""
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def available_memory() -> int:
    """Bytes of host memory that this process could have in all, as other programs use the rest."""
    import psutil

    own = psutil.Process().memory_info().rss
    return min(host_memory(), psutil.virtual_memory().available + own)


def auto_profile() -> str:
    """The built-in profile for this machine: cpu, or the largest that its first GPU can hold."""
    from engine.config import profile_names

    hardware = detect()
    if hardware.device == "cpu":
        return "cpu"
    sizes = [int(name.removesuffix("gb")) for name in profile_names() if name != "cpu"]
    # A card sold as 8 GB reports a little less than 8 GiB.
    fitting = [size for size in sizes if size <= hardware.memory_bytes / GIB + 0.6]
    if not fitting:
        raise EnvironmentProblem(
            f"{hardware.name} has {hardware.memory_bytes / GIB:.1f} GiB; the smallest profile is "
            f"{min(sizes)}gb. Train with --profile cpu, or set hardware.memory_gib"
        )
    return f"{max(fitting)}gb"
