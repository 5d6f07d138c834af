"""CUDA graphs compute what the model computes, bit for bit, at all lengths and batch sizes, in one pool of memory."""

from contextlib import nullcontext

import pytest
import torch

from engine.data.batches import rounded
from engine.model.encoder import FeatureHead, load_encoder
from engine.model.features import FeatureModel
from engine.model.recompute import seed_dropout
from engine.peak_memory import forget_peak, memory_bytes
from engine.training.graphs import GraphedPass

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SHAPES = [(16, 48), (16, 8), (5, 48), (16, 24), (16, 48), (16, 8)]
WIDTH, LOCAL = 32, 8


def test_lengths_are_few_and_little_longer():
    lengths = [rounded(tokens, 512) for tokens in range(1, 513)]
    assert all(tokens <= length <= max(tokens + 3, 1.125 * tokens) for tokens, length in enumerate(lengths, 1))
    assert len(set(lengths)) == 40 and lengths == sorted(lengths)
    assert rounded(97, 100) == 100 and rounded(3, 3) == 3 and rounded(1, 512) == 4


@pytest.fixture
def model(tiny_encoder):
    encoder = load_encoder(tiny_encoder, "mean", torch.bfloat16)
    head = FeatureHead(WIDTH, 0, 0.1)
    head.add_local(LOCAL)
    torch.nn.init.normal_(head.local.weight)
    return FeatureModel(encoder, head.bfloat16()).cuda().train()


def batch(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 25, shape, generator=generator)
    mask = torch.arange(shape[1]) < torch.randint(1, shape[1] + 1, (shape[0], 1), generator=generator)
    return ids.mul(mask).cuda(), mask.long().cuda()


def places(model):
    return [(parameter, torch.zeros_like(parameter)) for parameter in model.parameters()]


def graphed(model):
    found = GraphedPass(model, places(model), 16, 48, WIDTH + LOCAL, torch.device("cuda"), nullcontext)
    assert found.problem() is None
    return found


@pytest.mark.gpu
@on_gpu
def test_the_same_features_and_gradients_as_without(model):
    passes = graphed(model)
    for seed, shape in enumerate(SHAPES):
        inputs, gradient = batch(shape, seed), torch.randn(shape[0], WIDTH + LOCAL, device="cuda")
        found = passes.features(inputs, seed).clone()
        passes.backward(gradient)
        seed_dropout(seed, torch.device("cuda"))
        wanted = model(inputs).float()
        wanted.backward(gradient)
        assert torch.equal(found, wanted)
        for own, parameter in zip(passes.gradients, model.parameters(), strict=True):
            wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(own, wanted)
        model.zero_grad()
    assert len(passes.recorded) == len(set(SHAPES))


@pytest.mark.gpu
@on_gpu
def test_shorter_batches_take_no_memory_of_their_own(model):
    passes = graphed(model)
    forget_peak(torch.device("cuda"))
    for shape in SHAPES[:1]:
        passes.features(batch(shape, 0), 0)
        passes.backward(torch.ones(shape[0], WIDTH + LOCAL, device="cuda"))
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    for shape in SHAPES[1:]:
        passes.features(batch(shape, 0), 0)
        passes.backward(torch.ones(shape[0], WIDTH + LOCAL, device="cuda"))
    assert torch.cuda.memory_reserved() == before
    taken = memory_bytes(torch.device("cuda"))
    assert taken >= torch.cuda.memory_allocated() + 2 * 2**20
    del passes
    assert memory_bytes(torch.device("cuda")) == taken


@pytest.mark.gpu
@on_gpu
def test_a_model_that_waits_for_the_device_is_said_to_be_unfit(model):
    class Waits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, inputs):
            return self.inner(inputs) * (1.0 if inputs[0].sum().item() else 0.0)

    passes = GraphedPass(Waits(), places(model), 4, 16, WIDTH + LOCAL, torch.device("cuda"), nullcontext)
    assert "synchronizing" in passes.problem()
    assert model(batch((4, 16), 0)).isfinite().all()  # the device goes on


@pytest.mark.gpu
@on_gpu
def test_memory_that_runs_out_while_a_pass_is_recorded_leaves_the_device_as_it_was(model):
    passes, inputs = graphed(model), batch((16, 48), 0)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            passes.features(inputs, 0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    model(inputs).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    model.zero_grad()
    wanted = passes.features(inputs, 3).clone()
    seed_dropout(3, torch.device("cuda"))
    assert torch.equal(wanted, model(inputs).float())
