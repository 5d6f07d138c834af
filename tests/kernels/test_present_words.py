"""Of the words that labels read a step multiplies those that a text of the batch has: it does what the step of all of
them does, and nothing to the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.kernels import products, reference
from engine.kernels.layer import FP8, LabelLayer, Positives, StepOptions
from engine.kernels.optimizers import new_state
from engine.kernels.products import Columns, Dense, Expanded, Gathered, Product, block_rows

WIDTH, VOCABULARY, LABELS, BATCH, GROUP, WORDS = 40, 60, 37, 6, 4, 20  # the last group is short
KINDS = {
    "all words": (None, VOCABULARY), "dense features": (WIDTH, WORDS), "expanded features": (30, WORDS),
    "gathered features": (2, WORDS),
}  # fmt: skip


def make_layer(kind="dense features", optimizer="rowwise", dtype=torch.float32):
    """One that reads all words, or groups that read every third word or so, beside all features or one of them."""
    generator = torch.Generator().manual_seed(0)
    fan_in, words = KINDS[kind]
    index = None
    if fan_in:
        groups = -(-LABELS // GROUP)
        columns = [torch.rand(groups, n, generator=generator) for n in (WIDTH, VOCABULARY)]
        features_KF, words_KW = (
            noise.topk(count, dim=1).indices.sort(dim=1).values
            for noise, count in zip(columns, (fan_in, words), strict=True)
        )
        index = torch.cat([features_KF, words_KW + WIDTH], dim=1).to(torch.uint16)
    value = torch.randn(LABELS, (fan_in or WIDTH) + words, generator=generator) * 0.1
    weight = (value * (32 if dtype == FP8 else 1)).to(dtype)
    return LabelLayer(weight, torch.full((LABELS,), -2.0), index, GROUP, 0, new_state(optimizer, weight, words), words)


def make_x(seed, share=0.07):
    generator = torch.Generator().manual_seed(seed)
    x_BX = torch.randn(BATCH, WIDTH + VOCABULARY, generator=generator)
    x_BX[:, WIDTH:] *= torch.rand(BATCH, VOCABULARY, generator=generator) < share
    return x_BX


def each_its_own():
    return Positives.from_rows(np.arange(BATCH + 1), np.arange(BATCH) * 6)


def read_by(layer):
    """Columns of x by row of the layer, int64 [L, F]."""
    if layer.index is None:
        return torch.arange(WIDTH + VOCABULARY).expand(LABELS, -1)
    return layer.index.long().repeat_interleave(GROUP, dim=0)[:LABELS]


def take_steps(layer, **options):
    found = []
    for number in (1, 2, 3):
        dx_BD = torch.zeros(BATCH, WIDTH)
        given = StepOptions(step=number, want_loss=True, **options)
        found += [reference.step(layer, make_x(number), each_its_own(), dx_BD, given), dx_BD]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "sgd"}, {"weight_decay": 0.1}, {"optimizer": "adamw8bit"}],
    ids=["rowwise", "sgd", "decay", "adamw8bit"],
)
def test_the_result_is_that_of_all_words(kind, options, loss, monkeypatch):
    optimizer = options.get("optimizer", "rowwise")
    some, whole = make_layer(kind, optimizer), make_layer(kind, optimizer)
    found = take_steps(some, loss=loss, **options)
    of = Columns.of
    monkeypatch.setattr(Columns, "of", lambda x_BX, layer, moves_all: of(x_BX, layer, True))
    expected = take_steps(whole, loss=loss, **options)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(some.tensors()[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, FP8])
def test_words_that_no_text_has_keep_their_bits_and_the_others_move(kind, dtype):
    layer = make_layer(kind, dtype=dtype)
    before = layer.weight.clone()
    x_BX = make_x(1, share=0.3)
    options = StepOptions(learning_rate=0.5, word_learning_rate=0.5)
    reference.step(layer, x_BX, each_its_own(), torch.zeros(BATCH, WIDTH), options)
    occurs = (x_BX != 0).any(dim=0)[read_by(layer)]
    same = layer.weight.float() == before.float()
    assert 0 < int((~occurs).sum()) < occurs.numel()
    assert same[~occurs].all()
    assert (~same[occurs]).float().mean() > 0.9


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_where_weights_decay_those_of_all_words_do(weight_decay):
    layer = make_layer()
    before = layer.weight.clone()
    given = StepOptions(learning_rate=0.5, word_learning_rate=0.5, weight_decay=weight_decay)
    reference.step(layer, make_x(1, share=0.0), each_its_own(), torch.zeros(BATCH, WIDTH), given)
    words = slice(WIDTH, None)
    torch.testing.assert_close(layer.weight[:, words], before[:, words] * (1 - 0.5 * weight_decay))


def test_only_words_of_the_batch_are_multiplied():
    x_BX = make_x(1)
    occurs = (x_BX != 0).any(dim=0)
    layer = make_layer("all words")
    assert len(product_of(layer, x_BX).parts[1].x_CB) == int(occurs[WIDTH:].sum()) < VOCABULARY
    layer = make_layer()
    most = int(occurs[layer.index[:, WIDTH:].long()].sum(dim=1).max())
    assert product_of(layer, x_BX).parts[1].x_KCB.shape == (len(layer.index), most, BATCH)
    assert 0 < most < WORDS


def product_of(layer, x_BX):
    return Product(layer, 0, layer.labels, Columns.of(x_BX, layer, moves_all=False))


def test_a_group_may_have_all_its_words_beside_others_that_have_none():
    layer = make_layer()
    x_BX = make_x(1, share=0.0)
    x_BX[:, layer.index[3, WIDTH:].long()] = 1.0
    product = product_of(layer, x_BX)
    assert product.parts[1].x_KCB.shape[1] == WORDS
    read_LX = torch.zeros(LABELS, WIDTH + VOCABULARY).scatter_(1, read_by(layer), layer.weight)
    torch.testing.assert_close(product.logits(), read_LX @ x_BX.T + layer.bias[:, None])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_any_word_trains_the_features(kind):
    layer = make_layer(kind)
    before, features = layer.weight.clone(), layer.features
    reference.step(layer, make_x(1, share=0.0), each_its_own(), torch.zeros(BATCH, WIDTH), StepOptions())
    assert (layer.weight != before)[:, :features].all()
    assert torch.equal(layer.weight[:, features:], before[:, features:])


@pytest.mark.parametrize("share", [0.0, 0.07, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, FP8])
def test_the_best_labels_are_those_of_all_logits(kind, share, dtype):
    layer, x_BX = make_layer(kind, dtype=dtype), make_x(1, share)
    weight_LX = torch.zeros(LABELS, WIDTH + VOCABULARY).scatter_(1, read_by(layer), layer.rows(0, LABELS))
    logits_BL = x_BX @ weight_LX.T + layer.bias
    value, label = reference.topk([layer], x_BX, 5)
    torch.testing.assert_close(value, logits_BL.topk(5).values)
    torch.testing.assert_close(logits_BL.gather(1, label), value)


@pytest.mark.parametrize(
    ("fan_in", "group", "expected"), [(WIDTH, 4, Dense), (7, 1, Expanded), (1, 64, Gathered)], ids=str
)
def test_features_are_multiplied_in_the_way_that_suits_them(fan_in, group, expected):
    index = torch.arange(WIDTH - fan_in, WIDTH).expand(-(-LABELS // group), -1).to(torch.uint16)
    layer = LabelLayer(torch.zeros(LABELS, fan_in), torch.zeros(LABELS), index, group)
    assert type(product_of(layer, torch.ones(BATCH, WIDTH)).parts[0]) is expected


def test_blocks_are_cut_by_the_words_that_groups_have(monkeypatch):
    monkeypatch.setitem(products.BLOCK_BYTES, "cpu", 4 * GROUP * 2 * WORDS)  # for their int64 columns
    layer = make_layer("gathered features")
    few, many = (Columns.of(make_x(1, share), layer, moves_all=False) for share in (0.03, 1.0))
    assert many.words_read == WORDS > few.words_read > 0
    assert block_rows(layer, many, 1) == GROUP < block_rows(layer, few, 1)


def test_a_group_that_was_not_looked_at_may_have_more_words(monkeypatch):
    groups, words, block = 300, 64, 16 * 1024
    monkeypatch.setitem(products.BLOCK_BYTES, "cpu", block)
    index = torch.arange(1, words + 2).repeat(groups, 1)
    index[:, 0] = torch.arange(groups) % 2  # the feature
    index[1, 1:] += words  # of all groups this one has all its words
    layer = LabelLayer(
        torch.ones(groups * GROUP, words + 1), torch.zeros(groups * GROUP), index.to(torch.uint16), GROUP
    )
    layer.words = words
    x_BX = torch.zeros(BATCH, 2 + 2 * words)
    x_BX[:, 1] = 1.0
    x_BX[:, 2 + words :] = 1.0
    x = Columns.of(x_BX, layer, moves_all=False)
    assert x.words_read < 2
    rows = block_rows(layer, x, 1)
    product = Product(layer, 0, rows, x)
    assert product.parts[1].x_KCB.shape[1] >= words - 1
    assert block < product.parts[1].x_KCB.nbytes <= products.UNFORESEEN * block
    value, label = reference.topk([layer], x_BX, GROUP)
    assert (label // GROUP == 1).all() and (value > words - 2).all()


def test_which_layers_read_all_words():
    assert make_layer("all words").reads_all
    assert not replace(make_layer("all words"), words=0).reads_all
    assert not make_layer().reads_all
