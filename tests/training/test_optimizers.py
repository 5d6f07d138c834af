"""The flat optimizer: exact master weights in two halves, the same step with and without whole gradients."""

import gc
import weakref

import pytest
import torch

from engine.config import RunConfig
from engine.kernels.adamw8bit import QUANTIZATION_BLOCK
from engine.model.encoder import FeatureHead, load_encoder
from engine.model.features import FeatureModel
from engine.training.optimizers import join, make_optimizer, split
from tiny import make_encoder

CPU = torch.device("cpu")
WANTED = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
TOKENS = (torch.arange(5, 21).view(2, 8), torch.ones(2, 8, dtype=torch.int64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def new_model(folder, intermediate=0) -> FeatureModel:
    torch.manual_seed(0)
    encoder = load_encoder(folder, "mean", torch.float32)
    return FeatureModel(encoder, FeatureHead(encoder.width, intermediate, 0.0))


def optimizer_of(model, *, dtype=torch.bfloat16, in_backward=False, scales=False, **settings):
    values = {"encoder.optimizer": "adamw", "encoder.learning_rate": 1e-3, "encoder.clip_norm": 0.0, **settings}
    return make_optimizer(model, RunConfig.from_flat(values), CPU, dtype, in_backward, scales)


def take_steps(model, optimizer, count=3) -> None:
    for step in range(1, count + 1):
        with optimizer.stepping(step, 1.0):
            model(TOKENS).backward(optimizer.scaled(WANTED))


def masters(optimizer) -> list[torch.Tensor]:
    return [s.value.clone() if s.low is None else join(s.value, s.low) for s in optimizer.segments]


def test_two_halves_are_the_fp32_weight_bit_by_bit():
    torch.manual_seed(0)
    weight = torch.randn(100_000) * torch.logspace(-30, 30, 100_000)
    weight = torch.cat([weight, torch.tensor([0.0, -0.0, 1.0, 1.00390625, -1.01171875, 1e-40])])
    value, low = split(weight.clone())
    assert torch.equal(join(value, low).view(torch.int32), weight.view(torch.int32))
    assert torch.allclose(value.float(), weight, rtol=2**-8)


def test_parameters_become_views_and_keep_their_values(folder):
    model = new_model(folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = optimizer_of(model)
    for segment, master in zip(optimizer.segments, masters(optimizer), strict=True):
        assert torch.isfinite(master).all()  # also between the slots
        for parameter, slot in segment.slots:
            assert slot.start % QUANTIZATION_BLOCK == 0
            assert parameter.data_ptr() == segment.value[slot].data_ptr()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.detach().float(), before[name], rtol=2**-8), name


def test_fp32_adamw_is_torchs(folder):
    model, other = new_model(folder), new_model(folder)
    take_steps(model, optimizer_of(model, dtype=torch.float32))
    groups = [
        {"params": [p for p in other.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in other.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-3)
    for _ in range(3):
        other(TOKENS).backward(WANTED)
        adamw.step()
        adamw.zero_grad()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if not name.endswith("key.bias"):  # attention does not see it: its gradient is rounding errors
            assert torch.allclose(mine, theirs, atol=1e-6), name


def test_updates_below_the_spacing_of_bf16_add_up(folder):
    """A bf16 weight of 1 does not feel a step of 1e-5; its master does."""
    model = new_model(folder)
    optimizer = optimizer_of(model, **{"encoder.learning_rate": 1e-5, "encoder.weight_decay": 0.0})
    before = masters(optimizer)
    ones = optimizer.segments[1].value == 1.0
    take_steps(model, optimizer, 50)
    moved = (masters(optimizer)[1] - before[1])[ones].abs()
    assert moved.median() > 1e-4


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
def test_stepping_in_backward_gives_the_same_weights_and_keeps_no_matrix_gradient(folder, kind):
    whole, parts = new_model(folder), new_model(folder)
    one = optimizer_of(whole, **{"encoder.optimizer": kind})
    other = optimizer_of(parts, in_backward=True, **{"encoder.optimizer": kind})
    take_steps(whole, one)
    take_steps(parts, other)
    for segment, mine, theirs in zip(one.segments, masters(one), masters(other), strict=True):
        for _, slot in segment.slots:
            assert torch.equal(mine[slot], theirs[slot])
    assert torch.allclose(one.grad_norm, other.grad_norm, rtol=1e-3)
    assert all(p.grad is None for p in parts.parameters() if p.ndim > 1)


def test_gradients_are_clipped_to_the_norm(folder):
    model = new_model(folder)
    optimizer = optimizer_of(model, **{"encoder.clip_norm": 1.0})
    with optimizer.stepping(1, 1.0):
        x_BD = model(TOKENS)
        x_BD.backward(optimizer.scaled(1000 * WANTED))
    norm = float(optimizer.grad_norm)
    moments = torch.cat([segment.moments["moment1"] for segment in optimizer.segments])
    assert norm > 10
    assert float(moments.norm()) == pytest.approx(0.1, rel=1e-2)  # (1 - beta1) of a gradient of norm 1


def test_an_infinite_scaled_gradient_skips_the_step_and_halves_the_scale(folder):
    model = new_model(folder)
    optimizer = optimizer_of(model, dtype=torch.float32, scales=True)
    before, scale = masters(optimizer), optimizer.scale
    with optimizer.stepping(1, 1.0):
        x_BD = model(TOKENS)
        x_BD.backward(optimizer.scaled(torch.full_like(x_BD, torch.inf)))
    assert optimizer.scale == scale / 2
    assert all(torch.equal(a, b) for a, b in zip(before, masters(optimizer), strict=True))
    take_steps(model, optimizer)
    assert not all(torch.equal(a, b) for a, b in zip(before, masters(optimizer), strict=True))


def test_scaling_does_not_change_the_result(folder):
    plain, scaled = new_model(folder), new_model(folder)
    one = optimizer_of(plain, dtype=torch.float32)
    other = optimizer_of(scaled, dtype=torch.float32, scales=True)
    take_steps(plain, one)
    take_steps(scaled, other)
    for mine, theirs in zip(masters(one), masters(other), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_a_parameter_takes_six_bytes_beside_its_gradient_of_two(folder):
    model = new_model(folder)
    optimizer = optimizer_of(model, **{"encoder.optimizer": "adamw8bit"})
    matrices = optimizer.segments[0]
    size = sum(tensor.nbytes for tensor in matrices.tensors().values())
    assert size / len(matrices.value) <= 6.1
    model(TOKENS).sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.bfloat16}


def test_the_intermediate_layer_has_its_own_rate_and_no_decay(folder):
    optimizer = optimizer_of(new_model(folder, 48), **{"intermediate.learning_rate": 0.5})
    named = {segment.name: segment for segment in optimizer.segments}
    assert named["intermediate.matrices"].learning_rate == 0.5
    assert named["intermediate.matrices"].weight_decay == 0.0
    assert named["encoder.matrices"].weight_decay == 0.01
    assert named["encoder.vectors"].weight_decay == 0.0


def test_the_adapter_has_its_own_rate_and_no_decay():
    head = FeatureHead(16, 0, 0.0)
    head.add_adapter(64)
    named = {s.name: s for s in optimizer_of(FeatureModel(None, head), **{"adapter.learning_rate": 0.25}).segments}
    assert {"adapter.matrices", "adapter.vectors"} == set(named)
    assert named["adapter.matrices"].learning_rate == 0.25
    assert named["adapter.matrices"].weight_decay == 0.0


def test_the_update_in_backward_keeps_nothing_alive(folder):
    """The parameters' hooks must not hold the optimizer whose buckets hold the parameters."""
    model = new_model(folder)
    optimizer = optimizer_of(model, in_backward=True)
    value = weakref.ref(optimizer.segments[0].value)
    del model, optimizer
    gc.collect()
    assert value() is None


@pytest.mark.parametrize("settings", [{}, {"encoder.optimizer": "adamw8bit"}, {"encoder.clip_norm": 0.1}])
def test_gradients_at_fixed_places_move_weights_as_those_of_the_parameters(folder, settings):
    usual, fixed = new_model(folder, intermediate=16), new_model(folder, intermediate=16)
    one, other = optimizer_of(usual, **settings), optimizer_of(fixed, **settings)
    wanted = WANTED[:, :16]
    for step in range(1, 4):
        with one.stepping(step, 1.0):
            usual(TOKENS).backward(one.scaled(wanted))
        places = other.keep_gradients()
        assert {id(parameter) for parameter, _ in places} == {id(p) for p in fixed.parameters()}
        with other.stepping(step, 1.0):
            fixed(TOKENS).backward(other.scaled(wanted))
            for parameter, place in places:
                if parameter.grad is not None:
                    place.copy_(parameter.grad)
        torch.testing.assert_close(one.grad_norm, other.grad_norm, rtol=1e-5, atol=0)
    for mine, theirs in zip(masters(one), masters(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    other.drop_gradients()
    assert all(segment.kept is None for segment in other.segments)
