"""Time of the plain torch top-k on this machine's processor: 2,812,281 labels, random weights.

    python benchmarks/topk_cpu.py [--threads 2] [--repeats 5]

A table in Markdown on standard output: the fastest of some repetitions, milliseconds for the whole batch.
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from engine.kernels import reference
from engine.kernels.layer import FP8_SCALE, LabelLayer
from engine.model.classifier import DTYPES, random_index

LABELS, FAN_IN, GROUP, WIDTH, K = 2_812_281, 128, 32, 768, 10
HEAD = 140_000
BATCHES = (1, 8, 128)


def make_layer(labels: int, dtype: torch.dtype, sparse: bool, start: int) -> LabelLayer:
    generator = torch.Generator().manual_seed(start)
    index = random_index(-(-labels // GROUP), FAN_IN, WIDTH, generator) if sparse else None
    weight = torch.empty(labels, FAN_IN if sparse else WIDTH, dtype=dtype)
    scale = 0.02 * (FP8_SCALE if dtype == DTYPES["fp8"] else 1.0)
    for rows in weight.split(1 << 14):
        rows.copy_(torch.randn(rows.shape, generator=generator).mul_(scale))
    return LabelLayer(weight, torch.full((labels,), -6.0), index, GROUP, start)


def fastest(layers: list[LabelLayer], x_BD: Tensor, repeats: int) -> float:
    """Milliseconds."""
    times = []
    for _ in range(repeats + 1):  # the first reads the weights in
        start = time.perf_counter()
        reference.topk(layers, x_BD, K)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[1:])


def processor() -> str:
    """The model as Linux names it, else the architecture."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} threads, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"`python benchmarks/topk_cpu.py {' '.join(sys.argv[1:])}`\n")
    print(
        f"Tail: L = {LABELS:,}, F = {FAN_IN}, G = {GROUP}, D = {WIDTH}. Head: {HEAD:,} labels. k = {K}. Milliseconds.\n"
    )
    print("| layers | weights | " + " | ".join(f"B = {batch}" for batch in BATCHES) + " |")
    print("|---|---|" + "---|" * len(BATCHES))
    x_BD = torch.randn(max(BATCHES), WIDTH, generator=torch.Generator().manual_seed(1))
    cases = [(name, False) for name in ("bf16", "fp32", "fp8", "fp16")] + [("bf16", True)]
    for name, with_head in cases:
        head = [make_layer(HEAD, DTYPES[name], False, 0)] if with_head else []
        layers = [*head, make_layer(LABELS - HEAD * with_head, DTYPES[name], True, HEAD * with_head)]
        times = [fastest(layers, x_BD[:batch], options.repeats) for batch in BATCHES]
        cells = " | ".join(f"{ms:,.0f}" for ms in times)
        print(f"| {'head and tail' if with_head else 'tail'} | {name} | {cells} |", flush=True)
    print(f"\nPeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB")


if __name__ == "__main__":
    main()
