"""The step of labels that read every word: what the whole step does, and nothing to the words that no text has."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.kernels import all_words, reference
from engine.kernels.layer import FP8, LabelLayer, Positives, StepOptions
from engine.kernels.optimizers import new_state

FEATURES, WORDS, LABELS, BATCH = 8, 60, 5, 6


def make_layer(optimizer="rowwise", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(LABELS, FEATURES + WORDS, generator=generator) * 0.1
    weight = (value * (32 if dtype == FP8 else 1)).to(dtype)
    return LabelLayer(weight, torch.full((LABELS,), -2.0), None, 32, 0, new_state(optimizer, weight, WORDS), WORDS)


def make_x(seed):
    generator = torch.Generator().manual_seed(seed)
    x_BX = torch.randn(BATCH, FEATURES + WORDS, generator=generator)
    x_BX[:, FEATURES:] *= torch.rand(BATCH, WORDS, generator=generator) > 0.93
    return x_BX


def take_steps(step, layer, **options):
    positives = Positives.from_rows(np.arange(BATCH + 1), np.arange(BATCH) % LABELS)
    found = []
    for number in (1, 2, 3):
        dx_BD = torch.zeros(BATCH, FEATURES)
        loss = step(layer, make_x(number), positives, dx_BD, StepOptions(step=number, want_loss=True, **options))
        found += [loss, dx_BD]
    return found


@pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "sgd"}, {"weight_decay": 0.1}, {"optimizer": "adamw8bit"}],
    ids=["rowwise", "sgd", "decay", "adamw8bit"],
)
def test_the_result_is_that_of_all_columns(options, loss):
    optimizer = options.get("optimizer", "rowwise")
    whole, some = make_layer(optimizer), make_layer(optimizer)
    expected = take_steps(reference.step, whole, loss=loss, **options)
    found = take_steps(all_words.step, some, loss=loss, **options)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(some.tensors()[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, FP8])
def test_words_that_no_text_has_keep_their_bits_and_the_others_move(dtype):
    layer = make_layer(dtype=dtype)
    before = layer.weight.clone()
    positives = Positives.from_rows(np.arange(BATCH + 1), np.arange(BATCH) % LABELS)
    x_BX = make_x(1)
    options = StepOptions(learning_rate=0.5, word_learning_rate=0.5)
    all_words.step(layer, x_BX, positives, torch.zeros(BATCH, FEATURES), options)
    occurs = (x_BX != 0).any(dim=0)
    assert 0 < int((~occurs).sum()) < WORDS
    same = layer.weight.float() == before.float()
    assert same[:, ~occurs].all()
    assert (~same[:, occurs]).float().mean() > 0.9


def test_only_the_columns_of_the_batch_are_computed():
    layer, sizes = make_layer(), []
    step = reference.step

    def watched(few, x_BX, *rest):
        sizes.append((few.fan_in, few.words, few.features, few.absent, x_BX.shape[1]))
        return step(few, x_BX, *rest)

    x_BX = make_x(1)
    occurring = int((x_BX[:, FEATURES:] != 0).any(dim=0).sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "step", watched)
        positives = Positives.from_rows(np.zeros(BATCH + 1, dtype=np.int64), np.empty(0, dtype=np.int64))
        all_words.step(layer, x_BX, positives, torch.zeros(BATCH, FEATURES), StepOptions())
    columns = FEATURES + occurring
    assert sizes == [(columns, WORDS, FEATURES, WORDS - occurring, columns)]


def test_a_batch_without_any_word_trains_the_features():
    layer = make_layer()
    before = layer.weight.clone()
    x_BX = make_x(1)
    x_BX[:, FEATURES:] = 0
    positives = Positives.from_rows(np.arange(BATCH + 1), np.arange(BATCH) % LABELS)
    all_words.step(layer, x_BX, positives, torch.zeros(BATCH, FEATURES), StepOptions())
    assert (layer.weight != before)[:, :FEATURES].all()
    assert torch.equal(layer.weight[:, FEATURES:], before[:, FEATURES:])


def test_which_layers_read_all_words():
    layer = make_layer()
    assert layer.reads_all
    assert not replace(layer, words=0).reads_all
    assert not replace(layer, index=torch.zeros(1, FEATURES + WORDS, dtype=torch.int32)).reads_all
