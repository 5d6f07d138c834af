"""What this machine offers: the device to train on, its memory, and the number formats that it computes fast."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import EnvironmentProblem
from engine.planning.limits import cpu_quota, memory_limit, memory_room

GIB = 2**30
TOLERANCE_GIB = 0.6  # a card sold as 8 GB reports a little less than 8 GiB
CUDA_CONTEXT = int(0.45 * GIB)  # of a process, beside torch's allocator: driver, kernels, libraries' handles
BF16_CAPABILITY, FP8_CAPABILITY = (8, 0), (8, 9)  # the first NVIDIA GPUs that multiply these

BF16_FLAGS = {"avx512_bf16", "amx_tile"}  # of a processor that does


@dataclass(frozen=True)
class Gpu:
    """One GPU as torch sees it. index: torch's · free_bytes: not held by other programs · compute: bf16 or fp16."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]
    compute: str
    fp8: bool


@dataclass(frozen=True)
class Hardware:
    """device: cpu or cuda · memory_bytes: of that device · compute: bf16, fp16 or fp32, the fast type ·
    free_bytes: of its memory, what other programs do not hold now (None: not measured).
    """

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
        gpu = read_gpu(0)
        return Hardware("cuda", gpu.name, gpu.total_bytes, usable_cores(), gpu.compute, gpu.free_bytes)
    if device == "cuda":
        built = "this torch has no CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        raise EnvironmentProblem(
            f"hardware.device = cuda, but {built}; `engine doctor` says why, or train with --device cpu"
        )
    return Hardware("cpu", "CPU", host_memory(), usable_cores(), cpu_compute(), available_memory())


def read_gpu(index: int) -> Gpu:
    """The GPU with that number among those that torch sees."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    total = properties.total_memory
    try:
        free = torch.cuda.mem_get_info(index)[0] + torch.cuda.memory_reserved(index) + CUDA_CONTEXT
    except RuntimeError:  # too full, or reserved for another process
        free = 0
    capability = (properties.major, properties.minor)
    amd = torch.version.hip is not None
    compute = "bf16" if amd or capability >= BF16_CAPABILITY else "fp16"
    fp8 = not amd and capability >= FP8_CAPABILITY
    return Gpu(index, properties.name, total, min(total, free), capability, compute, fp8)


def usable_cores() -> int:
    """Processors this process may use: those of its mask, or the time that its control group gets if less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else min(cores, math.ceil(quota))


def host_memory() -> int:
    """Bytes of host memory this process may use: the machine's, or its control group's limit if smaller."""
    import psutil

    total = psutil.virtual_memory().total
    return min(total, memory_limit() or total)


def available_memory() -> int:
    """Bytes of host memory that this process could have in all, as other programs use the rest."""
    import psutil

    return min(host_memory(), free_memory() + psutil.Process().memory_info().rss)


def free_memory() -> int:
    """Bytes of host memory that no program uses: of the machine, or of this process's control groups if less."""
    import psutil

    free, room = psutil.virtual_memory().available, memory_room()
    return free if room is None else min(free, room)


def cpu_name() -> str:
    """Model of the processor, or its architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            question = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(question, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return platform.processor() or platform.machine() or os.name


def cpu_compute() -> str:
    """The number format that this machine's processor multiplies fast: bf16 where it can; fp32 where it cannot, or the
    system does not tell. Needs no torch, so that a plan made without it is that of the training."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return "bf16" if BF16_FLAGS.intersection(flags) else "fp32"


def profile_for(hardware: Hardware) -> tuple[str, str | None]:
    """(built-in profile: cpu, or the largest that the GPU's free memory can hold; a line if other programs cost one).

    Raises EnvironmentProblem for a GPU that is too small, or too full, for the smallest profile.
    """
    from engine.config import profile_names

    if hardware.device == "cpu":
        return "cpu", None
    sizes = [int(name.removesuffix("gb")) for name in profile_names() if name != "cpu"]
    total = hardware.memory_bytes / GIB
    free = total if hardware.free_bytes is None else hardware.free_bytes / GIB
    whole = [size for size in sizes if size <= total + TOLERANCE_GIB]
    fitting = [size for size in sizes if size <= free + TOLERANCE_GIB]
    if not whole:
        raise EnvironmentProblem(
            f"{hardware.name} has {total:.1f} GiB; the smallest profile is "
            f"{min(sizes)}gb. Train with --profile cpu, or set hardware.memory_gib"
        )
    held = f"other programs hold {total - free:.1f} of the {total:.1f} GiB of {hardware.name}"
    if not fitting:
        raise EnvironmentProblem(
            f"{held}, too much for the smallest profile, {min(sizes)}gb. Close them (nvidia-smi lists them), or "
            "train with --device cpu"
        )
    if max(fitting) == max(whole):
        return f"{max(fitting)}gb", None
    note = f"{held}: profile {max(fitting)}gb instead of {max(whole)}gb; close them to get the larger one"
    return f"{max(fitting)}gb", note


def auto_profile(device: str = "auto", say: Callable[[str], None] | None = None, alone: bool = False) -> str:
    """The built-in profile for this machine, see `profile_for`. device: as of `detect` · say: told of full memory ·
    alone: what other programs hold now will be free.
    """
    hardware = detect(device)
    profile, note = profile_for(replace(hardware, free_bytes=None) if alone else hardware)
    if note and say:
        say(note)
    return profile
