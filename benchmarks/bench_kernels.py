"""Times the fused GPU kernels beside what bounds them and beside the dense scheme they replace.

    python benchmarks/bench_kernels.py [--section ceilings|step|tiles|topk ...] [--output FILE]

Prints Markdown tables with the machine, the versions and the command. Times are medians of CUDA-event
measurements (triton.testing.do_bench) after a warm-up. "Floor": the larger of the bytes that have to cross
device memory (weights read and written once, feature ids, 12 bytes of bias and second moment each way) at the
copy rate measured in the same process, and the operations of the three products at the measured bf16 rate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels import triton_backend
from engine.kernels.layer import FP8, LabelLayer, Positives, StepOptions
from engine.kernels.optimizers import new_state
from engine.kernels.triton_backend import Tile

WIDTH, BATCH = 768, 128
LINES: list[str] = []


def say(line: str = "") -> None:
    print(line, flush=True)
    LINES.append(line)


def milliseconds(run: Callable[[], object]) -> float:
    return triton.testing.do_bench(run, warmup=10, rep=60, return_mode="median")


@cache
def ceilings() -> tuple[float, float]:
    """(bytes/s of a device-to-device copy, operations/s of a large bf16 product)"""
    source = torch.empty(2**30, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) * 1e3
    a_NN = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return copy, 2 * 8192**3 / milliseconds(lambda: a_NN @ a_NN) * 1e3


def random_index(groups: int, fan_in: int) -> Tensor:
    index = torch.empty(groups, fan_in, dtype=torch.int16, device="cuda")
    for part in index.split(100_000):
        part[:] = torch.rand(len(part), WIDTH, device="cuda").topk(fan_in, dim=1).indices.sort(dim=1).values
    return index


def make_layer(labels: int, fan_in: int | None, group: int, dtype: torch.dtype = torch.bfloat16) -> LabelLayer:
    weight = torch.empty(labels, fan_in or WIDTH, dtype=dtype, device="cuda")
    for part in weight.split(2**22):
        part[:] = (torch.randn(part.shape, device="cuda") * (0.64 if dtype == FP8 else 0.02)).to(dtype)
    index = None if fan_in is None else random_index(-(-labels // group), fan_in)
    return LabelLayer(weight, torch.full((labels,), -6.0, device="cuda"), index, group, 0, new_state("rowwise", weight))


@cache
def batch_of(labels: int, batch: int = BATCH) -> tuple[Tensor, Positives]:
    """Random features and five labels an instance."""
    label = np.random.default_rng(0).integers(0, labels, 5 * batch)
    x_BD = torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(0)).cuda()
    return x_BD, Positives.from_rows(np.arange(0, 5 * batch + 1, 5), label, "cuda")


def floor(layer: LabelLayer, batch: int = BATCH) -> str:
    """What bounds a step of the layer."""
    moved = 2 * layer.weight.nbytes + 24 * layer.labels + (0 if layer.index is None else layer.index.nbytes)
    operations = 6 * layer.weight.numel() * batch
    copy, product = ceilings()
    times = moved / copy * 1e3, operations / product * 1e3
    return f"{max(times):.2f} ({'bytes' if times[0] > times[1] else 'operations'})"


@triton.jit
def touch_kernel(index, table, F: tl.constexpr, B: tl.constexpr, MODE: tl.constexpr):
    """Only the traffic of one group with a [D, B] table: reads its rows, or adds to them, or overwrites them."""
    feature_F = tl.load(index + tl.program_id(0) * F + tl.arange(0, F)).to(tl.int32)
    at_FB = feature_F[:, None] * B + tl.arange(0, B)[None, :]
    value_FB = (feature_F[:, None] + tl.arange(0, B)[None, :]).to(table.dtype.element_ty)
    if MODE == "add":
        tl.atomic_add(table + at_FB, value_FB, sem="relaxed")
    elif MODE == "store":
        tl.store(table + at_FB, value_FB)
    else:
        total = tl.sum(tl.load(table + at_FB, eviction_policy="evict_last").to(tl.float32))
        if total == 1234.5:  # never, but the compiler cannot know
            tl.store(table, total.to(table.dtype.element_ty))


def section_ceilings() -> None:
    copy, product = ceilings()
    say("## Ceilings\n")
    say(f"Device copy {copy / 1e12:.2f} TB/s (read + written), bf16 product {product / 1e12:.0f} TFLOP/s.\n")
    say("Traffic of the features alone, L = 2,812,281, F = 128, G = 32, B = 128 (87,884 groups, no arithmetic):\n")
    say("| access to 128 rows of a [768, 128] table, a group | ms | TB/s |\n|---|---|---|")
    index = random_index(87_884, 128)
    cases = [
        ("read bf16 (features: first-level cache)", "read", torch.bfloat16),
        ("add fp32 (dx, one copy)", "add", torch.float32),
        ("add fp16 (dx, one copy)", "add", torch.float16),
        ("overwrite fp32", "store", torch.float32),
        ("overwrite bf16", "store", torch.bfloat16),
        ("add int32 (no vector instruction)", "add", torch.int32),
    ]
    for name, mode, dtype in cases:
        table = torch.zeros(WIDTH, BATCH, dtype=dtype, device="cuda")
        time = milliseconds(lambda m=mode, t=table: touch_kernel[(len(index),)](index, t, 128, BATCH, m, num_warps=4))
        say(f"| {name} | {time:.2f} | {index.numel() * BATCH * table.element_size() / time / 1e9:.2f} |")
    say()


def time_step(layer: LabelLayer, batch: int = BATCH, tile: Tile | None = None, sums=None, **options) -> float:
    x_BD, positives = batch_of(layer.labels, batch)
    dx_BD = torch.zeros_like(x_BD)
    options = StepOptions(step=3, **options)
    tile = tile or triton_backend.step_tile(layer, batch)
    return milliseconds(
        lambda: triton_backend.launch_step(layer, x_BD, positives, dx_BD, options, tile, sum_dtype=sums)
    )


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes allocated during a call, beyond those before it."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def time_dense_chunked(labels: int) -> float:
    """ELMO's scheme: a dense bf16 layer, label chunk by label chunk, SGD inside the product (rounded to nearest)."""
    weight = torch.empty(labels, WIDTH, dtype=torch.bfloat16, device="cuda").normal_(std=0.02)
    x_BD, positives = batch_of(labels)
    x_BD = x_BD.bfloat16()
    dx_BD = torch.zeros(BATCH, WIDTH, device="cuda")
    chunk = -(-labels // 8)

    def step() -> None:
        for first in range(0, labels, chunk):
            w_RD = weight[first : first + chunk]
            g_BR = (x_BD @ w_RD.T).sigmoid_()
            row, instance = positives.between(first, first + chunk)
            g_BR[instance, row] -= 1.0
            dx_BD.add_(g_BR @ w_RD)
            torch.addmm(w_RD, g_BR.T, x_BD, alpha=-1e-3 / BATCH, out=w_RD)

    return milliseconds(step)


def section_step() -> None:
    say("## One classifier step\n")
    say("D = 768, rowwise optimizer, stochastic rounding, BCE, 5 labels an instance.\n")
    say("| layer | B | step ms | floor ms | GB/s of weights | scratch MiB |\n|---|---|---|---|---|---|")
    shapes = [
        ("2,812,281 F=128 G=32 bf16", 2_812_281, 128, 32, torch.bfloat16, BATCH),
        ("2,812,281 F=128 G=64 bf16", 2_812_281, 128, 64, torch.bfloat16, BATCH),
        ("2,812,281 F=128 G=32 fp8", 2_812_281, 128, 32, FP8, BATCH),
        ("2,812,281 F=64 G=32 bf16", 2_812_281, 64, 32, torch.bfloat16, BATCH),
        ("2,812,281 F=128 G=32 bf16", 2_812_281, 128, 32, torch.bfloat16, 1000),
        ("670,091 F=128 G=32 bf16", 670_091, 128, 32, torch.bfloat16, 64),
        ("8,623,847 F=64 G=32 bf16", 8_623_847, 64, 32, torch.bfloat16, BATCH),
        ("140,000 dense bf16 (head)", 140_000, None, 1, torch.bfloat16, BATCH),
        ("100,000,000 F=64 G=32 bf16", 100_000_000, 64, 32, torch.bfloat16, BATCH),
    ]
    for name, labels, fan_in, group, dtype, batch in shapes:
        layer = make_layer(labels, fan_in, group, dtype)
        time = time_step(layer, batch)
        x_BD, positives = batch_of(labels, batch)
        dx_BD = torch.zeros_like(x_BD)
        extra = peak_bytes(lambda: triton_backend.step(layer, x_BD, positives, dx_BD, StepOptions()))  # noqa: B023
        rate = 2 * layer.weight.nbytes / time / 1e6
        say(f"| {name} | {batch} | {time:.2f} | {floor(layer, batch)} | {rate:.0f} | {extra / 2**20:.0f} |")
    say()
    layer = make_layer(2_812_281, 128, 32)
    base = time_step(layer)
    say("| variant of 2,812,281 F=128 G=32 bf16 | ms |\n|---|---|")
    say(f"| as trained | {base:.2f} |")
    say(f"| dx summed in fp32 throughout | {time_step(layer, sums=torch.float32):.2f} |")
    say(f"| deterministic | {time_step(layer, deterministic=True):.2f} |")
    say(f"| with the loss value | {time_step(layer, want_loss=True):.2f} |")
    say(f"| squared hinge | {time_step(layer, loss='squared_hinge'):.2f} |")
    say(f"| SGD | {time_step(layer, optimizer='sgd'):.2f} |")
    dense = time_dense_chunked(2_812_281)
    say(f"| dense bf16 in 8 label chunks, SGD, torch (ELMO's scheme, without its rounding) | {dense:.2f} |")
    say(f"\nFused sparse step against dense chunked: {dense / base:.1f} times faster.\n")
    say("Error of dx, relative to fp64, L = 200,000, F = 128, G = 32:\n")
    say("| sums | error |\n|---|---|")
    for name, sums in [("fp16 partial, fp32 total", torch.float16), ("fp32", torch.float32)]:
        say(f"| {name} | {dx_error(sums):.2e} |")
    say()


def dx_error(sums: torch.dtype) -> float:
    labels = 200_000
    layer = make_layer(labels, 128, 32)
    x_BD, positives = batch_of(labels)
    columns = layer.index.long().repeat_interleave(32, dim=0)[:labels]
    w_LD = torch.zeros(labels, WIDTH, dtype=torch.float64, device="cuda").scatter_(1, columns, layer.weight.double())
    g_BL = (x_BD.double() @ w_LD.T + layer.bias.double()).sigmoid_()
    g_BL[positives.instance, positives.label] -= 1.0
    exact = g_BL @ w_LD / BATCH
    dx_BD = torch.zeros_like(x_BD)
    tile = triton_backend.step_tile(layer, BATCH)
    triton_backend.launch_step(layer, x_BD, positives, dx_BD, StepOptions(), tile, sum_dtype=sums)
    return ((dx_BD.double() - exact).norm() / exact.norm()).item()


def section_tiles() -> None:
    """What else the tile could be; the choice in triton_backend.step_tile comes from this table."""
    say("## Tiles tried (ms)\n")
    say("| F | G | sums | rows | parts × columns | instances | warps | registers | rows are | ms |\n|" + "---|" * 10)
    for fan_in, group in [(128, 32), (128, 64), (64, 32)]:
        layer = make_layer(2_812_281, fan_in, group)
        parts, columns = (1, 64) if fan_in == 64 else (2, 64)
        tiles = [
            Tile(group, columns, parts, instances, warps, registers, labels_first)
            for instances, warps in [(128, 4), (64, 4), (128, 8)]
            for registers in {(128, 4): (None, 200, 168), (64, 4): (None, 168), (128, 8): (128,)}[instances, warps]
            for labels_first in (False, True)
        ]
        for tile in tiles:
            for sums in (
                (torch.float16, torch.float32) if tile.registers == 168 and tile.batch == 128 else (torch.float16,)
            ):
                time = time_step(layer, tile=tile, sums=sums)
                name = "fp16" if sums == torch.float16 else "fp32"
                shape = f"{parts} × {columns} | {tile.batch} | {tile.warps} | {tile.registers or 'any'}"
                shape += " | labels" if tile.labels_first else " | instances"
                say(f"| {fan_in} | {group} | {name} | {tile.rows} | {shape} | {time:.2f} |")
    say()


def section_topk() -> None:
    say("## Top-k\n")
    say("| labels | texts | k | ms | beside the weights MiB |\n|---|---|---|---|---|")
    for labels, fan_in in [(2_812_281, 128), (100_000_000, 64)]:
        layer = make_layer(labels, fan_in, 32)
        for texts, k in [(1, 10), (128, 10), (128, 100), (1000, 10)]:
            x_BD = torch.randn(texts, WIDTH, device="cuda")
            run = lambda x=x_BD, k=k: triton_backend.topk([layer], x, k)  # noqa: B023, E731
            say(f"| {labels:,} F={fan_in} | {texts} | {k} | {milliseconds(run):.2f} | {peak_bytes(run) / 2**20:.0f} |")
    say()


def main() -> None:
    sections = {
        "ceilings": section_ceilings,
        "step": section_step,
        "tiles": section_tiles,
        "topk": section_topk,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", choices=sections, nargs="+", default=["ceilings", "step", "topk"])
    parser.add_argument("--output", help="also write the tables to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    say("# Fused classifier kernels\n")
    versions = f"torch {torch.__version__}, Triton {triton.__version__}, CUDA {torch.version.cuda}"
    say(
        f"{torch.cuda.get_device_name()} · {versions} · `python benchmarks/bench_kernels.py {' '.join(sys.argv[1:])}`\n"
    )
    for name in arguments.section:
        sections[name]()
        if arguments.output:
            with open(arguments.output, "w") as file:
                file.write("\n".join(LINES))


if __name__ == "__main__":
    main()
