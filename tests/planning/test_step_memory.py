"""What a step and a search in plain torch take for a moment, predicted and measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from engine.kernels import products, reference
from engine.kernels.layer import Positives, StepOptions
from engine.model.classifier import Classifier, ClassifierShape
from engine.planning import classifier_memory
from engine.planning.classifier_memory import StepSetting, step_bytes, topk_bytes

LABELS, WIDTH, VOCABULARY, BATCH, BLOCK = 2000, 128, 1500, 32, 128 * 1024


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for module in (products, classifier_memory):
        monkeypatch.setitem(module.BLOCK_BYTES, "cpu", BLOCK)


def peak_bytes(function) -> int:
    """Most that `function` had allocated at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(sizes).max())


def one_layer(fan_in, group, words, dtype, optimizer):
    """(the layer, its shape as the planner has it): labels that read all words where fan_in is None."""
    lead = LABELS // 50 if fan_in is None else 0
    labels = lead or LABELS
    vocabulary = VOCABULARY if words or lead else 0
    head = labels if lead or (fan_in == WIDTH and not words) else 0
    shape = ClassifierShape(
        labels, head, WIDTH, fan_in or WIDTH, group, optimizer, dtype, words, 0, vocabulary, lead=lead
    )
    (layer,) = Classifier.new(shape, reference, "cpu", seed=0).layers
    if words:
        random = torch.Generator().manual_seed(1)
        read = torch.rand(len(layer.index), VOCABULARY, generator=random).topk(words, dim=1).indices
        layer.index[:, layer.features :] = (read.sort(dim=1).values + WIDTH).to(layer.index.dtype)
    return layer, (labels, layer.fan_in, 0 if layer.index is None else group, dtype, layer.words)


@pytest.mark.parametrize(
    ("fan_in", "group", "words"),
    [
        pytest.param(WIDTH, 16, 0, id="dense"),
        pytest.param(16, 16, 0, id="gathered"),
        pytest.param(32, 1, 0, id="expanded"),
        pytest.param(16, 16, 128, id="gathered, words"),
        pytest.param(WIDTH, 32, 256, id="all features, words"),
        pytest.param(None, 16, 0, id="all words"),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "optimizer", "weight_decay"),
    [("fp32", "rowwise", 0.0), ("fp32", "rowwise", 0.1), ("bf16", "rowwise", 0.0), ("fp8", "sgd", 0.0),
     ("fp32", "adamw8bit", 0.0)],
)  # fmt: skip
@pytest.mark.parametrize("wants_dx", [True, False])
def test_predicted_is_what_is_taken_and_not_much_more(fan_in, group, words, dtype, optimizer, weight_decay, wants_dx):
    layer, shape = one_layer(fan_in, group, words, dtype, optimizer)
    vocabulary = VOCABULARY if layer.words else 0
    random = torch.Generator().manual_seed(2)
    x_XB = torch.rand(WIDTH + vocabulary, BATCH, generator=random)
    x_XB[WIDTH:] *= torch.rand(vocabulary, 1, generator=random) < 0.5
    x_BX = x_XB.T if vocabulary else x_XB.T.contiguous()
    positives = Positives.from_rows(np.arange(BATCH + 1), np.arange(BATCH))
    options = StepOptions(optimizer=optimizer, weight_decay=weight_decay, wants_dx=wants_dx, want_loss=True)
    dx_BD = torch.zeros(BATCH, WIDTH)
    moves_all = weight_decay > 0 or optimizer == "adamw8bit"
    tokens = 1000  # as many as have all the words that a label reads
    setting = StepSetting(WIDTH, 0, vocabulary, BATCH, tokens, "torch", "cpu", optimizer, moves_all, wants_dx)
    step = peak_bytes(lambda: reference.step(layer, x_BX, positives, dx_BD, options))
    search = peak_bytes(lambda: reference.topk([layer], x_BX, 5))
    assert step <= step_bytes(shape, setting) <= 2 * step + BLOCK
    assert search <= topk_bytes(shape, setting, 5) <= 2 * search + BLOCK
