"""Times a repeated step, takes its peak memory, and prints both with the machine they were measured on.

GPU times are those of CUDA events around each step, queued one behind the other as in training; CPU times
are wall times. Memory is the peak of torch's allocator, weights included, on a GPU, and the resident size of
the whole process right after the last step on a CPU.
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch

from engine.errors import ConfigError
from engine.peak_memory import forget_peak, memory_bytes
from engine.planning.hardware import GIB, cpu_name, host_memory

MIB = 2**20
WARM_UP = 3
SECONDS = 1.0  # measured of each variant, where the number of repeats is left open
FEWEST, MOST = 5, 200
MEMORY = {"cuda": "peak of torch's allocator", "cpu": "resident size of the process"}

# Makes what is measured: returns one step of it, and the bytes a step has to move to and from memory.
Build = Callable[[], tuple[Callable[[], object], int]]


@dataclass(frozen=True)
class Measurement:
    """Median and smallest time of a step, and its memory; or, with None for all of these, why it was `skipped`.

    floor_bytes: what a step has to read and write at least · peak_bytes: see MEMORY · labels: as measured ·
    phases: peak since the one before, where a measurement has several.
    """

    name: str
    labels: int
    note: str
    ms: float | None = None
    ms_min: float | None = None
    repeats: int = 0
    floor_bytes: int | None = None
    peak_bytes: int | None = None
    skipped: str | None = None
    phases: dict[str, int] = field(default_factory=dict)

    @property
    def bytes_per_second(self) -> float | None:
        """floor_bytes over the median time."""
        return None if self.ms is None else self.floor_bytes / self.ms * 1e3

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "bytes_per_second": self.bytes_per_second}


def measure(
    name: str, labels: int, note: str, bytes_needed: int, build: Build, device: torch.device, repeats: int | None
) -> Measurement:
    """Builds, warms up, measures and frees; skips what does not fit the memory that is free now.

    bytes_needed: prediction of the peak · repeats: number of timed steps, None for about SECONDS of them.
    """
    free_memory(device)
    free = available_bytes(device)
    needs = f"needs about {bytes_needed / GIB:.2f} GiB"
    if bytes_needed > free:
        return Measurement(name, labels, note, skipped=f"{needs} ({bytes_needed} bytes), {free / GIB:.2f} GiB are free")
    try:
        step, floor_bytes = build()
        peak_bytes(device)
        times = time_steps(step, device, repeats)
        peak = peak_bytes(device)
    except torch.OutOfMemoryError:
        return Measurement(name, labels, note, skipped=f"ran out of memory with {free / GIB:.2f} GiB free; {needs}")
    return Measurement(name, labels, note, statistics.median(times), min(times), len(times), floor_bytes, peak)


def check_choice(only: tuple[str, ...], known: Iterable[str], repeats: int | None) -> None:
    """Raises ConfigError for a variant that is not known, and for no step at all."""
    if not only or set(only) - set(known):
        raise ConfigError(f"--only {','.join(only)}: choose from {', '.join(known)}")
    if repeats is not None and repeats < 1:
        raise ConfigError(f"--repeats {repeats} must be at least 1")


def time_steps(
    step: Callable[[], object], device: torch.device, repeats: int | None = None, seconds: float = SECONDS
) -> list[float]:
    """Milliseconds of each of `repeats` steps, or of as many as fill about `seconds`, after WARM_UP others."""
    for _ in range(WARM_UP):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        last = time.perf_counter() - start
    if repeats is None:
        repeats = max(FEWEST, min(MOST, int(seconds / max(last, 1e-9))))
    if device.type != "cuda":
        return [_wall_ms(step) for _ in range(repeats)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


def _wall_ms(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


def free_memory(device: torch.device) -> None:
    """Gives back what is no longer referenced."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def available_bytes(device: torch.device) -> int:
    """Memory that this process could still take on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return min(psutil.virtual_memory().available, host_memory() - resident_bytes())


def peak_bytes(device: torch.device) -> int:
    """Most memory since the last call, see MEMORY."""
    if device.type != "cuda":
        return resident_bytes()
    peak = memory_bytes(device)
    forget_peak(device)
    return peak


def resident_bytes() -> int:
    """Resident size of this process now."""
    import psutil

    return psutil.Process().memory_info().rss


def machine(device: torch.device) -> dict[str, str | None]:
    """The processors and the versions that a figure depends on; None for what is not there."""
    try:
        from triton import __version__ as triton_version
    except ImportError:
        triton_version = None
    return {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cpu": f"{cpu_name()}, threads: {torch.get_num_threads()}",
        "torch": torch.__version__,
        "triton": triton_version,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def machine_line(values: dict[str, str | None]) -> str:
    """`machine` in one line."""
    hardware = [values[key] for key in ("gpu", "cpu") if values[key]]
    versions = [f"{key} {values[key]}" for key in ("torch", "triton", "cuda", "python") if values[key]]
    return " · ".join([*hardware, ", ".join(versions)])


def format_measurements(measurements: list[Measurement], device: str) -> str:
    """A plain-text table; what was skipped says why below it."""
    memory = "peak MiB" if device == "cuda" else "resident MiB"
    lines = [
        f"{'variant':<9}{'labels':>12}{'ms':>11}{'min ms':>11}{'floor MiB':>12}{'GB/s':>8}{memory:>14}  what it is"
    ]
    for m in measurements:
        if m.skipped is None:
            numbers = f"{m.ms:>11,.3f}{m.ms_min:>11,.3f}{m.floor_bytes / MIB:>12,.1f}{m.bytes_per_second / 1e9:>8,.1f}"
            numbers += f"{m.peak_bytes / MIB:>14,.0f}"
        else:
            numbers = f"{'skipped':>11}{'':>45}"
        lines.append(f"{m.name:<9}{m.labels:>12,}{numbers}  {m.note}")
    for m in measurements:
        if m.phases:
            parts = ", ".join(f"{phase} {size / MIB:,.0f}" for phase, size in m.phases.items())
            lines.append(f"{m.name} {memory} while: {parts}")
    lines += [f"{m.name} skipped: {m.skipped}" for m in measurements if m.skipped]
    return "\n".join(lines)
