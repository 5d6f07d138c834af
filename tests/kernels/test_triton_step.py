"""The fused classifier step against an exact one, on a GPU where there is one, else on Triton's interpreter.

The interpreter has to be chosen before Triton is first imported, so those runs get a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.kernels import reference
from engine.kernels.layer import FP8, FP8_SCALE, LabelLayer, Positives, StepOptions
from engine.kernels.optimizers import new_state

pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()
READY = ON_GPU or os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if ON_GPU else "cpu"
case = pytest.mark.skipif(not READY, reason="run on the interpreter by test_on_the_interpreter")
if READY:
    from engine.kernels import triton_backend

# stored type: (mantissa bits, exponent of the smallest normal number)
SPACING = {torch.bfloat16: (7, -126), torch.float16: (10, -14), FP8: (3, -6), torch.float32: (23, -126)}


@pytest.mark.skipif(READY, reason="the cases run in this process")
def test_on_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def make_layer(labels, width, fan_in, group, dtype=torch.bfloat16, optimizer="rowwise", start=0, seed=0, words=0):
    """fan_in None: dense. words: columns that read some of as many words again as there are features."""
    random = torch.Generator().manual_seed(seed)
    index = None
    if fan_in is not None:
        order = torch.rand(-(-labels // group), width, generator=random).argsort(dim=1)[:, :fan_in]
        index = order.sort(dim=1).values.to(torch.uint16).to(DEVICE)
    if words:
        order = torch.rand(-(-labels // group), width, generator=random).argsort(dim=1)[:, :words]
        index = torch.cat([index, (width + order.sort(dim=1).values).to(torch.uint16).to(DEVICE)], dim=1)
    columns = (fan_in or width) + words
    weight = torch.randn(labels, columns, generator=random) * 0.1 * (FP8_SCALE if dtype == FP8 else 1)
    weight = weight.to(dtype).to(DEVICE)
    bias = (torch.randn(labels, generator=random) - 2).to(DEVICE)
    return LabelLayer(weight, bias, index, group, start, new_state(optimizer, weight, words), words)


def copy_of(layer):
    state = {name: tensor.clone() for name, tensor in layer.state.items()}
    return replace(layer, weight=layer.weight.clone(), bias=layer.bias.clone(), state=state)


def make_positives(rows):
    rows = [np.unique(row) for row in rows]
    offsets = np.cumsum([0] + [len(row) for row in rows])
    return Positives.from_rows(offsets, np.concatenate([*rows, np.zeros(0, np.int64)]).astype(np.int64), DEVICE)


def random_positives(layer, batch, most, seed=0):
    random = np.random.default_rng(seed)
    ids = layer.start + layer.labels + 5  # some belong to no label of this layer
    return make_positives([random.integers(0, ids, random.integers(0, most + 1)) for _ in range(batch)])


def exact_step(layer, x_BD, positives, options, dtype=torch.float64):
    """(dx of features and words, new weight, new bias, new moments {name: [L]}, loss) computed densely in `dtype`,
    without rounding weights."""
    features = range(x_BD.shape[1])
    columns = torch.tensor(features, device=DEVICE).expand(layer.labels, -1)
    if layer.index is not None:
        columns = layer.index.long().repeat_interleave(layer.group_size, dim=0)[: layer.labels]
    stored = layer.weight.to(torch.float32).to(dtype) / layer.scale
    w_LD = torch.zeros(layer.labels, x_BD.shape[1], dtype=dtype, device=DEVICE).scatter_(1, columns, stored)
    x = x_BD.to(dtype)
    z = x @ w_LD.T + layer.bias.to(dtype)
    y = torch.zeros_like(z)
    mine = (positives.label >= layer.start) & (positives.label < layer.start + layer.labels)
    y[positives.instance[mine], positives.label[mine] - layer.start] = 1
    if options.loss == "bce":
        value, g = torch.nn.functional.softplus(z) - y * z, z.sigmoid() - y
    else:
        sign = 1 - 2 * y
        value = (1 + sign * z).clamp(min=0) ** 2
        g = 2 * sign * (1 + sign * z).clamp(min=0)
    factor = options.loss_weight / len(x)
    dx = (g @ w_LD) * factor
    grad = ((g.T @ x) * factor).gather(1, columns)
    weight, moments, first_rate = stored.clone(), {}, None
    for name, part, learning_rate in (
        ("second_moment", slice(0, layer.features), options.learning_rate),
        ("word_moment", slice(layer.features, None), options.word_learning_rate),
    ):
        rate = torch.full((layer.labels,), learning_rate, dtype=dtype, device=DEVICE)
        if name in layer.state:
            old = layer.state[name].to(dtype)
            moments[name] = old + (1 - options.beta2) * (grad[:, part].square().mean(dim=1) - old)
            rate = rate / ((moments[name] / (1 - options.beta2**options.step)).sqrt() + options.eps)
        kept = 1 - learning_rate * options.weight_decay
        weight[:, part] = weight[:, part] * kept - rate[:, None] * grad[:, part]
        first_rate = rate if first_rate is None else first_rate
    bias = layer.bias.to(dtype) - first_rate * g.sum(dim=0) * factor
    return dx, weight, bias, moments, value.sum() * factor


def distance(a, b):
    """|a - b| / |b|, in fp64; infinite where a is not finite."""
    error = torch.linalg.vector_norm(a.double() - b.double()) / torch.linalg.vector_norm(b.double()).clamp(min=1e-30)
    return error.item() if torch.isfinite(error) else float("inf")


def spacing(value, dtype):
    mantissa, lowest = SPACING[dtype]
    return torch.exp2(value.abs().clamp(min=1e-38).log2().floor().clamp(min=lowest) - mantissa)


def check_step(layer, batch, positives, options=None, seed=0, width=None):
    """One step of the backend against the exact one: no worse than twice what plain 16-bit torch gets wrong."""
    options = options or StepOptions(step=3, want_loss=True, seed=7)
    random = torch.Generator().manual_seed(seed)
    x_BD = torch.randn(batch, 2 * width if layer.words else width, generator=random).to(DEVICE)
    exact = exact_step(layer, x_BD, positives, options)
    product = torch.bfloat16 if layer.weight.dtype in (torch.bfloat16, FP8) else layer.weight.dtype
    naive = exact_step(layer, x_BD, positives, options, product) if product != torch.float32 else None
    floor = 3e-5  # three tf32 products in place of an fp32 one
    before, moved = layer, copy_of(layer)
    dx_BD = torch.zeros(batch, width, device=DEVICE)
    loss = triton_backend.step(moved, x_BD, positives, dx_BD, options)
    kept = list(exact[3])
    names = ["dx", "bias step", "loss", *kept]
    got = [dx_BD, moved.bias - before.bias, loss, *(moved.state[name] for name in kept)]
    want = [exact[0][:, :width], exact[2] - before.bias.double(), exact[4], *exact[3].values()]
    rough = [None] * len(names)
    if naive is not None:
        bias_step = naive[2].double() - before.bias.double().to(product).double()
        rough = [naive[0][:, :width], bias_step, naive[4], *naive[3].values()]
    for name, a, b, c in zip(names, got, want, rough, strict=True):
        if a is None or b is None:
            continue
        bound = floor if c is None else max(2 * distance(c, b), floor)
        error = distance(a, b)
        assert error <= bound, f"{name}: relative error {error:.2e}, allowed {bound:.2e}"
    # every weight is one of the two neighbours of the exact value, given the gradient's own error
    value = moved.weight.float().double() / layer.scale
    slack = 1e-3 * (exact[1] - before.weight.float().double() / layer.scale).abs().max()
    if naive is not None:  # fp16 loses eps and second moments altogether: only where it can do the step
        most = max(options.learning_rate, options.word_learning_rate if layer.words else 0.0)
        slack = 2 * (naive[1].double() - exact[1]).abs().nan_to_num(0).max().clamp(max=most)
    nearby = exact[1].abs() + slack  # may lie beyond a power of two, where neighbours are twice as far apart
    allowed = spacing(nearby * layer.scale, layer.weight.dtype) / layer.scale + slack
    worst = ((value - exact[1]).abs() / allowed).max().item()
    assert worst <= 1.0, f"weight: {worst:.2f} of the allowed distance"
    return moved, dx_BD, loss


SHAPES = [  # labels, width, fan-in (None: dense), group, batch
    (75, 96, 48, 32, 7),  # short last group, odd fan-in, odd batch
    (64, 50, 16, 16, 1),  # one instance
    (130, 160, 128, 64, 33),
    (300, 96, 64, 128, 16),  # two programs a group
    (50, 330, 256, 32, 20),
    (70, 600, 512, 16, 5),  # a row wider than a program keeps
    (70, 101, None, 1, 9),  # dense, odd width
    (129, 96, None, 1, 70),
]


@case
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_shapes(shape, dtype):
    labels, width, fan_in, group, batch = shape
    layer = make_layer(labels, width, fan_in, group, dtype, start=11)
    check_step(layer, batch, random_positives(layer, batch, 4), width=width)


@case
@pytest.mark.parametrize("fan_in", [48, None], ids=["tail", "head"])
@pytest.mark.parametrize("dtype", [torch.float16, FP8], ids=str)
@pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
@pytest.mark.parametrize("optimizer", ["rowwise", "sgd"])
def test_options(fan_in, dtype, loss, optimizer):
    layer = make_layer(75, 96, fan_in, 32, dtype, optimizer)
    options = StepOptions(loss=loss, optimizer=optimizer, weight_decay=0.1, loss_weight=0.5, want_loss=True, step=2)
    check_step(layer, 12, random_positives(layer, 12, 5), options, width=96)


@case
@pytest.mark.parametrize(("fan_in", "words"), [(48, 32), (70, 96), (96, 40)], ids=["chunks shared", "odd", "head"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8, torch.float32], ids=str)
@pytest.mark.parametrize("optimizer", ["rowwise", "sgd"])
def test_words_have_a_step_size_and_no_dx(fan_in, words, dtype, optimizer):
    layer = make_layer(75, 96, fan_in, 32, dtype, optimizer, start=11, words=words)
    options = StepOptions(
        optimizer=optimizer, learning_rate=0.05, word_learning_rate=0.3, weight_decay=0.1, want_loss=True, step=2
    )
    check_step(layer, 9, random_positives(layer, 9, 5), options, width=96)


@case
@pytest.mark.parametrize("fan_in", [32, None], ids=["tail", "head"])
def test_positives_of_every_kind(fan_in):
    layer = make_layer(90, 64, fan_in, 32)
    everywhere = [np.array([3]) for _ in range(40)]  # a label that every instance has
    check_step(layer, 40, make_positives(everywhere), width=64)
    nowhere = [np.zeros(0, np.int64)] * 5
    check_step(layer, 5, make_positives(nowhere), width=64)
    one_has_all = [*nowhere, np.arange(90)]
    check_step(layer, 6, make_positives(one_has_all), width=64)


@case
def test_dx_is_added_to_and_the_loss_is_optional():
    layer = make_layer(40, 64, 32, 32)
    positives = random_positives(layer, 4, 3)
    x_BD = torch.randn(4, 64, device=DEVICE)
    dx_BD = torch.full((4, 64), 5.0, device=DEVICE)
    exact = exact_step(layer, x_BD, positives, StepOptions())
    assert triton_backend.step(copy_of(layer), x_BD, positives, dx_BD, StepOptions()) is None
    assert distance(dx_BD - 5.0, exact[0]) < 1e-2


@case
@pytest.mark.parametrize("readers", [0, 9])
def test_partial_sums_are_moved_before_too_many_groups_have_added_to_a_feature(readers, monkeypatch):
    """Where the groups in a row read the same features, one of them after the other."""
    layer = make_layer(9 * 16, 128, 16, 16, torch.float16)
    layer.index[:] = layer.index[0]
    layer.readers = readers
    launches = []

    class Recorded:
        def __getitem__(self, grid):
            launches.append(grid)
            return kernel[grid]

    kernel = triton_backend.step_kernel
    monkeypatch.setattr(triton_backend, "step_kernel", Recorded())
    monkeypatch.setattr(triton_backend, "PARTIAL_ADDITIONS", 1)
    monkeypatch.setattr(triton_backend, "SCRATCH_BYTES", 0)  # one copy of dx
    x_BD = torch.randn(32, 128, device=DEVICE)
    positives, options = random_positives(layer, 32, 3), StepOptions()
    expected, dx_BD = torch.zeros(32, 128, device=DEVICE), torch.zeros(32, 128, device=DEVICE)
    reference.step(copy_of(layer), x_BD, positives, expected, options)
    tile = triton_backend.step_tile(layer, 32)
    triton_backend.launch_step(layer, x_BD, positives, dx_BD, options, tile, torch.float16)
    torch.testing.assert_close(dx_BD, expected, rtol=2e-2, atol=2e-3 * float(expected.abs().max()))
    assert [grid[0] for grid in launches] == ([1] * 9 if readers else [8, 1])


@case
@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.bfloat16, 0.03), (torch.float16, 0.03), (FP8, 0.03), (torch.float16, 2.0**-17), (FP8, 1.5 * 2.0**-13)],
    ids=["bf16", "fp16", "fp8", "fp16 subnormal", "fp8 subnormal"],
)
def test_rounding_is_unbiased(dtype, size):
    """Weights that only decay, by far less than their spacing: the mean follows the exact value."""
    steps = 40
    layer = make_layer(32, 128, 128, 32, dtype, optimizer="sgd")
    layer.weight.copy_(torch.full_like(layer.weight.float(), size * layer.scale).to(dtype))
    start = layer.weight.float().double() / layer.scale
    x_BD = torch.zeros(1, 128, device=DEVICE)
    for step in range(1, steps + 1):
        options = StepOptions(optimizer="sgd", learning_rate=1e-3, weight_decay=0.5, step=step)
        triton_backend.step(layer, x_BD, make_positives([[]]), torch.zeros_like(x_BD), options)
    exact = start * (1 - 5e-4) ** steps
    error = layer.weight.float().double() / layer.scale - exact
    assert error.std() > 0, "nothing was rounded at random"
    sigmas = error.mean().abs() / (error.std() / error.numel() ** 0.5)
    assert sigmas < 5, f"mean error {error.mean():.2e} is {sigmas:.1f} standard errors"


@case
def test_noise_depends_on_seed_step_and_place_alone():
    layer = make_layer(96, 64, 32, 32)
    positives = random_positives(layer, 8, 3)
    x_BD = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def weights(**options):
        moved = copy_of(layer)
        triton_backend.step(moved, x_BD, positives, torch.zeros_like(x_BD), StepOptions(**options))
        return moved.weight.float()

    assert torch.equal(weights(seed=1, step=5), weights(seed=1, step=5))
    assert not torch.equal(weights(seed=1, step=5), weights(seed=2, step=5))
    steps = weights(optimizer="sgd", learning_rate=0.0, seed=1)
    assert torch.equal(steps, layer.weight.float()), "a weight that can be stored is not rounded away"


@case
@pytest.mark.parametrize("fan_in", [48, None], ids=["tail", "head"])
def test_deterministic_mode_repeats_its_bits(fan_in):
    labels = 40_000 if ON_GPU else 200
    layer = make_layer(labels, 96, fan_in, 32)
    positives = random_positives(layer, 50, 20)
    options = StepOptions(deterministic=True, want_loss=True, step=3, seed=7)
    runs = [check_step(layer, 50, positives, options, width=96) for _ in range(2)]
    for first, second in zip(runs[0][1:], runs[1][1:], strict=True):
        assert torch.equal(first, second)
    assert torch.equal(runs[0][0].weight.float(), runs[1][0].weight.float())
    assert torch.equal(runs[0][0].bias, runs[1][0].bias)


@case
def test_not_finite_features_are_not_hidden():
    layer = make_layer(64, 64, 32, 32)
    for bad in (float("nan"), float("inf")):
        x_BD = torch.randn(4, 64, device=DEVICE)
        x_BD[2] = bad
        dx_BD = torch.zeros_like(x_BD)
        triton_backend.step(copy_of(layer), x_BD, random_positives(layer, 4, 2), dx_BD, StepOptions())
        assert not torch.isfinite(dx_BD[2]).all()


@case
def test_what_the_kernels_do_not_cover_goes_to_the_reference():
    options = StepOptions(optimizer="sgd")
    for layer in (make_layer(20, 40, 20, 1), make_layer(64, 40, 20, 32)):
        assert not triton_backend.supports(layer, options)
        x_BD = torch.randn(3, 40, device=DEVICE)
        results = []
        for backend in (triton_backend, reference):
            moved, dx_BD = copy_of(layer), torch.zeros_like(x_BD)
            backend.step(moved, x_BD, random_positives(layer, 3, 2), dx_BD, options)
            results.append((moved.weight, dx_BD))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)
    assert triton_backend.supports(make_layer(64, 40, 32, 32), options)
    assert not triton_backend.supports(make_layer(64, 40, 32, 32), StepOptions(optimizer="adamw8bit"))


@case
def test_labels_that_read_all_words_are_trained_by_the_reference(monkeypatch):
    layer = make_layer(64, 40, 32, 32)
    layer.index, layer.words = None, 24
    assert layer.reads_all
    assert triton_backend.supports(layer)  # searched by the kernels
    assert not triton_backend.supports(layer, StepOptions())
    stepped = []
    monkeypatch.setattr(reference, "step", lambda layer, *rest: stepped.append(layer))
    triton_backend.step(layer, torch.zeros(3, 40), None, torch.zeros(3, 8), StepOptions())
    assert stepped == [layer]


needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("group", [16, 32, 64, 128])
@pytest.mark.parametrize("fan_in", [64, 128, 192])
@pytest.mark.parametrize("batch", [1, 100, 1000])
def test_larger_shapes(group, fan_in, batch):
    layer = make_layer(20_011, 384, fan_in, group, start=100)
    random = np.random.default_rng(0)
    rows = [random.integers(0, 20_111, 5) for _ in range(batch)]
    rows[0] = random.integers(100, 20_111, 5_000)
    rows[-1] = np.zeros(0, np.int64) if batch > 1 else rows[0]
    rows = [np.append(row, 777) for row in rows]
    check_step(layer, batch, make_positives(rows), width=384)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [FP8, torch.float16], ids=str)
@pytest.mark.parametrize("group", [16, 32, 64])
@pytest.mark.parametrize("fan_in", [64, 128])
def test_other_types_in_large_tiles(dtype, group, fan_in):
    layer = make_layer(5_011, 384, fan_in, group, dtype)
    check_step(layer, 128, random_positives(layer, 128, 20), width=384)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("fan_in", "words"), [(64, 256), (384, 320)], ids=["tail", "head"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8, torch.float16], ids=str)
@pytest.mark.parametrize("batch", [3, 128])
def test_words_in_large_tiles(fan_in, words, dtype, batch):
    layer = make_layer(5_011, 384, fan_in, 32, dtype, words=words)
    check_step(layer, batch, random_positives(layer, batch, 20), width=384)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("fan_in", [128, None], ids=["tail", "head"])
def test_memory_of_a_step(fan_in):
    layer = make_layer(200_000, 256, fan_in, 32)
    positives = random_positives(layer, 128, 10)
    x_BD = torch.randn(128, 256, device=DEVICE)
    dx_BD = torch.zeros_like(x_BD)
    triton_backend.step(layer, x_BD, positives, dx_BD, StepOptions())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    triton_backend.step(layer, x_BD, positives, dx_BD, StepOptions(step=2))
    grown = torch.cuda.max_memory_allocated() - before
    assert grown <= 80 * 2**20, f"{grown / 2**20:.0f} MiB beside the classifier"


@pytest.mark.gpu
@needs_gpu
def test_more_weights_than_32_bits_count():
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free device memory")
    labels, fan_in = 2**25 + 40, 64  # 2**31 weights and some
    small = make_layer(4_096, 128, fan_in, 32)
    weight = torch.zeros(labels, fan_in, dtype=torch.bfloat16, device=DEVICE)
    weight[-4_096:] = small.weight
    bias = torch.full((labels,), -30.0, device=DEVICE)
    bias[-4_096:] = small.bias
    index = torch.arange(fan_in, device=DEVICE).expand(labels // 32 + 2, -1).to(torch.uint16)
    groups = (labels - 4_096) // 32
    assert (labels - 4_096) % 32 == 8
    layer = LabelLayer(weight[: labels - 8], bias[: labels - 8], index, 32, 0, {})
    layer.weight[-4_096:], layer.bias[-4_096:] = small.weight, small.bias
    layer.index[groups : groups + 128] = small.index
    x_BD = torch.randn(16, 128, device=DEVICE)
    positives = make_positives([np.array([layer.labels - 1 - i]) for i in range(16)])
    near = make_positives([np.array([4_095 - i]) for i in range(16)])
    options = StepOptions(optimizer="sgd", learning_rate=0.5)
    moved, dx_BD = copy_of(small), torch.zeros_like(x_BD)
    triton_backend.step(moved, x_BD, near, dx_BD, options)
    far_dx_BD = torch.zeros_like(x_BD)
    triton_backend.step(layer, x_BD, positives, far_dx_BD, options)
    assert distance(layer.bias[-4_096:], moved.bias) < 1e-5
    assert distance(far_dx_BD, dx_BD) < 1e-2
    assert distance(layer.weight[-4_096:].float(), moved.weight.float()) < 1e-2
