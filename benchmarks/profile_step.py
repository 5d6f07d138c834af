"""Where the time of a training step goes, on this machine.

    python benchmarks/profile_step.py --profile 8gb --data datasets/mine [any flag of `engine train`]

Trains 80 steps in a temporary folder, the last 20 under torch's profiler, and prints milliseconds a step for the
largest operations, on the device and on the host, beside the wall time of a step without the profiler.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time

import torch

import engine.training.run
from engine.cli import main
from engine.training.trainer import Trainer

WARM, TIMED, PROFILED = 40, 20, 20


class Done(Exception):
    """Ends the training when enough has been measured."""


class ProfiledTrainer(Trainer):
    """Counts steps; times some, then profiles some."""

    count = 0
    wall = 0.0

    def train_step(self, batch, wants_loss):
        cls = ProfiledTrainer
        if cls.count in (WARM, WARM + TIMED):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            cls.wall = (time.perf_counter() - cls.wall) / TIMED if cls.count > WARM else time.perf_counter()
        if cls.count == WARM + TIMED:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            cls.profiler = torch.profiler.profile(activities=activities)
            cls.profiler.start()
        if cls.count == WARM + TIMED + PROFILED:
            cls.profiler.stop()
            raise Done
        cls.count += 1
        return super().train_step(batch, wants_loss)


def profile(flags: list[str]) -> None:
    engine.training.run.Trainer = ProfiledTrainer
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        code = main(["train", *flags, "--output", folder, "--set", "evaluation.baselines=false"])
    if ProfiledTrainer.count < WARM + TIMED + PROFILED:
        raise SystemExit(code or f"the training ended before {WARM + TIMED + PROFILED} steps")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}")
    print(f"command: python benchmarks/profile_step.py {' '.join(flags)}")
    print(f"{ProfiledTrainer.wall * 1e3:.1f} ms a step, {PROFILED} steps profiled\n")
    rows = ProfiledTrainer.profiler.key_averages()
    print_top("device", [(row.key, row.self_device_time_total, row.count) for row in rows])
    print_top("host", [(row.key, row.self_cpu_time_total, row.count) for row in rows])


def print_top(where: str, rows: list[tuple[str, float, int]], most: int = 18) -> None:
    """rows: (operation, microseconds in all, calls in all)."""
    total = sum(microseconds for _, microseconds, _ in rows)
    if not total:
        return
    print(f"{where}: {total / PROFILED / 1e3:.2f} ms a step")
    for name, microseconds, count in sorted(rows, key=lambda row: -row[1])[:most]:
        print(f"  {microseconds / PROFILED / 1e3:8.3f} ms  {count / PROFILED:7.1f} calls  {name[:80]}")
    print()


if __name__ == "__main__":
    profile(sys.argv[1:])
